"""What tests of checks call and expect, and what a new process does not know."""

import torch
from torch import Tensor

from hyperkern import backends
from hyperkern.autograd import normalize
from hyperkern.backends import Problem
from hyperkern.check import first_use, process, records
from hyperkern.check.scope import Scope

CPU = torch.device("cpu")
SCOPE = Scope("bfloat16", 64)
PROBLEM = Problem("loss", CPU, torch.bfloat16, 16, None, "bfloat16")
COMMAND = "`hyperkern check --backend fake` checks again and says more"
_MACHINE = records.machine  # which tests replace


def forget() -> None:
    """What a new process does not know."""
    first_use._verdicts.clear()
    first_use._unchecked.clear()
    first_use._found.clear()
    first_use._warned.clear()
    normalize._check_primitives.cache_clear()
    _MACHINE.cache_clear()
    backends._imported.cache_clear()


def x() -> Tensor:
    return torch.randn(9, 16, dtype=torch.bfloat16)


def request() -> process.Request:
    machine = records.machine("fake", CPU)
    return process.Request("fake", "cpu", machine.device, machine.digest, SCOPE, (16,), "quick", 1)
