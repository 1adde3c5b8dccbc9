"""Processes of one gloo group on this machine, which call what a test asks them to."""

import datetime
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# What a collective waits for a rank that does not come, and what a test waits for all of them: against hanging alone.
COLLECTIVE_SECONDS = 180
TEST_SECONDS = 600
# What every rank needs. Where processes can be forked it is imported once, for all of them.
LIBRARIES = ["torch._dynamo", "torch.distributed", "hyperkern", "hypothesis", "numpy", "pytest", "scipy.special"]


class RankError(Exception):
    """What a rank raised, with its traceback."""


def serve(rank: int, size: int, folder: str, connection: Connection) -> None:
    """The life of a rank: functions come, results go."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
    )
    connection.send(("ready", None))
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            connection.send(("result", function(rank, *args)))
        except Exception:
            connection.send(("error", traceback.format_exc()))


class Group:
    """So many ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.folder = tempfile.TemporaryDirectory()
        forks = "forkserver" in mp.get_all_start_methods()
        context = mp.get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(LIBRARIES)
        self.connections, self.processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, size, self.folder.name, there), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
            self.connections.append(here)
            self.processes.append(process)
        self.answers(TEST_SECONDS)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = TEST_SECONDS) -> list[Any]:
        """``function(rank, *args)`` on every rank.

        Raises:
            RankError: a rank raised, has ended, or did not answer in time.
        """
        for connection in self.connections:
            with suppress(ConnectionError):  # a rank that has ended: it does not answer either
                connection.send((function, args))
        return self.answers(timeout)

    def answers(self, timeout: float) -> list[Any]:
        deadline, found, failed = time.monotonic() + timeout, [], []
        for rank, connection in enumerate(self.connections):
            try:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    failed.append(f"rank {rank} did not answer within {timeout} s")
                    continue
                kind, answer = connection.recv()
            except (EOFError, ConnectionError):
                failed.append(f"rank {rank} has ended")
                continue
            if kind == "error":
                failed.append(f"rank {rank}: {answer}")
            found.append(answer)
        if failed:
            # Others may still wait for the one that failed: nobody can be asked again.
            self.close()
            raise RankError("\n".join(failed))
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()
        self.size = 0


class Ranks:
    """Groups by their size, started when they are first asked for, and again after a failure."""

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}

    def __call__(self, size: int) -> Group:
        if size not in self.groups or self.groups[size].size != size:
            self.groups[size] = Group(size)
        return self.groups[size]

    def close(self) -> None:
        for group in self.groups.values():
            if group.size:
                group.close()
