"""The losses of lightly that are made of NT-Xent, temperatures that are learned, and what constructors refuse."""

from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, library, value_and_grads
from torch import Tensor, nn

from hyperkern.integrations import lightly as ours

DEFAULTS = {
    "DirectCLRLoss": {"loss_dim": 64, "temperature": 0.5, "memory_bank_size": 0, "gather_distributed": False},
    "MACLLoss": {"temperature": 0.1, "alpha": 0.5, "A_0": 0.0},
}
PAIR = ("DirectCLRLoss", "MACLLoss")


@pytest.fixture(scope="module")
def lightly():
    return library("lightly.loss")


def features(n: int, d: int) -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, n, d, dtype=torch.float64)
    return 3 * x, x + noise


@pytest.mark.parametrize("name", PAIR)
def test_the_calls_are_those_of_the_library(lightly, name: str) -> None:
    assert defaults(getattr(ours, name).__init__) == DEFAULTS[name] == defaults(getattr(lightly, name).__init__)
    assert defaults(getattr(ours, name).forward) == defaults(getattr(lightly, name).forward)


def model_aware(x: Tensor, y: Tensor, temperature: float, alpha: float, threshold: float) -> Tensor:
    unit = torch.cat([F.normalize(x, dim=1), F.normalize(y, dim=1)])
    cosines, n = unit @ unit.T, len(x)
    partners = torch.arange(2 * n).roll(n)
    positives = cosines[torch.arange(2 * n), partners]
    scale = 1 / (temperature * (1 + alpha * (positives.mean().detach() - threshold)))
    nll = F.cross_entropy((scale * cosines).fill_diagonal_(-torch.inf), partners, reduction="none")
    return (nll / (1 - (-nll.detach()).exp() + 1e-8)).mean()


@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (33, 16)], ids=str)
@pytest.mark.parametrize("options", [(0.1, 0.5, 0.0), (0.3, 1.0, 0.2), (0.07, 0.0, 1.0)], ids=str)
def test_model_aware(lightly, options: tuple[float, float, float], shape: tuple[int, int]) -> None:
    assert_parity(
        *(module.MACLLoss(*options) for module in (ours, lightly)),
        *features(*shape),
        largest_logit=30.0,
        also=lambda x, y: model_aware(x, y, *options),
    )


@pytest.mark.parametrize("options", [{"loss_dim": 3}, {"loss_dim": 100, "temperature": 0.2}, {"loss_dim": -1}], ids=str)
def test_the_first_elements(lightly, options: dict[str, Any]) -> None:
    pair = [module.DirectCLRLoss(**options) for module in (ours, lightly)]
    assert_parity(*pair, *features(9, 6))
    x, y = (side.view(9, 2, 3) for side in features(9, 6))
    torch.testing.assert_close(*(loss(x, y) for loss in pair))
    for loss in pair:  # later as well
        loss.loss_dim = 2
    assert_parity(
        *pair, *features(9, 6), also=lambda x, y: oracle.nt_xent(x[:, :2], y[:, :2], temperature=pair[0].temperature)
    )


def test_the_first_elements_and_a_memory_bank(lightly) -> None:
    pair = []
    for module in (ours, lightly):
        torch.manual_seed(2)
        pair.append(module.DirectCLRLoss(4, memory_bank_size=(8, 4)).double())
    for _ in range(3):
        views = features(5, 6)
        for found, expected in zip(*(value_and_grads(loss, *views) for loss in pair), strict=True):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(pair[0].memory_bank.bank, pair[1].memory_bank.bank)


# Where the originals take a tensor, and what else the loss is given.
LEARNED: list[tuple[str, str, dict[str, Any]]] = [
    ("NTXentLoss", "temperature", {}),
    ("NTXentLoss", "temperature", {"memory_bank_size": (8, 5)}),
    ("DirectCLRLoss", "temperature", {"loss_dim": 3}),
    ("DCLLoss", "temperature", {}),
    ("DCLLoss", "temperature", {"weight_fn": lambda a, b: ((a - b) ** 2).sum(1)}),
    ("DCLWLoss", "temperature", {}),
    ("MACLLoss", "temperature", {"alpha": 0.3}),
    ("HypersphereLoss", "t", {}),
    ("HypersphereLoss", "t", {"lam": 0.7, "alpha": 1.5}),
    ("HypersphereLoss", "lam", {"t": 2.0}),
]


def original(lightly, name: str) -> Any:
    return (
        library("lightly.loss.hypersphere_loss").HypersphereLoss
        if name == "HypersphereLoss"
        else getattr(lightly, name)
    )


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # the original's own
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("value", [torch.tensor(0.4), torch.tensor([1.7])], ids=str)
@pytest.mark.parametrize(("name", "option", "more"), LEARNED)
def test_learned_numbers(lightly, name: str, option: str, more: dict[str, Any], value: Tensor, later: bool) -> None:
    """With the gradient for them, given to the constructor or set later."""

    def of(make: Any) -> Any:
        def loss(x: Tensor, y: Tensor, learned: Tensor) -> Tensor:
            torch.manual_seed(4)
            module = make(**more) if later else make(**more, **{option: learned})
            if later:
                setattr(module, option, learned)
            return module.to(x.dtype)(x, y).reshape(())

        return loss

    assert_parity(*(of(m) for m in (getattr(ours, name), original(lightly, name))), *features(9, 5), value.double())


