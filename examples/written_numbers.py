"""Real images with captions: numbers of four of scikit-learn's handwritten digits, and how they are read."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Numbers:
    """Some of the numbers and some of the handwriting: those to train with, or held-out ones.

    Args:
        held_out: whether these are the other numbers, written by other digits.
    """

    def __init__(self, held_out: bool) -> None:
        digits = load_digits()
        part = slice(1200, None) if held_out else slice(1200)
        self.images = torch.tensor(digits.images[part] / 16, dtype=torch.float32)
        self.rows = [torch.where(torch.tensor(digits.target[part]) == digit)[0] for digit in range(10)]
        self.values = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).split(8000)[held_out].tolist()

    def draw(self, count: int) -> tuple[Tensor, list[list[int]]]:
        """Images ``(N, 3, 16, 16)``, two digits above two others, and their N x 4 digits; no number occurs twice."""
        numbers = [self.values[i] for i in torch.randperm(len(self.values))[:count]]
        digits = [[int(digit) for digit in f"{number:04}"] for number in numbers]
        chosen = [[int(self.rows[d][torch.randint(len(self.rows[d]), ())]) for d in number] for number in digits]
        images = self.images[torch.tensor(chosen)].view(-1, 2, 2, 8, 8)  # (N, row, column, 8, 8)
        return images.transpose(2, 3).reshape(-1, 1, 16, 16).expand(-1, 3, -1, -1), digits
