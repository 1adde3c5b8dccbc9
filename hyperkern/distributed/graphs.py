"""What the compiler must not trace."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def outside_of_graphs(method: Method) -> Method:
    """`torch.compiler.disable`, put on when it is first needed: importing the compiler takes longer than this package.

    What a method does to the integers of a module is compiled anew for every value of them, and collectives between
    ranks that compile different graphs would wait for each other.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if not torch.compiler.is_dynamo_compiling():
                return method(*args, **kwargs)
            disabled = torch.compiler.disable(method)
        return disabled(*args, **kwargs)

    # The compiler counts recompilations by code object, and gives up after a few.
    found: Any = call
    found.__code__ = found.__code__.replace(co_name=f"outside_{method.__name__}")
    return cast(Method, found)
