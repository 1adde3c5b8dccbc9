"""The derivative of the pairwise gradients, in plain PyTorch, one block of rows at a time.

With pair weights ``w_ij(l_ij)`` the gradients of every primitive are::

    dx_i = scale * sum_j w_ij y_j      du_i = sum_j w_ij
    dy_j = scale * sum_i w_ij x_i      dv_j = sum_i w_ij

Given cotangents ``H_x, h_u, H_y, h_v`` of these four, the cotangent of a weight is::

    q_ij = scale * (<H_x,i, y_j> + <x_i, H_y,j>) + h_u,i + h_v,j

and with ``z_ij = q_ij dw_ij/dl_ij`` the operands receive::

    x_i: scale * sum_j (z_ij y_j + w_ij H_y,j)      u_i: sum_j z_ij
    y_j: scale * sum_i (z_ij x_i + w_ij H_x,i)      v_j: sum_i z_ij

Every step is out of place and differentiable, so third and higher orders follow from PyTorch itself (which then
records the blocks: beyond the second order memory grows with M x N).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .spec import PairSpec, PairTerms, pair_logits

# Elements of one (B, rows, N) block; a handful of such blocks is alive at a time.
_BLOCK_ELEMENTS = 1 << 21

OperandGrads = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def lse_second_order(
    operands: Sequence[Tensor | None],
    spec: PairSpec,
    row_lse: Tensor,
    col_lse: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    cotangents: Sequence[Tensor],
) -> tuple[OperandGrads, OperandGrads]:
    """For ``w_ij = a_i exp(l_ij - row_lse_i) + b_j exp(l_ij - col_lse_j)``.

    Args:
        operands: ``x, y, u, v, row_ids, col_ids``; ``y = None`` means ``y = x``, ``b = a``, ``col_lse = row_lse``.
        spec: the problem.
        row_lse: ``(B, M)``.
        col_lse: ``(B, N)`` or ``None``.
        a: ``(B, M)``.
        b: ``(B, N)`` or ``None`` for zero.
        cotangents: ``H_x, h_u, H_y, h_v``, without rows where the gradient was not computed.

    Returns:
        The gradients of ``x, y, u, v`` and of ``row_lse, col_lse, a, b``.
    """
    symmetric = operands[1] is None
    if symmetric:
        col_lse, b = row_lse, a
    # A row without candidates has the weight exp(-inf) = 0, not exp(nan).
    rows_shift = row_lse.masked_fill(row_lse == -torch.inf, torch.inf).unsqueeze(2)
    cols_shift = None if col_lse is None else col_lse.masked_fill(col_lse == -torch.inf, torch.inf).unsqueeze(1)

    by_row: list[Tensor] = []
    d_b: Tensor | None = None

    def weigh(logits: Tensor, q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        nonlocal d_b
        from_row = torch.exp(logits - rows_shift[:, rows])
        by_row.append((q * from_row).sum(2))
        weights = a[:, rows, None] * from_row
        if b is not None and cols_shift is not None:
            from_col = torch.exp(logits - cols_shift)
            d_b = _plus(d_b, (q * from_col).sum(1))
            weights = weights + b[:, None] * from_col
        return weights, weights  # the exponential is its own derivative

    operand_grads = _contract(operands, spec, cotangents, weigh)
    d_a = torch.cat(by_row, dim=1)
    d_row_lse = -a * d_a
    if b is None or d_b is None:
        return operand_grads, (d_row_lse, None, d_a, None)
    d_col_lse = -b * d_b
    if symmetric:
        return operand_grads, (d_row_lse + d_col_lse, None, d_a + d_b, None)
    return operand_grads, (d_row_lse, d_col_lse, d_a, d_b)


def energy_second_order(
    operands: Sequence[Tensor | None], spec: PairSpec, potential: str, cotangents: Sequence[Tensor]
) -> tuple[OperandGrads, Tensor]:
    """For ``w_ij = phi'(l_ij)``.

    Args:
        operands: ``x, y, u, v, row_ids, col_ids``; ``y = None`` means ``y = x``.
        spec: the problem.
        potential: ``"exp"`` or ``"softplus"``.
        cotangents: ``H_x, h_u, H_y, h_v``, without rows where the gradient was not computed.

    Returns:
        The gradients of ``x, y, u, v``, and ``sum_ij q_ij w_ij`` ``(B,)``, the inner product of the cotangents with
        the first-order gradients.
    """
    inner_product: Tensor | None = None

    def weigh(logits: Tensor, q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        nonlocal inner_product
        weights = logits.exp() if potential == "exp" else logits.sigmoid()
        inner_product = _plus(inner_product, (q * weights).sum((1, 2)))
        return weights, weights if potential == "exp" else weights * (1 - weights)

    operand_grads = _contract(operands, spec, cotangents, weigh)
    assert inner_product is not None
    return operand_grads, inner_product


def _contract(
    operands: Sequence[Tensor | None],
    spec: PairSpec,
    cotangents: Sequence[Tensor],
    weigh: Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]],
) -> OperandGrads:
    """The formulas above in full precision.

    ``weigh(logits, q, rows)`` gives a block's ``w`` and ``dw/dl``. It is called once for each block of rows, in order,
    and collects what else its caller wants of the block.
    """
    with torch.autocast(cotangents[0].device.type, enabled=False):
        return _contract_blocks(operands, spec, cotangents, weigh)


def _contract_blocks(
    operands: Sequence[Tensor | None],
    spec: PairSpec,
    cotangents: Sequence[Tensor],
    weigh: Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]],
) -> OperandGrads:
    x, y, *tensors = operands
    assert x is not None
    terms, symmetric = PairTerms(*tensors), y is None
    if y is None:
        y, terms = x, terms.as_columns()
    h_x, h_u, h_y, h_v = (h if h.shape[1] > 0 else None for h in cotangents)

    dx_blocks, du_blocks = [], []
    dy: Tensor | None = None
    dv: Tensor | None = None
    step = max(1, _BLOCK_ELEMENTS // (x.shape[0] * y.shape[1]))
    for start in range(0, x.shape[1], step):
        rows = slice(start, min(start + step, x.shape[1]))
        x_rows = x[:, rows]
        logits = pair_logits(x, y, terms, spec, rows)
        q = torch.zeros_like(logits)
        if h_x is not None and h_u is not None:
            q = q + spec.scale * (h_x[:, rows] @ y.mT) + h_u[:, rows, None]
        if h_y is not None and h_v is not None:
            q = q + spec.scale * (x_rows @ h_y.mT) + h_v[:, None]
        weights, slope = weigh(logits, q, rows)
        z = q * slope
        dx_block, dy_block = z @ y, z.mT @ x_rows
        if h_y is not None:
            dx_block = dx_block + weights @ h_y
        if h_x is not None:
            dy_block = dy_block + weights.mT @ h_x[:, rows]
        dx_blocks.append(spec.scale * dx_block)
        du_blocks.append(z.sum(2))
        dy = _plus(dy, spec.scale * dy_block)
        dv = _plus(dv, z.sum(1))

    dx, du = torch.cat(dx_blocks, dim=1), torch.cat(du_blocks, dim=1)
    assert dy is not None
    assert dv is not None
    has_u, has_v = terms.u is not None, terms.v is not None
    if symmetric:
        return dx + dy, None, du + dv if has_u else None, None
    return dx, dy, du if has_u else None, dv if has_v else None


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    """A running sum: the parts must not pile up, they are as large as the operands."""
    return part if total is None else total + part
