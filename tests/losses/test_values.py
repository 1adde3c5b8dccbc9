"""Values and gradients of every loss against the textbook formulas in float64, on ragged shapes and any strides."""

import pytest
import torch
from cases import BY_NAME, CASES, Case, names, tensors, values_and_grads
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


def check(case: Case, args: list[Tensor], backend: str) -> None:
    outputs, grads = values_and_grads(lambda *a: case.ours(*a, backend=backend), args)
    true_outputs, true_grads = values_and_grads(case.truth, [arg.cpu() for arg in args])
    for actual, truth in zip(outputs + grads, true_outputs + true_grads, strict=True):
        assert_close(actual.cpu(), truth)


@pytest.mark.parametrize("name", names())
@given(problem=problems())
def test_matches_textbook(name: str, backend: str, device: torch.device, problem: tuple) -> None:
    m, n, d, batch, layouts, expanded, seed = problem
    case = BY_NAME[name]
    args = tensors(case, max(m, case.least_rows), max(n, case.least_rows), d, batch, seed=seed, device=device)
    args = [laid_out(arg, layouts[i % len(layouts)]) for i, arg in enumerate(args)]
    if expanded:
        # Identical rows with stride 0.
        args[0] = args[0][..., :1, :].expand(args[0].shape)
    check(case, args, backend)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("m", "n", "d", "batch"), [(7, 23, 5, None), (9, 8, 3, 2)])
def test_many_blocks(
    name: str, backend: str, device: torch.device, small_blocks: None, m: int, n: int, d: int, batch: int | None
) -> None:
    case = BY_NAME[name]
    check(case, tensors(case, m, n, d, batch, device=device), backend)
    check(case, tensors(case, n, m, d, batch, device=device), backend)


@pytest.mark.parametrize("name", ["uniformity-queue-intra", "info_nce-negatives", "clip_loss-10", "logsumexp-weights"])
def test_large(name: str, backend: str, device: torch.device) -> None:
    case = BY_NAME[name]
    check(case, tensors(case, 1025, 513, 31, device=device), backend)


@pytest.mark.parametrize("name", ["uniformity-default", "align_uniform-default", "info_nce-default"])
def test_wide(name: str, backend: str, device: torch.device) -> None:
    case = BY_NAME[name]
    check(case, tensors(case, 129, 127, 768, 3, device=device), backend)
    check(case, tensors(case, 31, 29, 4097, device=device), backend)


def test_only_one_of_two_outputs_is_used() -> None:
    x, y = (t.requires_grad_() for t in tensors(BY_NAME["logsumexp-none"], 4, 3, 3))
    row, col = hyperkern.pairwise_logsumexp(x, y, scale=2.0)
    row_only = torch.autograd.grad(row.sum(), x, retain_graph=True)[0]
    col_only = torch.autograd.grad(col.sum(), x, retain_graph=True)[0]
    assert_close(row_only + col_only, torch.autograd.grad(row.sum() + col.sum(), x)[0])
    result = hyperkern.align_uniform(x, x.flip(0))
    assert torch.autograd.grad(result.uniformity, x)[0].abs().sum() > 0


def test_the_cases_cover_every_loss() -> None:
    functions = {n for n in hyperkern.__all__ if n.islower() and n not in ("metrics", "backend_info")}
    covered = {case.name.split("-")[0].replace("logsumexp", "pairwise_logsumexp") for case in CASES}
    assert covered == functions
