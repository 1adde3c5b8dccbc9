"""Whole losses of the reference: tiles and workspaces of any size, what is declined, how few calls they are."""

import gc
import sys
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from cases import BY_NAME, Case, tensors, values_and_grads
from oracle import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hyperkern as hk
from hyperkern import backends, workspace
from hyperkern.backends.reference import losses, normalize, pairs
from hyperkern.spec import LossInputs, LossSpec

# Those that are one function for ordinary inputs.
WHOLE = [
    *("uniformity-default", "uniformity-queue", "uniformity-queue-intra", "align_uniform-default"),
    *("align_uniform-options", "info_nce-default", "info_nce-tau0.5-sum", "info_nce-negatives", "info_nce-queue_only"),
    *("info_nce-negatives-raw", "info_nce-learnable-negatives", "clip_loss-10", "clip_loss-learnable", "clip_loss-raw"),
    *("nt_xent-default", "nt_xent-raw", "dcl-default", "dcl-learnable", "dclw-default", "sup_con-default"),
    *("sup_con-learnable", "siglip-default", "siglip-learnable"),
]


class Taken:
    """How often a whole loss was made, and how often one was declined."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.declined = 0
        loss = losses.loss

        def counted(*args: object) -> object:
            found = loss(*args)
            self.made += found is not None
            self.declined += found is None
            return found

        monkeypatch.setattr(backends.load("reference"), "loss", counted)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    return Taken(monkeypatch)


@pytest.fixture
def default_workspace() -> Iterator[None]:
    yield
    hk.set_workspace_bytes(64 << 20)


@pytest.fixture(params=[(8, 16), (16, 8), (5, 7)], ids=str)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in zip(("_ROWS", "_COLS"), request.param, strict=True):
        monkeypatch.setattr(pairs, name, size)
    monkeypatch.setattr(pairs, "_GROUP_BYTES", 1 << 10)
    monkeypatch.setattr(normalize, "_PIECE_BYTES", 1 << 8)


def hold_to_truth(case: Case, args: list[Tensor]) -> None:
    found, truth = values_and_grads(case.ours, args), values_and_grads(case.truth, args)
    for actual, expected in zip(found[0] + found[1], truth[0] + truth[1], strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [0, 3000, 64 << 20])
def test_tiles_of_any_size(name: str, size: int, taken: Taken, small_tiles: None, default_workspace: None) -> None:
    hk.set_workspace_bytes(size)
    for m, n, d in ((37, 29, 6), (8, 50, 3), (9, 2, 4)):
        hold_to_truth(BY_NAME[name], tensors(BY_NAME[name], m, n, d))
    assert taken.made > 0
    assert taken.declined == 0


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_made_again_has_the_same_bits(name: str, small_tiles: None, default_workspace: None) -> None:
    args = tensors(BY_NAME[name], 40, 23, 6, dtype=torch.float32)
    results = []
    for size in (0, 2000, 64 << 20):
        hk.set_workspace_bytes(size)
        # The rows that are visited together depend on it where each has its own weights.
        results.append(values_and_grads(BY_NAME[name].ours, args))
    for other in results[1:]:
        for a, b in zip(results[0][0] + results[0][1], other[0] + other[1], strict=True):
            if name.startswith(("info_nce", "sup_con")):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(a, b)


def test_rows_with_gaps(taken: Taken) -> None:
    # What normalises them believes that a row follows the other.
    x, y, wide = torch.randn(9, 40), torch.randn(40, 9).T, torch.randn(9, 80)
    for a, b in ((x[:, ::2], y[:, 20:]), (y[:, :20], wide[:, 3:23]), (x[:1, :20].expand(9, 20), wide[:, ::4])):
        found = hk.clip_loss(a, b, logit_scale=5.0)
        torch.testing.assert_close(found, hk.clip_loss(a.contiguous(), b.contiguous(), logit_scale=5.0))
        assert_close(found, oracle.clip_loss(a.double(), b.double(), logit_scale=5.0), 1e-5)
    assert taken.declined == 0


SAME_TENSOR: dict[str, Callable[..., Tensor]] = {
    "clip_loss": lambda m, x, y, **k: m.clip_loss(x, x, logit_scale=3.0, **k),
    "siglip": lambda m, x, y, **k: m.siglip(x, x, logit_scale=3.0, logit_bias=-2.0, **k),
    "nt_xent": lambda m, x, y, **k: m.nt_xent(x, x, **k),
    "info_nce": lambda m, x, y, **k: m.info_nce(x, x, **k),
    "info_nce, negatives": lambda m, x, y, **k: m.info_nce(x, y, negatives=x, **k),
    "info_nce, frozen": lambda m, x, y, **k: m.info_nce(x.detach(), y, negatives=x.detach(), **k),
    "info_nce, queue alone": lambda m, x, y, **k: m.info_nce(x, y, negatives=x, in_batch=False, **k),
}


@pytest.mark.parametrize("name", SAME_TENSOR)
def test_one_tensor_on_both_sides_is_no_symmetric_problem(name: str, taken: Taken, small_tiles: None) -> None:
    # Rows as they are need no copy: both sides are then the same object.
    for n in (4, 37):
        found = []
        for module in (hk, oracle):
            x, y = (0.3 * torch.randn(n, 5, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
            args = [x.requires_grad_(), y.requires_grad_()]
            value = SAME_TENSOR[name](module, *args, normalize=False)
            grads = torch.autograd.grad(value, args, allow_unused=True)
            found.append([value, *(grad for grad in grads if grad is not None)])
        for got, want in zip(*found, strict=True):
            assert_close(got, want)
    assert (taken.made, taken.declined) == (2, 0)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
def test_a_queue_without_a_gradient(
    in_batch: bool, needs: tuple[bool, bool], small_tiles: None, default_workspace: None
) -> None:
    hk.set_workspace_bytes(0)
    x, y = (torch.randn(23, 6, dtype=torch.float64, requires_grad=need) for need in needs)
    queue, args = torch.randn(50, 6, dtype=torch.float64), [t for t in (x, y) if t.requires_grad]
    found = []
    for module in (hk, oracle):
        value = module.info_nce(x, y, negatives=queue, in_batch=in_batch)
        found.append([value, *torch.autograd.grad(value, args)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want)


def test_what_is_declined_has_cost_little(taken: Taken, small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Unit rows at a low temperature: the first rows know that a plain sum does not do.
    seen = 0
    exponentials = pairs.Pairs.exponentials

    def counted(self: pairs.Pairs, *args: object) -> Tensor:
        nonlocal seen
        seen += 1
        return exponentials(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs.Pairs, "exponentials", counted)
    x, queue = torch.randn(256, 6, requires_grad=True), torch.randn(100, 6)
    hk.info_nce(x, x.detach().roll(1, 0), negatives=queue, in_batch=False, temperature=2e-3)
    assert taken.declined == 1
    assert 0 < seen <= len(pairs.Pairs(x, queue, 1.0).tiles(slice(0, 256))) / 2


@pytest.mark.parametrize("value", [1e-40, 1e-25, 0.0, -0.2, torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["info_nce", "nt_xent", "dcl", "sup_con"])
def test_a_learned_temperature_is_not_checked(name: str, value: float) -> None:
    # Of any value the whole loss says what the composition says.
    x, y = torch.randn(9, 5, requires_grad=True), torch.randn(9, 5)
    found = []
    for reduction in ("mean", "none"):
        temperature = torch.tensor(value, requires_grad=True)
        args = (torch.arange(9) % 3,) if name == "sup_con" else (y,)
        loss = getattr(hk, name)(x, *args, temperature=temperature, reduction=reduction).mean()
        found.append([loss, *torch.autograd.grad(loss, (x, temperature))])
    for whole, composed in zip(*found, strict=True):
        torch.testing.assert_close(whole, composed, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_workspace_is_checked(default_workspace: None) -> None:
    assert workspace.workspace_bytes() == hk.workspace_bytes() == 64 << 20
    hk.set_workspace_bytes(5)
    assert hk.workspace_bytes() == 5
    with pytest.raises(ValueError, match="size must be at least 0 bytes, got -1"):
        hk.set_workspace_bytes(-1)
    for wrong in (1.5, True, "64"):
        with pytest.raises(TypeError, match=f"size must be an integer, got {type(wrong).__name__}"):
            hk.set_workspace_bytes(wrong)
    assert hk.workspace_bytes() == 5


class Counted(TorchDispatchMode):
    """Notes the operators and the largest tensor that one of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.name())
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result

    def products(self) -> int:
        return sum(name.removeprefix("aten::").split(".")[0] in ("mm", "addmm_") for name in self.names)


