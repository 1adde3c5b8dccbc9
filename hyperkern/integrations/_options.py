"""What a drop-in does with an option that is set after construction, and with what only its original looks at."""

from typing import Any, ClassVar

from torch import nn


class PlainDropIn:
    """A class under the name of another library's: what that one would look at is honoured or refused, never ignored.

    Attributes:
        _not_here: attributes and methods that callers of the original set or override, and that have no meaning here.
    """

    _not_here: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a method that the original would call and this class would not."""
        super().__init_subclass__(**kwargs)
        for name in cls._not_here:
            if hasattr(cls, name):
                raise NotImplementedError(f"{cls.__name__} overrides {name}, which this replacement never calls")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an option that may have this value, in the constructor or later."""
        if name in self._not_here:
            raise NotImplementedError(f"{type(self).__name__} has no {name} that could be set, got {value!r}")
        self._check_option(name, value)
        super().__setattr__(name, value)

    def _check_option(self, name: str, value: Any) -> None:
        """Raises unless the option ``name`` may have this value; other names may have any."""


class DropIn(PlainDropIn, nn.Module):
    """A loss that is a module, likewise."""
