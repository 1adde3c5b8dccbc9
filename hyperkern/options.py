"""Losses as modules: their options, declared once, and a scale of the logits that can be learned.

The options of a module are the annotated attributes of its class, with their defaults. What each of them means and what
it may be stands in `OPTIONS`. Constructor, its documentation, checks and the text of a module are made of the two.
"""

import functools
import inspect
import math
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, get_origin

import torch
from torch import Tensor, nn

from .arguments import REDUCTIONS, check_choice, check_number, check_positive
from .backends import forced
from .distributed import GroupLike, as_group

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """Says something to a type checker alone."""
        return lambda cls: cls


class Option(NamedTuple):
    """What is known of an option, whatever the loss.

    Attributes:
        what: what it means, in a sentence or two.
        check: of its name and value; raises, or returns the value to keep.
        refused: what is raised for, in words.
        of_function: whether the function of the loss takes it as well.
    """

    what: str
    check: Callable[[str, Any], Any]
    refused: str = ""
    of_function: bool = True


def one_of(*choices: str) -> Callable[[str, Any], Any]:
    """The check of a choice."""

    def check(name: str, value: str) -> str:
        check_choice(name, value, choices)
        return value

    return check


def _as_given(name: str, value: Any) -> Any:
    return value


def _backend(name: str, value: str | None) -> str | None:
    forced(value)  # a wrong name is refused here, not in the first step
    return value


# In the order in which they are shown.
OPTIONS = {
    "alpha": Option("exponent of the distance of a positive pair, > 0.", check_positive, "``alpha <= 0``"),
    "t": Option("inverse width of the Gaussian potential, > 0.", check_positive, "``t <= 0``"),
    "align_weight": Option("weight of the alignment.", check_number, "an ``align_weight`` that is not finite"),
    "uniform_weight": Option("weight of the uniformity.", check_number, "a ``uniform_weight`` that is not finite"),
    "temperature": Option("> 0; the initial value if it is learned.", check_positive, "``temperature <= 0``"),
    "logit_scale": Option(
        "``1 / temperature`` > 0; the initial value if it is learned.", check_positive, "``logit_scale <= 0``"
    ),
    "logit_bias": Option(
        "the initial value if it is learned, by the parameter ``learned_bias``.",
        *(check_number, "a ``logit_bias`` that is not finite"),
    ),
    "learnable": Option(
        "whether the scale of the logits is learned, by the parameter ``log_logit_scale``, its logarithm: minus that "
        "of the temperature. Give the parameters to the optimizer, without weight decay, and under DDP wrap the loss "
        "with the model.",
        _as_given,
        of_function=False,
    ),
    "max_logit_scale": Option(
        "upper bound of a learned scale, ``1 / temperature``; CLIP's is 100. The parameter is clamped in place at each "
        "call.",
        *(check_positive, "``max_logit_scale <= 0``, a learnable scale above it"),
        of_function=False,
    ),
    "in_batch": Option(
        "whether the other rows of ``y`` are candidates; ``False`` for MoCo's loss against a queue.", _as_given
    ),
    "sigma": Option("width of the weighting, > 0.", check_positive, "``sigma <= 0``"),
    "intra": Option("with a queue, whether the distinct pairs of ``x`` count too.", _as_given),
    "normalize": Option("whether rows are scaled to unit length first.", _as_given),
    "max_norm": Option(
        "with ``normalize=False``, what no row is longer than.",
        lambda name, value: value if value is None else check_positive(name, value),
        "``max_norm <= 0`` or with ``normalize``",
    ),
    "reduction": Option('``"mean"``, ``"sum"`` or ``"none"``.', one_of(*REDUCTIONS), "an unknown ``reduction``"),
    "group": Option(
        "the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.",
        lambda _, value: as_group(value),
    ),
    "backend": Option(
        "name of a backend to force; by default the best usable one.", _backend, "an unknown ``backend``"
    ),
}


def _documentation(options: dict[str, Option]) -> str:
    """The sections "Args" and "Raises" of a module with these options."""
    lines = [f"{name}: {option.what}" for name, option in options.items()]
    refused = [option.refused for option in options.values() if option.refused]
    raises = f"ValueError: {' or '.join(filter(None, [', '.join(refused[:-1]), *refused[-1:]]))}."
    wrapped = [
        textwrap.fill(line, 112, initial_indent="    ", subsequent_indent="        ") for line in [*lines, raises]
    ]
    return "\n".join(["Args:", *wrapped[:-1], "", "Raises:", wrapped[-1]])