def products(name: str, needs: tuple[bool, ...]) -> int:
    args = tensors(BY_NAME[name], 12, 9, 4)
    for arg, need in zip(args, needs, strict=True):
        arg.requires_grad_(need)
    with Counted() as counted:
        (loss,) = BY_NAME[name].ours(*args)
        if any(needs):
            loss.backward()
    return counted.products()


@pytest.mark.parametrize(
    ("name", "needs", "expected"),
    [
        ("clip_loss-10", (True, True), 2),
        ("clip_loss-10", (True, False), 1),
        ("clip_loss-10", (False, True), 1),
        ("clip_loss-10", (False, False), 0),
        ("clip_loss-learnable", (False, False, True), 1),
        ("info_nce-default", (True, False), 1),
        ("info_nce-negatives", (True, True, False), 3),
        ("siglip-default", (False, True), 1),
        ("uniformity-default", (True,), 1),
        ("uniformity-default", (False,), 0),
        ("uniformity-queue", (True, False), 1),
        ("nt_xent-default", (True, True), 1),
    ],
)
def test_a_frozen_side_takes_no_product(name: str, needs: tuple[bool, ...], expected: int) -> None:
    assert products(name, needs) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_any_inputs_may_be_frozen(name: str) -> None:
    case = BY_NAME[name]
    args = tensors(case, 9, 7, 4)
    _, full = values_and_grads(case.ours, args)
    for needed in range(1, 1 << len(args)):
        given = [arg.detach().requires_grad_(bool(needed >> i & 1)) for i, arg in enumerate(args)]
        outputs = case.ours(*given)
        draw = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(out.shape, generator=draw, dtype=torch.float64) for out in outputs]
        torch.autograd.backward(outputs, cotangents)
        for arg, expected in zip(given, full, strict=True):
            if arg.requires_grad:
                assert_close(arg.grad, expected)
            else:
                assert arg.grad is None


