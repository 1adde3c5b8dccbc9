"""Ten steps in the trainers that people have: with a drop-in the loss of every step is that of the original."""

import functools

import pytest
import torch
from parity import library
from trainers import STRICT, apart, curve

from benchmarks.fit_cases import CASES
from benchmarks.fits import Plan

# The libraries warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::hyperkern")

ALONE = [name for name in CASES if not name.startswith("fully_shard")]
# Of trainers that take AdamW where nothing else is asked for, and its rate.
ADAMW = (
    *("OpenCLIP, ClipLoss", "SentenceTransformerTrainer, MultipleNegativesRankingLoss"),
    "Lightning, lightly DCLLoss",
)
ADAMW_RATE = 1e-4
# Of bfloat16, half a unit in the last place.
ROUNDING = torch.finfo(torch.bfloat16).eps / 2
MIXED = (
    *(*ADAMW, "OpenCLIP, SigLipLoss", "Transformers' Trainer, CLIPModel"),
    *("loop, PML SupConLoss", "loop, lightly NTXentLoss"),
)


@functools.cache
def curves(name: str, loss: str, optimizer: str = "sgd", dtype: str = "float32") -> list[float]:
    """The curve of the original or of the drop-in, at so many times the usual temperature where one is named."""
    case = CASES[name]
    library(case.library)
    plan = Plan(optimizer=optimizer, rate=case.rate if optimizer == "sgd" else ADAMW_RATE, dtype=dtype)
    if loss == "original":
        return curve(case.fit, case.original, plan)
    temperature = 1.0 if loss == "hyperkern" else float(loss)
    return curve(case.fit, lambda model: case.drop_in(model, temperature), plan)


@pytest.mark.parametrize("name", ALONE)
def test_every_loss_is_the_originals(name: str) -> None:
    original = curves(name, "original")
    assert original[-1] < 0.99 * original[0]
    assert apart(curves(name, "hyperkern"), original) <= STRICT
    assert apart(curves(name, "1.01"), original) > 100 * STRICT


@pytest.mark.parametrize("name", ADAMW)
def test_with_adamw(name: str) -> None:
    original = curves(name, "original", "adamw")
    assert original[-1] < 0.99 * original[0]
    assert apart(curves(name, "hyperkern", "adamw"), original) <= STRICT


@pytest.mark.parametrize("name", MIXED)
def test_in_bfloat16(name: str) -> None:
    """As far from float32 as the original, which rounds its logits: twice as far, or a rounding of the loss."""
    truth = curves(name, "original")
    peer = apart(curves(name, "original", dtype="bfloat16"), truth)
    assert peer > 0
    allowed = max(ROUNDING, 2 * peer)
    assert apart(curves(name, "hyperkern", dtype="bfloat16"), truth) <= allowed
    assert apart(curves(name, "1.1", dtype="bfloat16"), truth) > allowed
