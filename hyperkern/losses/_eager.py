"""How a loss is called with what `hyperkern.autograd.loss` is told of it, where a compiled graph meets odd inputs."""

from typing import Any

from torch import Tensor

from .. import autograd
from ..spec import LossInputs, LossSpec
from .align_uniform import align_uniform
from .clip import clip_loss, siglip
from .info_nce import info_nce
from .nt_xent import dcl, dclw, nt_xent
from .sup_con import sup_con
from .uniformity import uniformity


def _options(spec: LossSpec, backend: str | None) -> dict[str, Any]:
    return {"normalize": spec.normalize, "reduction": "mean" if spec.mean else "sum", "backend": backend}


def _temperature(inputs: LossInputs, spec: LossSpec) -> float | Tensor:
    return 1 / spec.scale if inputs.scale is None else inputs.scale


def _logit_scale(inputs: LossInputs, spec: LossSpec) -> float | Tensor:
    return spec.scale if inputs.scale is None else inputs.scale


def _partner(inputs: LossInputs) -> Tensor:
    assert inputs.y is not None
    return inputs.y


@autograd.eager("align_uniform")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    return align_uniform(
        inputs.x,
        _partner(inputs),
        alpha=spec.alpha,
        t=spec.scale / 2,
        align_weight=spec.align_weight,
        uniform_weight=spec.uniform_weight,
        backend=backend,
    )


@autograd.eager("clip_loss")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    return (clip_loss(inputs.x, _partner(inputs), logit_scale=_logit_scale(inputs, spec), **_options(spec, backend)),)


@autograd.eager("siglip")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    bias = spec.bias if inputs.bias is None else inputs.bias
    scale = _logit_scale(inputs, spec)
    return (siglip(inputs.x, _partner(inputs), logit_scale=scale, logit_bias=bias, **_options(spec, backend)),)


@autograd.eager("info_nce")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {"negatives": inputs.queue, "in_batch": spec.in_batch, **_options(spec, backend)}
    return (info_nce(inputs.x, _partner(inputs), temperature=_temperature(inputs, spec), **options),)


@autograd.eager("nt_xent")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    return (nt_xent(inputs.x, _partner(inputs), temperature=_temperature(inputs, spec), **_options(spec, backend)),)


@autograd.eager("dcl")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    return (dcl(inputs.x, _partner(inputs), temperature=_temperature(inputs, spec), **_options(spec, backend)),)


@autograd.eager("dclw")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    temperature, options = _temperature(inputs, spec), _options(spec, backend)
    return (dclw(inputs.x, _partner(inputs), temperature=temperature, sigma=spec.sigma, **options),)


@autograd.eager("sup_con")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    assert inputs.labels is not None
    options: dict[str, Any] = {"temperature": _temperature(inputs, spec), **_options(spec, backend)}
    return (sup_con(inputs.x, inputs.labels, inputs.y, inputs.y_labels, **options),)


@autograd.eager("uniformity")
def _(inputs: LossInputs, spec: LossSpec, backend: str | None) -> tuple[Tensor, ...]:
    return (
        uniformity(inputs.x, inputs.y, t=spec.scale / 2, intra=inputs.y is not None and spec.in_batch, backend=backend),
    )
