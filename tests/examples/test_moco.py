"""The MoCo example: a few steps of it, and going on from a checkpoint."""

import argparse
import math
from pathlib import Path

import pytest
import torch

from examples import moco
from examples.digits.data import load

SMALL = ["--epochs", "4", "--batch", "128", "--queue", "300", "--dim", "16", "--momentum", "0.9", "--device", "cpu"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load(torch.device("cpu")).train_images


def options(*arguments: str) -> argparse.Namespace:
    return moco.parser().parse_args([*SMALL, *arguments])


def assert_equal(found: object, expected: object, path: str = "") -> None:
    """The same, bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name in expected:
            assert_equal(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


@pytest.mark.parametrize("loss", [(), ("--no-intra",), ("--contrastive",)], ids=["eq18", "eq17", "moco"])
def test_the_loss_falls(images: torch.Tensor, loss: tuple[str, ...]) -> None:
    trained, losses = moco.train(options(*loss), images)
    assert len(losses) == 4 * (len(images) // 128)
    assert all(math.isfinite(value) for value in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trained.queue.is_full
    assert trained.queue.features.isfinite().all()
    # The momentum encoder follows, and only that way: nothing of the loss reaches it.
    for slow, fast in zip(trained.momentum_encoder.parameters(), trained.encoder.parameters(), strict=True):
        assert slow.grad is None
        assert not torch.equal(slow, fast)


@pytest.mark.parametrize("stop", [1, 5, 9, 13])  # in the middle of an epoch, of nine steps, and at its end
def test_going_on_is_bit_equal(images: torch.Tensor, tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    _, losses = moco.train(options("--steps", "14", "--checkpoint", str(whole)), images)
    _, first = moco.train(options("--steps", str(stop), "--checkpoint", str(parts)), images)
    torch.randn(3)  # the state of the global generator does not matter
    _, rest = moco.train(options("--steps", "14", "--checkpoint", str(parts)), images)
    assert first + rest == losses
    assert_equal(*(torch.load(path, weights_only=True) for path in (parts, whole)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.pt", "whole.pt"]


def test_a_checkpoint_of_other_options_is_refused(images: torch.Tensor, tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "moco.pt")]
    moco.train(options("--steps", "1", *checkpoint), images)
    with pytest.raises(moco.OptionError, match="argument --no-intra: the checkpoint was made with 'False', got 'True'"):
        moco.train(options("--no-intra", *checkpoint), images)


def test_the_table(capsys: pytest.CaptureFixture) -> None:
    moco.main([*SMALL, "--steps", "2"])
    shown = capsys.readouterr().out
    assert "3 align + uniform, Eq. 18" in shown
    assert "untrained encoder" in shown


@pytest.mark.parametrize("wrong", [["--batch", "1"], ["--epochs", "0"], ["--batch", "5000"], ["--device", "tpu"]])
def test_wrong_options_are_named(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        moco.main([*SMALL, *wrong])
    assert f"argument {wrong[0]}: " in capsys.readouterr().err
