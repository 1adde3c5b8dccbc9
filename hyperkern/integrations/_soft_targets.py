"""The cross entropy of two softmaxes over the same candidates, a teacher's and a student's, without their matrices.

It is computed in blocks of anchors, anew for the gradient: of ``N`` anchors and ``M`` candidates one block of logits is
kept at a time, and ``O((N + M) D)`` besides.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of a block of anchors, of student and teacher each: 16 MiB in float32. A single block is not computed anew.
BLOCK = 1 << 22


class Way(NamedTuple):
    """Anchors ``(N, D)``, times the scale, and their candidates ``(M, D)``."""

    anchors: Tensor
    candidates: Tensor


def cross_entropy(teacher: Way, student: Way) -> Tensor:
    """The cross entropy of the probabilities of each anchor, ``(N,)``, in blocks of anchors if there are many."""
    rows = max(1, BLOCK // len(student.candidates))
    if rows >= len(student.anchors):
        return _of_rows(teacher.anchors, student.anchors, teacher.candidates, student.candidates)
    blocks = zip(teacher.anchors.split(rows), student.anchors.split(rows), strict=True)
    found: list[Tensor] = []
    for block in blocks:
        operands = *block, teacher.candidates, student.candidates
        found.append(checkpoint(_of_rows, *operands, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(found)


def _of_rows(teacher: Tensor, student: Tensor, of_teacher: Tensor, of_student: Tensor) -> Tensor:
    # The loss is computed in float32: autocast would round the factors.
    with torch.autocast(student.device.type, enabled=False):
        return of_logits(teacher @ of_teacher.T, student @ of_student.T)


def of_logits(teacher: Tensor, student: Tensor) -> Tensor:
    """The same of two matrices of logits ``(N, M)``."""
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1)
