"""Drop-in for DirectAU: alignment and uniformity of users and items, as recommenders train with and measure them.

`alignment` and `uniformity` are the two static methods of the model, and its ``calculate_loss`` calls them unchanged::

    from hyperkern.integrations.directau import alignment, uniformity

    class DirectAU(GeneralRecommender):
        alignment, uniformity = staticmethod(alignment), staticmethod(uniformity)

`directau_loss` is the whole of ``calculate_loss`` after the encoder, both sides at once. Values and gradients of the
parameters are those of the original, without the distances of all pairs. Users and items that a batch has several times
are several rows, at distance 0 of each other, as there. What differs:

- rows are normalised here, as the paper defines the loss: those that the model has normalised already stay as they are;
- the loss is float32 (float64 for float64) and computed in it;
- a batch of one interaction, for which the original is nan, raises a `ValueError`.

`overall_align` and `overall_uniform` measure a trained model, over all interactions of a data set.
"""

import torch
from torch import Tensor

from .. import losses
from ..arguments import accurate_dtype, check_columns, check_number, check_rows


def alignment(x: Tensor, y: Tensor, alpha: float = 2) -> Tensor:
    r""":math:`\operatorname{mean}_i \lVert \hat x_i - \hat y_i \rVert^\alpha`.

    Args:
        x: ``(N, D)`` users of the interactions of a batch, float64, float32, bfloat16 or float16; normalised here.
        y: their items, like ``x``.
        alpha: exponent, > 0.

    Returns:
        A scalar, float64 for float64 input, float32 otherwise.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong or different shapes, different devices, ``alpha <= 0``.

    Source:
        Wang et al., "Towards Representation Alignment and Uniformity in Collaborative Filtering", KDD 2022, Eq. 2.
    """
    check_rows("x", x, batched=False)
    return losses.alignment(x, y, alpha=alpha)


def uniformity(x: Tensor, t: float = 2) -> Tensor:
    r""":math:`\log \operatorname{mean}_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2}`.

    Args:
        x: ``(N, D)`` users or items of the interactions of a batch, N >= 2, with repetitions; normalised here.
        t: inverse width of the Gaussian potential, > 0.

    Returns:
        A scalar, as of `alignment`.

    Raises:
        TypeError: the input is no floating tensor.
        ValueError: a wrong shape, fewer than two rows, or ``t <= 0``.

    Source:
        As of `alignment`, Eq. 3.
    """
    check_rows("x", x, batched=False)
    return losses.uniformity(x, t=t)


def directau_loss(user_e: Tensor, item_e: Tensor, gamma: float = 1.0) -> Tensor:
    r"""``alignment(user_e, item_e) + gamma * (uniformity(user_e) + uniformity(item_e)) / 2``.

    Args:
        user_e: ``(N, D)`` users of the interactions of a batch, N >= 2; normalised here.
        item_e: their items, like ``user_e``.
        gamma: weight of the uniformity.

    Returns:
        A scalar, as of `alignment`.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong or different shapes, fewer than two rows, different devices, a ``gamma`` that is not finite.

    Source:
        As of `alignment`, Eq. 6.
    """
    check_rows("user_e", user_e, batched=False)
    check_columns("item_e", item_e, user_e, same_rows=True, of="user_e")
    check_number("gamma", gamma)
    return losses.align_uniform(user_e, item_e, uniform_weight=gamma).loss


def overall_align(
    user_index: Tensor, item_index: Tensor, user_emb: Tensor, item_emb: Tensor, *, alpha: float = 2
) -> Tensor:
    """`alignment` over all interactions: a pair counts as often as it is there.

    Args:
        user_index: ``(R,)`` integers, the users of the interactions.
        item_index: ``(R,)`` integers, their items.
        user_emb: ``(U, D)`` embeddings of all users; normalised here.
        item_emb: ``(I, D)`` those of all items; likewise.
        alpha: exponent, > 0.

    Returns:
        A scalar, as of `alignment`.

    Raises:
        IndexError: an index is none of a row.
        TypeError: an input is no tensor of a wanted dtype.
        ValueError: wrong or different shapes, ``alpha <= 0``.

    Source:
        As of `alignment`, Appendix A.2.
    """
    check_rows("user_emb", user_emb, batched=False)
    check_rows("item_emb", item_emb, batched=False)
    users, items = _index("user_index", user_index), _index("item_index", item_index)
    if len(items) != len(users):
        raise ValueError(
            f"item_index must have an item for each of the {len(users)} users of user_index, got {len(items)}"
        )
    return alignment(user_emb[users], item_emb[items], alpha)


def overall_uniform(index_list: Tensor, embedding: Tensor, *, t: float = 2, normalize: bool = False) -> Tensor:
    r"""Uniformity of the users or of the items of all interactions, pairs weighted by how often both occur.

    .. math:: \log \frac{\sum_{i<j} c_i c_j e^{-t \lVert x_i - x_j \rVert^2}}{\sum_{i<j} c_i c_j}

    over the distinct users or items, of which i is in :math:`c_i` interactions: that of two interactions drawn at
    random, given that their users (items) differ.

    Args:
        index_list: ``(R,)`` integers, the users or the items of the interactions.
        embedding: ``(U, D)`` embeddings of all users or all items.
        t: inverse width of the Gaussian potential, > 0.
        normalize: whether rows are scaled to unit length first, as the paper defines it. The original's code takes them
            as they come, here by default as well: normalise them before, or here.

    Returns:
        A scalar, as of `alignment`.

    Raises:
        IndexError: an index is none of a row.
        TypeError: an input is no tensor of a wanted dtype.
        ValueError: a wrong shape, fewer than two distinct indices (the original is nan), ``t <= 0``.

    Source:
        As of `alignment`, Section 3.1 and Appendix A.2.
    """
    check_rows("embedding", embedding, batched=False)
    index, counts = torch.unique(_index("index_list", index_list), return_counts=True)
    return losses.uniformity(embedding[index], t=t, normalize=normalize, x_weights=counts.to(accurate_dtype(embedding)))


def _index(name: str, index: Tensor) -> Tensor:
    """Indices of rows in the dtype that indexes: uint8 and bool are masks to PyTorch."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(index).__name__}")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"{name} must have shape (R,), got {tuple(index.shape)}")
    return index.to(torch.int64)
