"""THE METHOD: Next Implicit Token Prediction (arXiv 2605.24956), equations only.

    z_{t+1} = sg[ E_k(x)_{t+1} ]                     implicit token (Eq. 2)
    L_NITP  = mean_t 1 - cos( P(h_t), z_{t+1} )      over valid pairs (Eq. 3)
    L_total = L_NTP + lambda * L_NITP                (Eq. 4)

Owns the pairing of positions, the distances of the ablation table and their weighted sums. Knows
nothing of models, projectors, chunks or ranks, and imports only torch.

Shape suffixes: B = batch, L = sequence length, D = model dimension, T = tokens (any subset of B*L).
Everything is computed in float32, whatever the inputs' dtype (float64 stays float64).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
EPS = 1e-8
"""Ours: a vector whose norm is at most this counts as zero."""


# ------------------------------------------------------------------ which positions form a pair


def next_token_pair_mask(
    positions_BL: torch.Tensor, labels_BL: torch.Tensor, shift: int = 1
) -> torch.Tensor:
    """Positions that have a target, bool [B, L].

    shift = 1: t counts if the input at t+1 continues t's document (its position is one more) and
    t's label is not ignored; the last position never counts. shift = 0: every position whose label
    is not ignored. Needs whole rows: build it before any sharding of the sequence.
    """
    valid_BL = labels_BL != IGNORE_INDEX
    if shift == 0:
        return valid_BL
    continues_BL = torch.zeros_like(valid_BL)
    continues_BL[:, :-1] = positions_BL[:, 1:] == positions_BL[:, :-1] + 1
    return valid_BL & continues_BL


def shift_targets(z_BLD: torch.Tensor, shift: int = 1) -> torch.Tensor:
    """Targets aligned with the positions that predict them: row t holds z_{t+shift}.

    The first target is dropped; the last row has none and is zero (the mask excludes it).
    """
    if shift == 0:
        return z_BLD
    return F.pad(z_BLD[:, shift:], (0, 0, 0, shift))


# --------------------------------------------------------------------- distances, one per token


def cosine(pred_TD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """cos(pred, target) per token [T]; 0, with zero gradient, where either is a zero vector."""
    norm_pred_T = torch.linalg.vector_norm(pred_TD, dim=-1)
    norm_target_T = torch.linalg.vector_norm(target_TD, dim=-1)
    is_zero_T = (norm_pred_T <= EPS) | (norm_target_T <= EPS)
    # Both factors stay finite where the result is dropped: 0 * inf would make the gradient NaN.
    norms_T = norm_pred_T.masked_fill(is_zero_T, 1.0) * norm_target_T.masked_fill(is_zero_T, 1.0)
    return ((pred_TD * target_TD).sum(-1) / norms_T).masked_fill(is_zero_T, 0.0)


def cosine_distance(pred_TD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """1 - cos(pred, target) per token [T], in [0, 2] (Eq. 3)."""
    return 1.0 - cosine(pred_TD, target_TD)


def mse(pred_TD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over d, on raw vectors, per token [T]."""
    return (pred_TD - target_TD).square().mean(-1)


def smooth_l1(pred_TD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """Mean Huber-type difference over d (beta = 1), on raw vectors, per token [T]."""
    return F.smooth_l1_loss(pred_TD, target_TD, reduction="none", beta=1.0).mean(-1)


def kl(pred_TD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """KL(softmax(target) || softmax(pred)) over d, temperature 1, per token [T]."""
    log_pred_TD = F.log_softmax(pred_TD, dim=-1)
    log_target_TD = F.log_softmax(target_TD, dim=-1)
    return (log_target_TD.exp() * (log_target_TD - log_pred_TD)).sum(-1)


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cosine": cosine_distance,
    "mse": mse,
    "smooth_l1": smooth_l1,
    "kl": kl,
}


# ------------------------------------------------------------------------------- weighted sums


def _full_precision(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def alignment_sum(
    pred_TD: torch.Tensor, target_TD: torch.Tensor, weight_T: torch.Tensor, distance: str
) -> torch.Tensor:
    """sum_t weight_t * distance(pred_t, target_t), a float32 scalar.

    weight_T: bool or float [T]; a token of weight 0 adds exactly 0 to value and gradient (of finite
    inputs).
    The caller owns the normaliser: with weight = valid / (global number of valid pairs) the sum
    over all calls is the mean over the global batch.
    """
    pred_TD, target_TD = _full_precision(pred_TD), _full_precision(target_TD)
    return (DISTANCES[distance](pred_TD, target_TD) * weight_T).sum()


def cosine_alignment_sum(
    pred_TD: torch.Tensor, target_TD: torch.Tensor, valid_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's loss with sum reduction (Eq. 3): (loss_sum, num_pairs).

    pred_TD, target_TD: [T, D], any float dtype. valid_T: bool, or float pair weights; then
    loss_sum is the weighted sum and num_pairs counts the non-zero weights.
    """
    return alignment_sum(pred_TD, target_TD, valid_T, "cosine"), (valid_T != 0).sum()


# ---------------------------------------------- ablation: penalty between tokens, without target


def document_ids(positions_BL: torch.Tensor) -> torch.Tensor:
    """Index of each token's document within the whole batch, int64 [B, L], from 0."""
    starts_BL = torch.ones_like(positions_BL, dtype=torch.bool)
    starts_BL[:, 1:] = positions_BL[:, 1:] != positions_BL[:, :-1] + 1
    return starts_BL.flatten().cumsum(0).view_as(positions_BL) - 1


def token_cosine_pair_counts(
    positions_BL: torch.Tensor, takes_part_BL: torch.Tensor
) -> torch.Tensor:
    """Per token, the number of other tokens of its document that take part, int64 [B, L].

    Zero for a token that does not take part itself; the sum is the number of ordered pairs.
    """
    takes_part_T = takes_part_BL.flatten().long()
    document_T = document_ids(positions_BL).flatten()
    size_per_document = torch.zeros_like(takes_part_T).index_add_(0, document_T, takes_part_T)
    return ((size_per_document[document_T] - 1) * takes_part_T).view_as(positions_BL)


def _unit(x_TD: torch.Tensor) -> torch.Tensor:
    norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
    is_zero_T1 = norm_T1 <= EPS
    return (x_TD / norm_T1.masked_fill(is_zero_T1, 1.0)).masked_fill(is_zero_T1, 0.0)


def token_cosine_sum(
    h_BLD: torch.Tensor, positions_BL: torch.Tensor, weight_BL: torch.Tensor
) -> torch.Tensor:
    """sum_i weight_i * sum_{j != i} cos(h_i, h_j), j over i's document, a float32 scalar.

    Only tokens of non-zero weight take part, as i and as j. With weight = 1 / (number of ordered
    pairs of the global batch) the sum over all calls is the mean cosine. Linear in T: the inner
    sum is a dot product with the document's summed unit vectors.
    """
    u_TD = _unit(_full_precision(h_BLD).flatten(0, 1))
    weight_T1 = weight_BL.flatten().unsqueeze(-1)
    u_TD = u_TD * (weight_T1 != 0)
    document_T = document_ids(positions_BL).flatten()
    sum_per_document_TD = torch.zeros_like(u_TD).index_add(0, document_T, u_TD)
    others_TD = sum_per_document_TD[document_T] - u_TD
    return (weight_T1 * u_TD * others_TD).sum()
