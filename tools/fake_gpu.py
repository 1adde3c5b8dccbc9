"""A GPU that launches nothing: real kernels of Triton, bound and specialised by Triton, compiled by nobody.

What kernels are to write is whatever memory held: this is for the host's time, and for what is launched how.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel


class Launch(NamedTuple):
    """What the launcher of a compiled kernel gets."""

    compiled: "Compiled"
    grid: tuple[int, int, int]
    stream: int
    metadata: Any
    hooks: tuple[Any, Any]
    args: tuple[Any, ...]


class Compiled(CompiledKernel):
    """Launched by Triton's own code, down to the launcher, which takes notes."""

    def __init__(self, gpu: "Gpu", source: Any, options: dict[str, Any]) -> None:
        self.gpu, self.src, self.options = gpu, source, options
        self.name, self.metadata, self.packed_metadata = source.fn.__name__, None, ()
        self.module, self.function, self._run = 1, 2, self.note

    def __del__(self) -> None:
        """There is nothing to unload."""

    def note(self, x: int, y: int, z: int, stream: int, function: int, packed: Any, metadata: Any, *rest: Any) -> None:
        """What a launcher of Triton is called with."""
        assert (function, packed) == (2, ())
        self.gpu.count += 1
        if self.gpu.noted:
            self.gpu.launches.append(Launch(self, (x, y, z), stream, metadata, rest[:2], rest[2:]))


class Gpu:
    """The driver of Triton, and what was compiled, launched and looked for.

    Attributes:
        device, stream: the current ones.
        compiled: in order.
        launches: likewise, as long as they are ``noted``: what notes hold is not freed.
        count: of launches, noted or not.
        searches: how often Triton looked for the kernel of a launch.
    """

    def __init__(self) -> None:
        self.device, self.stream, self.searches, self.count, self.noted = 0, 7, 0, 0, True
        self.compiled: list[Compiled] = []
        self.launches: list[Launch] = []

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        assert device == self.device
        return self.stream

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def compile(self, source: Any, *, target: Any, options: dict[str, Any]) -> Compiled:
        source.hash()  # which sets that of the kernel
        self.compiled.append(Compiled(self, source, options))
        return self.compiled[-1]

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Takes the place of `torch.cuda.device`."""
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def install(self, patch: Any) -> None:
        """Puts itself in the place of a GPU; ``patch`` has the ``setattr`` of `pytest.MonkeyPatch`."""
        run = triton.JITFunction.run

        def counted(kernel: Any, *args: Any, **options: Any) -> Any:
            self.searches += 1
            return run(kernel, *args, **options)

        patch.setattr(triton.JITFunction, "run", counted)
        patch.setattr(triton.compiler, "compile", self.compile)
        patch.setattr(triton.runtime.driver, "_active", self)
        patch.setattr(torch.cuda, "current_device", self.get_current_device)
        patch.setattr(torch.cuda, "device", self.on)

    def take_cpu_tensors(self, patch: Any) -> None:
        """Lets the Triton backend take tensors of a CPU for those of a Hopper GPU; not where it is interpreted."""
        from hyperkern.backends.triton import (
            align_uniform,
            config,
            launch,
            normalize,
            operands,
            primitives,
            schedule,
            whole,
        )

        def launch_on_gpu(planned: Any, device: torch.device, *pointers: Any) -> None:
            launch.launch(planned, torch.device("cuda", self.device), *pointers)

        for user in (operands, align_uniform, schedule):
            patch.setattr(user, "architecture_of", lambda x, pairs: config.of_name("sm_90"))
        for user in (primitives, normalize, whole, align_uniform):
            patch.setattr(user, "launch", launch_on_gpu)
