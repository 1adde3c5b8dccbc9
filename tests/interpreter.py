"""Triton's interpreter in half of its time: it looks up once what never changes."""

import builtins
import functools
import inspect
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any


def interpret_faster() -> None:
    """Changes the interpreter of Triton 3.8, whose numbers stay the same; any other is as slow as it is."""
    if not version("triton").startswith("3.8."):
        return
    _patch_once()
    _share_types()


def site(folder: Path) -> str:
    """A folder for the paths of other processes, in which they start with a faster interpreter."""
    folder.mkdir(exist_ok=True)
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import interpreter; "
    (folder / "sitecustomize.py").write_text(f"{code}interpreter.interpret_faster()\n", encoding="utf-8")
    return str(folder)


def _patch_once() -> None:
    """The interpreter patches its language at every call of a function, and calls what is built in by two wrappers."""
    from triton import language
    from triton.language import core
    from triton.runtime import interpreter

    patch_language, scope = interpreter._patch_lang, interpreter._LangPatchScope
    numpy_dtype, ordinary_range = interpreter._get_np_dtype, language.range

    @functools.cache
    def interpreted(member: Any) -> Any:
        function = getattr(member, "__wrapped__", member)

        def call(*args: Any, **options: Any) -> Any:
            options["_semantic"] = interpreter.interpreter_semantic
            return function(*args, **options)

        return call

    @functools.cache
    def built_in(package: Any) -> list[tuple[str, Any]]:
        return [(name, interpreted(member)) for name, member in inspect.getmembers(package) if core.is_builtin(member)]

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        for name, member in built_in(package):
            scope.set_attr(package, name, member)

    of_element = functools.cache(numpy_dtype)

    def dtype_of(kind: Any) -> Any:
        element = kind.scalar
        return numpy_dtype(kind) if element.is_ptr() else of_element(element)

    @functools.cache
    def named(function: Any) -> list:
        modules = {id(member) for member in function.__globals__.values() if inspect.ismodule(member)}
        return [module for module in (language, core) if id(module) in modules]

    def patch_once(function: Any) -> Any:
        # Else the function is called by one that did it.
        to_do = any(module.range is ordinary_range for module in named(function))
        return patch_language(function) if to_do else scope()

    # The interpreter computes whether integers overflow and, without `debug`, asserts nothing.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._patch_builtin = patch_builtin
    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = dtype_of


def _share_types() -> None:
    """The interpreter makes and checks the shape of every result anew: a tuple of constants, each with its own type."""
    from triton.language import core

    make_block_type, unwrap = core.block_type.__init__, core._unwrap_if_constexpr
    containers = (list, builtins.tuple, core.tuple)

    def unwrap_faster(value: Any) -> Any:
        if isinstance(value, core.constexpr):
            return value.value
        return unwrap(value) if isinstance(value, containers) else value

    @functools.cache
    def shape_of(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(math.prod(sizes))

    known: dict[tuple, dict[str, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = builtins.tuple(map(unwrap_faster, unwrap_faster(shape)))
        key = (element_ty.name, sizes)
        if key not in known:
            make_block_type(self, element_ty, shape)
            known[key] = {name: getattr(self, name) for name in ("shape", "numel", "name")}
        self.__dict__.update(known[key], element_ty=element_ty)

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_of(builtins.tuple(type.shape) if type.is_block() else ())

    core._unwrap_if_constexpr = unwrap_faster
    core.block_type.__init__ = block_type
    core.tensor.__init__ = tensor
