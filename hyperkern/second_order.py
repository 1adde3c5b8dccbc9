"""The derivative of the pairwise gradients, and forward mode, in plain PyTorch, one block of rows at a time.

With pair weights ``w_ij(l_ij)`` the gradients of every primitive are::

    dx_i = scale * sum_j w_ij y_j      du_i = sum_j w_ij
    dy_j = scale * sum_i w_ij x_i      dv_j = sum_i w_ij

Given cotangents ``H_x, h_u, H_y, h_v`` of these four, the cotangent of a weight is::

    q_ij = scale * (<H_x,i, y_j> + <x_i, H_y,j>) + h_u,i + h_v,j

and with ``z_ij = q_ij dw_ij/dl_ij`` the operands receive::

    x_i: scale * sum_j (z_ij y_j + w_ij H_y,j)      u_i: sum_j z_ij
    y_j: scale * sum_i (z_ij x_i + w_ij H_x,i)      v_j: sum_i z_ij

In forward mode the same sums come back. With the tangents of ``x, u, y, v`` for ``H`` the number ``q_ij`` is the
tangent of the logit; with that of the weight for ``z_ij`` the right-hand sides are the tangents of the four gradients.

Every step is out of place and differentiable, so third and higher orders, and reverse mode over forward mode, follow
from PyTorch itself (which then records the blocks: there memory grows with M x N).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .spec import PairSpec, PairTerms, pair_logits

# Elements of one (B, rows, N) block; a handful of such blocks is alive at a time.
_BLOCK_ELEMENTS = 1 << 21

Operands = Sequence[Tensor | None]
OperandGrads = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# ``H_x, h_u, H_y, h_v``; None for zero.
Directions = Sequence[Tensor | None]


def lse_second_order(
    operands: Operands,
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
    rows_shift, cols_shift = _shift(row_lse, 2), None if col_lse is None else _shift(col_lse, 1)

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
        return weights, q * weights  # the exponential is its own derivative

    operand_grads = _operand_grads(operands, spec, cotangents, weigh)
    d_a = torch.cat(by_row, dim=1)
    d_row_lse = -a * d_a
    if b is None or d_b is None:
        return operand_grads, (d_row_lse, None, d_a, None)
    d_col_lse = -b * d_b
    if symmetric:
        return operand_grads, (d_row_lse + d_col_lse, None, d_a + d_b, None)
    return operand_grads, (d_row_lse, d_col_lse, d_a, d_b)


def energy_second_order(
    operands: Operands, spec: PairSpec, potential: str, cotangents: Sequence[Tensor]
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
        weights, slope = _of_potential(potential, logits)
        inner_product = _plus(inner_product, (q * weights).sum((1, 2)))
        return weights, q * slope

    operand_grads = _operand_grads(operands, spec, cotangents, weigh)
    assert inner_product is not None
    return operand_grads, inner_product


def lse_tangents(
    operands: Operands, spec: PairSpec, row_lse: Tensor, col_lse: Tensor | None, tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Forward mode of the log-sum-exps: ``sum_j q_ij exp(l_ij - row_lse_i)``, and ``sum_i`` for the columns.

    Args:
        operands: ``x, y, u, v, row_ids, col_ids``; ``y = None`` means ``y = x``.
        spec: the problem.
        row_lse: ``(B, M)``.
        col_lse: ``(B, N)``, or ``None`` where it is not wanted.
        tangents: those of ``x, y, u, v``, ``None`` for zero.

    Returns:
        The tangents of ``row_lse`` and ``col_lse``.
    """
    rows_shift, cols_shift = _shift(row_lse, 2), None if col_lse is None else _shift(col_lse, 1)
    by_row: list[Tensor] = []
    by_col: Tensor | None = None
    for rows, logits, q in _blocks(operands, spec, _directions(operands, tangents)):
        by_row.append((q * torch.exp(logits - rows_shift[:, rows])).sum(2))
        if cols_shift is not None:
            by_col = _plus(by_col, (q * torch.exp(logits - cols_shift)).sum(1))
    return torch.cat(by_row, dim=1), by_col


