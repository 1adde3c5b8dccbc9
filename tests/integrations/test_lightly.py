"""The drop-in for lightly: against the library where it is installed, against dense formulas everywhere."""

from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close
from parity import assert_parity, defaults, library, pretend, value_and_grads
from torch import Tensor

from hyperkern.integrations import lightly as ours

SHAPES = [(2, 3), (7, 5), (33, 16), (64, 130)]

DEFAULTS = {
    "HypersphereLoss": {"t": 1.0, "lam": 1.0, "alpha": 2.0},
    "NTXentLoss": {"temperature": 0.5, "memory_bank_size": 0, "gather_distributed": False},
    "DCLLoss": {"temperature": 0.1, "weight_fn": None, "gather_distributed": False},
    "DCLWLoss": {"temperature": 0.1, "sigma": 0.5, "gather_distributed": False},
}

# Every loss with options, and its dense formula.
CASES = {
    "HypersphereLoss": ({}, lambda x, y: oracle.align_uniform(x, y, t=1.0)[0]),
    "HypersphereLoss-options": (
        {"t": 3.0, "lam": 0.3, "alpha": 1.5},
        lambda x, y: oracle.align_uniform(x, y, t=3.0, uniform_weight=0.3, alpha=1.5)[0],
    ),
    "NTXentLoss": ({}, oracle.nt_xent),
    "NTXentLoss-0.07": ({"temperature": 0.07}, lambda x, y: oracle.nt_xent(x, y, temperature=0.07)),
    "DCLLoss": ({}, oracle.dcl),
    "DCLLoss-0.5": ({"temperature": 0.5}, lambda x, y: oracle.dcl(x, y, temperature=0.5)),
    "DCLWLoss": ({}, oracle.dclw),
    "DCLWLoss-options": (
        {"temperature": 0.3, "sigma": 0.2},
        lambda x, y: oracle.dclw(x, y, temperature=0.3, sigma=0.2),
    ),
}


def features(n: int, d: int) -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, n, d, dtype=torch.float64)
    return 3 * x, x + noise


@pytest.fixture(scope="module")
def lightly() -> SimpleNamespace:
    module = library("lightly.loss")
    losses = {name: getattr(module, name) for name in DEFAULTS if name != "HypersphereLoss"}
    return SimpleNamespace(**losses, HypersphereLoss=library("lightly.loss.hypersphere_loss").HypersphereLoss)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    assert defaults(getattr(ours, name).__init__) == DEFAULTS[name]
    arguments = ["z_a", "z_b"] if name == "HypersphereLoss" else ["out0", "out1"]
    assert list(defaults(getattr(ours, name).forward)) == arguments
    loss = getattr(ours, name)()
    for option, value in DEFAULTS[name].items():
        if option != "memory_bank_size":
            assert getattr(loss, option) == value


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_the_library(lightly, name: str) -> None:
    assert defaults(getattr(lightly, name).__init__) == DEFAULTS[name]
    assert defaults(getattr(lightly, name).forward) == defaults(getattr(ours, name).forward)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_dense_formula(case: str, shape: tuple[int, int]) -> None:
    options, truth = CASES[case]
    assert_parity(getattr(ours, case.split("-")[0])(**options), truth, *features(*shape))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # the original's own
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_parity(lightly, case: str, shape: tuple[int, int]) -> None:
    (options, dense), name = CASES[case], case.split("-")[0]
    assert_parity(getattr(ours, name)(**options), getattr(lightly, name)(**options), *features(*shape), also=dense)


def test_one_pair_alone(lightly) -> None:
    x, y = features(1, 4)
    for module in (ours, lightly):
        value, *grads = value_and_grads(module.NTXentLoss(), x, y)
        assert value == 0
        assert not any(grad.any() for grad in grads)


WEIGHTS = {
    "asymmetric": lambda a, b: (a[:, 0] - 2 * b[:, 1]).square() + 0.5,
    "differentiable": lambda a, b: ((a - b) ** 2).sum(1),
    "scalar": lambda a, b: (a * b).mean(),
    "number": lambda a, b: 0.25,
    "whole number": lambda a, b: 2,
    "whole numbers": lambda a, b: torch.arange(len(a)),
}


