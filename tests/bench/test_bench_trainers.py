"""What the benchmark of trainers makes of the losses' turns and of its rows."""

from collections import Counter

import pytest
from torch import Tensor, nn, tensor

from benchmarks import shown, trainers
from benchmarks.trainers import NAMES, Step, Turns


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = tensor(value)

    def forward(self, named: bool) -> Tensor | dict[str, Tensor]:
        return {"contrastive_loss": self.value} if named else self.value


def test_losses_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(trainers.time, "perf_counter", lambda: float(next(seconds)) ** 2)
    turns = Turns({"one": Constant(1.0), "two": Constant(2.0)})
    said = [turns(named=False).item() for _ in range(6)] + [turns(named=True)["contrastive_loss"].item()]
    assert [value for *_, value in turns.calls] == said
    assert all(Counter(said[i : i + 2]) == {1.0: 1, 2.0: 1} for i in (0, 2, 4))
    samples = turns.samples()
    # Of the calls 2 to 5 the squares of whose numbers are the times; those before warm up, the last has no end.
    assert sorted(samples["one"] + samples["two"]) == [1e3 * ((i + 1) ** 2 - i**2) for i in (2, 3, 4, 5)]
    assert len(samples["one"]) == len(samples["two"]) == 2


def rows(*ms: float) -> list[Step]:
    named = zip(NAMES, ms, strict=True)
    return [Step.of([time], case="a loss", implementation=name, n=8, d=4) for name, time in named]


def test_a_share_is_what_a_step_takes_more() -> None:
    ((name, n, original, own, ratio, *shares),) = trainers.lines(rows(10.0, 8.0, 6.0))
    assert (name, n, ratio, shares) == ("a loss", "8", "0.80", ["40 %", "25 %"])
    assert (original.split()[0], own.split()[0]) == ("10", "8")


def test_a_longer_step_is_named() -> None:
    assert shown.longer(rows(10.0, 10.4, 6.0)) == "More than 5 % longer than with the original: none."
    assert "longer than with the original: a loss at N = 8." in shown.longer(rows(10.0, 10.6, 6.0))
