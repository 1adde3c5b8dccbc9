"""The table of losses: what each is called, takes and costs, and the ways to call it that are tried.

The cases of the benchmarks, the tests of values, gradients, errors, modules and ranks, and the README's rows are made
of it: a loss that stands here is measured and tested.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from . import losses, textbook
from . import nn as modules

MOCO_QUEUE = 131_072  # rows of the queue that MoCo's loss is measured with
CLASSES = 100  # of labels that are measured


class Use(NamedTuple):
    """A way to call a loss.

    Attributes:
        name: in the tests ``<loss>-<name>``; of what is measured the case of `hyperkern.bench`.
        inputs: names of the tensors it is given, as its arguments are called; each further view is a ``view``.
        learned: names of the numbers that are tensors with a gradient, with their values.
        options: numbers, choices and switches.
    """

    name: str
    inputs: tuple[str, ...]
    learned: dict[str, float]
    options: dict[str, Any]

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of inputs and learned numbers, in this order, and of further options."""
        names = (*self.inputs, *self.learned)
        views = len(list(itertools.takewhile(("x", "y", "view").__contains__, names)))
        places = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        # Nothing is added to a call that is timed where every tensor has its place.
        if views == len(names) or names == tuple(places[: len(names)]):
            return partial(function, **self.options)

        def call(*tensors: Tensor, **further: Any) -> Any:
            named = zip(names[views:], tensors[views:], strict=True)
            return function(*tensors[:views], **dict(named), **self.options, **further)

        return call


def use(name: str, inputs: str, **options: Any) -> Use:
    """A use from a text: ``"x y temperature=0.1"`` has two inputs and a learned number."""
    words = [word.partition("=") for word in inputs.split()]
    learned = {word: float(value) for word, _, value in words if value}
    return Use(name, tuple(word for word, _, value in words if not value), learned, options)


class Measured(NamedTuple):
    """A use that is measured, a case of `hyperkern.bench`.

    Attributes:
        use: labels are of `CLASSES` classes.
        truth: the textbook formula of its inputs, with its options as the default.
        products: the least arithmetic, in N^2 D: of the similarities, of which the gradient takes twice as many more.
        counted: in words, what that counts.
        queue: rows of ``negatives`` where they are the same for every N and have no gradient: then ``products`` count
            N times as many.
        slowdown: a guess of the time as a multiple of the floor, for plans.
    """

    use: Use
    truth: Callable[..., Tensor]
    products: int
    counted: str
    queue: int = 0
    slowdown: float = 1.5


class Loss(NamedTuple):
    """A loss.

    Attributes:
        function: that computes it.
        module: the same as a module; ``None`` where there is none.
        listed: the README's rows: a call, and what it is.
        uses: the ways to call it that are tried: every argument is in one of them, and the first is the plainest.
        measured: those that are measured.
        refused: those that are a `ValueError`, by what it says.
        own_columns: whether ``y`` has rows of its own, as a queue has, and no partner for each row of ``x``.
        least_rows: the fewest rows it takes.
    """

    function: Callable[..., Any]
    module: type[nn.Module] | None
    listed: dict[str, str]
    uses: list[Use]
    measured: Sequence[Measured] = ()
    refused: Mapping[str, Use] = MappingProxyType({})
    own_columns: bool = False
    least_rows: int = 1

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__


_KEPT = "the similarities once, kept for the gradient"
_BOTH_SIDES = f"{_KEPT}: 2 N²D, and 4 N²D for the gradients of both sides"
_NCE, _LEARNED = {"temperature": textbook.INFO_NCE_TEMPERATURE}, f"x y logit_scale={textbook.LOGIT_SCALE}"