class TestWeights:
    """The positives' weights: which arguments they are made of, and what they may be."""

    @staticmethod
    def dense(weight_fn, temperature: float = 0.1):
        def loss(x: Tensor, y: Tensor) -> Tensor:
            a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
            own, total = oracle.same_index(len(x), len(x)), 0
            for anchors, others in ((a, b), (b, a)):
                logits = torch.cat([anchors @ anchors.T, anchors @ others.T], 1) / temperature
                negatives = logits.masked_fill(own.repeat(1, 2), -torch.inf).logsumexp(1)
                positives = (anchors * others).sum(1) / temperature
                total = total + (negatives - weight_fn(anchors, others) * positives).mean() / 2
            return total

        return loss

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_dense_formula(self, name: str) -> None:
        fn = WEIGHTS[name]
        assert_parity(ours.DCLLoss(weight_fn=fn), self.dense(fn), *features(9, 5))

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_parity(self, lightly, name: str) -> None:
        fn = WEIGHTS[name]
        for temperature in (0.1, 0.5):
            pair = (module.DCLLoss(temperature, fn) for module in (ours, lightly))
            assert_parity(*pair, *features(9, 5), also=self.dense(fn, temperature))

    def test_it_is_called_once_for_either_view_with_unit_rows(self) -> None:
        calls = []
        x, y = features(4, 3)
        ours.DCLLoss(weight_fn=lambda a, b: calls.append((a, b)) or 1.0)(x, y)
        unit = F.normalize(x, dim=1), F.normalize(y, dim=1)
        assert len(calls) == 2
        for call, expected in zip(calls, (unit, unit[::-1]), strict=True):
            for actual, truth in zip(call, expected, strict=True):
                assert torch.equal(actual, truth)

    def test_weights_of_a_wrong_shape(self) -> None:
        for shape in ((3,), (4, 1)):
            with pytest.raises(
                ValueError, match=rf"^weight_fn must return .* 4 rows, .* got shape \({shape[0]}, ?1?\)"
            ):
                ours.DCLLoss(weight_fn=lambda a, b, shape=shape: torch.ones(shape))(*features(4, 3))


