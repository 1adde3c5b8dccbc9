"""The paper's experiment on STL-10: a small AlexNet trained without labels, and its accuracy."""

from .command import main

__all__ = ["main"]
