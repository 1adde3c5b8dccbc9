"""What is launched and compiled for batches of several sizes, as JSON: a program without Triton's interpreter."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch

from tools.fake_gpu import Gpu


def run_losses(rows: int, dim: int) -> None:
    """Every kernel of the backend on a batch of so many rows."""
    from hyperkern.backends import load
    from hyperkern.spec import LossInputs, LossSpec, PairSpec, PairTerms

    backend: Any = load("triton")
    x, y, u = torch.randn(1, rows, dim), torch.randn(1, rows, dim), torch.zeros(1, rows)
    unit, rstd = backend.prepare(x)
    backend.normalize_backward(torch.randn_like(unit), unit, rstd, torch.float32)
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
    gpu, patch = Gpu(), SimpleNamespace(setattr=setattr)
    gpu.install(patch)
    gpu.take_cpu_tensors(patch)
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
