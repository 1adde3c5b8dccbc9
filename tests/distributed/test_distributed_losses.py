"""Every loss over ranks is the loss of one process that has all rows, and so are the gradients."""

import warnings
from collections.abc import Sequence
from typing import Any

import cases
import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME, CASES, Case
from conftest import needs_cuda_kernels, needs_triton
from oracle import assert_close
from ranks import Ranks
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh

import hyperkern as hk
from hyperkern import autograd
from hyperkern.distributed import Agreement
from hyperkern.memory import PeakMemory
from hyperkern.spec import PairSpec

ROWS, QUEUE, DIM = 13, 6, 5
# How the rows are spread, by the number of ranks: even, uneven, with ranks that have none.
SPREADS = {1: [(13,)], 2: [(12, 1), (0, 13)], 3: [(5, 4, 4), (1, 0, 12)], 4: [(4, 3, 3, 3), (0, 12, 0, 1)]}
SHARED_LOSSES = [case for case in CASES if not case.name.startswith("pairwise_logsumexp")]


def is_sharded(case: Case, role: str) -> bool:
    """Whether a rank has some of it: what belongs to the rows of ``x``, but not a queue nor a number."""
    return (role in cases.FEATURES or role.endswith("_weights")) and case.rows(role, ROWS, QUEUE) == ROWS


Run = tuple[list[Tensor], list[Tensor]]  # outputs, and gradients of the arguments


def own_rows(tensor: Tensor, counts: Sequence[int], rank: int, axis: int = 0) -> Tensor:
    return tensor.narrow(axis, sum(counts[:rank]), counts[rank])


def own_anchors(tensor: Tensor, counts: Sequence[int], rank: int, axis: int) -> Tensor:
    """The part of a rank, of anchors that are the rows of one view after the other."""
    return own_rows(tensor.unflatten(axis, (-1, sum(counts))), counts, rank, axis + 1).flatten(axis, axis + 1)


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out.dtype) for out in outputs]


def tensors_of(case: Case, dtype: torch.dtype = torch.float64, batch: int | None = None) -> list[Tensor]:
    return cases.tensors(case, ROWS, QUEUE, DIM, batch, dtype=dtype)


def one_process(case: Case, tensors: list[Tensor], **options: Any) -> Run:
    cases.first_row = 0
    args = [t.detach().requires_grad_() for t in tensors]
    outputs = case.ours(*args, **options)
    grads = torch.autograd.grad(outputs, args, cotangents(outputs))
    return [out.detach() for out in outputs], list(grads)


def one_rank(
    case: Case,
    tensors: list[Tensor],
    given: list[Tensor],
    counts: Sequence[int],
    rank: int,
    group: Any,
    axis: int = 0,
    **options: Any,
) -> Run:
    """Of a rank: its outputs, and the gradients, for the cotangents ``given``, of what it was given."""
    cases.first_row = sum(counts[:rank])
    args = [
        (own_rows(t, counts, rank, axis) if is_sharded(case, role) else t).detach().requires_grad_()
        for role, t in zip(case.roles, tensors, strict=True)
    ]
    outputs = case.ours(*args, group=group, **options)
    # All ranks share the loss and its cotangent; of losses of anchors, each has its own.
    given = [
        own_anchors(c, counts, rank, axis) if out.dim() > axis else c for out, c in zip(outputs, given, strict=True)
    ]
    grads = torch.autograd.grad(outputs, args, given)
    return [out.detach() for out in outputs], list(grads)


def on_all_spreads(
    rank: int, name: str, spreads: list[tuple[int, ...]], dtype: torch.dtype, **options: Any
) -> list[Run]:
    case = BY_NAME[name]
    tensors = tensors_of(case, dtype)
    given = cotangents(one_process(case, tensors)[0])
    return [
        one_rank(case, tensors, given, counts, rank, hk.Group(transport=transport), **options)
        for counts in spreads
        for transport in ("gather", "ring")
    ]