def lse_grad_tangents(
    operands: Operands,
    spec: PairSpec,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    tangents: Sequence[Tensor | None],
    weight_tangents: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    *,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, ...]:
    """Forward mode of the gradients of the log-sum-exps.

    Args:
        operands: ``x, y, u, v, row_ids, col_ids``; ``y = None`` means ``y = x``, ``b = a``, ``col_lse = row_lse``.
        spec: the problem.
        weights: ``row_lse, col_lse, a, b`` of `lse_second_order`.
        tangents: those of ``x, y, u, v``, ``None`` for zero.
        weight_tangents: those of ``weights``, ``None`` where they are.
        need_x: whether the row side is wanted.
        need_y: whether the column side is.

    Returns:
        The tangents of ``dx, du, dy, dv``, without rows where not wanted.
    """
    row_lse, col_lse, a, b = weights
    t_row_lse, t_col_lse, t_a, t_b = weight_tangents
    if operands[1] is None:
        col_lse, b, t_col_lse, t_b = row_lse, a, t_row_lse, t_a
    rows_shift, cols_shift = _shift(row_lse, 2), None if col_lse is None else _shift(col_lse, 1)
    from_a = t_a - a * t_row_lse
    from_b = None if b is None or t_b is None or t_col_lse is None else t_b - b * t_col_lse

    def weigh(logits: Tensor, q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        from_row = torch.exp(logits - rows_shift[:, rows])
        of_pair, tangent = a[:, rows, None] * from_row, from_a[:, rows, None] * from_row
        if b is not None and from_b is not None and cols_shift is not None:
            from_col = torch.exp(logits - cols_shift)
            of_pair, tangent = of_pair + b[:, None] * from_col, tangent + from_b[:, None] * from_col
        return of_pair, tangent + q * of_pair

    return _contract(operands, spec, _directions(operands, tangents), weigh, need_x=need_x, need_y=need_y)


def energy_tangent(operands: Operands, spec: PairSpec, potential: str, tangents: Sequence[Tensor | None]) -> Tensor:
    """Forward mode of the energy: ``sum_ij q_ij phi'(l_ij)`` ``(B,)``; arguments as `energy_grad_tangents`."""
    total: Tensor | None = None
    for _, logits, q in _blocks(operands, spec, _directions(operands, tangents)):
        total = _plus(total, (q * _of_potential(potential, logits)[0]).sum((1, 2)))
    assert total is not None
    return total


def energy_grad_tangents(
    operands: Operands,
    spec: PairSpec,
    potential: str,
    tangents: Sequence[Tensor | None],
    *,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, ...]:
    """Forward mode of the gradients with ``w_ij = phi'(l_ij)``.

    Args:
        operands: ``x, y, u, v, row_ids, col_ids``; ``y = None`` means ``y = x``.
        spec: the problem.
        potential: ``"exp"`` or ``"softplus"``.
        tangents: those of ``x, y, u, v``, ``None`` for zero.
        need_x: whether the row side is wanted.
        need_y: whether the column side is.

    Returns:
        The tangents of the four sums at the top of this file, without rows where not wanted.
    """

    def weigh(logits: Tensor, q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        weights, slope = _of_potential(potential, logits)
        return weights, q * slope

    return _contract(operands, spec, _directions(operands, tangents), weigh, need_x=need_x, need_y=need_y)


def _operand_grads(
    operands: Operands,
    spec: PairSpec,
    cotangents: Sequence[Tensor],
    weigh: Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]],
) -> OperandGrads:
    """What the operands ``x, y, u, v`` receive."""
    directions = [h if h.shape[1] > 0 else None for h in cotangents]
    dx, du, dy, dv = _contract(operands, spec, directions, weigh)
    _, y, u, v = operands[:4]
    if y is None:  # the rows are the columns too
        return dx + dy, None, None if u is None else du + dv, None
    return dx, dy, None if u is None else du, None if v is None else dv


