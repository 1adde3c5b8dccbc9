"""The paper's experiment on depths: the recipe on generated data of the right form, and the smoke test."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
import torch.distributed as dist
from ranks import Ranks

from examples.digits.config import OptionError
from examples.paper.depth import motorcycle
from examples.paper.depth.experiment import ALIGN_UNIFORM, CONTRASTIVE, OBJECTIVES, UNTRAINED
from examples.paper.depth.networks import DepthPredictor, Encoder
from examples.paper.depth.part import DEPTH
from examples.paper.depth.training import constant_error, depth_error, new_predictor
from examples.paper.depth.views import Loader, Pairs, Samples, Scale, Scenes
from examples.paper.recipes.checkpoint import Checkpoint
from examples.paper.recipes.nyu_depth import command, data, main
from examples.paper.recipes.session import Session
from examples.paper.style import svg

ALONE = Session(torch.device("cpu"), 0, 1, None)
ROWS, WIDTH, HEIGHT = 24, 20, 16
NARROW = partial(Encoder, channels=(4, 6, 8, 8, 8), hidden=8)
TRAIN = [*list(range(0, ROWS, 2)), 1, 3]


def write(folder: Path, *, scenes: int = 6, splits: bool = True, **replaced: np.ndarray) -> Path:
    """A folder with files as those of NYU-Depth V2, of few small images."""
    generator = np.random.default_rng(0)
    content = {
        "images": generator.integers(0, 256, (ROWS, 3, WIDTH, HEIGHT), dtype=np.uint8),
        "depths": generator.uniform(1, 9, (ROWS, WIDTH, HEIGHT)).astype(np.float32),
    } | replaced
    with h5py.File(folder / data.FILE, "w") as file:
        for name, values in content.items():
            file[name] = values
        if scenes:
            references = np.empty((1, ROWS), dtype=h5py.ref_dtype)
            for row in range(ROWS):
                text = np.array([[ord(letter)] for letter in f"kitchen_{row * scenes // ROWS:04}"], dtype=np.uint16)
                references[0, row] = file.create_dataset(f"#refs#/{row}", data=text).ref
            file.create_dataset("scenes", data=references, dtype=h5py.ref_dtype)
    if splits:
        rest = [row for row in range(ROWS) if row not in TRAIN]
        indices = {"trainNdxs": np.array(TRAIN)[:, None] + 1.0, "testNdxs": np.array(rest)[:, None] + 1.0}
        scipy.io.savemat(folder / data.SPLITS, indices)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe with narrow layers: the paper's have 17 million weights and more."""
    monkeypatch.setattr(command, "Encoder", NARROW)


def words(folder: Path, out: Path, *more: str) -> list[str]:
    options = ["--size", "8", "--batch", "4", "--dim", "5", "--workers", "0", "--device", "cpu", "--save-every", "1"]
    return ["--data", str(folder), "--out", str(out), *options, *more]


def results(out: Path) -> dict[str, float]:
    return {name: one["here"] for name, one in json.loads((out / "result.json").read_bytes())["results"].items()}


def test_the_file_is_read_upright_and_split_as_the_official_one(tmp_path: Path) -> None:
    found = data.load(write(tmp_path))
    with h5py.File(tmp_path / data.FILE) as file:
        images, depths = file["images"][()], file["depths"][()]
    assert found.official
    assert found.train.images.shape == (len(TRAIN), 3, HEIGHT, WIDTH)
    assert found.held_out.depths.shape == (ROWS - len(TRAIN), 1, HEIGHT, WIDTH)
    np.testing.assert_array_equal(found.train.images[-1, :, 3, 7], images[TRAIN[-1], :, 7, 3])
    np.testing.assert_array_equal(found.held_out.depths[0, 0, 3, 7], depths[5, 7, 3])


