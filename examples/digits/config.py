"""The options of the demo and the checks that run before any training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperkern.files import obstacle

if TYPE_CHECKING:
    import torch

# What is written to the output folder.
FILES = ("table.md", "results.json", "picture.png", "picture.svg")


class OptionError(ValueError):
    """An option of the demo has a value that cannot work."""

    def __init__(self, option: str, value: object, reason: str) -> None:
        """Compose the message in the manner of argparse."""
        super().__init__(f"argument --{option}: {reason}, got {str(value)!r}")


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demo.

    Attributes:
        seeds: number of training seeds (0, 1, …) for each objective, at least 1.
        epochs: passes over the training images, at least 1.
        dim: dimension of the features, at least 2.
        batch: positive pairs in a training step, from 2 to the number of training images.
        out: folder of the results; files that are there already are replaced at the end.
        backend: backend of the losses, or None for the automatic choice.
        device: `cpu`, `cuda` or `cuda:<index>`; None takes a GPU if there is one.
        huge_rows: rows of the huge batch; None takes 65,536 on a CPU and 1,048,576 on a GPU.
    """

    seeds: int = 3
    epochs: int = 60
    dim: int = 64
    batch: int = 256
    out: Path = Path("demo-out")
    backend: str | None = None
    device: str | None = None
    huge_rows: int | None = None


def check_ranges(config: DemoConfig, train_size: int) -> None:
    """Refuse numbers outside their range.

    Raises:
        OptionError: naming the option and its value.
    """
    for option, value, least in (
        ("seeds", config.seeds, 1),
        ("epochs", config.epochs, 1),
        ("dim", config.dim, 2),
        ("batch", config.batch, 2),
    ):
        if value < least:
            raise OptionError(option, value, f"must be at least {least}")
    if config.batch > train_size:
        raise OptionError("batch", config.batch, f"must be at most {train_size}, the number of training images")


def resolve_device(name: str | None) -> torch.device:
    """Turn the option into a device that can be used here.

    Raises:
        OptionError: the name is unknown, or this machine has no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError("device", name, "must be cpu, cuda or cuda:<index>") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError("device", name, "must be cpu, cuda or cuda:<index>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError("device", name, f"PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def check_backend(backend: str | None, device: torch.device, dim: int) -> None:
    """Try the losses once on a few random rows, so that a backend that cannot run here is named at once.

    Raises:
        OptionError: the backend is unknown or refuses these inputs; its reasons are in the message.
    """
    import torch

    from .objectives import OBJECTIVES

    generator = torch.Generator(device).manual_seed(0)
    x, y = torch.randn(2, 8, dim, generator=generator, device=device).requires_grad_()
    for objective in OBJECTIVES:
        try:
            objective.loss(x, y, backend).backward()
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            value = backend or "the automatic choice"
            raise OptionError("backend", value, f"not usable on {device} ({error})") from error


def check_writable(out: Path) -> None:
    """Make the output folder and look whether the results can be written there.

    Raises:
        OptionError: the folder cannot be made, or one of the files not written.
    """
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise OptionError("out", out, f"cannot be written to ({error.strerror})") from error
    for path in (out / name for name in FILES):
        if (reason := obstacle(path)) is not None:
            raise OptionError("out", out, f"{path.name} {reason}")