@pytest.mark.parametrize("size", [0, 1 << 18])
@pytest.mark.parametrize("name", WHOLE)
def test_no_tensor_is_larger_than_the_workspace_and_the_features(
    name: str, size: int, default_workspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for of_tile, value in (("_ROWS", 32), ("_COLS", 64), ("_GROUP_BYTES", 1 << 14)):
        monkeypatch.setattr(pairs, of_tile, value)
    hk.set_workspace_bytes(size)
    args = tensors(BY_NAME[name], 600, 500, 4, dtype=torch.float32)
    with Counted() as counted:
        values_and_grads(BY_NAME[name].ours, args)
    assert counted.largest <= max(size, 2 * 600 * 4 * 4 + 600 * 4 * 8, 32 * 64 * 4)


@pytest.mark.parametrize("name", ["clip_loss-10", "info_nce-default", "nt_xent-default", "uniformity-default"])
@pytest.mark.parametrize("odd", ["zero", "tiny", "huge", "infinite", "nan"])
def test_rows_that_are_not_ordinary_are_left_to_the_composition(
    name: str, odd: str, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tensors(BY_NAME[name], 9, 7, 4, dtype=torch.float32)
    row = {"zero": 0.0, "tiny": 1e-20, "huge": 1e30, "infinite": torch.inf, "nan": torch.nan}[odd]
    args[0][2] = row
    found = values_and_grads(BY_NAME[name].ours, args)
    assert (taken.made, taken.declined) == (0, 1)
    monkeypatch.setattr(backends.load("reference"), "LOSSES", ())
    expected = values_and_grads(BY_NAME[name].ours, args)
    for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [60.0, 100.0, 150.0, 1000.0])
def test_logits_too_large_for_a_plain_sum(scale: float, taken: Taken) -> None:
    # CLIP's own largest scale is 100: exp(100) is more than float32 holds.
    base = torch.randn(40, 64, dtype=torch.float64)
    x, y = base + 2 * torch.randn_like(base), base + 2 * torch.randn_like(base)
    args = [x.float().requires_grad_(), y.float().requires_grad_()]
    loss = hk.clip_loss(*args, logit_scale=scale)
    grads = torch.autograd.grad(loss, args)
    wide = [arg.detach().double().requires_grad_() for arg in args]
    truth = oracle.clip_loss(*wide, logit_scale=scale)
    if scale <= 100:
        assert taken.made == 1
    # Half a unit of the last digit of a logit is a relative error of its exponential.
    tolerance = 1e-6 * scale
    for found, expected in zip((loss, *grads), (truth, *torch.autograd.grad(truth, wide)), strict=True):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_row_without_any_large_logit_beside_large_ones_is_declined(taken: Taken) -> None:
    x = torch.eye(4).requires_grad_()
    y = torch.eye(4)
    y[0] = torch.tensor([1.0, 0, 0, 0])
    x.data[3] = torch.tensor([-1.0, -1, -1, -1])  # its candidates are all far off
    found = hk.info_nce(x, y, temperature=1 / 300)
    (grad,) = torch.autograd.grad(found, x)
    wide = x.detach().double().requires_grad_()
    truth = oracle.info_nce(wide, y.double(), temperature=1 / 300)
    assert taken.made == 0
    assert_close(found.double(), truth, 1e-5)
    assert_close(grad.double(), torch.autograd.grad(truth, wide)[0], 1e-4)


@pytest.mark.parametrize("n", [5, 600, 3000])
def test_the_uniformity_of_equal_rows_is_zero(n: int) -> None:
    # A mean of N^2 equal numbers: what the order of the sum makes of it is all that is left.
    for loss in (hk.uniformity(torch.ones(n, 4)), hk.align_uniform(torch.ones(n, 4), torch.ones(n, 4)).loss):
        assert abs(loss.item()) < 1e-6


@pytest.mark.parametrize("name", WHOLE)
def test_a_loss_is_one_node(name: str) -> None:
    args = [arg.requires_grad_() for arg in tensors(BY_NAME[name], 8, 6, 4)]
    for output in BY_NAME[name].ours(*args):
        assert output.grad_fn is not None
        assert output.grad_fn.name() == "_WholeLossBackward"
        parents = [parent for parent, _ in output.grad_fn.next_functions if parent is not None]
        assert [type(parent).__name__ for parent in parents] == ["AccumulateGrad"] * len(args)


def test_what_has_changed_since_is_not_differentiated_twice() -> None:
    x, labels = torch.randn(9, 4, requires_grad=True), torch.arange(9) % 3
    loss = hk.sup_con(x, labels)
    labels += 1
    torch.autograd.grad(loss, x, retain_graph=True)  # a first derivative does not need them
    with pytest.raises(RuntimeError, match="labels has been modified by an in-place operation"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_loss_without_a_gradient_in_the_end() -> None:
    x, y = torch.randn(2, 9, 4).unbind()
    x.requires_grad_()
    result = hk.align_uniform(x, y)
    (grad,) = torch.autograd.grad(result.alignment, x)
    assert_close(grad, torch.autograd.grad(hk.alignment(x, y), x)[0], 1e-5)


def calls(step: Callable[[], None]) -> int:
    """The Python functions that a step calls."""
    for _ in range(3):
        step()
    found = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal found
        found += event == "call"

    gc.collect()
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found - 1  # the step itself


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="older PyTorch enters a function of its own for each argument of an autograd function",
)
def test_few_calls() -> None:
    x, y = torch.randn(2, 32, 16).unbind()
    x.requires_grad_()
    y.requires_grad_()

    def uniformity() -> None:
        hk.uniformity(x).backward()

    def clip_loss() -> None:
        hk.clip_loss(x, y, logit_scale=10.0).backward()

    assert calls(uniformity) <= 60
    assert calls(clip_loss) <= 80


def test_the_shapes_of_the_state_are_known_beforehand() -> None:
    # An operator in a compiled graph promises them.
    x, y, q = torch.randn(3, 9, 4).unbind()
    scale, bias, labels = torch.tensor(5.0), torch.tensor(-5.0), torch.arange(9) % 3
    of_losses = {
        "uniformity": LossInputs(x, y),
        "align_uniform": LossInputs(x, y),
        "info_nce": LossInputs(x, y, q, scale),
        "clip_loss": LossInputs(x, y, scale=scale),
        "nt_xent": LossInputs(x, y, scale=scale),
        "dcl": LossInputs(x, y, scale=scale),
        "dclw": LossInputs(x, y, scale=scale),
        "siglip": LossInputs(x, y, scale=scale, bias=bias),
        "sup_con": LossInputs(x, scale=scale, labels=labels),
    }
    assert of_losses.keys() == losses.LOSSES
    for loss, inputs in of_losses.items():
        given = [name for name in ("x", "y", "queue", "scale", "bias") if getattr(inputs, name) is not None]
        for needed in range(1 << len(given)):
            need = [name for i, name in enumerate(given) if needed >> i & 1]
            for normalized in (True, False):
                spec = LossSpec(loss, 2.0, normalize=normalized or "uniform" in loss)
                found = losses.loss(inputs, spec, need)
                assert found is not None
                shapes = [tuple(t.shape) for t in (*found.values, *found.state)]
                assert shapes == losses.shapes(inputs, spec, need), (loss, need, normalized)