def test_without_the_official_split_scenes_stay_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, splits=False)
    with h5py.File(folder / data.FILE) as file:
        train, held_out = data.scene_split(file, folder)
    assert len(train) == 12  # of 24 images in six scenes; 795 / 1449 of them are 13.2
    assert sorted([*train, *held_out]) == list(range(ROWS))
    assert not {row // 4 for row in train} & {row // 4 for row in held_out}
    assert not data.load(folder).official


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param({"depths": np.ones((ROWS, 3, 3), np.float32)}, r"depths \(24, 3, 3\)", id="shapes"),
        pytest.param({"images": np.ones((ROWS, 3, WIDTH, HEIGHT))}, "of float64 and depths", id="dtype"),
        pytest.param({"images": np.ones(3)}, "must have images of 4 dimensions", id="dimensions"),
        pytest.param({"splits": False, "scenes": 0}, r"must have scenes if there is no splits\.mat", id="no-scenes"),
        pytest.param({"splits": False, "scenes": 1}, "images of several scenes", id="one-scene"),
    ],
)
def test_wrong_content_is_named(files: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=said):
        data.load(write(tmp_path, **files))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"nyu_depth_v2_labeled\.mat \(2\.8 GB, https://cs\.nyu"):
        data.load(tmp_path)
    (tmp_path / data.FILE).write_bytes(b"<html>")
    with pytest.raises(OptionError, match="must be the HDF5 file"):
        data.load(tmp_path)
    write(tmp_path)
    scipy.io.savemat(tmp_path / data.SPLITS, {"trainNdxs": np.array([1, 2]), "testNdxs": np.array([2, 3])})
    with pytest.raises(OptionError, match="must split 24 images in two"):
        data.load(tmp_path)
    scipy.io.savemat(tmp_path / data.SPLITS, {"trainNdxs": np.array([1, 2])})
    with pytest.raises(OptionError, match="must have trainNdxs and testNdxs"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--size", "20"],
        ["--batch", "15"],
        ["--temperature", "0"],
        ["--align-weight", "-1"],
        ["--align-weight", "0", "--uniform-weight", "0"],
        ["--probe-epochs", "0"],
    ],
    ids=["size", "batch", "temperature", "weight", "no-loss", "probe-epochs"],
)
def test_wrong_options_are_named(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words(write(tmp_path), tmp_path / "out", *wrong))
    assert ended.value.code == 2
    assert f"argument {wrong[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out" / "result.json").mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(words(write(tmp_path), tmp_path / "out"))
    assert "argument --out: result.json is a folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]