@dataclass_transform(kw_only_default=True)
class Declared(nn.Module):
    """A module that keeps the options of its constructor as attributes of the same names, and shows them.

    A subclass declares each as ``name: type = default``, with a name in `OPTIONS`. One of its own is declared with
    what is known of it: ``name: Annotated[type, Option(...)] = default``.

    Attributes:
        declared: what is known of its options, by their names.
    """

    declared: ClassVar[dict[str, Option]] = {}
    _passed: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the constructor and the documentation of the declared options."""
        super().__init_subclass__(**kwargs)
        if not _is_declared(cls):  # a subclass elsewhere has a constructor of its own, and declares nothing
            return
        hints: dict[str, Any] = {}
        own: dict[str, Option] = {}
        for base in reversed(cls.__mro__):
            if base is not Declared and issubclass(base, Declared) and _is_declared(base):
                hints |= _annotations(base)
                own |= vars(base).get("declared", {})
        own |= {name: found for name, hint in hints.items() for found in getattr(hint, "__metadata__", ())}
        cls.declared = {name: own.get(name, option) for name, option in OPTIONS.items() if name in hints}
        cls.declared |= {name: option for name, option in own.items() if name not in OPTIONS}
        cls._passed = tuple(name for name, option in cls.declared.items() if option.of_function)
        plain = {name: hint.__origin__ if get_origin(hint) is Annotated else hint for name, hint in hints.items()}
        if "__annotations__" in vars(cls):  # who reads them next looks for a type
            cls.__annotations__ = {name: plain[name] for name in inspect.get_annotations(cls)}
        of_option = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
        options = [of_option(name, default=getattr(cls, name), annotation=plain[name]) for name in cls.declared]
        _give_constructor(cls, options)
        if "__doc__" in vars(cls) and cls.__doc__ and "Args:" not in cls.__doc__:
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\n{_documentation(cls.declared)}"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name in options:
            if name not in self.declared:
                raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}")
        for name, option in self.declared.items():
            setattr(self, name, option.check(name, options[name] if name in options else getattr(type(self), name)))
        self._complete()

    def _complete(self) -> None:
        """Checks options beside each other and makes what they ask for."""

    def given(self) -> dict[str, Any]:
        """The options of the function, as they are now."""
        options = {}
        for name in self._passed:  # a comprehension is one more call at every step
            options[name] = getattr(self, name)
        return options

    def extra_repr(self) -> str:
        """The options as they were given."""
        shown = {name: getattr(self, name) for name in self.declared}
        if shown.get("group", self) is None:
            del shown["group"]
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _is_declared(cls: type[Declared]) -> bool:
    """Whether the constructor is the one that is made of options."""
    return getattr(cls.__init__, "__code__", None) is Declared.__init__.__code__


def _annotations(cls: type) -> dict[str, Any]:
    try:
        return inspect.get_annotations(cls, eval_str=True)
    except NameError:  # what only a type checker knows
        return inspect.get_annotations(cls)


def _give_constructor(cls: type[Declared], options: list[inspect.Parameter]) -> None:
    """Gives the class a copy of the one constructor that says what it takes, for who reads signatures or hints."""
    of_all: Any = Declared.__init__
    own: Any = FunctionType(of_all.__code__, of_all.__globals__, "__init__", None, of_all.__closure__)
    own.__module__, own.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    instance = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own.__signature__ = inspect.Signature([instance, *options], return_annotation=None)
    own.__annotations__ = {option.name: option.annotation for option in options} | {"return": None}
    type.__setattr__(cls, "__init__", own)


class Loss(Declared):
    """What every loss has."""

    normalize: bool = True
    group: GroupLike = None
    backend: str | None = None


class ScaledLoss(Loss):
    """A loss with a scale of its logits that can be learned, as CLIP does: by its logarithm, and bounded.

    A subclass declares ``temperature`` or its reciprocal ``logit_scale``, as its function does.
    """

    learnable: bool = False
    max_logit_scale: float = 100.0
    reduction: str = "mean"

    def _complete(self) -> None:
        options = super().given()
        scale = 1 / options["temperature"] if "temperature" in options else options["logit_scale"]
        if self.learnable and scale > self.max_logit_scale:
            raise ValueError(f"logit_scale must not exceed max_logit_scale={self.max_logit_scale}, got {scale}")
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(scale))) if self.learnable else None

    def learned_scale(self) -> Tensor | None:
        """The learned scale, bounded; ``None`` where it is not learned."""
        parameter = self.log_logit_scale
        if parameter is None:
            return None
        # The parameter itself is brought back: behind a clamp it would have no gradient to return by.
        with torch.no_grad():
            parameter.clamp_(max=math.log(self.max_logit_scale))
        return parameter.exp()

    def given(self) -> dict[str, Any]:
        """The options of the function, as they are now; the scale is the learned one, where it is."""
        options = {}
        for name in self._passed:
            options[name] = getattr(self, name)
        if self.log_logit_scale is not None and (scale := self.learned_scale()) is not None:
            options |= {"temperature": 1 / scale} if "temperature" in options else {"logit_scale": scale}
        return options
