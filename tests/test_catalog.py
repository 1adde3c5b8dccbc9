"""The table of losses has all of them, and the ways to call them that it lists leave no argument out."""

import inspect
from pathlib import Path

import oracle
import pytest
import torch
from cases import BY_NAME

import hyperkern as hk
from benchmarks.plan.steps import ALL_LOSSES
from hyperkern.bench.load import load_all
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS
from hyperkern.catalog import LOSSES, TABLE, Loss, readme_rows, use

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# What every loss has, tested for all at once elsewhere; and of what the oracle knows nothing, as it does not need it.
ELSEWHERE = {"group", "backend", "max_norm"}
# One has no pairs, the other is a part of losses.
WITHOUT_PRODUCTS = {"alignment", "pairwise_logsumexp"}
DEPRECATED = {"dcl": {"weights"}, "pairwise_logsumexp": {"scale"}}
BY_LOSS = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


def test_every_loss_is_in_the_table() -> None:
    public = {name for name in hk.losses.__all__ if name[0].islower()}
    assert TABLE.keys() == public <= set(hk.__all__)
    assert {loss.module.__name__ for loss in LOSSES if loss.module} == {n for n in hk.__all__ if n.endswith("Loss")}
    assert set(hk.nn.__all__) <= set(hk.__all__)


@BY_LOSS
def test_every_argument_is_in_a_use(loss: Loss) -> None:
    tried = {name for each in loss.uses for name in (*each.inputs, *each.learned, *each.options)}
    arguments = {"view" if p.kind is p.VAR_POSITIONAL else name for name, p in parameters(loss.function).items()}
    arguments -= DEPRECATED.get(loss.name, set())
    assert arguments - tried <= ELSEWHERE
    assert tried <= arguments
    # And so with a module, whose options are those of the function.
    if loss.module:
        inputs = {"view" if p.kind is p.VAR_POSITIONAL else name for name, p in parameters(loss.module.forward).items()}
        assert inputs - {"self"} - DEPRECATED.get(loss.name, set()) <= tried


def parameters(function: object) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@BY_LOSS
def test_uses_have_names_of_their_own_and_a_truth(loss: Loss) -> None:
    assert len({each.name for each in loss.uses}) == len(loss.uses)
    assert callable(getattr(oracle, loss.name))
    assert all(f"{loss.name}-{each.name}" in BY_NAME for each in loss.uses)
    assert not loss.uses[0].learned


def test_what_is_measured_is_a_case_of_the_benchmarks() -> None:
    load_all()
    measured = [each.use.name for loss in LOSSES for each in loss.measured]
    assert measured == [name for name, case in CASES.items() if case.truth is not None]
    assert all((name, "hyperkern") in IMPLEMENTATIONS for name in measured)
    assert set(measured) == set(ALL_LOSSES)  # of the check on a GPU, see FIRST_LOSSES and OTHER_LOSSES
    assert {loss.name for loss in LOSSES if not loss.measured} == WITHOUT_PRODUCTS


def test_the_readme_has_the_rows() -> None:
    rows = [f"| {' | '.join(row)} |" for row in readme_rows()]
    assert [row for row in rows if row not in README] == []


def test_a_use_passes_tensors_by_their_names() -> None:
    def loss(x: object, y: object, *views: object, weights: object = None, scale: object = 1.0) -> tuple:
        return x, y, views, weights, scale

    assert use("", "x y").of(loss)(1, 2) == (1, 2, (), None, 1.0)
    assert use("", "x y view view", scale=3).of(loss)(1, 2, 3, 4) == (1, 2, (3, 4), None, 3)
    learned = use("", "x y weights scale=0.5")
    assert learned.learned == {"scale": 0.5}
    assert learned.of(loss)(1, 2, 5, 7) == (1, 2, (), 5, 7)
    with pytest.raises(ValueError, match="zip"):
        learned.of(loss)(1, 2, 5)
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    of_class = use("", "x labels y y_labels temperature=0.1").of(hk.sup_con)
    assert torch.equal(of_class(x, labels, x, labels, 0.2), hk.sup_con(x, labels, x, labels, temperature=0.2))