LOSSES = [
    Loss(
        losses.alignment,
        modules.AlignmentLoss,
        {"alignment(x, y, alpha=2)": "distance of positive pairs to the power α"},
        [
            use("default", "x y"),
            use("alpha1-sum", "x y", alpha=1.0, reduction="sum"),
            use("alpha0.5-none", "x y", alpha=0.5, reduction="none"),
            use("alpha3-raw", "x y", alpha=3.0, normalize=False),
        ],
    ),
    Loss(
        losses.uniformity,
        modules.UniformityLoss,
        {
            "uniformity(x, t=2)": "log mean Gaussian potential of all distinct pairs",
            "uniformity(x, queue, intra=…)": "against a queue, Eqs. 17 and 18 of the paper",
            "uniformity(x, x_weights=w)": "weighted pairs; `normalize=False` for Euclidean features",
        },
        [
            use("default", "x"),
            use("t0.3", "x", t=0.3),
            use("t400", "x", t=400.0),  # beyond the bounded regime of float32 and of float64
            use("raw", "x", normalize=False),
            use("weights", "x x_weights"),
            use("queue", "x y"),
            use("queue-t400", "x y", t=400.0),
            use("queue-intra", "x y", intra=True),
            use("queue-raw-intra", "x y", intra=True, normalize=False, t=0.5),
            use("queue-weights", "x y x_weights y_weights"),
            use("queue-one-weight-intra", "x y y_weights", intra=True),
        ],
        [
            Measured(
                *(use("uniformity", "x"), textbook.pdist_uniformity, 1),
                "N²D for the similarities of the upper triangle, 2 N²D for the product with the weights, in one pass",
                slowdown=1.1,
            ),
            Measured(
                *(use("uniformity_queue", "x y"), textbook.dense_uniformity_queue, 2),
                f"{_KEPT}: 2 N²D, and 4 N²D for the gradients of rows and queue",
            ),
        ],
        refused={
            "intra=True counts the pairs of x beside those with y, but y is None": use("", "x", intra=True),
            "y_weights needs y, but y is None": use("", "x y_weights"),
        },
        own_columns=True,
        least_rows=2,
    ),
    Loss(
        losses.align_uniform,
        modules.AlignUniformLoss,
        {"align_uniform(x, y)": "`(loss, alignment, uniformity)`; the module returns `loss`, its `terms` all three"},
        [
            use("default", "x y"),
            use("options", "x y", alpha=1.5, t=3.0, align_weight=0.7, uniform_weight=0.2),
            use("raw", "x y", normalize=False),
        ],
        [
            Measured(
                *(use("align_uniform", "x y"), textbook.pdist_align_uniform, 2),
                "twice that of uniformity; alignment is O(ND)",
                slowdown=1.1,
            )
        ],
        least_rows=2,
    ),
    Loss(
        losses.info_nce,
        modules.InfoNCELoss,
        {
            "info_nce(x, y, negatives=…)": "one way; a queue, hard negatives of each row, ids of false negatives, "
            "logQ correction; `in_batch=False` is MoCo's"
        },
        [
            use("default", "x y"),
            use("tau0.5-sum", "x y", temperature=0.5, reduction="sum"),
            use("tau0.001-none", "x y", temperature=0.001, reduction="none"),
            use("negatives", "x y negatives"),
            use("negatives-raw", "x y negatives", normalize=False, temperature=2.0),
            use("learnable", "x y temperature=0.13"),
            use("learnable-negatives", "x y negatives temperature=0.13"),
            use("queue_only", "x y negatives", in_batch=False, temperature=0.2),
            use("hard", "x y hard_negatives temperature=0.13", in_batch=False),
            use(
                "everything",
                "x y negatives hard_negatives y_log_weights negative_log_weights ids negative_ids temperature=0.3",
            ),
            use("log_weights", "x y y_log_weights", temperature=0.4, reduction="sum"),
        ],
        [
            Measured(use("info_nce", "x y", **_NCE), textbook.dense_info_nce, 2, _BOTH_SIDES),
            Measured(
                *(use("info_nce_queue", "x y negatives", **_NCE), textbook.dense_info_nce_queue, 4),
                f"{_KEPT}, with keys and N further negatives: 4 N²D, and 8 N²D for the gradients, the negatives' too",
            ),
            Measured(
                *(use("info_nce_moco", "x y negatives", in_batch=False, **_NCE), textbook.dense_info_nce_moco, 2),
                f"{_KEPT}, with a queue of K = {MOCO_QUEUE:,}: 2 NKD, and 2 NKD for the gradient of the rows alone",
                queue=MOCO_QUEUE,
            ),
        ],
        refused={
            "in_batch=False leaves no candidates": use("", "x y", in_batch=False),
            "in_batch=False leaves negative_ids alone": use("", "x y negatives ids", in_batch=False),
            "negative_ids needs negatives, but negatives is None": use("", "x y ids negative_ids"),
            "negative_log_weights needs negatives": use("", "x y negative_log_weights"),
            "negative_ids are compared with ids, but ids is None": use("", "x y negatives negative_ids"),
        },
    ),
    Loss(
        losses.nt_xent,
        modules.NTXentLoss,
        {"nt_xent(x, y, …)": "SimCLR's, of two or more views; with a queue"},
        [
            use("default", "x y"),
            use("views-none", "x y view", temperature=0.2, reduction="none"),
            use("learnable", "x y negatives temperature=0.13"),
            use("0.005", "x y", temperature=0.005),
            use("raw", "x y", temperature=2.0, normalize=False),
            use("everything", "x y view view negatives temperature=0.3"),
        ],
        [
            Measured(
                *(use("nt_xent", "x y", temperature=textbook.TEMPERATURE), textbook.dense_nt_xent, 4),
                f"{_KEPT}, of the 2N rows of both views, M = 2N: M²D for the upper triangle, and 2 M²D for the "
                "gradient",
            )
        ],
    ),
    Loss(
        losses.dcl,
        modules.DCLLoss,
        {"dcl(x, y)": "decoupled: the positive is not in the denominator"},
        [
            use("default", "x y"),
            use("learnable", "x y temperature=0.13", reduction="sum"),
            use("raw", "x y", temperature=2.0, normalize=False),
            use("one-weight", "x y y_weights", temperature=0.4),
            use("everything", "x y x_weights y_weights temperature=0.6"),
        ],
        [
            Measured(
                *(use("dcl", "x y", temperature=textbook.DECOUPLED_TEMPERATURE), textbook.dense_dcl, 4, "as nt_xent")
            )
        ],
        least_rows=2,
    ),
    Loss(
        losses.dclw,
        modules.DCLWLoss,
        {"dclw(x, y)": "the same, with less weight for positives that are alike already"},
        [
            use("default", "x y"),
            use("raw", "x y", temperature=2.0, normalize=False),
            use("everything", "x y temperature=0.3", sigma=0.8, reduction="none"),
        ],
        [
            Measured(
                use("dclw", "x y", temperature=textbook.DECOUPLED_TEMPERATURE, sigma=textbook.SIGMA),
                *(textbook.dense_dclw, 4, "as nt_xent"),
            )
        ],
        least_rows=2,
    ),
    Loss(
        losses.sup_con,
        modules.SupConLoss,
        {"sup_con(x, labels)": "every row of the class is a positive; with a queue"},
        [
            use("default", "x labels"),
            # The gradient of the temperature is the difference of two sums, each with its own rounding.
            use("learnable", "x labels temperature=0.6"),
            use("raw-none", "x labels", temperature=2.0, normalize=False, reduction="none"),
            use("everything", "x labels y y_labels temperature=0.3"),
        ],
        [
            Measured(
                *(use("sup_con", "x labels", temperature=textbook.SUP_CON_TEMPERATURE), textbook.dense_sup_con, 1),
                f"{_KEPT}: N²D for the upper triangle, and 2 N²D for the gradient",
            )
        ],
        refused={
            "y is given, y_labels is None": use("", "x labels y"),
            "y_labels is given, y is None": use("", "x labels y_labels"),
        },
        own_columns=True,
    ),
    Loss(
        losses.clip_loss,
        modules.CLIPLoss,
        {
            "clip_loss(x, y, logit_scale=…)": "two-way contrastive; learnable scale; ids of false negatives, "
            "labels of several positives",
        },
        [
            use("10", "x y", logit_scale=10.0),
            use("1000", "x y", logit_scale=1000.0),
            use("raw", "x y", logit_scale=0.5, normalize=False),
            use("learnable", "x y logit_scale=7.3"),
            use("ids", "x y ids", logit_scale=5.0),
            use("none", "x y logit_scale=7.3", reduction="none"),
            use("everything", "x y ids logit_scale=7.3"),
            use("labels", "x y labels logit_scale=7.3"),
            use("labels-none", "x y labels", logit_scale=5.0, reduction="none"),
        ],
        [
            Measured(use("clip", "x y", logit_scale=textbook.LOGIT_SCALE), textbook.dense_clip, 2, _BOTH_SIDES),
            Measured(
                *(use("clip_learned", _LEARNED), textbook.dense_clip, 2, "as clip; the gradient of the scale is O(N²)")
            ),
        ],
        refused={"ids leave out pairs that labels make": use("", "x y ids labels", logit_scale=1.0)},
    ),
    Loss(
        losses.siglip,
        modules.SigLIPLoss,
        {"siglip(x, y, logit_scale=…, logit_bias=…)": "sigmoid loss; learnable scale and bias"},
        [
            use("default", "x y", logit_scale=10.0, logit_bias=-10.0),
            use("learnable", "x y logit_scale=7.3 logit_bias=-3.1"),
            use("raw", "x y", logit_scale=0.5, logit_bias=-1.0, normalize=False, reduction="sum"),
        ],
        [
            Measured(
                use("siglip", "x y", logit_scale=textbook.SIGLIP_SCALE, logit_bias=textbook.SIGLIP_BIAS),
                *(textbook.dense_siglip, 2, "as clip"),
            )
        ],
    ),
    Loss(
        losses.pairwise_logsumexp,
        None,
        {"pairwise_logsumexp(x, y, logit_scale=…)": "the building block, with exclusions and log-weights"},
        [
            use("none", "x y", logit_scale=5.0),
            use("none-one-side", "x", logit_scale=5.0),
            use("self", "x y", logit_scale=5.0, exclude="self"),
            use("self-one-side", "x", logit_scale=500.0, exclude="self"),
            use("same_id", "x y x_ids y_ids", logit_scale=5.0, exclude="same_id"),
            use("same_id-one-side", "x x_ids", logit_scale=5.0, exclude="same_id"),
            use("weights", "x y x_log_weights y_log_weights x_ids y_ids", logit_scale=5.0, exclude="same_id"),
            use("weights-one-side", "x x_log_weights", logit_scale=800.0, exclude="self"),
            use("raw", "x y y_log_weights", logit_scale=1.5, normalize=False),
        ],
        refused={
            "x_ids must be given with exclude='same_id'": use("", "x y y_ids", logit_scale=1.0, exclude="same_id"),
            "y_ids must be given with exclude='same_id'": use("", "x y x_ids", logit_scale=1.0, exclude="same_id"),
            "x_ids must be given .* got exclude='self'": use("", "x y x_ids", logit_scale=1.0, exclude="self"),
            "y_log_weights and y_ids need y": use("", "x x_ids y_ids", logit_scale=1.0, exclude="same_id"),
            "y_log_weights .*but y is None": use("", "x y_log_weights", logit_scale=1.0),
        },
        own_columns=True,
        least_rows=2,
    ),
]
TABLE = {loss.name: loss for loss in LOSSES}


def readme_rows() -> list[list[str]]:
    """The rows of the README's table: function, module, what."""
    return [
        [f"`{call}`", f"`{loss.module.__name__}`" if loss.module else "", what]
        for loss in LOSSES
        for call, what in loss.listed.items()
    ]
