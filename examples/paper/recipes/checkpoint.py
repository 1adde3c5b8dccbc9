"""The state of a run in a file, written after every epoch."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from examples.digits.config import OptionError
from hyperkern.files import OutputError, obstacle

from .session import Session

# What reading a file of something else may raise, be it PyTorch, pickle, or what looks for a key.
UNREADABLE = (
    *(AttributeError, EOFError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
    pickle.UnpicklingError,
)


class Stateful(Protocol):
    """A module, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def can_be_written(path: Path) -> None:
    """Make the folder of a file in ``--out``.

    Raises:
        OptionError: the file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", path.parent, f"cannot be written to ({error.strerror})") from error
    if (reason := obstacle(path)) is not None:
        raise OptionError("out", path.parent, f"{path.name} {reason}")


class Checkpoint:
    """A file with all that the next epoch depends on.

    Random numbers are no part of it: whatever draws some in an epoch is seeded by that epoch (`seeded`), so that a run
    that was interrupted goes on as one that was not.

    Args:
        path: of the file; its folder is made.
        recipe: the options that a run has to go on with, by their names on the command line.
        parts: what has a state, by name; the state must not be of a wrapper, see `session.unwrapped`.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
        self.path, self._recipe, self._parts = path, dict(recipe), parts
        can_be_written(path)

    def load(self, session: Session) -> int:
        """Load the file if it is there, and not of a trial (``--steps``) where this is none; say so.

        Returns:
            The epochs that are done, 0 if there is nothing to go on from.

        Raises:
            OptionError: an option differs from that of the file; it is named, with both values. Or the file is none
                of this recipe.
        """
        if not self.path.exists():
            return 0
        try:
            epochs = self._loaded()
        except OptionError:
            raise
        except UNREADABLE as error:
            raise OptionError(
                "out", self.path.parent, f"{self.path.name} there is no checkpoint of this run"
            ) from error
        if epochs:
            session.say(f"goes on from {self.path}")
        return epochs

    def _loaded(self) -> int:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["recipe"].get("steps") is not None and self._recipe.get("steps") is None:
            return 0
        for name, value in state["recipe"].items():
            given = self._recipe.get(name)
            if given != value:
                reason = f"another value needs another folder: {self.path} was made with {str(value)!r}"
                raise OptionError(name, given, reason)
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        epochs: int = state["epochs"]
        return epochs

    def save(self, epochs: int, session: Session) -> None:
        """Write the file, by the first process; what was there stays whole until the new one is.

        Raises:
            OutputError: it cannot be written, for want of space for instance.
        """
        if session.is_first:
            parts = {name: part.state_dict() for name, part in self._parts.items()}
            temporary = self.path.with_name(f".{self.path.name}.tmp")  # not in memory: it may be half a gigabyte
            try:
                torch.save({"recipe": self._recipe, "parts": parts, "epochs": epochs}, temporary)
                os.replace(temporary, self.path)
            except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
                temporary.unlink(missing_ok=True)
                raise OutputError(f"{self.path} cannot be written ({error})") from error
        session.wait()


def seeded(seed: int, epoch: int, rank: int = 0) -> torch.Generator:
    """A generator that depends on run, epoch and process alone; PyTorch's own one gets its seed too.

    The latter is what transforms draw from where no worker loads the data, and layers such as dropout.
    """
    generator = torch.Generator().manual_seed((seed * 100_003 + epoch) * 1_009 + rank)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return generator
