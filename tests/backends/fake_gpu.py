"""A GPU that launches nothing: real kernels of Triton, bound and specialised by Triton, compiled by nobody.

Run as a program without Triton's interpreter it prints what is compiled for batches of several sizes, as JSON.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
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

    def note(self, x, y, z, stream, function, packed, metadata, enter, leave, *args) -> None:
        assert (function, packed) == (2, ())
        self.gpu.launches.append(Launch(self, (x, y, z), stream, metadata, (enter, leave), args))


class Gpu:
    """The driver of Triton, and what was compiled, launched and looked for.

    Attributes:
        device, stream: the current ones.
        compiled: in order.
        launches: likewise.
        searches: how often Triton looked for the kernel of a launch.
    """

    def __init__(self) -> None:
        self.device, self.stream, self.searches = 0, 7, 0
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
        yield
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


def run_losses(rows: int, dim: int) -> None:
    """Every kernel of the backend on a batch of so many rows."""
    from hyperkern.backends import load
    from hyperkern.spec import LossInputs, LossSpec, PairSpec, PairTerms

    backend: Any = load("triton")
    x, y, u = torch.randn(1, rows, dim), torch.randn(1, rows, dim), torch.zeros(1, rows)
    unit, rstd = backend.prepare(x)
    backend.finish(torch.randn_like(unit), unit, rstd, torch.float32)
    terms = PairTerms(u=u, v=u)
    for spec in (PairSpec(4.0, True, "self", precision="bfloat16"), PairSpec(4.0, False, "none", precision="float32")):
        backend.row_lse(x, y, terms, spec, need_cols=True)
        backend.pair_grad(x, y, terms, spec, u, u, u, u, need_x=True, need_y=True)
        backend.energy(x, None, PairTerms(), spec, "exp", need_x=True, need_y=False)
        backend.energy(x, None, PairTerms(), spec, "exp", need_x=False, need_y=False)
    x, y, queue, scale = x[0], y[0], torch.randn(rows + 3, dim), torch.tensor(7.0)
    labels, y_labels = torch.arange(rows + 1)[1:], torch.arange(2 * rows + 6)[rows + 3 :]  # aligned or not
    for spec, inputs in (
        (LossSpec("align_uniform", 4.0, precision="bfloat16"), LossInputs(x, y)),
        (LossSpec("clip_loss", 9.0, precision="bfloat16"), LossInputs(x, y)),
        (LossSpec("info_nce", temperature=True, precision="bfloat16"), LossInputs(x, y, queue, scale)),
        (LossSpec("nt_xent", 9.0, precision="bfloat16"), LossInputs(x, y)),
        (LossSpec("dclw", temperature=True, precision="float32"), LossInputs(x, y, scale=scale)),
        (LossSpec("siglip", precision="bfloat16"), LossInputs(x, y, scale=scale, bias=scale)),
        (LossSpec("sup_con", 9.0, precision="bfloat16"), LossInputs(x, labels=labels)),
        (LossSpec("sup_con", temperature=True, precision="bfloat16"), LossInputs(x, scale=scale, labels=labels)),
        (
            LossSpec("sup_con", temperature=True, precision="float32"),
            LossInputs(x, queue, scale=scale, labels=labels, y_labels=y_labels),
        ),
        (LossSpec("uniformity", 4.0, precision="bfloat16"), LossInputs(x, queue)),
    ):
        need = [name for name, t in inputs._asdict().items() if t is not None and t.is_floating_point()]
        found = backend.loss(inputs, spec, need)
        if found is not None:  # rows are not too long for one pass
            needed = {name: getattr(inputs, name) for name in need}
            backend.loss_grad(needed, spec, found.state, found.values)


def main() -> None:
    """Prints for each D and batch size how often each kernel was launched, looked for and compiled."""
    from hyperkern.backends.triton import align_uniform, config, launch, operands, primitives, rows, schedule, step

    def launch_on_gpu(planned: Any, device: torch.device, *pointers: Any) -> None:
        launch.launch(planned, torch.device("cuda", 0), *pointers)

    for user in (operands, align_uniform, schedule):
        user.architecture_of = lambda x, pairs: config.of_name("sm_90")
    for user in (primitives, rows, step, align_uniform):
        user.launch = launch_on_gpu
    gpu = Gpu()
    gpu.install(SimpleNamespace(setattr=setattr))
    report = []
    for dim in (128, 100, 384):
        for size in (64, 100, 257, 1000, 4096):
            gpu.launches, gpu.compiled, gpu.searches = [], [], 0
            run_losses(size, dim)
            launched = Counter(launch.compiled.name for launch in gpu.launches)
            compiled = Counter(one.name for one in gpu.compiled)
            report.append(
                {"dim": dim, "rows": size, "launched": launched, "compiled": compiled, "searches": gpu.searches}
            )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
