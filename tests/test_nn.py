"""The modules: each is its function with the options given at construction."""

import copy
import inspect
import math
import pickle
import re
from collections.abc import Callable
from typing import Annotated

import pytest
import torch
from torch import nn

import hyperkern as hk
from hyperkern.arguments import check_positive
from hyperkern.options import Option

X, Y, QUEUE = torch.randn(6, 4), torch.randn(6, 4), torch.randn(9, 4)
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
QUEUE_WEIGHTS = {"x_weights": torch.rand(6), "y_weights": torch.rand(9)}

CANDIDATES = {
    "hard_negatives": torch.randn(6, 2, 4),
    "ids": LABELS,
    "negative_ids": torch.arange(9) % 4,
    "y_log_weights": torch.randn(6),
    "negative_log_weights": torch.randn(9),
}

SAME = {
    "alignment": (hk.AlignmentLoss()(X, Y), hk.alignment(X, Y)),
    "alignment-options": (
        hk.AlignmentLoss(alpha=1.5, normalize=False, reduction="none")(X, Y),
        hk.alignment(X, Y, alpha=1.5, normalize=False, reduction="none"),
    ),
    "uniformity": (hk.UniformityLoss()(X), hk.uniformity(X)),
    "uniformity-options": (
        hk.UniformityLoss(t=0.7, intra=True, normalize=False)(X, QUEUE, **QUEUE_WEIGHTS),
        hk.uniformity(X, QUEUE, t=0.7, intra=True, normalize=False, **QUEUE_WEIGHTS),
    ),
    "align_uniform": (hk.AlignUniformLoss()(X, Y), hk.align_uniform(X, Y).loss),
    "align_uniform-options": (
        hk.AlignUniformLoss(alpha=1.0, t=3.0, align_weight=0.3, uniform_weight=2.0, normalize=False)(X, Y),
        hk.align_uniform(X, Y, alpha=1.0, t=3.0, align_weight=0.3, uniform_weight=2.0, normalize=False).loss,
    ),
    "info_nce": (hk.InfoNCELoss()(X, Y), hk.info_nce(X, Y)),
    "info_nce-options": (
        hk.InfoNCELoss(temperature=0.3, normalize=False, reduction="sum")(X, Y, QUEUE),
        hk.info_nce(X, Y, temperature=0.3, normalize=False, reduction="sum", negatives=QUEUE),
    ),
    "clip": (hk.CLIPLoss()(X, Y), hk.clip_loss(X, Y, logit_scale=1 / 0.07)),
    "clip-options": (
        hk.CLIPLoss(logit_scale=3.0, normalize=False)(X, Y),
        hk.clip_loss(X, Y, logit_scale=3.0, normalize=False),
    ),
    "clip-ids": (
        hk.CLIPLoss(reduction="none")(X, Y, ids=LABELS),
        hk.clip_loss(X, Y, logit_scale=1 / 0.07, ids=LABELS, reduction="none"),
    ),
    "info_nce-candidates": (
        hk.InfoNCELoss(in_batch=False)(X, Y, QUEUE, **CANDIDATES),
        hk.info_nce(X, Y, negatives=QUEUE, in_batch=False, **CANDIDATES),
    ),
    "nt_xent": (hk.NTXentLoss()(X, Y), hk.nt_xent(X, Y)),
    "nt_xent-options": (
        hk.NTXentLoss(temperature=0.2, reduction="none")(X, Y, X.flip(0), negatives=QUEUE),
        hk.nt_xent(X, Y, X.flip(0), temperature=0.2, reduction="none", negatives=QUEUE),
    ),
    "dcl": (hk.DCLLoss()(X, Y), hk.dcl(X, Y)),
    "dcl-weights": (
        hk.DCLLoss(temperature=0.3)(X, Y, weights=(X[:, 0], X[:, 1])),
        hk.dcl(X, Y, temperature=0.3, weights=(X[:, 0], X[:, 1])),
    ),
    "dclw": (hk.DCLWLoss(sigma=0.3)(X, Y), hk.dclw(X, Y, sigma=0.3)),
    "sup_con": (hk.SupConLoss()(X, LABELS), hk.sup_con(X, LABELS)),
    "sup_con-queue": (
        hk.SupConLoss(temperature=0.3)(X, LABELS, Y, LABELS),
        hk.sup_con(X, LABELS, Y, LABELS, temperature=0.3),
    ),
    "siglip": (hk.SigLIPLoss()(X, Y), hk.siglip(X, Y, logit_scale=10.0, logit_bias=-10.0)),
    "siglip-learnable": (
        hk.SigLIPLoss(logit_scale=3.0, logit_bias=-1.0, learnable=True, reduction="sum")(X, Y),
        hk.siglip(X, Y, logit_scale=torch.tensor(3.0).log().exp(), logit_bias=torch.tensor(-1.0), reduction="sum"),
    ),
}

MODULES = [
    hk.AlignmentLoss,
    hk.UniformityLoss,
    hk.AlignUniformLoss,
    hk.InfoNCELoss,
    hk.CLIPLoss,
    hk.NTXentLoss,
    hk.DCLLoss,
    hk.DCLWLoss,
    hk.SupConLoss,
    hk.SigLIPLoss,
]


def arguments(module: type[nn.Module]) -> tuple[torch.Tensor, ...]:
    return {hk.UniformityLoss: (X,), hk.SupConLoss: (X, LABELS)}.get(module, (X, Y))


def test_every_module_is_tested() -> None:
    assert {module.__name__ for module in MODULES} == {name for name in hk.__all__ if name.endswith("Loss")}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("module", [m for m in MODULES if "learnable" in inspect.signature(m).parameters])
def test_every_learned_scale_has_a_gradient(module: type[nn.Module]) -> None:
    loss = module(learnable=True)
    loss(*arguments(module)).backward()
    for parameter in loss.parameters():
        assert parameter.grad.abs() > 0


@pytest.mark.parametrize("name", SAME)
def test_same_as_the_function(name: str) -> None:
    module, function = SAME[name]
    assert torch.equal(module, function)


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
    name = re.search(r"`hyperkern\.(\w+)`", module.__doc__).group(1)
    return getattr(hk, name)


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