def check(case: Case, expected: Run, runs: list[Run], counts: Sequence[int], tolerance: float, axis: int = 0) -> None:
    """The runs of all ranks against that of one process."""
    per_anchor = any(out.dim() > axis for out in expected[0])
    factor = 1 if per_anchor else len(counts)  # of grad_scale="ddp"
    for rank, (outputs, grads) in enumerate(runs):
        for out, truth in zip(outputs, expected[0], strict=True):
            truth = own_anchors(truth, counts, rank, axis) if per_anchor else truth
            assert_close(out, truth, tolerance)
        if not per_anchor:  # bit for bit
            assert all(map(torch.equal, outputs, runs[0][0]))
        for role, grad, truth in zip(case.roles, grads, expected[1], strict=True):
            if is_sharded(case, role):
                truth = own_rows(truth, counts, rank, axis)
                assert_close(grad, factor * truth, tolerance)
    for i, role in enumerate(case.roles):
        if not is_sharded(case, role):  # each rank has the part that its rows make
            total = sum(grads[i] for _, grads in runs)
            assert_close(total, factor * expected[1][i], tolerance)


def losses_and_sizes() -> list[tuple[str, int]]:
    """Every case over four ranks and over two; one of each loss over an odd number, and over one alone."""
    return [
        (name, size) for name in cases.names(SHARED_LOSSES) for size in SPREADS if size in (2, 4) or name in cases.FIRST
    ]