@pytest.mark.usefixtures("small")
def test_a_trial_shows_the_published_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(words(write(tmp_path), tmp_path / "out", "--steps", "2")) == 0
    said = capsys.readouterr().out
    assert "a trial of a few steps" in said
    assert "0.7014" in said
    found = results(tmp_path / "out")
    assert {"conv5, MSE", "conv4, MSE", "mean depth, MSE", "alignment", "uniformity"} == set(found)
    loaded = data.load(tmp_path)
    middles = loaded.held_out.resized(8).depths[..., :, 2:10]  # 9 x 11 pixels, of which the middle is seen
    assert found["mean depth, MSE"] == pytest.approx(middles.var().item(), rel=0.2)


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, options = write(tmp_path), ["--epochs", "6", "--probe-epochs", "2"]
    main(words(folder, tmp_path / "whole", *options))
    save = Checkpoint.save
    for seed, kept in enumerate((1, 4)):  # in the encoder before its rate falls; then in the first predictor
        left = iter(range(kept))

        def stop(self: Checkpoint, *args: object, left: Iterator[int] = left) -> None:
            save(self, *args)
            if next(left, None) is None:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoint, "save", stop)
            assert main(words(folder, tmp_path / "parts", *options)) == 130
        assert not (tmp_path / "parts" / "result.json").exists()
        torch.manual_seed(seed)
    main(words(folder, tmp_path / "parts", *options))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    first, second = (
        torch.load(tmp_path / part / "encoder.pt", weights_only=True)["parts"]["model"] for part in ("whole", "parts")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(SystemExit):
        main(words(folder, tmp_path / "parts", *options, "--temperature", "0.2"))
    (folder / data.SPLITS).unlink()  # another split is another run
    with pytest.raises(SystemExit):
        main(words(folder, tmp_path / "parts", *options))
    assert "was made with 'official split', got 'split by scenes'" in capsys.readouterr().err


def run_of_rank(rank: int, told: list[str]) -> int:
    """The command in one of two processes that are a group already, not under torchrun."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANK", str(rank))
        patched.setattr(dist, "init_process_group", lambda: None)
        patched.setattr(dist, "destroy_process_group", lambda: None)
        patched.setattr(command, "Encoder", NARROW)
        seen, error = [], command.depth_error

        def kept(predictor: DepthPredictor, encoder: Encoder, *others: object) -> float:
            seen.append([{**part.state_dict()} for part in (predictor, encoder)])
            return error(predictor, encoder, *others)

        patched.setattr(command, "depth_error", kept)
        assert main(told) == 0
    return [{name: value.clone() for name, value in state.items()} for pair in seen for state in pair]


def test_two_processes_evaluate_the_same_networks(tmp_path: Path, ranks: Ranks) -> None:
    """Weights and batch statistics, which are each process's own in training on a CPU."""
    told = words(write(tmp_path), tmp_path / "out", "--epochs", "2", "--probe-epochs", "2")
    first, second = ranks(2).run(run_of_rank, told)
    assert len(first) == 4
    for ours, theirs in zip(first, second, strict=True):
        assert any("running_mean" in name for name in ours)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert json.loads((tmp_path / "out" / "result.json").read_bytes())["options"]["ranks"] == 2


def test_processes_share_the_batches_of_one() -> None:
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 11

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor(index), torch.tensor(-index)

    whole = [batch.tolist() for batch, _ in Loader(ALONE, 4, seed=3)(Rows(), 5)]
    parts = [
        [batch.tolist() for batch, _ in Loader(ALONE._replace(rank=rank, ranks=2), 4, 3)(Rows(), 5)] for rank in (0, 1)
    ]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    assert len(whole) == 2
    assert whole != [batch.tolist() for batch, _ in Loader(ALONE, 4, seed=3)(Rows(), 6)]
    with pytest.raises(OptionError, match="must be a multiple of 2"):
        list(Loader(ALONE._replace(ranks=2), 3, 3)(Rows(), 5))


def test_networks_have_the_papers_shapes() -> None:
    encoder = Encoder(16, 128, hidden=8).eval()
    images = torch.rand(2, 3, 16, 16)
    assert encoder(images).shape == (2, 128)
    conv4, conv5 = encoder.activations(images, 4), encoder.activations(images, 5)
    assert (conv4.shape, conv5.shape) == ((2, 384, 4, 4), (2, 192, 2, 2))
    depths = torch.tensor([1.0, 3.0, torch.inf])
    for layer, activations in ((4, conv4), (5, conv5)):
        predictor = new_predictor(encoder, layer, depths, 0)
        assert predictor(activations).shape == (2, 1, 16, 16)
        assert (predictor.mean.item(), predictor.std.item()) == pytest.approx((2, 2**0.5))
    widths = [module.out_channels for module in predictor.modules() if isinstance(module, torch.nn.ConvTranspose2d)]
    assert widths == [96, 48, 24]


def test_a_crop_keeps_image_and_depth_together() -> None:
    images = torch.arange(20 * 30).remainder(251).view(1, 1, 20, 30).expand(4, 3, -1, -1).to(torch.uint8)
    samples = Samples(Scenes(images, images[:, :1].float()), 16, Scale((0, 0, 0), (1, 1, 1)), random=True)
    seen = [samples[index] for index in range(4)]
    for image, depth in seen:
        torch.testing.assert_close(image[:1] * 255, depth)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_errors_are_of_known_pixels() -> None:
    depths = torch.tensor([2.0, torch.nan, 4.0, 4.0]).view(1, 1, 2, 2)
    encoder = Encoder(8, 2, channels=(4,) * 5, hidden=4).eval()
    predictor = DepthPredictor(4, 0, mean=3.0, std=1.0).eval()
    torch.nn.init.zeros_(predictor.layers[-1].weight)
    torch.nn.init.zeros_(predictor.layers[-1].bias)
    assert depth_error(predictor, encoder, 5, [(torch.zeros(1, 3, 16, 16), depths)] * 2) == 1
    train = Scenes(torch.zeros(0), torch.tensor([0.0, 2.0, torch.inf]))
    assert constant_error(train, depths) == (1 + 9 + 9) / 3


def test_windows_of_the_picture_are_apart() -> None:
    train, held_out = motorcycle.load()
    assert train.images.shape[1:] == (3, motorcycle.WINDOW, motorcycle.WINDOW)
    known = train.depths[torch.isfinite(train.depths)]
    assert 1.9 < known.min() < known.max() < 5.2  # metres, by the calibration
    # No line of eight pixels of a held-out window is one of a training window.
    lines = [
        part.images.unfold(3, 8, 1)[:, :, ::4].permute(0, 2, 3, 1, 4).flatten(0, 2).flatten(1)
        for part in (train, held_out)
    ]
    assert not {line.tobytes() for line in lines[0].numpy()} & {line.tobytes() for line in lines[1].numpy()}


def test_scale_is_that_of_all_pixels() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = Scale.of(images)
    std, mean = torch.std_mean(images / 255, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(found.mean), mean)
    torch.testing.assert_close(torch.tensor(found.std), std, rtol=0.05, atol=0)


def test_views_of_a_pair_differ() -> None:
    images = torch.randint(0, 256, (2, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    x, y = Pairs(images, 8, Scale((0.5,) * 3, (0.5,) * 3), 0.08)[0]
    assert x.shape == y.shape == (3, 8, 8)
    assert not torch.equal(x, y)
    assert x.abs().max() <= 1.001


def summary(*, gain: float = 0.1, behind: float = 0.0, noise: float = 0.002) -> dict:
    """As if four seeds had found: trained encoders ``gain`` better, those of alignment and uniformity ``behind``."""
    generator, encoders = np.random.default_rng(0), {}
    for place, name in enumerate(OBJECTIVES):
        error = 0.7 - (gain if name != UNTRAINED else 0) + (behind if name == ALIGN_UNIFORM else 0) + place / 100
        means = {"alignment": 0.5 + place / 10, "uniformity": -2, "conv5": error, "conv4": error - 0.02}
        encoders[name] = {measure: list(mean + noise * generator.normal(size=4)) for measure, mean in means.items()}
    formulas = {name: str(objective) for name, objective in OBJECTIVES.items() if objective}
    return {"mean depth": 0.72, "formulas": formulas, "encoders": encoders}


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        pytest.param({}, ["holds", "holds", "does not hold", "holds"], id="as-the-paper"),
        pytest.param({"gain": -0.1}, ["does not hold", "holds", "does not hold", "holds"], id="worse-than-untrained"),
        pytest.param(
            {"behind": 0.08}, ["holds", "does not hold", "does not hold", "undecided"], id="behind-contrastive"
        ),
        pytest.param({"noise": 0.3}, ["undecided"] * 4, id="noise"),
    ],
)
def test_verdicts_follow_the_figures(found: dict, verdicts: list[str]) -> None:
    assert [claim.verdict for claim in DEPTH.claims(summary(**found))] == verdicts


def test_noise_by_seed_leaves_it_undecided() -> None:
    content = summary()
    content["encoders"][ALIGN_UNIFORM]["conv5"] = [0.3, 0.9, 0.5, 0.8]
    made = DEPTH.claims(content)
    assert [claim.verdict for claim in made[:2]] == ["undecided", "undecided"]
    assert "0.625 ± 0.275" in made[0].result


def test_the_least_of_the_part_runs_and_is_shown() -> None:
    quick = DEPTH.jobs(True)
    found = {job.name: job.run() for job in quick}
    again = quick[0]._replace(arguments={**quick[0].arguments, "names": [CONTRASTIVE]}).run()
    assert again["encoders"][CONTRASTIVE] == found[quick[0].name]["encoders"][CONTRASTIVE]  # whatever came before it
    content = json.loads(json.dumps(DEPTH.summarize(found)))
    assert set(content["encoders"]) == {UNTRAINED, ALIGN_UNIFORM, CONTRASTIVE}
    assert len(content["encoders"][CONTRASTIVE]["conv4"]) == len(quick)
    assert len(DEPTH.claims(content)) == 4
    table = DEPTH.blocks(content)["depth errors"]
    assert "| 0.5 contrastive(τ=0.1) |" in table
    assert "no encoder | | | 0.721 |" in table
    assert svg(DEPTH.figures(content)["depth"]).startswith(b"<?xml")


def test_every_objective_is_run_by_the_same_seeds() -> None:
    jobs = DEPTH.jobs(False)
    assert [job.arguments["seed"] for job in jobs] == [0, 1, 2, 3]
    assert all(job.arguments["names"] == list(OBJECTIVES) for job in jobs)
    assert all(json.loads(json.dumps(job.arguments)) == job.arguments for job in jobs)
