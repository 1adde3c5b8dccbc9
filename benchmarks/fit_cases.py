"""The losses that `benchmarks.fits` are made with: each of a library, and its drop-in, in a trainer of that library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import packages_distributions
from typing import Any

import torch
from torch import Tensor, nn

import hyperkern as hk

from . import fits

# The rows of a BERT that has learned nothing are all alike: small steps change them much.
RANKING_RATE = 2e-4
Make = Callable[..., nn.Module]


class Nothing(nn.Module):
    """The sum of the features, for what a step takes without a loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()

    def forward(self, *args: Any, **named: Any) -> Any:
        """Of whatever a loss is called with."""
        features = [x for x in (*args, *named.values()) if isinstance(x, Tensor) and x.dim() == 2 and x.requires_grad]
        total = torch.stack([x.sum() for x in features]).sum()
        return {"contrastive_loss": total} if named.get("output_dict") else total


@dataclass(frozen=True)
class Case:
    """A loss in a trainer.

    Attributes:
        fit: the trainer.
        library: the module of the original.
        own: that of the drop-in.
        make: ``make(module, model, several, temperature)``, the loss of either module: over several processes or not,
            at so many times its usual temperature.
        nothing: what stands for it where a step without one is measured.
        rate: of plain gradient descent by which the loss falls.
    """

    fit: fits.Fit
    library: str
    own: str
    make: Make
    nothing: type[Nothing] = Nothing
    rate: float = 0.02

    def original(self, model: nn.Module, temperature: float = 1.0) -> nn.Module:
        """The library's loss."""
        return self.make(import_module(self.library), model, fits.place()[1] > 1, temperature)

    def drop_in(self, model: nn.Module, temperature: float = 1.0) -> nn.Module:
        """What replaces it."""
        return self.make(import_module(self.own), model, fits.place()[1] > 1, temperature)

    @property
    def package(self) -> str:
        """The distribution of the library."""
        return packages_distributions()[self.library.split(".")[0]][0]

    @property
    def losses(self) -> dict[str, Callable[[nn.Module], nn.Module]]:
        """By the names of implementations."""
        return {"original": self.original, "hyperkern": self.drop_in, "none": self.nothing}


def _tempered(name: str, usual: float, gathers: bool = False) -> Make:
    """A loss that is given its temperature, and in lightly whether it gathers."""

    def make(module: Any, model: nn.Module, several: bool, temperature: float) -> nn.Module:
        options = {"gather_distributed": several} if gathers else {}
        found: nn.Module = getattr(module, name)(temperature=usual * temperature, **options)
        return found

    return make


def _ranking(name: str, **options: Any) -> Make:
    def make(module: Any, model: nn.Module, several: bool, temperature: float) -> nn.Module:
        loss = getattr(module, name)
        found: nn.Module = loss(model, scale=20.0 / temperature, gather_across_devices=several, **options)
        return found

    return make


def _open_clip(name: str, **options: Any) -> Make:
    """The temperature is the model's: what the loss is told of it is changed."""

    def make(module: Any, model: nn.Module, several: bool, temperature: float) -> nn.Module:
        rank, size = fits.place()
        loss: nn.Module = getattr(module, name)(rank=rank, world_size=size, **options)
        if temperature != 1:

            def tempered(_: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return args, given | {"logit_scale": given["logit_scale"] / temperature}

            loss.register_forward_pre_hook(tempered, with_kwargs=True)
        return loss

    return make


class ModelsOwn(nn.Module):
    """The loss that Transformers' `CLIPModel` computes, by the trainer."""

    def forward(self, usual: Callable[[], Tensor], *_: Any) -> Tensor:
        return usual()


class OfMixin(nn.Module):
    """That of the drop-in; of another temperature, which is the model's, by the function behind it."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, _: Any, drop_in: Callable[[], Tensor], model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self.temperature == 1:
            return drop_in()
        found = model(**inputs | {"return_loss": False})
        scale = getattr(model, "module", model).logit_scale.exp() / self.temperature
        return hk.clip_loss(found.image_embeds, found.text_embeds, logit_scale=scale, normalize=False)


class Embedded(Nothing):
    """The same, of the columns that a model embeds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = model

    def forward(self, columns: Any, labels: Any = None) -> Tensor:
        total: Tensor = super().forward(*(self.model(column)["sentence_embedding"] for column in columns))
        return total


class OfModel(Nothing):
    """The same, of the features of Transformers' `CLIPModel`."""

    def forward(self, usual: Any, drop_in: Any, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        found = model(**inputs | {"return_loss": False})
        total: Tensor = super().forward(found.image_embeds, found.text_embeds)
        return total


def _of_model(module: Any, model: nn.Module, several: bool, temperature: float) -> nn.Module:
    return OfMixin(temperature) if module is hk else ModelsOwn()


def _cases() -> dict[str, Case]:
    drop_ins = "hyperkern.integrations."
    lightly = ("lightly.loss", f"{drop_ins}lightly")
    metric = ("pytorch_metric_learning.losses", f"{drop_ins}pytorch_metric_learning")
    ranking = ("sentence_transformers.sentence_transformer.losses", f"{drop_ins}sentence_transformers")
    trainer = fits.sentence_transformers
    clip = ("open_clip.loss", f"{drop_ins}open_clip")
    nt_xent, dcl = _tempered("NTXentLoss", 0.5, gathers=True), _tempered("DCLLoss", 0.1, gathers=True)
    pairs, classes = _tempered("NTXentLoss", 0.07), _tempered("SupConLoss", 0.1)
    local = _open_clip("ClipLoss", local_loss=True, gather_with_grad=True)
    return {
        "OpenCLIP, ClipLoss": Case(fits.open_clip, *clip, local),
        "OpenCLIP, SigLipLoss": Case(partial(fits.open_clip, bias=-10.0), *clip, _open_clip("SigLipLoss")),
        "SentenceTransformerTrainer, MultipleNegativesRankingLoss": Case(
            trainer, *ranking, _ranking("MultipleNegativesRankingLoss"), Embedded, RANKING_RATE
        ),
        "SentenceTransformerTrainer, CachedMultipleNegativesRankingLoss": Case(
            trainer, *ranking, _ranking("CachedMultipleNegativesRankingLoss"), Embedded, RANKING_RATE
        ),
        "Transformers' Trainer, CLIPModel": Case(fits.transformers, "transformers", "hyperkern", _of_model, OfModel),
        "Lightning, lightly NTXentLoss": Case(fits.lightning, *lightly, nt_xent),
        "Lightning, lightly DCLLoss": Case(fits.lightning, *lightly, dcl, rate=0.005),
        "loop, PML NTXentLoss": Case(fits.labelled, *metric, pairs),
        "loop, PML SupConLoss": Case(fits.labelled, *metric, classes),
        "MetricLossOnly, PML NTXentLoss": Case(fits.metric_learning, *metric, pairs),
        "MetricLossOnly, PML SupConLoss": Case(fits.metric_learning, *metric, classes),
        "loop, lightly NTXentLoss": Case(fits.plain, *lightly, nt_xent),
        "fully_shard, lightly NTXentLoss": Case(fits.fully_sharded, *lightly, nt_xent),
    }


CASES = _cases()
