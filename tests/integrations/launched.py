"""A process of a test as a launcher sets it up, for libraries that read the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from parity import library


@contextmanager
def launched(rank: int) -> Iterator[None]:
    """As a launcher of several processes sets them up."""
    state = library("accelerate.state")
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": dist.get_world_size(),
        "LOCAL_WORLD_SIZE": dist.get_world_size(),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": 1,
    }
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
        os.environ.clear()
        os.environ.update(before)
