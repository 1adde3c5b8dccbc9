"""What a case hands out besides features, what it counts, and the turns in which its implementations are timed."""

import itertools
import types

import pytest
import torch
from torch.nn.functional import normalize

from hyperkern.bench import clock
from hyperkern.bench import run as runs
from hyperkern.bench.clock import runner
from hyperkern.bench.load import load_all
from hyperkern.bench.matrix import Matrix, Point, rounds_with_rates
from hyperkern.bench.plan import lines, plan
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, Setup
from hyperkern.catalog import CLASSES, MOCO_QUEUE

load_all()
LOSSES = [name for name, case in CASES.items() if case.truth is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_queue_has_unit_rows_and_no_gradient(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    x, y, queue = CASES["info_nce_moco"].draw(6, 8, name, "cpu", most_queue=50)
    assert (x.shape, y.shape, queue.shape) == ((6, 8), (6, 8), (50, 8))
    assert (x.requires_grad, y.requires_grad, queue.requires_grad) == (True, True, False)
    assert x.dtype == queue.dtype == dtype
    torch.testing.assert_close(queue, normalize(queue.double(), dim=-1).to(dtype))
    whole = CASES["info_nce_moco"].draw(2, 4, name, "cpu")[-1]
    assert whole.shape == (MOCO_QUEUE, 4)


@pytest.mark.parametrize(("n", "classes"), [(2, 1), (33, 16), (128, 64), (1000, CLASSES)])
def test_every_row_has_another_one_of_its_class(n: int, classes: int) -> None:
    x, labels = CASES["sup_con"].draw(n, 4, "float32", "cpu")
    assert x.shape == (n, 4)
    assert labels.tolist() == [i % classes for i in range(n)]
    assert labels.bincount().min() >= 2
    assert not labels.requires_grad


@pytest.mark.parametrize(("dtype", "kept"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
def test_a_learned_number_keeps_its_digits(dtype: str, kept: str) -> None:
    *sides, scale = CASES["clip_learned"].draw(4, 4, dtype, "cpu")
    assert {str(side.dtype) for side in sides} == {f"torch.{dtype}"}
    assert str(scale.dtype) == f"torch.{kept}"
    assert (scale.shape, scale.requires_grad) == ((), True)


def test_what_is_timed_gets_no_gradient_that_it_has_not() -> None:
    inputs = CASES["info_nce_moco"].draw(4, 4, "float32", "cpu", most_queue=9)
    seen = []

    def loss(*given: torch.Tensor) -> torch.Tensor:
        seen.append([each.requires_grad for each in given])
        return given[0].sum()

    runner(loss, inputs, "both", "cpu", 1.0)
    assert seen[0] == [True, True, False]


def test_counts_with_the_similarities_kept() -> None:
    n, d = 64, 16
    multiples = {name: CASES[name].flops(n, d, "both") / (n * n * d) for name in LOSSES if name != "info_nce_moco"}
    expected = {
        **dict.fromkeys(("uniformity", "sup_con"), 3),
        **dict.fromkeys(("uniformity_queue", "align_uniform", "info_nce", "clip", "clip_learned", "siglip"), 6),
        **dict.fromkeys(("info_nce_queue", "nt_xent", "dcl", "dclw"), 12),
    }
    assert expected.items() <= multiples.items()
    moco, setup = CASES["info_nce_moco"], Setup("info_nce_moco", "float32", n, d, "both")
    assert moco.flops(n, d, "both") == 4 * n * MOCO_QUEUE * d
    assert moco.least_bytes(setup) == 4 * d * (4 * n + MOCO_QUEUE)


@pytest.mark.usefixtures("small_rates")
def test_every_loss_is_planned_at_every_size() -> None:
    sizes = tuple(2**i for i in range(5, 15))
    matrix = Matrix(
        "cpu", tuple(LOSSES), sizes, (64,), ("float32",), names=("dense", "compiled", "hyperkern"), longest=1e9
    )
    found = plan(matrix)
    left_out = {(p.point.setup.case, p.point.setup.n) for p in found.planned if p.refusal}
    too_many = {(case, sizes[-1]) for case in ("info_nce_queue", "nt_xent", "dcl", "dclw")}
    assert left_out == too_many | {("info_nce_moco", n) for n in sizes if n > 2048}
    assert {p.point.implementation.name for p in found.planned if p.refusal} == {"dense", "compiled"}
    # Names stand apart from what follows, however long.
    text = lines(found, matrix)
    assert all(any(line.split()[:1] == [name] for line in text) for name in LOSSES)


@pytest.mark.parametrize(
    ("rounds", "most", "expected"),
    [(11, 11, 11), (31, 5, 5), (30, 11, 10), (3, 5, 3), (1, 1, 1), (0, 5, 0)],
)
def test_rates_are_measured_all_along(rounds: int, most: int, expected: int) -> None:
    found = list(rounds_with_rates(rounds, most))
    assert len(found) == expected
    assert found[:1] == [0][:expected]
    assert len({after - before for before, after in itertools.pairwise(found)}) <= 1


def test_each_round_begins_with_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rates = types.SimpleNamespace(found={"flops": []})

    def measure() -> None:
        rates.found["flops"].append(1.0)
        order.append("rates")

    rates.measure = measure
    setup = Setup("clip", "float32", 8, 4, "both")
    ready = {}
    for name in ("dense", "hyperkern", "compiled"):
        one = clock.Runner(lambda: None, 1, 1.0, 1.0, None, lambda: None)
        ready[Point(setup, IMPLEMENTATIONS["clip", name], name)] = one
    # By its execution each of them says who it is.
    monkeypatch.setattr(clock, "sample", lambda runner, execution, device: order.append(execution) or [1.0])
    matrix = Matrix("cpu", ("clip",), (8,), (4,), ("float32",), rounds=4, rates=2, seconds=100.0)
    samples, failures = runs._samples(matrix, ready, rates)
    turns = [["dense", "hyperkern", "compiled"], ["hyperkern", "compiled", "dense"], ["compiled", "dense", "hyperkern"]]
    assert order == ["rates", *turns[0], *turns[1], "rates", *turns[2], *turns[0]]
    assert ({len(each) for each in samples.values()}, failures) == ({4}, {})