@pytest.mark.parametrize(("name", "size"), losses_and_sizes())
def test_every_loss(ranks: Ranks, name: str, size: int) -> None:
    case = BY_NAME[name]
    expected = one_process(case, tensors_of(case))
    by_rank = ranks(size).run(on_all_spreads, name, SPREADS[size], torch.float64)
    for at, runs in enumerate(zip(*by_rank, strict=True)):
        check(case, expected, list(runs), SPREADS[size][at // 2], 1e-12)


# Of rows and of columns, which have spreads of their own.
BOTH_SPREADS = {2: [((12, 1), (0, 6)), ((0, 13), (3, 3))], 3: [((5, 4, 4), (1, 5, 0)), ((13, 0, 0), (0, 2, 4))]}
LOG_SUMS = [case.name for case in CASES if case.name.startswith("pairwise_logsumexp")]


def lengths_of(case: Case, counts: tuple[int, ...], columns: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The spread of what belongs to either side; where rows and columns must go together it is one."""
    aligned = case.use.options.get("exclude") == "self" or "y" not in case.roles
    return {"x": counts, "y": counts if aligned else columns}


def log_sums_of_ranks(rank: int, name: str, spreads: list[tuple]) -> list[Run]:
    case = BY_NAME[name]
    tensors = log_sum_tensors(case)
    rows = dict(zip(case.roles, tensors, strict=True))
    found = []
    for counts, columns in spreads:
        lengths = lengths_of(case, counts, columns)

        def part(tensor: Tensor, side: str, lengths: dict = lengths) -> Tensor:
            return own_rows(tensor, lengths[side], rank)

        ids = {
            f"{side}_ids": lambda _, side=side: part(cases.INTEGERS[f"{side}_ids"](rows[side]), side) for side in "xy"
        }
        own = cases.case_of(case.loss, case.use, **ids)
        for transport in ("gather", "ring"):
            args = [part(t, cases.rows_of(r)).detach().requires_grad_() for r, t in rows.items()]
            outputs = own.ours(*args, group=hk.Group(transport=transport))
            given = map(part, cotangents(case.truth(*tensors)), "xy")
            grads = torch.autograd.grad(outputs, args, list(given))
            found.append(([out.detach() for out in outputs], list(grads)))
    return found


def log_sum_tensors(case: Case) -> list[Tensor]:
    columns = ROWS if case.use.options.get("exclude") == "self" else QUEUE
    return cases.tensors(case, ROWS, columns, DIM)


@pytest.mark.parametrize("size", BOTH_SPREADS)
@pytest.mark.parametrize("name", LOG_SUMS)
def test_log_sums_of_all_pairs(ranks: Ranks, name: str, size: int) -> None:
    case = BY_NAME[name]
    args = [t.requires_grad_() for t in log_sum_tensors(case)]
    outputs = case.truth(*args)
    grads = torch.autograd.grad(outputs, args, cotangents(outputs))
    for runs in zip(*ranks(size).run(log_sums_of_ranks, name, BOTH_SPREADS[size]), strict=True):
        for at, truth in enumerate(outputs):
            assert_close(torch.cat([found[at] for found, _ in runs]), truth, 1e-12)
        for at, truth in enumerate(grads):
            assert_close(torch.cat([of_rank[at] for _, of_rank in runs]), truth, 1e-12)


def log_sums_refused(rank: int) -> list[str]:
    x, said = torch.randn(3, 2), []
    for y, exclude in ((torch.randn(3 + rank, 2), "self"), (torch.randn(0, 2), "none")):
        with pytest.raises(ValueError, match="y must") as refusal:
            hk.pairwise_logsumexp(x, y, logit_scale=2.0, exclude=exclude, group=hk.Group())
        said.append(str(refusal.value))
    return said


def test_log_sums_that_are_refused(ranks: Ranks) -> None:
    (first, empty), (second, _) = ranks(2).run(log_sums_refused)
    assert second.startswith(
        "y must have the shape of x on every rank for exclude='self' with a group, (3, 2), got (4, 2)"
    )
    assert first == f"pairwise_logsumexp was refused on rank 1 of the group: ValueError: {second}"
    assert empty == "y must not be empty: none of the 2 ranks of the group has a row"


def with_a_batch_dimension(rank: int, name: str, counts: tuple[int, ...], batch: int) -> Run:
    case = BY_NAME[name]
    tensors = tensors_of(case, batch=batch)
    given = cotangents(one_process(case, tensors)[0])
    return one_rank(case, tensors, given, counts, rank, hk.Group(transport="ring"), axis=1)


@pytest.mark.parametrize(
    "name",
    [
        *("uniformity-weights", "align_uniform-options", "info_nce-everything", "clip_loss-ids"),
        *("nt_xent-views-none", "sup_con-default", "siglip-default"),
    ],
)
def test_several_problems_at_once(ranks: Ranks, name: str) -> None:
    case, counts = BY_NAME[name], (5, 0, 8)
    expected = one_process(case, tensors_of(case, batch=2))
    runs = ranks(3).run(with_a_batch_dimension, name, counts, 2)
    check(case, expected, runs, counts, 1e-12, axis=1)


@pytest.mark.parametrize("name", ["uniformity-default", "clip_loss-10", "nt_xent-default", "siglip-default"])
@pytest.mark.parametrize(
    "backend", [pytest.param("triton", marks=needs_triton), pytest.param("cuda", marks=needs_cuda_kernels)]
)
def test_kernels(ranks: Ranks, name: str, backend: str) -> None:
    case, spreads = BY_NAME[name], [(7, 6), (13, 0)]
    expected = one_process(case, tensors_of(case))
    for at, runs in enumerate(zip(*ranks(2).run(kernels_on_all_spreads, name, spreads, backend), strict=True)):
        check(case, expected, list(runs), spreads[at // 2], 2e-5)


def kernels_on_all_spreads(rank: int, name: str, spreads: list[tuple[int, ...]], backend: str) -> list[Run]:
    runs = on_all_spreads(rank, name, spreads, torch.float32, backend=backend)
    return [([t.double() for t in outputs], [t.double() for t in grads]) for outputs, grads in runs]


def in_both_scales(rank: int, counts: tuple[int, ...]) -> list[Tensor]:
    grads = []
    for scale in ("ddp", "sum"):
        x = own_rows(torch.arange(ROWS * 4.0).sin().view(ROWS, 4), counts, rank).requires_grad_()
        hk.nt_xent(x, x.cos(), group=hk.Group(grad_scale=scale)).backward()
        grads.append(x.grad)
    return grads


def test_the_scale_of_gradients(ranks: Ranks) -> None:
    for ddp, plain in ranks(3).run(in_both_scales, (5, 4, 4)):
        torch.testing.assert_close(ddp, 3 * plain)


def in_groups(rank: int) -> list[tuple[float, Tensor]]:
    """The loss of the ranks 0 and 2, and that of 1 and 3, by a process group and by a mesh."""
    mine, _ = dist.new_subgroups_by_enumeration([[0, 2], [1, 3]])
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    with pytest.raises(ValueError, match=r"^group must be a mesh of one dimension, group=mesh\[...\], got .*rows"):
        hk.uniformity(torch.randn(3, 2), group=mesh)
    # The mesh has ranks 0 and 1 in its first row: 0 and 2 are a column of it.
    found = []
    for group in (mine, mesh["rows"], hk.Group(mesh["rows"], transport="ring")):
        x = torch.randn(3 + rank, 2, generator=torch.Generator().manual_seed(rank)).requires_grad_()
        loss = hk.align_uniform(x, x.tanh(), group=group).loss
        loss.backward()
        found.append((loss.item(), x.grad))
    return found


def test_groups_within_the_world(ranks: Ranks) -> None:
    by_rank = ranks(4).run(in_groups)
    for members in ((0, 2), (1, 3)):
        rows = [torch.randn(3 + r, 2, generator=torch.Generator().manual_seed(r)).requires_grad_() for r in members]
        x = torch.cat(rows)
        loss = hk.align_uniform(x, x.tanh()).loss
        grads = torch.autograd.grad(loss, rows)
        for rank, grad in zip(members, grads, strict=True):
            for value, found in by_rank[rank]:
                assert value == pytest.approx(loss.item(), rel=1e-6)
                torch.testing.assert_close(found, 2 * grad, rtol=1e-5, atol=1e-6)


def some_sides_frozen(rank: int) -> list[Tensor | None]:
    found = []
    for frozen in ("x", "y"):
        x, y = (torch.randn(4, 3, dtype=torch.float64) + rank for _ in range(2))
        for name, t in (("x", x), ("y", y)):
            t.requires_grad_(name != frozen)
        hk.clip_loss(x, y, logit_scale=3.0, group=hk.Group(transport="ring")).backward()
        found += [x, y, x.grad, y.grad]
    return [t if t is None else t.detach() for t in found]


def test_a_frozen_side(ranks: Ranks) -> None:
    by_rank = ranks(2).run(some_sides_frozen)
    for at in (0, 4):
        x, y = (torch.cat([found[at + side] for found in by_rank]).requires_grad_() for side in (0, 1))
        hk.clip_loss(x, y, logit_scale=3.0).backward()
        for side, truth in ((2, x.grad), (3, y.grad)):
            if (side == 2) == (at == 0):
                assert all(found[at + side] is None for found in by_rank)
            else:
                torch.testing.assert_close(torch.cat([found[at + side] for found in by_rank]), 2 * truth)


def second_order(rank: int) -> None:
    for loss in (hk.uniformity, lambda x, **k: hk.clip_loss(x, x.sin(), logit_scale=3.0, **k)):
        x = torch.randn(4, 3).requires_grad_()
        with pytest.raises(NotImplementedError, match=r"^the gradient of a loss across ranks cannot be differentiated"):
            torch.autograd.grad(loss(x, group=hk.Group()), x, create_graph=True)


def test_second_derivatives_are_refused(ranks: Ranks) -> None:
    ranks(2).run(second_order)


def with_a_tangent(rank: int) -> str:
    x = torch.randn(4, 3, dtype=torch.float64)
    message = r"of uniformity needs group=None: x has a tangent"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(lambda x: hk.uniformity(x, normalize=False, group=hk.Group()), (x,), (x,))
    y = torch.randn(4, 3)
    with forward_ad.dual_level():
        hk.clip_loss(y, y, logit_scale=3.0, group=hk.Group())
        dual = forward_ad.make_dual(y, y) if rank == 0 else y
        with pytest.raises((NotImplementedError, ValueError)) as refusal:
            hk.clip_loss(y, dual, logit_scale=3.0, group=hk.Group())
    return str(refusal.value)


def test_forward_mode_is_refused_on_all_ranks(ranks: Ranks) -> None:
    first, second = ranks(2).run(with_a_tangent)
    assert "of clip_loss needs group=None: y has a tangent" in first
    assert second.startswith("clip_loss was refused on rank 0 of the group: NotImplementedError: ")


def rows_and_labels() -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 7, 4, generator=draw, dtype=torch.float64)
    labels, y_labels = torch.randint(3, (2, 7), generator=draw)
    return x, y, labels, y_labels, *torch.randn(3, 7, generator=draw, dtype=torch.float64)


def remote_positives(rank: int, counts: tuple[int, ...], transport: str, columns: str) -> list[Tensor]:
    x, y, labels, y_labels, *weights = (own_rows(t, counts, rank) for t in rows_and_labels())
    sides = [x.requires_grad_()] if columns == "x" else [x.requires_grad_(), y.requires_grad_()]
    with Agreement(hk.Group(transport=transport), "a loss") as agreed:
        agreed.shard(x=x)
    own = y_labels if columns == "y of other labels" else labels
    remote = autograd.share(agreed.ranks, sides[-1], labels=own)
    found = autograd.remote_row_lse(
        x,
        None if columns == "x" else y,
        remote,
        spec=PairSpec(3.0),
        labels=labels,
        y_labels=own if columns == "y of other labels" else None,
        need_cols=columns != "x",
    )
    outputs = [found.row_lse, found.positives] + [found.col_lse] * (columns != "x")
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, sides, weights[: len(outputs)])]


@pytest.mark.parametrize("columns", ["x", "y", "y of other labels"])
@pytest.mark.parametrize("counts", [(4, 3), (2, 0, 5)], ids=str)
def test_positives_on_other_ranks(ranks: Ranks, counts: tuple[int, ...], columns: str) -> None:
    x, y, labels, y_labels, *weights = rows_and_labels()
    sides = [x.requires_grad_()] if columns == "x" else [x.requires_grad_(), y.requires_grad_()]
    of_columns = y_labels if columns == "y of other labels" else labels
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    elsewhere = owner[:, None] != owner
    products = x @ sides[-1].T
    logits = (3 * products).masked_fill(~elsewhere, -torch.inf)
    positives = (products * (elsewhere & (labels[:, None] == of_columns))).sum(1)
    outputs = [logits.logsumexp(1), positives] + [logits.logsumexp(0)] * (columns != "x")
    expected = [*outputs, *torch.autograd.grad(outputs, sides, weights[: len(outputs)])]
    for transport in ("gather", "ring"):
        by_rank = ranks(len(counts)).run(remote_positives, counts, transport, columns)
        for found, truth in zip(zip(*by_rank, strict=True), expected, strict=True):
            torch.testing.assert_close(torch.cat(found), truth, rtol=1e-12, atol=1e-12)


def weights_and_queue() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, queue = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (5, 3))
    return x, torch.tensor([0.0, 0, 1, 2, 1], dtype=torch.float64), queue


def without_weight(rank: int, intra: bool, normalize: bool) -> tuple[Tensor, Tensor]:
    x, weights, queue = weights_and_queue()
    x, weights = (own_rows(t, (2, 3), rank) for t in (x, weights))
    options = {"intra": intra, "normalize": normalize, "x_weights": weights, "group": hk.Group()}
    value = hk.uniformity(x.requires_grad_(), queue, **options)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("intra", [True, False])
def test_a_rank_of_which_no_row_has_a_weight(ranks: Ranks, intra: bool, normalize: bool) -> None:
    x, weights, queue = weights_and_queue()
    value = hk.uniformity(x.requires_grad_(), queue, intra=intra, normalize=normalize, x_weights=weights)
    (grad,) = torch.autograd.grad(value, x)
    runs = ranks(2).run(without_weight, intra, normalize)
    for found, _ in runs:
        assert_close(found, value)
    assert_close(torch.cat([of_rank for _, of_rank in runs]), 2 * grad)  # which DDP averages


def in_a_compiled_step(rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def step(x: Tensor) -> Tensor:
        return hk.clip_loss(x.sin(), x.cos(), logit_scale=3.0, group=hk.Group()) + 1

    found = []
    for run in (step, torch.compile(step, backend="aot_eager")):
        x = torch.arange(12.0).add(rank).view(4, 3).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, of what it traces; as errors they stop it
            loss = run(x)
            loss.backward()
        found += [loss.detach(), x.grad]
    torch.compiler.reset()
    return tuple(found)


def test_compiled(ranks: Ranks) -> None:
    for loss, grad, compiled, compiled_grad in ranks(2).run(in_a_compiled_step):
        torch.testing.assert_close((compiled, compiled_grad), (loss, grad))


def with_autocast(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 4, dtype=torch.bfloat16)[6 * rank :][:6].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = hk.nt_xent(x, x.sin(), group=hk.Group())
    loss.backward()
    return loss.detach(), x.grad


def test_autocast(ranks: Ranks) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 4, dtype=torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected = hk.nt_xent(x, x.sin())
    expected.backward()
    for rank, (loss, grad) in enumerate(ranks(2).run(with_autocast)):
        assert (loss.dtype, grad.dtype) == (torch.float32, torch.bfloat16)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(grad, 2 * x.grad[6 * rank :][:6])


def narrow_integers(rank: int, transport: str) -> list[float]:
    x, group = torch.randn(5, 3), hk.Group(transport=transport)
    few = torch.arange(5) % 3
    return [
        hk.sup_con(x, few.to(dtype), group=group).item()
        + hk.clip_loss(x, x, logit_scale=1.0, ids=few.to(dtype), group=group).item()
        for dtype in (torch.int64, torch.int16, torch.uint8)
    ]


@pytest.mark.parametrize("transport", ["gather", "ring"])
def test_narrow_labels_and_ids(ranks: Ranks, transport: str) -> None:
    for found in ranks(2).run(narrow_integers, transport):
        assert len(set(found)) == 1


def backward_twice(rank: int) -> list[Tensor]:
    found = []
    for transport in ("gather", "ring"):
        x, y = (torch.randn(4, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
        loss = hk.clip_loss(x, y, logit_scale=3.0, group=hk.Group(transport=transport)) + hk.uniformity(
            x, group=hk.Group(transport=transport)
        )
        first = torch.autograd.grad(loss, (x, y), retain_graph=True)
        second = torch.autograd.grad(loss, (x, y), torch.tensor(2.0, dtype=torch.float64))
        found += [*first, *second]
    return found


def test_two_backward_passes(ranks: Ranks) -> None:
    for dx, dy, dx2, dy2, *around in ranks(2).run(backward_twice):
        torch.testing.assert_close((dx2, dy2), (2 * dx, 2 * dy))
        assert len(around) == 4


def several_losses_at_once(rank: int, order: list[int]) -> list[Tensor]:
    """Losses whose graphs are built in an order and differentiated in one backward pass."""
    x = torch.randn(4 + rank, 3, dtype=torch.float64).requires_grad_()
    made = [
        lambda: hk.nt_xent(x, x.sin(), group=hk.Group()),
        lambda: hk.uniformity(x, t=400.0, group=hk.Group(transport="ring")),
        lambda: hk.sup_con(x, torch.arange(4 + rank) % 2, group=hk.Group(transport="ring")),
    ]
    losses = {i: made[i]() for i in order}
    return list(torch.autograd.grad(sum(losses[i] for i in sorted(losses)), x))


def test_several_losses_in_one_backward(ranks: Ranks) -> None:
    one_order, another = (
        ranks(3).run(several_losses_at_once, [0, 1, 2]),
        ranks(3).run(several_losses_at_once, [2, 0, 1]),
    )
    for found, other in zip(one_order, another, strict=True):
        torch.testing.assert_close(found, other)


def memory_of(rank: int, rows: int, dim: int) -> dict[str, int]:
    """The extra resident memory of loss + gradient, in shards of this rank."""
    x = torch.randn(rows, dim)
    found = {}
    for transport in ("ring", "gather"):
        group = hk.Group(transport=transport)
        hk.uniformity(x[:64].requires_grad_(), group=group).backward()
        leaf = x.detach().requires_grad_()
        dist.barrier()
        with PeakMemory(torch.device("cpu")) as memory:
            hk.uniformity(leaf, group=group).backward()
        found[transport] = memory.rise / x.nbytes
    return found


@pytest.mark.slow
def test_the_ring_holds_a_few_shards(ranks: Ranks) -> None:
    size = 4
    for found in ranks(size).run(memory_of, 750, 4096):
        # Unit rows, the gradient three times over while it is made, two shards that travel, and what blocks take.
        assert found["ring"] < 8
        # All shards, twice while they are put together.
        assert found["gather"] > found["ring"] + size - 2
