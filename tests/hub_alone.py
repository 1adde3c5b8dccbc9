"""A process that has PyTorch and builds for the kernels hub, and nothing else: a program of test_hub.py.

It gets the folder of the libraries, then the folders of builds, each as ``folder=name`` with the name that it is loaded
by, and last ``check`` where one is to start the process that checks a backend. It prints what the test looks at.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path += [sys.argv[1], str(Path(__file__).parent)]

import oracle
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode

N, D = 37, 12
TEMPERATURE, SCALE, SIGLIP = {"temperature": 0.1}, {"logit_scale": 7.0}, {"logit_scale": 7.0, "logit_bias": -3.0}
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("alignment", "uniformity", "align_uniform")},
    **{name: TEMPERATURE for name in ("info_nce", "nt_xent", "dcl", "dclw", "sup_con")},
    **{"clip_loss": SCALE, "siglip": SIGLIP},
}


def load(folder: str, name: str) -> ModuleType:
    """As the loader of the hub does it: from a file, by a name that no other build has."""
    spec = importlib.util.spec_from_file_location(name, Path(folder, "__init__.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(dtype: torch.dtype) -> list[Tensor]:
    drawn = torch.randn(2, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [side.to(dtype).requires_grad_() for side in drawn]


def step(losses: Any, name: str, dtype: torch.dtype) -> list[Tensor]:
    """The value of a loss and its gradients."""
    sides = rows(dtype)[: 1 if name in ("uniformity", "sup_con") else 2]
    given = {"labels": torch.arange(N) % 5} if name == "sup_con" else {}
    loss = getattr(losses, name)(*sides, **given, **OPTIONS[name])
    loss = loss[0] if isinstance(loss, tuple) else loss
    return [loss, *torch.autograd.grad(loss, sides)]


def check_losses(kernel: Any) -> None:
    for name in OPTIONS:
        truth = step(oracle, name, torch.float64)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            for found, expected in zip(step(kernel, name, dtype), truth, strict=True):
                oracle.assert_close(found.double(), expected, tolerance)


def check_compiled(kernel: Any) -> None:
    """In one graph, whose operator is one of the build."""
    namespaces: set[str] = set()

    def look(graph: torch.fx.GraphModule, _inputs: object) -> Callable:
        targets = [node.target for node in graph.graph.nodes]
        namespaces.update(target.namespace for target in targets if isinstance(target, torch._ops.OpOverload))
        return make_boxed_func(graph.forward)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return kernel.clip_loss(x, y, logit_scale=7.0)

    x, y = rows(torch.float32)
    value = torch.compile(loss, backend=aot_autograd(fw_compiler=look), fullgraph=True)(x, y)
    value.backward()
    for found, expected in zip([value, x.grad, y.grad], step(oracle, "clip_loss", torch.float64), strict=True):
        oracle.assert_close(found.double(), expected, 1e-4)
    assert {name for name in namespaces if "hyperkern" in name} == {kernel.__name__}


class Adopting(nn.Module):
    """A module with options of its own, whose forward a layer replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.t, self.temperature, self.sigma = 1.5, 3.0, 0.2, 0.4


def check_layers(kernel: Any) -> None:
    layers = {name: value for name, value in vars(kernel.layers).items() if name.endswith("Loss")}
    assert layers.keys() == set(kernel.nn.__all__)
    x, y = rows(torch.float32)
    further = {"UniformityLoss": [], "SupConLoss": [torch.arange(N) % 5], "CLIPLoss": [y, torch.tensor(7.0)]}
    further["SigLIPLoss"] = [y, torch.tensor(7.0), torch.tensor(-3.0)]
    for name, layer in layers.items():
        # What the loader of the hub asks of a layer.
        assert issubclass(layer, nn.Module)
        assert layer.__init__ is nn.Module.__init__
        assert set(dir(layer)) - set(dir(nn.Module)) <= {"can_torch_compile", "has_backward"}
        read = layer.__annotations__.keys() - {"can_torch_compile"}
        options = {option: getattr(Adopting(), option) for option in read}
        options |= {"CLIPLoss": SCALE, "SigLIPLoss": SIGLIP}.get(name, {})
        others = further.get(name, [y])
        expected = getattr(kernel.nn, name)(**options)(x, *[other for other in others if other.dim()])
        torch.testing.assert_close(layer.forward(Adopting(), x, *others), expected)


def check_names(kernel: Any) -> None:
    """A warning belongs to who calls the build, whatever its name."""
    first_use = sys.modules[f"{kernel.__name__}.check.first_use"]
    inside = {"__name__": f"{kernel.__name__}.backends", "asked": first_use.frames_of_libraries}
    assert eval("asked()", inside) == 2


def check_fakes(kernel: Any) -> None:
    """The operators of an extension can be traced: none of them returns anything."""
    library = sys.modules[f"{kernel.__name__}.backends.cuda.library"]
    if library.objection("cuda") is None:
        with FakeTensorMode():
            x, lengths = torch.empty(1, 5, 4), torch.empty(1, 5)
            assert library.ops(torch.device("cuda")).normalize_rows(x, 1e-12, x.clone(), lengths) is None


def registered(namespace: str) -> list[str]:
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    return sorted(name for found, name in names if found == namespace)


def check_on_device(kernel: Any) -> list[Any]:
    """The process that checks a backend before it is used: of the reference, which needs no GPU for it."""
    process, records, scope = (
        sys.modules[f"{kernel.__name__}.check.{name}"] for name in ("process", "records", "scope")
    )
    machine = records.machine("reference", torch.device("cpu"))
    wanted = scope.Scope("float32", 64)
    outcome = process.run(process.Request("reference", "cpu", "cpu", machine.digest, wanted, (8,), "quick", 1), 300)
    return [outcome.status, outcome.reason, len(outcome.rows)]


def main() -> None:
    torch.set_num_threads(1)
    found = []
    kernels = [load(*build.rsplit("=", 1)) for build in sys.argv[2:] if build != "check"]
    for kernel in kernels:
        check_losses(kernel)
        check_layers(kernel)
        check_compiled(kernel)
        check_names(kernel)
        check_fakes(kernel)
        cuda = sys.modules[f"{kernel.__name__}.backends.cuda.library"]
        found.append(
            {
                "name": kernel.__name__,
                "operators": registered(kernel.__name__),
                "cuda": cuda.objection("cuda"),
                "backends": kernel.backend_info()["backends"],
                "foreign": sorted(name for name in sys.modules if name.partition(".")[0] in ("hyperkern", "pytest")),
            }
        )
    checked = check_on_device(kernels[-1]) if sys.argv[-1] == "check" else None
    print(json.dumps({"builds": found, "ordinary": registered("hyperkern"), "check": checked}))


if __name__ == "__main__":
    main()
