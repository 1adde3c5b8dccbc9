"""What one check covers: a kind of products and a class of D, since for each there are kernels of their own."""

from __future__ import annotations

from typing import NamedTuple

# How a kernel multiplies, see `hyperkern.backends.host.precision.product_of`; and the row-wise kernels, which
# multiply nothing and are the same for all.
PRODUCTS = ("bfloat16", "float16", "tf32", "float32")
ROWS = "rows"
# Up to these D a row is contracted in one pass, each by a kernel of its own in one backend or the other; longer ones go
# by panels.
DIMS = (64, 128, 192, 256)
# Of each class, one that fills its tiles and one that does not.
_ALIGNED = {64: 64, 128: 128, 192: 192, 256: 256, 0: 512}
_RAGGED = {64: 50, 128: 100, 192: 140, 256: 200, 0: 390}


class Scope(NamedTuple):
    """What a check covers."""

    kind: str  # one of PRODUCTS, or ROWS
    dims: int  # the largest D of the class; 0 for all that are longer than those

    @property
    def key(self) -> str:
        """Its name in a record."""
        return f"{self.kind}-{self.dims or 'long'}"

    @classmethod
    def of_key(cls, key: str) -> Scope:
        """The scope of a name."""
        kind, dims = key.split("-")
        return cls(kind, 0 if dims == "long" else int(dims))

    def other(self, dim: int) -> int:
        """Another D of the class: ragged if that one is a multiple of 16, and the other way round."""
        return (_ALIGNED if dim % 16 else _RAGGED)[self.dims]

    def samples(self) -> tuple[int, int]:
        """A D that fills its tiles, and one that does not."""
        return _ALIGNED[self.dims], _RAGGED[self.dims]

    def covers(self, dim: int) -> bool:
        """Whether a D is of the class."""
        return class_of(dim) == self.dims

    def __str__(self) -> str:
        """For a sentence."""
        what = "rows" if self.kind == ROWS else f"{self.kind} products"
        return f"{what} with D {f'up to {self.dims}' if self.dims else f'above {DIMS[-1]}'}"


def class_of(dim: int) -> int:
    """The class of a D."""
    return next((most for most in DIMS if dim <= most), 0)
