"""Every loss of the package with its options, next to its textbook formula: what the tests loop over."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import oracle
import torch
from torch import Tensor

import hyperkern as hk


class Case(NamedTuple):
    """A loss with its options.

    Attributes:
        name: for the test id.
        roles: what its tensors are, see `tensors`.
        ours: ``(*tensors, backend=None) -> tuple of outputs``.
        truth: ``(*tensors) -> tuple of outputs``, by `oracle`.
        least_rows: the fewest rows it accepts.
        peers: further textbook ways to write ``truth``, for the comparison of errors in low precision.
        largest_lse: what its log-sum-exps reach, where that is several hundred or several of them are joined.
        in_float64: whether it is computed in float64 whatever the input, which a backend without float64 refuses.
    """

    name: str
    roles: tuple[str, ...]
    ours: Callable[..., tuple[Tensor, ...]]
    truth: Callable[..., tuple[Tensor, ...]]
    least_rows: int = 1
    peers: tuple[Callable[..., tuple[Tensor, ...]], ...] = ()
    largest_lse: float = 0.0

    @property
    def in_float64(self) -> bool:
        return "uniform" in self.name and "raw" in self.name


def _case(
    name: str,
    roles: str,
    ours: Callable,
    truth: Callable,
    least_rows: int = 1,
    peers: Sequence[Callable] = (),
    largest_lse: float = 0.0,
) -> Case:
    def as_tuple(function: Callable) -> Callable[..., tuple[Tensor, ...]]:
        def run(*args: Tensor, **options: object) -> tuple[Tensor, ...]:
            result = function(*args, **options)
            return (result,) if isinstance(result, Tensor) else tuple(result)

        return run

    written = tuple(map(as_tuple, peers))
    return Case(name, tuple(roles.split()), as_tuple(ours), as_tuple(truth), least_rows, written, largest_lse)


def _alignment(name: str, **options: object) -> Case:
    return _case(
        f"alignment-{name}",
        "x y",
        lambda x, y, **k: hk.alignment(x, y, **options, **k),
        lambda x, y: oracle.alignment(x, y, **options),
    )


def _uniformity(name: str, roles: str, **options: object) -> Case:
    at = {role: position for position, role in enumerate(roles.split())}

    def arguments(tensors: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        features = [tensors[at[role]] for role in ("x", "queue") if role in at]
        weights = {name: tensors[at[name]] for name in ("x_weights", "y_weights") if name in at}
        return features, weights

    def ours(*tensors: Tensor, **k: object) -> Tensor:
        features, weights = arguments(tensors)
        return hk.uniformity(*features, **weights, **options, **k)

    def truth(*tensors: Tensor, **k: object) -> Tensor:
        features, weights = arguments(tensors)
        return oracle.uniformity(*features, **weights, **options, **k)

    peers = [functools.partial(truth, by_product=True)] if options.get("normalize", True) else []
    lse = 2 * options["t"] if options.get("t", 0) >= 100 else 0.0
    return _case(f"uniformity-{name}", roles, ours, truth, 1 if "queue" in roles else 2, peers, lse)


def _align_uniform(name: str, **options: object) -> Case:
    def truth(x: Tensor, y: Tensor, **k: object) -> tuple[Tensor, Tensor, Tensor]:
        return oracle.align_uniform(x, y, **options, **k)

    peers = [functools.partial(truth, by_product=True)] if options.get("normalize", True) else []
    ours = functools.partial(hk.align_uniform, **options)
    return _case(f"align_uniform-{name}", "x y", ours, truth, 2, peers)


def _info_nce(name: str, roles: str = "x y", **options: object) -> Case:
    negatives, learnable = "queue" in roles, "temperature" in roles

    def ours(x: Tensor, y: Tensor, *rest: Tensor, **k: object) -> Tensor:
        extra = ({"negatives": rest[0]} if negatives else {}) | ({"temperature": rest[-1]} if learnable else {})
        return hk.info_nce(x, y, **options, **extra, **k)

    def truth(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
        extra = ({"negatives": rest[0]} if negatives else {}) | ({"temperature": rest[-1]} if learnable else {})
        return oracle.info_nce(x, y, **options, **extra)

    lse = 1 / options["temperature"] if options.get("temperature", 1) < 0.01 else 0.0
    return _case(f"info_nce-{name}", roles, ours, truth, largest_lse=lse)


def _clip(name: str, **options: object) -> Case:
    return _case(
        f"clip_loss-{name}",
        "x y",
        lambda x, y, **k: hk.clip_loss(x, y, **options, **k),
        lambda x, y: oracle.clip_loss(x, y, **options),
        largest_lse=options["logit_scale"] if options["logit_scale"] > 100 else 0.0,
    )


def _contrastive(name: str, roles: str, least_rows: int = 1, lse: float = 0.0, **options: object) -> Case:
    """A loss whose function here and in `oracle` has the same name and arguments; ``roles`` name the latter.

    Options that are functions make an argument of the first tensor: ids, labels.
    """
    function, names = name.split("-")[0], roles.split()
    views = sum(role in ("x", "y", "third") for role in names)

    def call(module: object, tensors: Sequence[Tensor], **k: object) -> Tensor:
        given = {ARGUMENTS.get(role, role): t for role, t in zip(names[views:], tensors[views:], strict=True)}
        made = {key: option(tensors[0], *tensors) if callable(option) else option for key, option in options.items()}
        return getattr(module, function)(*tensors[:views], **given, **made, **k)

    return _case(name, roles, lambda *t, **k: call(hk, t, **k), lambda *t: call(oracle, t), least_rows, largest_lse=lse)


# What a role is called where it is an argument, if not like the role.
ARGUMENTS = {
    "queue": "negatives",
    "hard": "hard_negatives",
    "scale": "logit_scale",
    "bias": "logit_bias",
    "warm": "temperature",
    "u": "y_log_weights",
    "v": "negative_log_weights",
}


# Index in the batch of the first row at hand: other than 0 on a rank that has a part of it.
first_row = 0


def same_sample(x: Tensor, *_: Tensor) -> Tensor:
    """Ids of which some occur twice."""
    index = torch.arange(first_row, first_row + x.shape[-2], device=x.device)
    return (index // 2 * 2 % 7).expand(x.shape[:-1])


def queue_ids(x: Tensor, *tensors: Tensor) -> Tensor:
    """Ids of the queue, the last of the features, of which some occur in `same_sample`; its last row has none."""
    return ids([t for t in tensors if t.dim() == x.dim()][-1], 99)


def _lse(name: str, roles: str, exclude: str = "none", least_rows: int = 1, **options: object) -> Case:
    def ours(x: Tensor, *rest: Tensor, **k: object) -> tuple[Tensor, Tensor]:
        y = rest[0] if "queue" in roles else None
        if "u" in roles.split():
            k["x_log_weights"] = rest[roles.split().index("u") - 1]
        if "v" in roles.split():
            k["y_log_weights"] = rest[-1]
        if exclude == "same_id":
            k["x_ids"] = ids(x, 98)
            k["y_ids"] = None if y is None else ids(y, 99)
        return hk.pairwise_logsumexp(x, y, exclude=exclude, **options, **k)

    def truth(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        y = rest[0] if "queue" in roles else None
        u = rest[roles.split().index("u") - 1] if "u" in roles.split() else None
        v = rest[-1] if "v" in roles.split() else None
        columns = x if y is None else y
        mask = None
        if exclude == "self":
            mask = oracle.same_index(x.shape[-2], columns.shape[-2], x.device).expand(*x.shape[:-1], -1)
        if exclude == "same_id":
            mask = ids(x, 98)[..., None] == ids(columns, 98 if y is None else 99)[..., None, :]
        return oracle.pairwise_logsumexp(x, y, u, v, mask=mask, **options)

    lse = options["scale"] if options["scale"] > 100 else 0.0
    return _case(f"logsumexp-{name}", roles, ours, truth, least_rows, largest_lse=lse)


def ids(x: Tensor, last: int) -> Tensor:
    """Three groups and a last row of its own, so that no row of the other side is left without a candidate."""
    values = torch.arange(x.shape[-2], device=x.device) % 3
    values[-1] = last
    return values.expand(x.shape[:-1])


CASES = [
    _alignment("default"),
    _alignment("alpha1-sum", alpha=1.0, reduction="sum"),
    _alignment("alpha0.5-none", alpha=0.5, reduction="none"),
    _alignment("alpha3-raw", alpha=3.0, normalize=False),
    _uniformity("default", "x"),
    _uniformity("t0.3", "x", t=0.3),
    _uniformity("t400", "x", t=400.0),  # beyond the bounded regime of float32 and of float64
    _uniformity("raw", "x", normalize=False),
    _uniformity("weights", "x x_weights"),
    _uniformity("queue", "x queue"),
    _uniformity("queue-t400", "x queue", t=400.0),
    _uniformity("queue-intra", "x queue", intra=True),
    _uniformity("queue-raw-intra", "x queue", intra=True, normalize=False, t=0.5),
    _uniformity("queue-weights", "x queue x_weights y_weights"),
    _uniformity("queue-one-weight-intra", "x queue y_weights", intra=True),
    _align_uniform("default"),
    _align_uniform("options", alpha=1.5, t=3.0, align_weight=0.7, uniform_weight=0.2),
    _align_uniform("raw", normalize=False),
    _info_nce("default"),
    _info_nce("tau0.5-sum", temperature=0.5, reduction="sum"),
    _info_nce("tau0.001-none", temperature=0.001, reduction="none"),
    _info_nce("negatives", "x y queue"),
    _info_nce("negatives-raw", "x y queue", normalize=False, temperature=2.0),
    _info_nce("learnable", "x y temperature"),
    _info_nce("learnable-negatives", "x y queue temperature"),
    _clip("10", logit_scale=10.0),
    _clip("1000", logit_scale=1000.0),
    _clip("raw", logit_scale=0.5, normalize=False),
    _case(
        "clip_loss-learnable",
        "x y scale",
        lambda x, y, s, **k: hk.clip_loss(x, y, logit_scale=s, **k),
        lambda x, y, s: oracle.clip_loss(x, y, logit_scale=s),
    ),
    _contrastive("clip_loss-ids", "x y", ids=same_sample, logit_scale=5.0),
    _contrastive("clip_loss-none", "x y scale", reduction="none"),
    _contrastive("info_nce-queue_only", "x y queue", in_batch=False, temperature=0.2),
    _contrastive("info_nce-hard", "x y hard temperature", lse=8.0, in_batch=False),
    _contrastive(
        *("info_nce-everything", "x y queue hard u v"),
        lse=8.0,
        ids=same_sample,
        negative_ids=queue_ids,
        temperature=0.3,
    ),
    _contrastive("info_nce-log_weights", "x y u", temperature=0.4, reduction="sum"),
    _contrastive("nt_xent-default", "x y"),
    _contrastive("nt_xent-views-none", "x y third", temperature=0.2, reduction="none"),
    _contrastive("nt_xent-learnable", "x y queue temperature", lse=8.0),
    _contrastive("nt_xent-0.005", "x y", temperature=0.005, lse=200.0),
    _contrastive("nt_xent-raw", "x y", temperature=2.0, normalize=False),
    _contrastive("dcl-default", "x y", 2),
    _contrastive("dcl-learnable", "x y temperature", 2, reduction="sum"),
    _contrastive("dclw-default", "x y", 2),
    _contrastive("sup_con-default", "x", labels=same_sample),
    # The gradient of the temperature is the difference of two sums, each with its own rounding.
    _contrastive("sup_con-learnable", "x warm", lse=2.0, labels=same_sample),
    _contrastive(
        "sup_con-one_class-none", "x", labels=lambda x, *_: torch.zeros_like(same_sample(x)), reduction="none"
    ),
    _contrastive("siglip-default", "x y", logit_scale=10.0, logit_bias=-10.0),
    _contrastive("siglip-learnable", "x y scale bias"),
    _lse("none", "x queue", scale=5.0),
    _lse("none-one-side", "x", scale=5.0),
    _lse("self", "x queue", "self", 2, scale=5.0),
    _lse("self-one-side", "x", "self", 2, scale=500.0),
    _lse("same_id", "x queue", "same_id", scale=5.0),
    _lse("same_id-one-side", "x", "same_id", 2, scale=5.0),
    _lse("weights", "x queue u v", "same_id", scale=5.0),
    _lse("weights-one-side", "x u", "self", 2, scale=800.0),
    _lse("raw", "x queue v", scale=1.5, normalize=False),
]
BY_NAME = {case.name: case for case in CASES}


# The roles that are features.
FEATURES = ("x", "y", "third", "queue", "hard")


def names(cases: Sequence[Case] = CASES) -> list[str]:
    return [case.name for case in cases]


def loss_of(name: str) -> str:
    return name.split("-")[0]


# One case of each loss, its first.
FIRST = list({loss_of(name): name for name in reversed(names())}.values())


def tensors(
    case: Case,
    m: int,
    n: int,
    d: int,
    batch: int | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The tensors of a case, drawn in float64 and rounded to ``dtype``: M rows of x and y, N of the queue."""
    draw = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)

    def make(role: str) -> Tensor:
        if role in FEATURES:
            rows = {"queue": (n,), "hard": (m, 3)}.get(role, (m,))
            return torch.randn(*lead, *rows, d, generator=draw, dtype=torch.float64)
        if role.endswith("_weights"):
            return torch.rand(*lead, m if role[0] == "x" else n, generator=draw, dtype=torch.float64) + 0.1
        if role in ("u", "v"):
            return torch.randn(*lead, m if role == "u" else n, generator=draw, dtype=torch.float64)
        return torch.tensor({"temperature": 0.13, "warm": 0.6, "scale": 7.3, "bias": -3.1}[role], dtype=torch.float64)

    return [make(role).to(device=device, dtype=dtype) for role in case.roles]


def values_and_grads(
    function: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], seed: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and the gradients of a fixed random combination of them for every argument."""
    args = [arg.detach().requires_grad_() for arg in args]
    outputs = function(*args)
    draw = torch.Generator().manual_seed(seed)
    cotangents = [
        torch.randn(out.shape, generator=draw, dtype=torch.float64).to(device=out.device, dtype=out.dtype)
        for out in outputs
    ]
    grads = torch.autograd.grad(outputs, args, cotangents)
    return [out.detach() for out in outputs], list(grads)
