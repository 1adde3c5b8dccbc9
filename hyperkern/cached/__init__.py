"""A training step on a batch whose activations do not fit: encoded in chunks, with the gradients of the whole batch."""

from .step import cached_step

__all__ = ["cached_step"]
