"""Modes of PyTorch, threads, processes, memory: cases 16, 18, 21, 23, 24 and the promise of determinism."""

import copy
import io
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import BY_NAME, names, tensors, values_and_grads
from oracle import assert_close
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hyperkern as hk


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", names())
def test_case_16_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    args = tensors(case, 6, 5, 4, dtype=torch.float32)
    expected = values_and_grads(case.ours, args)
    with torch.autocast("cpu", dtype):
        found = values_and_grads(case.ours, args)
    for actual, truth in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, truth, 1e-6)


@pytest.mark.parametrize(
    "name", ["uniformity-default", "info_nce-default", "clip_loss-raw", "pairwise_logsumexp-weights"]
)
def test_case_16_gradient_penalty_under_autocast(name: str) -> None:
    # The second derivative is plain PyTorch, and autocast would send its products to bfloat16.
    case = BY_NAME[name]

    def penalty() -> list[Tensor]:
        args = [arg.requires_grad_() for arg in tensors(case, 6, 5, 4, dtype=torch.float32)]
        loss = sum(out.sum() for out in case.ours(*args))
        first = torch.autograd.grad(loss, args, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), args))

    expected = penalty()
    with torch.autocast("cpu", torch.bfloat16):
        found = penalty()
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_case_16_model_under_autocast(dtype: torch.dtype) -> None:
    model = nn.Linear(8, 4)
    with torch.autocast("cpu", dtype):
        x, y = model(torch.randn(6, 8)), model(torch.randn(6, 8))
        x.retain_grad()
        loss = hk.align_uniform(x, y).loss + hk.info_nce(x, y)
    assert x.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == dtype
    assert model.weight.grad.isfinite().all()