class TestMemoryBank:
    """The ring of negatives."""

    def test_it_starts_with_random_unit_rows(self) -> None:
        torch.manual_seed(3)
        expected = F.normalize(torch.randn(6, 4), dim=-1)
        torch.manual_seed(3)
        bank = ours.NTXentLoss(memory_bank_size=(6, 4)).memory_bank
        assert torch.equal(bank.bank, expected)
        assert bank.bank_ptr.tolist() == [0]
        assert bank.bank_ptr.dtype == torch.long

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_it_is_float32_whatever_the_default(self, lightly, dtype: torch.dtype) -> None:
        banks = []
        torch.set_default_dtype(dtype)
        try:
            for module in (ours, lightly):
                for size in ((6, 4), 0):
                    torch.manual_seed(3)
                    banks.append(module.NTXentLoss(memory_bank_size=size).memory_bank.bank)
        finally:
            torch.set_default_dtype(torch.float32)
        assert {bank.dtype for bank in banks} == {torch.float32}
        assert all(torch.equal(bank, other) for bank, other in zip(banks[:2], banks[2:], strict=True))

    def test_it_is_not_saved(self) -> None:
        loss = ours.NTXentLoss(memory_bank_size=(6, 4))
        assert loss.state_dict() == {}
        assert {name for name, _ in loss.named_buffers()} == {"memory_bank.bank", "memory_bank.bank_ptr"}
        assert list(loss.parameters()) == []

    @pytest.mark.parametrize(
        ("rows", "pointer", "kept"),
        [
            ([2], 2, [(0, 0, 2)]),
            ([6], 0, [(0, 0, 6)]),
            ([9], 0, [(0, 0, 6)]),
            ([4, 4], 0, [(0, 0, 4), (4, 1, 2)]),
            ([4, 2], 0, [(0, 0, 4), (4, 1, 2)]),
            ([4, 4, 3], 3, [(0, 2, 3), (3, 0, 1), (4, 1, 2)]),
        ],
    )
    def test_the_end_of_the_ring_drops_the_rest_of_a_batch(self, rows, pointer, kept) -> None:
        loss = ours.NTXentLoss(memory_bank_size=(6, 4))
        before = loss.memory_bank.bank.clone()
        batches = [torch.randn(n, 4) for n in rows]
        for batch in batches:
            loss(torch.randn(len(batch), 4, requires_grad=True), batch)
        assert loss.memory_bank.bank_ptr.tolist() == [pointer]
        written = set()
        for start, of_batch, count in kept:
            # The start of a batch whose own first rows are overwritten later begins at `start` all the same.
            source = F.normalize(batches[of_batch], dim=1)
            first = start if of_batch == 0 and len(rows) == 3 else 0
            assert torch.equal(loss.memory_bank.bank[start : start + count], source[first : first + count])
            written |= set(range(start, start + count))
        rest = sorted(set(range(6)) - written)
        assert torch.equal(loss.memory_bank.bank[rest], before[rest])

    def test_it_is_written_only_for_a_backward_pass(self) -> None:
        loss = ours.NTXentLoss(memory_bank_size=(6, 4))
        before = loss.memory_bank.bank.clone()
        x, y = torch.randn(3, 4), torch.randn(3, 4)
        loss(x, y.requires_grad_())
        with torch.no_grad():
            loss(x.requires_grad_(), y)
        assert torch.equal(loss.memory_bank.bank, before)
        loss(x, y)
        assert torch.equal(loss.memory_bank.bank[:3], F.normalize(y.detach(), dim=1))
        assert not loss.memory_bank.bank.requires_grad

    @pytest.mark.parametrize("temperature", [0.07, 0.5])
    def test_dense_formula(self, temperature: float) -> None:
        x, y = features(7, 4)
        bank = ours.NTXentLoss(temperature, (11, 4)).memory_bank.bank.double()

        def loss(*views: Tensor) -> Tensor:
            module = ours.NTXentLoss(temperature, (11, 4)).to(views[0].dtype)
            module.memory_bank.bank.copy_(bank)
            return module(*views)

        def truth(a: Tensor, b: Tensor) -> Tensor:
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
            return oracle.info_nce(a, b, bank.to(a.dtype), in_batch=False, temperature=temperature, normalize=False)

        assert_parity(loss, truth, x, y)

    @pytest.mark.parametrize("batches", [[3, 3, 3, 3], [5, 5, 5], [8, 1, 20, 2]], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_parity(self, lightly, dtype: torch.dtype, batches: list[int]) -> None:
        losses = []
        for module in (ours, lightly):
            torch.manual_seed(5)
            losses.append(module.NTXentLoss(0.2, memory_bank_size=(8, 4)).to(dtype))
        banks = [loss.memory_bank for loss in losses]
        assert torch.equal(banks[0].bank, banks[1].bank)
        for n in batches:
            views = [view.to(dtype) for view in features(n, 4)]
            results = [value_and_grads(loss, *views) for loss in losses]
            for actual, expected in zip(*results, strict=True):
                torch.testing.assert_close(
                    actual, expected, rtol=0, atol=(1e-10 if dtype == torch.float64 else 1e-6) * expected.abs().max()
                )
            assert torch.equal(banks[0].bank, banks[1].bank)
            assert torch.equal(banks[0].bank_ptr, banks[1].bank_ptr)
            with torch.no_grad():
                assert_close(losses[0](*views).double(), losses[1](*views).double(), 1e-6)
            assert torch.equal(banks[0].bank, banks[1].bank)

    @pytest.mark.parametrize("size", [5, -1, (-1, 4), (4,), (2, 3, 4)])
    def test_wrong_sizes(self, size) -> None:
        with pytest.raises(ValueError, match="the size of a memory bank must be"):
            ours.NTXentLoss(memory_bank_size=size)

    @pytest.mark.parametrize("size", [5, -1, (-1, 4), (4,), (2, 3, 4)])
    def test_wrong_sizes_of_the_library(self, lightly, size) -> None:
        with pytest.raises(ValueError, match=r"(?i)memory bank size"):
            lightly.NTXentLoss(memory_bank_size=size)

    def test_no_bank(self) -> None:
        x, y = features(5, 4)
        for size in (0, (0, 4), [0, 4]):
            assert_close(ours.NTXentLoss(memory_bank_size=size)(x, y), ours.NTXentLoss()(x, y))

    def test_module(self) -> None:
        rows = torch.randn(2, 4)
        for first, shape in ((True, (4, 6)), (False, (6, 4))):
            bank = ours.MemoryBankModule((6, 4), feature_dim_first=first)
            output, negatives = bank(rows, update=True)
            assert output is rows
            assert negatives.shape == shape
            assert torch.equal(bank.bank[:2], rows)
            assert bank(rows)[1].shape == shape
        assert ours.MemoryBankModule(0)(rows) == (rows, None)


class TestHalfPrecision:
    """Rows are normalised in float32: half precision has neither the range of the squares nor the original's 1e-12."""

    @staticmethod
    def views(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """With a zero row in either view, and a row whose squares float16 does not hold."""
        x, y = (view.to(dtype) for view in features(16, 32))
        x[3] = y[5] = 0
        x[7] = 3e4
        return x, y

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_zero_row_stays_out_of_the_memory_bank(self, dtype: torch.dtype) -> None:
        torch.manual_seed(4)
        loss = ours.NTXentLoss(memory_bank_size=(32, 32))
        before = loss.memory_bank.bank.clone()
        x, y = self.views(dtype)
        x.requires_grad_()
        value = loss(x, y)
        (grad,) = torch.autograd.grad(value, x)
        a, b = (F.normalize(view.detach().double(), dim=1) for view in (x, y))
        truth = oracle.info_nce(a, b, before.double(), in_batch=False, temperature=0.5, normalize=False)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), truth, rtol=0.01, atol=0)
        assert grad.isfinite().all()
        torch.testing.assert_close(loss.memory_bank.bank[:16].double(), b, rtol=0, atol=2 * torch.finfo(dtype).eps)
        assert torch.equal(loss.memory_bank.bank[16:], before[16:])
        # The next steps have the zero row among their negatives.
        assert loss(x, y).isfinite()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_weights_are_made_of_unit_rows(self, dtype: torch.dtype) -> None:
        def weight_fn(a: Tensor, b: Tensor) -> Tensor:
            return ((a - b) ** 2).sum(1)

        x, y = self.views(dtype)
        value, *grads = value_and_grads(ours.DCLLoss(weight_fn=weight_fn), x, y)
        truth = TestWeights.dense(weight_fn)(x.double(), y.double())
        torch.testing.assert_close(value.double(), truth, rtol=0.02, atol=0)
        assert not any(grad.isnan().any() for grad in grads)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_weights_see_the_dtype_of_the_features(self, dtype: torch.dtype) -> None:
        seen = []
        x, y = self.views(dtype)
        ours.DCLLoss(weight_fn=lambda a, b: seen.append(a) or 1.0)(x, y)
        assert [rows.dtype for rows in seen] == [dtype, dtype]
        assert_close(seen[0].double(), F.normalize(x.double(), dim=1), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("processes", [None, 1])
@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
def test_one_process_has_nothing_to_gather(name: str, processes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(4, 3)
    if processes is not None:
        pretend(monkeypatch, processes)
    assert getattr(ours, name)(gather_distributed=True)(x, y) == getattr(ours, name)()(x, y)


def weighing_alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1.0


LOSSES = [
    ("HypersphereLoss", {}),
    ("NTXentLoss", {}),
    ("NTXentLoss", {"memory_bank_size": (8, 3)}),
    ("DCLLoss", {}),
    ("DCLLoss", {"weight_fn": weighing_alike}),
    ("DCLWLoss", {}),
]


class TestErrors:
    """What is refused."""

    def test_options(self) -> None:
        for name in ("NTXentLoss", "DCLLoss", "DCLWLoss"):
            with pytest.raises(ValueError, match="temperature must be a finite number > 0, got 0"):
                getattr(ours, name)(temperature=0)
        for options in ({"t": 0}, {"alpha": -1}, {"lam": float("inf")}):
            with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
                ours.HypersphereLoss(**options)
        with pytest.raises(ValueError, match="sigma must be"):
            ours.DCLWLoss(sigma=0)

    @pytest.mark.parametrize("temperature", [1e-9, -1e-9, 9.9e-9, 0])
    def test_a_temperature_next_to_zero(self, temperature: float) -> None:
        with pytest.raises(ValueError, match="temperature must"):
            ours.NTXentLoss(temperature)

    def test_a_temperature_next_to_zero_of_the_library(self, lightly) -> None:
        for temperature in (1e-9, 9.9e-9):
            with pytest.raises(ValueError, match="Illegal temperature"):
                lightly.NTXentLoss(temperature)
        for temperature in (1e-8, 1.1e-8):
            for module in (ours, lightly):
                assert module.NTXentLoss(temperature).temperature == temperature
        for name in ("DCLLoss", "DCLWLoss"):  # they take it
            for module in (ours, lightly):
                assert getattr(module, name)(1e-9).temperature == 1e-9

    @pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
    def test_nothing_to_gather_by(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
        assert getattr(ours, name)() is not None
        with pytest.raises(ValueError, match=r"^gather_distributed=True needs torch\.distributed"):
            getattr(ours, name)(gather_distributed=True)

    @pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
    def test_nothing_to_gather_by_of_the_library(self, lightly, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
        with pytest.raises(ValueError, match=r"torch\.distributed is not available"):
            getattr(lightly, name)(gather_distributed=True)

    @pytest.mark.parametrize("shape", [(4, 4, 4), (4,)], ids=str)
    @pytest.mark.parametrize(
        ("name", "options"), LOSSES, ids=lambda value: value if isinstance(value, str) else ",".join(value)
    )
    def test_features_of_another_shape(self, name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
        x, y = torch.randn(2, *shape)
        with pytest.raises(ValueError, match=r"^out0 must have shape \(N, D\)|^z_a must have shape \(N, D\)"):
            getattr(ours, name)(**options)(x, y)

    @pytest.mark.parametrize("shape", [(4, 4, 4), (4,)], ids=str)
    @pytest.mark.parametrize(
        ("name", "options"), LOSSES, ids=lambda value: value if isinstance(value, str) else ",".join(value)
    )
    def test_features_of_another_shape_in_the_library(self, lightly, name: str, options, shape) -> None:
        x, y = torch.randn(2, *shape)
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            getattr(lightly, name)(**options)(x, y)

    @pytest.mark.parametrize(
        ("x", "y", "error", "message"),
        [
            ((4, 3), (4, 3), TypeError, "^out1 must have the dtype of out0"),
            ((4, 3), (5, 3), ValueError, "^out1 must have the shape of out0"),
            ((4, 2), (4, 2), ValueError, r"\(rows, 3\).* got \(4, 2\)"),
            ((4, 1), (4, 1), ValueError, r"\(rows, 3\).* got \(4, 1\)"),
        ],
    )
    def test_what_is_refused_is_not_written_into_the_bank(self, x, y, error: type[Exception], message: str) -> None:
        loss = ours.NTXentLoss(memory_bank_size=(8, 3))
        before = loss.memory_bank.bank.clone()
        dtype = torch.float16 if error is TypeError else torch.float32
        with pytest.raises(error, match=message):
            loss(torch.randn(x, requires_grad=True), torch.randn(y, dtype=dtype))
        assert torch.equal(loss.memory_bank.bank, before)

    @pytest.mark.parametrize("name", ["DCLLoss", "DCLWLoss", "HypersphereLoss"])
    def test_one_row(self, name: str) -> None:
        with pytest.raises(ValueError, match="x must have at least 2 rows"):
            getattr(ours, name)()(*features(1, 3))

    def test_direct_clr_of_no_tensor(self) -> None:
        with pytest.raises(TypeError, match=r"^out0 must be a torch\.Tensor"):
            ours.DirectCLRLoss()([[1.0]], torch.ones(1, 1))

    def test_the_views_of_the_hypersphere(self) -> None:
        with pytest.raises(ValueError, match=r"^z_b must have the shape of z_a, \(4, 3\), got \(2, 3\)"):
            ours.HypersphereLoss()(torch.ones(4, 3), torch.ones(2, 3))