def test_both_numbers_of_the_sphere_are_learned(lightly) -> None:
    x, y = features(9, 5)
    results = []
    for make in (ours.HypersphereLoss, original(lightly, "HypersphereLoss")):
        results.append(
            value_and_grads(lambda t, lam, make=make: make(t, lam)(x, y), *torch.tensor([1.3, 0.4]).double())
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("name", "option", "more"), LEARNED)
def test_a_parameter_is_one_of_the_module(lightly, name: str, option: str, more: dict[str, Any]) -> None:
    for make in (getattr(ours, name), original(lightly, name)):
        parameter = nn.Parameter(torch.tensor(0.4))
        loss = make(**more, **{option: parameter})
        assert dict(loss.named_parameters()) == {option: parameter}
        assert list(loss.state_dict()) == [option]


# Constructors that raise, with one type of error in either.
WRONG: list[tuple[str, dict[str, Any], type[Exception]]] = [
    *((name, {"temperature": wrong}, TypeError) for name in ("NTXentLoss", *PAIR) for wrong in ("0.1", None, [0.1])),
    *(
        (name, {"temperature": wrong}, ValueError)
        for name in ("NTXentLoss", *PAIR)
        for wrong in (0, 0.0, 9e-9, torch.tensor(0.0), torch.tensor([1e-9]))
    ),
    ("MACLLoss", {"temperature": -0.1}, ValueError),
    *(("MACLLoss", {name: wrong}, ValueError) for name in ("alpha", "A_0") for wrong in (-0.1, 1.1, torch.tensor(2.0))),
    *(("MACLLoss", {name: "0.5"}, TypeError) for name in ("alpha", "A_0")),
    *(
        (name, {"memory_bank_size": wrong}, error)
        for name in ("NTXentLoss", "DirectCLRLoss")
        for wrong, error in (
            (5, ValueError),
            (-1, ValueError),
            ((4,), ValueError),
            ((), ValueError),
            ((-1, 4), ValueError),
            ((2, 3, 4), ValueError),
            (2.0, TypeError),
            (None, TypeError),
            ((2.5, 4), TypeError),
            ("ab", TypeError),
        )
    ),
]


@pytest.mark.parametrize(("name", "options", "error"), WRONG)
def test_what_constructors_refuse(lightly, name: str, options: dict[str, Any], error: type[Exception]) -> None:
    for make in (getattr(ours, name), original(lightly, name)):
        with pytest.raises(error):
            make(**options)


def test_the_errors_name_the_option() -> None:
    with pytest.raises(ValueError, match=r"^alpha must lie between 0 and 1, got 1\.5"):
        ours.MACLLoss(alpha=1.5)
    with pytest.raises(ValueError, match=r"^A_0 must lie between 0 and 1, got -1"):
        ours.MACLLoss(A_0=-1)
    for name in ("NTXentLoss", "DCLLoss", "DCLWLoss", *PAIR):
        with pytest.raises(ValueError, match=r"^temperature must be a number or a floating tensor with one element"):
            getattr(ours, name)(temperature=torch.tensor([0.1, 0.2]))
    with pytest.raises(TypeError, match=r"^alpha must be a number, got Tensor"):
        ours.HypersphereLoss(alpha=torch.tensor(2.0))
    with pytest.raises(TypeError, match=r"^sigma must be a number, got Tensor"):
        ours.DCLWLoss(sigma=torch.tensor(2.0))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4)], ids=str)
def test_views_of_another_shape(lightly, shape: tuple[int, ...]) -> None:
    x, y = torch.randn(2, *shape)
    with pytest.raises(ValueError, match=r"^z0 must have shape \(N, D\)"):
        ours.MACLLoss()(x, y)
    for module in (ours, lightly):  # it flattens, from the second dimension on
        if len(shape) == 1:
            with pytest.raises(IndexError):
                module.DirectCLRLoss()(x, y)
        else:
            assert module.DirectCLRLoss()(x, y).isfinite()


class TestMemoryBankModule:
    """The module that others may build upon."""

    def test_states_of_either_load_in_the_other(self) -> None:
        theirs = library("lightly.models.modules.memory_bank").MemoryBankModule((4, 3))
        mine = ours.MemoryBankModule((4, 3))
        assert mine.state_dict() == theirs.state_dict() == {}
        mine.load_state_dict(theirs.state_dict())
        for module in (mine, theirs):
            with pytest.raises(RuntimeError, match="bank"):
                module.load_state_dict({"bank": torch.zeros(4, 3)})

    def test_a_copy_has_its_own_rows(self) -> None:
        bank = ours.MemoryBankModule((4, 3))
        moved = ours.MemoryBankModule((4, 3)).double()
        assert moved.bank.dtype == torch.float64
        assert moved.bank_ptr.dtype == torch.long
        _, handed_out = bank(torch.ones(2, 3), update=True)
        handed_out.zero_()
        assert bank.bank.any()

    @pytest.mark.parametrize("method", ["_init_memory_bank", "_dequeue_and_enqueue"])
    def test_what_only_the_original_calls_is_not_replaced(self, method: str) -> None:
        with pytest.raises(NotImplementedError, match=f"^Mine overrides {method}, which this replacement never calls"):
            type("Mine", (ours.MemoryBankModule,), {method: lambda self, rows: None})
