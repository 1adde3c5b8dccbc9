"""All that can be checked on a machine, each scope of a backend in a process of its own: ``hyperkern check``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import NamedTuple

import torch

from .. import backends
from ..check import first_use, process, records
from ..check.process import Outcome, Request, Row
from ..check.scope import DIMS, PRODUCTS, Scope
from ..spec import PairSpec

# Seconds for one process; what compiles on a slow machine may take many times the limit of a first use.
LIMIT = 900.0
# On a CPU one of each is enough to see that the check itself works: `(products, class of D, the D that is taken)`.
_EMULATED = (("bfloat16", 64, 16), ("float16", 0, 290), ("tf32", 128, 96), ("float32", 256, 160))


class Job(NamedTuple):
    """One process: a scope of a backend, and the D that are taken."""

    backend: str
    device: torch.device
    scope: Scope
    dims: tuple[int, ...]


class Result(NamedTuple):
    """A job that has ended."""

    job: Job
    outcome: Outcome


def unusable(name: str, device: torch.device) -> list[str]:
    """Why a backend cannot be checked on a device: on a CPU its kernels are interpreted or emulated."""
    problem = backends.Problem("energy", device, torch.float32, 128, PairSpec(4.0, True), "float32")
    reasons = backends.objections(name, problem, forced=True)
    if name == "triton" and device.type == "cpu":  # the child is told to interpret
        reasons = [reason for reason in reasons if "TRITON_INTERPRET" not in reason]
    return reasons


def jobs_of(
    names: Sequence[str],
    device: torch.device,
    *,
    quick: bool = False,
    products: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
) -> Iterator[Job]:
    """What is to be done.

    Args:
        names: of the backends.
        device: where.
        quick: on a CPU one scope alone; on a GPU it is the depth that makes it quick.
        products: only these.
        dims: only these D.
    """
    for name in names:
        if device.type == "cpu" and products is None and dims is None:
            for kind, most, dim in _EMULATED[: 1 if quick else None]:
                yield Job(name, device, Scope(kind, most), (dim,))
            continue
        for kind, most in itertools.product(products or PRODUCTS, (*DIMS, 0)):
            scope = Scope(kind, most)
            of_class = scope.samples() if dims is None else tuple(d for d in dims if scope.covers(d))
            if of_class:
                yield Job(name, device, scope, of_class)


def check(
    jobs: Sequence[Job], depth: str, parallel: int, ended: Callable[[Job, Row], None] = lambda job, row: None
) -> Iterator[Result]:
    """Does it; what is found on a GPU is kept, in place of what was known.

    Args:
        jobs: what.
        depth: ``quick`` or ``full``.
        parallel: how many processes at once.
        ended: called with each case as it ends, from several threads.
    """
    threads, stop = max(1, torch.get_num_threads() // parallel), process.Stop()

    def run(job: Job) -> Result:
        machine = records.machine(job.backend, job.device)
        where = (job.backend, str(job.device), machine.device, machine.digest)
        request = Request(*where, job.scope, job.dims, depth, threads)
        return Result(job, process.run(request, LIMIT, lambda row: ended(job, row), stop))

    with ThreadPoolExecutor(parallel) as pool:
        waiting: list[Future[Result]] = [pool.submit(run, job) for job in jobs]
        try:
            for future in as_completed(waiting):
                result = future.result()
                _keep(result)
                yield result
        except BaseException:  # interrupted: what runs would go on
            for future in waiting:
                future.cancel()
            stop.all()
            raise


def _keep(result: Result) -> None:
    """What was found on a GPU; right of one D alone is no more than was known."""
    job, outcome = result
    if job.device.type != "cuda" or outcome.status == "not checked":
        return
    if outcome.status == "passed" and not {*job.scope.samples()} <= {*job.dims}:
        return
    machine = records.machine(job.backend, job.device)
    with first_use.locked(machine) as mine:
        if mine:
            first_use.keep(machine, job.scope, outcome.record)