def test_case_16_grad_scaler_skips_an_inf_step() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = copy.deepcopy(model.state_dict())
    data = torch.randn(6, 8)
    steps = []
    for step in range(20):
        optimizer.zero_grad()
        loss = hk.uniformity(model(data * (1e-30 if step == 0 else 1)))
        scaler.scale(loss * (1e6 if step == 0 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        unchanged = all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
        steps.append(unchanged)
        if step == 0:
            assert unchanged
            assert scaler.get_scale() < 2.0**120
    assert not steps[-1]
    assert all(p.isfinite().all() for p in model.parameters())


def test_case_18_no_grad_and_inference_mode() -> None:
    x = torch.randn(7, 4, requires_grad=True)
    expected = hk.uniformity(x) + hk.info_nce(x, x.flip(0)) + hk.alignment(x, x.flip(0), alpha=1.0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = hk.uniformity(x) + hk.info_nce(x, x.flip(0)) + hk.alignment(x, x.flip(0), alpha=1.0)
        assert not loss.requires_grad
        assert loss == expected
    with torch.inference_mode():
        frozen = torch.randn(5, 4)
    # A tensor made in inference mode may be a frozen queue: the rows made of it are ordinary tensors.
    normal = frozen.clone()
    grads = [torch.autograd.grad(hk.uniformity(x, queue), x)[0] for queue in (frozen, normal)]
    assert torch.equal(*grads)
    raw = [
        torch.autograd.grad(hk.info_nce(x, x * 2, negatives=queue, normalize=False), x)[0] for queue in (frozen, normal)
    ]
    assert torch.equal(*raw)


def test_case_18_backward_twice_needs_retain_graph() -> None:
    x = torch.randn(7, 4, requires_grad=True)
    loss = hk.info_nce(x, x.flip(0))
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_case_18_input_changed_in_place_after_forward() -> None:
    x = torch.randn(7, 4, requires_grad=True)
    raw = x * 1
    loss = hk.uniformity(raw, normalize=False)
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    with torch.no_grad():
        raw.mul_(3)
    try:
        found = torch.autograd.grad(loss, x)[0]
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(found, expected)


MODULES = {
    "alignment": hk.AlignmentLoss(alpha=1.0, reduction="sum"),
    "uniformity": hk.UniformityLoss(t=3.0),
    "align_uniform": hk.AlignUniformLoss(align_weight=0.5),
    "info_nce": hk.InfoNCELoss(temperature=0.2),
    "info_nce-learnable": hk.InfoNCELoss(temperature=0.2, learnable=True),
    "clip": hk.CLIPLoss(logit_scale=9.0),
    "clip-learnable": hk.CLIPLoss(logit_scale=9.0, learnable=True),
}


@pytest.mark.parametrize("copying", ["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("name", MODULES)
def test_case_18_modules_can_be_copied(name: str, copying: str) -> None:
    module = MODULES[name]
    if copying == "deepcopy":
        other = copy.deepcopy(module)
    elif copying == "pickle":
        other = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    args = torch.randn(1 if name == "uniformity" else 2, 6, 3)
    assert torch.equal(other(*args), module(*args))
    assert repr(other) == repr(module)


def test_case_18_state_dict() -> None:
    one, two = hk.CLIPLoss(logit_scale=9.0, learnable=True), hk.CLIPLoss(logit_scale=20.0, learnable=True)
    assert list(one.state_dict()) == ["log_logit_scale"]
    two.load_state_dict(one.state_dict())
    x, y = torch.randn(2, 6, 3)
    assert torch.equal(one(x, y), two(x, y))
    assert hk.CLIPLoss().state_dict() == {}
    with pytest.raises(RuntimeError, match="log_logit_scale"):
        hk.CLIPLoss().load_state_dict(one.state_dict())


def step(seed: int, n: int = 40) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    args = [torch.randn(n, 9, generator=draw).requires_grad_() for _ in range(3)]
    x, y, queue = args
    loss = hk.align_uniform(x, y).loss + hk.info_nce(x, y, negatives=queue) + hk.clip_loss(x, y, logit_scale=9.0)
    loss = loss + hk.uniformity(x, queue, intra=True) + hk.uniformity(x, normalize=False)
    return [loss.detach(), *torch.autograd.grad(loss, args)]


def test_case_21_threads() -> None:
    expected = [step(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, truth in zip(pool.map(step, range(8)), expected, strict=True):
                assert all(map(torch.equal, found, truth))


PROGRAM = """
import torch, hyperkern as hk
torch.manual_seed(0)
x = torch.randn(9, 4)
print(torch.compile(lambda x: hk.uniformity(x + NUMBER), fullgraph=True)(x).item())
"""


@pytest.mark.slow
def test_case_21_two_processes_compile_at_once() -> None:
    number = str(time.time_ns() % 1_000_003 / 1e6)  # of a program that is in no cache yet
    command = [sys.executable, "-c", PROGRAM.replace("NUMBER", number)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], (number, outputs)
    assert outputs[0][0] == outputs[1][0] != "", number


@pytest.mark.parametrize("name", names())
def test_case_23_inputs_are_left_alone(name: str) -> None:
    case = BY_NAME[name]
    for dtype in (torch.float32, torch.float64):
        args = tensors(case, 6, 5, 4, dtype=dtype)
        before = [arg.clone() for arg in args]
        versions = [arg._version for arg in args]
        leaves = [arg.requires_grad_() for arg in args]
        outputs = case.ours(*leaves)
        cotangents = [torch.randn_like(out) for out in outputs]
        given = [c.clone() for c in cotangents]
        torch.autograd.grad(outputs, leaves, cotangents)
        assert all(map(torch.equal, args, before))
        assert all(map(torch.equal, cotangents, given))
        assert [arg._version for arg in args] == versions


@pytest.mark.parametrize("name", names())
def test_case_24_poisoned_allocations(name: str, request: pytest.FixtureRequest) -> None:
    case = BY_NAME[name]
    args = tensors(case, 13, 9, 4, 2)
    expected = values_and_grads(case.ours, args)
    request.getfixturevalue("poisoned_allocations")
    request.getfixturevalue("small_blocks")
    found = values_and_grads(case.ours, args)
    for actual, truth in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(actual, truth)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(("n", "repeats"), [(40, 40), (2000, 3)])
def test_determinism(n: int, repeats: int) -> None:
    expected = step(0, n)
    for _ in range(repeats):
        assert all(map(torch.equal, step(0, n), expected))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("mode", ["backward", "second order", "forward", "forward over reverse"])
def test_memory_never_holds_all_pairs(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, block = 600, 64
    monkeypatch.setattr("hyperkern.backends.reference.primitives._BLOCK_CPU", block)
    monkeypatch.setattr("hyperkern.second_order._BLOCK_ELEMENTS", block * n)
    for of_tile in ("_ROWS", "_COLS"):
        monkeypatch.setattr(f"hyperkern.backends.reference.pairs.{of_tile}", block)
    monkeypatch.setattr("hyperkern.backends.reference.pairs._LONGER", 1)
    monkeypatch.setattr("hyperkern.workspace._size", 0)
    # An operator hides what is inside it from the mode: so its implementation is called directly.
    monkeypatch.setattr("hyperkern.ops.energy", getattr(hk.ops, "_energy"))  # noqa: B009
    monkeypatch.setattr("hyperkern.ops.row_lse", getattr(hk.ops, "_row_lse"))  # noqa: B009
    monkeypatch.setattr("hyperkern.ops.pair_grad", getattr(hk.ops, "_pair_grad"))  # noqa: B009
    x, y = torch.randn(n, 8, requires_grad=True), torch.randn(n, 8, requires_grad=True)
    with Largest() as seen, forward_ad.dual_level() if "forward" in mode else nullcontext():
        a, b = (forward_ad.make_dual(t, t.detach().flip(0)) if "forward" in mode else t for t in (x, y))
        for loss in (hk.uniformity(a), hk.uniformity(a, b, intra=True), hk.clip_loss(a, b, logit_scale=9.0)):
            if mode == "forward":
                assert forward_ad.unpack_dual(loss).tangent.isfinite()
                continue
            (grad,) = torch.autograd.grad(loss, x, create_graph=mode == "second order")
            if mode == "second order":
                torch.autograd.grad(grad.square().sum(), x)
            if mode == "forward over reverse":
                assert forward_ad.unpack_dual(grad).tangent.isfinite().all()
    assert block * block <= seen.elements <= (n * 16 if mode == "backward" else block * n)


def test_meta_tensors_have_shapes() -> None:
    x = torch.empty(5, 3, device="meta")
    assert hk.uniformity(x).shape == ()
    assert hk.pairwise_logsumexp(x, logit_scale=1.0)[0].shape == (5,)
