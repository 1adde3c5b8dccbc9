"""The modules: each is its function with the options given at construction."""

import copy
import importlib
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import torch
from cases import BY_NAME, INTEGERS, module_of, tensors, with_integers
from torch import nn

import hyperkern as hk
from hyperkern.arguments import check_positive
from hyperkern.catalog import LOSSES, TABLE, Use
from hyperkern.options import Option

X, Y = torch.randn(6, 4), torch.randn(6, 4)
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])

USES = [(loss.name, use) for loss in LOSSES if loss.module for use in loss.uses]
MODULES = [loss.module for loss in LOSSES if loss.module]


def arguments(module: type[nn.Module]) -> tuple[torch.Tensor, ...]:
    return {hk.UniformityLoss: (X,), hk.SupConLoss: (X, LABELS)}.get(module, (X, Y))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("module", [m for m in MODULES if "learnable" in inspect.signature(m).parameters])
def test_every_learned_scale_has_a_gradient(module: type[nn.Module]) -> None:
    loss = module(learnable=True)
    loss(*arguments(module)).backward()
    for parameter in loss.parameters():
        assert parameter.grad.abs() > 0


@pytest.mark.parametrize(("name", "use"), USES, ids=[f"{name}-{use.name}" for name, use in USES])
def test_same_as_the_function(name: str, use: Use) -> None:
    loss, case = TABLE[name], BY_NAME[f"{name}-{use.name}"]
    given = with_integers(use, tensors(case, 6, 9, 4, dtype=torch.float32), INTEGERS)
    inputs = given[: len(use.inputs)]
    numbers = use._replace(learned={}, options=use.options | use.learned)
    function = numbers.of(loss.function)(*inputs)
    _, call = module_of(loss, use)
    assert torch.equal(call(*inputs), function if isinstance(function, torch.Tensor) else function.loss)


@pytest.mark.parametrize("module", MODULES)
def test_backend_is_passed_on(module: type[nn.Module]) -> None:
    args = arguments(module)
    assert torch.equal(module(backend="reference")(*args), module()(*args))
    with pytest.raises(ValueError, match="backend='nonsense'"):
        module(backend="nonsense")(*args)


@pytest.mark.parametrize("module", MODULES)
def test_repr_shows_the_options_as_they_were_given(module: type[nn.Module]) -> None:
    shown = repr(module())
    assert shown.startswith(module.__name__ + "(")
    assert "normalize=True" in shown
    # Nothing but arguments of the constructor: the text can be pasted back.
    for option in shown[len(module.__name__) + 1 : -1].split(", "):
        assert option.split("=")[0] in inspect.signature(module).parameters


def test_repr_shows_a_learned_scale() -> None:
    assert "learnable=True" in repr(hk.CLIPLoss(learnable=True))


def test_without_parameters() -> None:
    for module in MODULES:
        assert not list(module().parameters())


def test_learnable_temperature() -> None:
    module = hk.InfoNCELoss(temperature=0.5, learnable=True)
    assert [name for name, _ in module.named_parameters()] == ["log_logit_scale"]
    loss = module(X, Y)
    torch.testing.assert_close(loss, hk.info_nce(X, Y, temperature=0.5))
    loss.backward()
    assert module.log_logit_scale.grad.abs() > 0


