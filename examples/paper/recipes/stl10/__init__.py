"""The paper's experiment on STL-10: a small AlexNet, trained without labels, and what a linear classifier makes of it."""

from .command import main

__all__ = ["main"]