def _contract(
    operands: Operands,
    spec: PairSpec,
    directions: Directions,
    weigh: Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]],
    *,
    need_x: bool = True,
    need_y: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums at the top of this file, for the rows and for the columns; without rows where not needed.

    ``weigh(logits, q, rows)`` gives a block's ``w`` and ``z``. It is called once for each block of rows, in order, and
    collects what else its caller wants of the block.
    """
    x, y, _ = _with_columns(operands)
    h_x, _, h_y, _ = directions
    dx, du = [x[:, :0]], [x[:, :0, 0]]
    dy, dv = (None, None) if need_y else (y[:, :0], y[:, :0, 0])
    with torch.autocast(x.device.type, enabled=False):
        for rows, logits, q in _blocks(operands, spec, directions):
            weights, z = weigh(logits, q, rows)
            if need_x:
                dx_block = z @ y
                if h_y is not None:
                    dx_block = dx_block + weights @ h_y
                dx.append(spec.scale * dx_block)
                du.append(z.sum(2))
            if need_y:
                dy_block = z.mT @ x[:, rows]
                if h_x is not None:
                    dy_block = dy_block + weights.mT @ h_x[:, rows]
                dy, dv = _plus(dy, spec.scale * dy_block), _plus(dv, z.sum(1))
    assert dy is not None
    assert dv is not None
    return torch.cat(dx, dim=1), torch.cat(du, dim=1), dy, dv


def _blocks(operands: Operands, spec: PairSpec, directions: Directions) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For each block of rows, in order: which they are, and of all their pairs the logits and ``q``."""
    x, y, terms = _with_columns(operands)
    h_x, h_u, h_y, h_v = directions
    step = max(1, _BLOCK_ELEMENTS // (x.shape[0] * y.shape[1]))
    for start in range(0, x.shape[1], step):
        rows = slice(start, min(start + step, x.shape[1]))
        with torch.autocast(x.device.type, enabled=False):
            logits = pair_logits(x, y, terms, spec, rows)
            q = torch.zeros_like(logits)
            if h_x is not None:
                q = q + spec.scale * (h_x[:, rows] @ y.mT)
            if h_u is not None:
                q = q + h_u[:, rows, None]
            if h_y is not None:
                q = q + spec.scale * (x[:, rows] @ h_y.mT)
            if h_v is not None:
                q = q + h_v[:, None]
        yield rows, logits, q


def _with_columns(operands: Operands) -> tuple[Tensor, Tensor, PairTerms]:
    """Rows, columns and terms; with ``y = None`` the rows are the columns too."""
    x, y, *tensors = operands
    assert x is not None
    terms = PairTerms(*tensors)
    return (x, x, terms.as_columns()) if y is None else (x, y, terms)


def _directions(operands: Operands, tangents: Sequence[Tensor | None]) -> Directions:
    """The tangents of ``x, y, u, v`` as directions."""
    t_x, t_y, t_u, t_v = tangents
    return (t_x, t_u, t_x, t_u) if operands[1] is None else (t_x, t_u, t_y, t_v)


def _shift(lse: Tensor, axis: int) -> Tensor:
    """What the logits are shifted by: a row without candidates has the weight exp(-inf) = 0, not exp(nan)."""
    return lse.masked_fill(lse == -torch.inf, torch.inf).unsqueeze(axis)


def _of_potential(potential: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    """``phi'`` and ``phi''``."""
    if potential == "exp":
        weights = logits.exp()
        return weights, weights
    weights = logits.sigmoid()
    return weights, weights * (1 - weights)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    """A running sum: the parts must not pile up, they are as large as the operands."""
    return part if total is None else total + part