def test_a_learned_temperature_stays_positive_and_bounded() -> None:
    # A raw temperature would be stepped through 0 by this optimizer.
    module = hk.InfoNCELoss(temperature=0.07, learnable=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.5, weight_decay=0.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss = module(X, X + 1e-3)  # sharper is always better
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    module(X, Y)
    assert module.log_logit_scale.exp().item() == pytest.approx(100.0)


def test_learnable_scale_starts_where_told_and_moves() -> None:
    module = hk.CLIPLoss(logit_scale=5.0, learnable=True)
    torch.testing.assert_close(module(X, Y), hk.clip_loss(X, Y, logit_scale=5.0))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        module(X, X).backward()
        optimizer.step()
    # Perfect pairs are told apart the better, the larger the scale.
    assert module.log_logit_scale > math.log(5.0)


def test_learned_scale_is_bounded() -> None:
    module = hk.CLIPLoss(logit_scale=5.0, learnable=True, max_logit_scale=20.0)
    with torch.no_grad():
        module.log_logit_scale.fill_(math.log(1e6))
    torch.testing.assert_close(module(X, Y), hk.clip_loss(X, Y, logit_scale=20.0))


def test_a_scale_that_overshot_its_bound_can_come_back() -> None:
    # CLIP clamps the parameter after each step, so its gradient lives on at the bound.
    module = hk.CLIPLoss(logit_scale=19.0, learnable=True, max_logit_scale=20.0)
    with torch.no_grad():
        module.log_logit_scale.fill_(math.log(20.5))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        module(X, -X).backward()  # wrong pairs: a smaller scale is better
        optimizer.step()
    assert module.log_logit_scale < math.log(20.0)


def test_learnable_clip_moves_with_the_module() -> None:
    module = hk.CLIPLoss(learnable=True).double()
    assert module.log_logit_scale.dtype == torch.float64
    assert module(X.double(), Y.double()).dtype == torch.float64
    assert module(X, Y).dtype == torch.float32


def test_a_learned_scale_above_its_bound_is_refused_and_below_it_comes_back() -> None:
    with pytest.raises(ValueError, match=r"logit_scale must not exceed max_logit_scale=100.0, got 101.0"):
        hk.CLIPLoss(logit_scale=101.0, learnable=True)
    loss = hk.CLIPLoss(logit_scale=90.0, learnable=True)
    with torch.no_grad():
        loss.log_logit_scale.fill_(10.0)  # a step too far
    value = loss(X, Y)
    torch.testing.assert_close(value, hk.clip_loss(X, Y, logit_scale=100.0))
    value.backward()
    assert loss.log_logit_scale.grad != 0


def test_a_wrong_backend_is_refused_at_construction() -> None:
    for name in ("nonsense", 3):
        with pytest.raises(ValueError, match=rf"backend={name!r} is unknown"):
            hk.UniformityLoss(backend=name)


@pytest.mark.parametrize("module", MODULES)
def test_signature_and_documentation_are_complete(module: type[nn.Module]) -> None:
    options = inspect.signature(module).parameters
    arguments_of, _, raises = inspect.getdoc(module).partition("Args:")[2].partition("Raises:")
    documented = [
        line.strip().split(":")[0] for line in arguments_of.splitlines() if line[:4].strip() == "" != line[4:5].strip()
    ]
    assert documented == list(options)
    assert "an unknown ``backend``" in raises
    with pytest.raises(TypeError, match=rf"{module.__name__}.__init__\(\) got an unexpected keyword argument 'alfa'"):
        module(alfa=1.0)


def function_of(module: type[nn.Module]) -> Callable:
    return next(loss.function for loss in LOSSES if loss.module is module)


@pytest.mark.parametrize("module", MODULES)
def test_the_options_are_those_of_the_function(module: type[nn.Module]) -> None:
    options, function = inspect.signature(module).parameters, inspect.signature(function_of(module)).parameters
    inputs = inspect.signature(module.forward).parameters
    assert {*options, *inputs} - {"self", "learnable", "max_logit_scale"} == {*function}
    for name in {*options} & {*function}:
        assert function[name].default in (options[name].default, inspect.Parameter.empty)


def test_a_subclass_has_options_or_a_constructor_of_its_own() -> None:
    class Frozen(hk.InfoNCELoss):
        margin: Annotated[float, Option("of the positive, > 0.", check_positive, "``margin <= 0``", False)] = 0.1
        temperature: float = 0.2

    class Fixed(hk.InfoNCELoss):
        def __init__(self, size: int) -> None:
            super().__init__(temperature=1 / size)

    class Further(Fixed):
        pass

    assert next(iter(inspect.signature(Frozen).parameters)) == "temperature"
    assert (Frozen(margin=0.3).margin, Frozen().temperature, Frozen(temperature=0.5).temperature) == (0.3, 0.2, 0.5)
    assert torch.equal(Frozen()(X, Y), hk.info_nce(X, Y, temperature=0.2))
    with pytest.raises(ValueError, match="margin must be a finite number > 0, got -1"):
        Frozen(margin=-1)
    for module in (Fixed, Further):
        assert list(inspect.signature(module).parameters) == ["size"]
        assert module(4).temperature == 0.25
        torch.testing.assert_close(module(4)(X, Y), hk.info_nce(X, Y, temperature=0.25))


def test_what_a_subclass_has_of_its_own_is_no_option() -> None:
    class Weighted(hk.CLIPLoss):
        alpha: float  # an option of another loss
        logit_scale: float = 3.0

        def __init__(self, alpha: float, **options: Any) -> None:
            super().__init__(**options)
            self.alpha = alpha

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.alpha * super().forward(x, y)

    torch.testing.assert_close(Weighted(0.5)(X, Y), 0.5 * hk.clip_loss(X, Y, logit_scale=3.0))
    assert Weighted(0.5, logit_scale=4.0).logit_scale == 4.0


def test_annotations_that_are_strings_declare_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("margins.py").write_text(
        "from __future__ import annotations\n"
        "from typing import Annotated\n"
        "from hyperkern import CLIPLoss\n"
        "from hyperkern.options import Option\n"
        "class Margin(CLIPLoss):\n"
        "    margin: Annotated[float, Option('> 0.', lambda name, value: value, of_function=False)] = 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("margins").Margin(margin=0.3).margin == 0.3


@pytest.mark.parametrize("module", MODULES)
def test_the_constructor_says_what_it_takes_and_a_call_what_it_does(module: type[nn.Module]) -> None:
    options = inspect.signature(module).parameters
    assert list(inspect.signature(module.__init__).parameters) == ["self", *options]
    assert list(get_type_hints(module.__init__)) == [*options, "return"]
    assert not any("Option(" in str(hint) for hint in get_type_hints(module, include_extras=True).values())
    assert inspect.signature(module()) == inspect.signature(nn.Identity())  # that of a call of any module
    with pytest.raises(TypeError, match=rf"{module.__name__}.__init__\(\) takes 1 positional argument but 2"):
        module(1.0)


def test_what_is_learned_stays_learned_whatever_learnable_says_later() -> None:
    for loss in (hk.CLIPLoss(learnable=True), hk.SigLIPLoss(learnable=True), hk.NTXentLoss(learnable=True)):
        with torch.no_grad():
            loss.log_logit_scale.fill_(0.3)
        value = loss(X, Y)
        loss.learnable = False
        assert torch.equal(loss(X, Y), value)


def test_copies_and_pickles() -> None:
    loss = hk.SigLIPLoss(logit_bias=-3.0, learnable=True)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss)
        assert other.state_dict().keys() == {"log_logit_scale", "learned_bias"}
        assert torch.equal(other(X, Y), loss(X, Y))


def test_the_terms_of_align_uniform() -> None:
    loss = hk.AlignUniformLoss(t=3.0, uniform_weight=0.5)
    terms = loss.terms(X, Y)
    assert all(map(torch.equal, terms, hk.align_uniform(X, Y, t=3.0, uniform_weight=0.5)))
    assert torch.equal(loss(X, Y), terms.loss)
