"""Every option of the originals: accepted with the original's numbers, or refused by name."""

import importlib
import inspect
from types import ModuleType
from typing import Any

import original_options as options
import pytest
import torch
from original_options import ORIGINALS, Original, of
from parity import relative_error
from torch import Tensor, nn

import hyperkern.integrations

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),  # lightly's own
    # Sentence Transformers' of an old name of its own, and ours of the same
    pytest.mark.filterwarnings("ignore:(The )?(Cached)?MultipleNegativesSymmetricRankingLoss is:DeprecationWarning"),
]
IDS = [f"{original.distribution}-{original.name}" for original in ORIGINALS]
TRIED = [
    pytest.param(original, where, name, value, id=f"{key}-{name}-{i}")
    for original, key in zip(ORIGINALS, IDS, strict=True)
    for where in ("constructor", "forward")
    for name, values in getattr(original, where).items()
    for i, value in enumerate(values.same)
]
REFUSED = [
    pytest.param(original, where, name, value, id=f"{key}-{name}-{i}")
    for original, key in zip(ORIGINALS, IDS, strict=True)
    for where in ("constructor", "forward")
    for name, values in getattr(original, where).items()
    for i, value in enumerate(values.refused)
]


def called(original: Original, module: ModuleType, where: str, name: str, value: Any, views: list[Tensor]) -> Tensor:
    given = {name: of(value) for name, value in {name: value, **original.with_it.get(name, {})}.items()}
    torch.manual_seed(0)  # a memory bank begins with random rows
    cls = getattr(module, original.name)
    made = cls(**{**original.needed(module), **(given if where == "constructor" else {})})
    if isinstance(made, nn.Module):
        made.to(views[0].dtype)
    return original.call(made, **(given if where == "forward" else {}))(*views)


def value_and_gradients(*args: Any, views: list[Tensor]) -> list[Tensor]:
    """By a whole backward pass: the cached losses make their gradients in one."""
    leaves = [view.detach().clone().requires_grad_() for view in views]
    value = called(*args, leaves)
    value.backward()
    return [value.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("original", ORIGINALS, ids=IDS)
def test_every_option_of_the_installed_library_is_known(original: Original) -> None:
    constructor, forward = original.parameters()
    assert constructor == original.constructor.keys(), options.version(original)
    assert forward == original.forward.keys(), options.version(original)


@pytest.mark.parametrize("original", ORIGINALS, ids=IDS)
def test_every_option_is_tried(original: Original) -> None:
    for name, values in (*original.constructor.items(), *original.forward.items()):
        assert values.same or values.refused or values.untried, name


@pytest.mark.parametrize("original", ORIGINALS, ids=IDS)
def test_the_call_is_the_original_s(original: Original) -> None:
    """The same names in the same order, so that arguments by position mean the same."""
    for method in ("__init__", original.method):
        names = [
            [p for p in inspect.signature(getattr(vars(module)[original.name], method)).parameters if p != "kwargs"]
            for module in (original.theirs(), original.here())
        ]
        assert names[1][: len(names[0])] == names[0]


def test_every_replacement_is_in_the_table() -> None:
    known = {(original.ours, original.name) for original in ORIGINALS}
    for module in {original.ours for original in ORIGINALS}:
        ours = importlib.import_module(f"{hyperkern.integrations.__name__}.{module}")
        theirs = [original.theirs() for original in ORIGINALS if original.ours == module]
        for name, value in vars(ours).items():
            if inspect.isclass(value) and value.__module__.startswith(ours.__name__) and not name.startswith("_"):
                assert (module, name) in known or not any(hasattr(their, name) for their in theirs), name


@pytest.mark.parametrize(("original", "where", "name", "value"), TRIED)
def test_the_numbers_are_the_original_s(original: Original, where: str, name: str, value: Any) -> None:
    views = list(torch.randn(original.features, options.ROWS, options.DIM, dtype=torch.float64))
    found, expected = (
        value_and_gradients(original, module, where, name, value, views=views)
        for module in (original.here(), original.theirs())
    )
    for actual, truth in zip(found, expected, strict=True):
        assert actual.dtype == torch.float64
        assert relative_error(actual, truth) <= 1e-10


@pytest.mark.parametrize(("original", "where", "name", "value"), REFUSED)
def test_what_is_refused_names_the_option(original: Original, where: str, name: str, value: Any) -> None:
    views = list(torch.randn(original.features, options.ROWS, options.DIM, dtype=torch.float64))
    with pytest.raises((NotImplementedError, TypeError, ValueError), match=name):
        called(original, original.here(), where, name, value, views)


def test_the_page_has_the_table() -> None:
    assert options.PAGE.read_text() == options.written()
