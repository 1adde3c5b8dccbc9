"""Values and gradients of every loss against the textbook formulas in float64, on ragged shapes and any strides."""

import pytest
import torch
from cases import BY_NAME, Case, names, tensors, values_and_grads
from conftest import Exact, interpreted
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_close
from torch import Tensor

import hyperkern

ROWS = (1, 2, 3, 127, 129, 1000)
DIMS = (1, 2, 3, 127, 768)
LAYOUTS = ("contiguous", "transposed", "offset", "strided")


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if tensor.dim() < 2 or layout == "contiguous":
        return tensor
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "offset":
        padded = tensor.new_full((*tensor.shape[:-2], tensor.shape[-2] + 2, tensor.shape[-1] + 3), torch.nan)
        view = padded[..., 1:-1, 1:-2]
    else:
        padded = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)
        view = padded[..., ::2]
    return view.copy_(tensor)


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, int | None, list[str], bool, int]:
    m, n, d = draw(st.sampled_from(ROWS)), draw(st.sampled_from(ROWS)), draw(st.sampled_from(DIMS))
    batch = draw(st.sampled_from([None, 1, 3]))
    # The dense truth is what takes the time.
    if max(m, n) ** 2 * d * (batch or 1) > 1 << 22:
        d, batch = min(d, 3), None
    layouts = draw(st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4))
    return m, n, d, batch, layouts, draw(st.booleans()), draw(st.integers(0, 2**16))


def flat(values_and_grads: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [*values_and_grads[0], *values_and_grads[1]]


def check(case: Case, args: list[Tensor], backend: str, exact: Exact, *, rest: float = 0.0) -> None:
    """Against the truth to 1e-10; in float32 against the error that PyTorch makes in float32.

    One draw of a few numbers, where PyTorch may be right by luck, so that the factor is 4 and what the rounding of the
    arguments makes of the truth counts as well; `test_tolerance` asks for more, of several draws together. ``rest`` is
    the size of terms that cancel.
    """
    rounded = [arg.to(exact.dtype) for arg in args]
    try:
        results = flat(values_and_grads(lambda *a: case.ours(*a, backend=backend), rounded))
    except ValueError as error:
        # A backend without float64, forced where only that is accurate, says so; nothing falls back.
        assert case.in_float64 and exact.dtype != torch.float64 and "float64" in str(error)  # noqa: PT017, PT018
        return
    wide = [arg.double().cpu() for arg in rounded]
    truths = flat(values_and_grads(case.truth, wide))
    if exact.dtype == torch.float64:
        for actual, truth in zip(results, truths, strict=True):
            # At a scale of 1000 an exponent has lost three of its digits.
            error = (actual.detach().cpu() - truth.detach()).abs().max()
            assert error <= 1e-10 * (1 + case.largest_lse / 100) * max(1.0, truth.abs().max())
        return
    peers = [flat(values_and_grads(way, rounded)) for way in (case.truth, *case.peers)]
    peers += [flat(values_and_grads(case.truth, [nudged(arg, exact.dtype) for arg in wide])) for _ in range(2)]
    for actual, truth, *others in zip(results, truths, *peers, strict=True):
        assert actual.shape == truth.shape
        error, *allowed = ((t.detach().double().cpu() - truth).abs().max() for t in (actual, *others))
        # All relative to the size of what is judged: a gradient of 1e-3 has as many digits as one of 1.
        # What is 0 in exact arithmetic has none: it is the rest of logits, of which a scale makes 16 or more.
        size = max(truth.abs().max().item(), rest) if truth.abs().max() > 1e-9 else 16.0
        rounding = torch.finfo(exact.dtype).eps * (1 + case.largest_lse) * size
        if backend != "reference":  # tensor cores round sums towards zero, and three tf32 products leave out a fourth
            rounding *= 8
        assert error <= 4 * (max(allowed) + rounding), f"error {error:.3g}, allowed {max(allowed):.3g}, {rounding:.3g}"


def nudged(arg: Tensor, dtype: torch.dtype) -> Tensor:
    """Each number up or down by a unit in the last place of a dtype."""
    return arg * (1 + torch.finfo(dtype).eps * torch.randn_like(arg).sign())


@pytest.mark.parametrize("name", names())
@given(problem=problems())
def test_matches_textbook(name: str, backend: str, device: torch.device, exact: Exact, problem: tuple) -> None:
    m, n, d, batch, layouts, expanded, seed = problem
    if interpreted(backend, device):  # an interpreter takes its time
        if seed % 3:  # a third of the problems; every primitive has its own tests in `test_primitives`
            return
        most = 13 if backend == "triton" else 65
        m, n, d = min(m, most), min(n, most - 2), min(d, 127)  # wider ones: `test_wide`
    case = BY_NAME[name]
    args = tensors(case, max(m, case.least_rows), max(n, case.least_rows), d, batch, seed=seed, device=device)
    args = [laid_out(arg, layouts[i % len(layouts)]) for i, arg in enumerate(args)]
    if expanded:
        # Identical rows with stride 0.
        args[0] = args[0][..., :1, :].expand(args[0].shape)
    check(case, args, backend, exact, rest=float(expanded))  # terms near 1 cancel where rows are identical


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("m", "n", "d", "batch"), [(7, 23, 5, None), (9, 8, 3, 2)])
def test_many_blocks(
    name: str,
    backend: str,
    device: torch.device,
    exact: Exact,
    small_blocks: None,
    m: int,
    n: int,
    d: int,
    batch: int | None,
) -> None:
    if interpreted(backend, device):
        pytest.skip("blocks of 8 are the reference's")
    case = BY_NAME[name]
    check(case, tensors(case, m, n, d, batch, device=device), backend, exact)
    check(case, tensors(case, n, m, d, batch, device=device), backend, exact)


@pytest.mark.parametrize(
    "name", ["uniformity-queue-intra", "info_nce-negatives", "clip_loss-10", "pairwise_logsumexp-weights"]
)
def test_large(name: str, backend: str, device: torch.device, exact: Exact) -> None:
    case = BY_NAME[name]
    # Several tiles and ranges of columns; an interpreter takes its time.
    m, n = (403, 257) if interpreted(backend, device) else (1025, 513)
    check(case, tensors(case, m, n, 31, device=device), backend, exact)


@pytest.mark.parametrize("name", ["uniformity-default", "align_uniform-default", "info_nce-default"])
def test_wide(name: str, backend: str, device: torch.device, exact: Exact) -> None:
    case = BY_NAME[name]
    if interpreted(backend, device):  # by panels, and rows that are longer than a warp holds
        check(case, tensors(case, 19, 17, 330, 2, device=device), backend, exact)
        check(case, tensors(case, 7, 5, 1031, device=device), backend, exact)
        return
    check(case, tensors(case, 129, 127, 768, 3, device=device), backend, exact)
    check(case, tensors(case, 31, 29, 4097, device=device), backend, exact)


def test_only_one_of_two_outputs_is_used() -> None:
    x, y = (t.requires_grad_() for t in tensors(BY_NAME["pairwise_logsumexp-none"], 4, 3, 3))
    row, col = hyperkern.pairwise_logsumexp(x, y, logit_scale=2.0)
    row_only = torch.autograd.grad(row.sum(), x, retain_graph=True)[0]
    col_only = torch.autograd.grad(col.sum(), x, retain_graph=True)[0]
    assert_close(row_only + col_only, torch.autograd.grad(row.sum() + col.sum(), x)[0])
    result = hyperkern.align_uniform(x, x.flip(0))
    assert torch.autograd.grad(result.uniformity, x)[0].abs().sum() > 0
