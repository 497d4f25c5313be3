"""What NITP is about, measured: effective rank, average cosine, what a constant would get.

    p_i = lambda_i / sum_j lambda_j               lambda: eigenvalues of the states' covariance
    effective rank  = exp( -sum_i p_i log p_i )
    average cosine  = ( |S|^2 - sum_b |S_b|^2 ) / ( n^2 - sum_b n_b^2 )
    constant loss   = 1 - |S| / n                 of the targets' S
    skill           = 1 - L_NITP / constant loss

u = h / |h|; S and n are the sum of u and the number of states, S_b and n_b those of row b. The
cosine is the mean over all pairs of states of different rows, which the paper estimates by sampled
pairs. The last two are ours: the prediction that ignores its input does best along S.

Owns sums that add up over micro-batches and ranks (`StateSums`) and the figures made of them
(`Moments`, `PairSums`). Knows nothing of models, losses or ranks, and imports only torch.

Shape suffixes: B = batch, L = sequence length, D = model dimension, T = tokens, R = rows of packed
tokens (the paper's sequences) of all micro-batches.
Every figure is a float64 scalar on its sums' device, without gradient, and NaN where it does not
exist: too few states, no pair, a state that is not finite.
"""

from typing import NamedTuple

import torch

EPS = 1e-8
"""Ours: a vector whose norm is at most this counts as zero, as in the loss."""

MIN_CONSTANT_LOSS = 1e-4
"""Ours: below, float32 losses (known to about 1e-7) no longer give skill to three digits."""

NAN = float("nan")


# --------------------------------------------------------------------- sums, updated in place


class StateSums(NamedTuple):
    """Sums over the states h that one rank has seen: `update_` adds, `zero_` starts anew.

    The tensors stay where they are, as CUDA graphs need. Products are about a shift: about the
    origin, states that are all alike lose their differences to rounding.
    """

    shift_D: torch.Tensor  # near the states: the mean of the first batch that has any
    sum_D: torch.Tensor  # sum h - shift
    product_DD: torch.Tensor  # sum (h - shift) (h - shift)^T
    num_states: torch.Tensor  # n, int64
    unit_sum_RD: torch.Tensor  # S_b of this rank's part of row b; a zero vector has u = 0
    count_R: torch.Tensor  # n_b of this rank's part of row b, int64; zero vectors count


def build_sums(
    num_rows: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> StateSums:
    """Sums over no states, and the dtype that states are computed in.

    num_rows: R, of all micro-batches up to the next `zero_` or `zero_rows_`.
    """

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    num_states = torch.zeros((), dtype=torch.int64, device=device)
    count_R = torch.zeros(num_rows, dtype=torch.int64, device=device)
    rows = zeros(num_rows, dim), count_R
    return StateSums(zeros(dim), zeros(dim), zeros(dim, dim), num_states, *rows)


def zero_(sums: StateSums) -> None:
    for x in sums:
        x.zero_()


def zero_rows_(sums: StateSums) -> None:
    """Free the numbers of rows for others, as once `pair_sums` has been taken of these. Everything
    but the rows stays."""
    sums.unit_sum_RD.zero_()
    sums.count_R.zero_()


@torch.no_grad()
def update_(
    sums: StateSums, h_BLD: torch.Tensor, mask_BL: torch.Tensor, row_B: torch.Tensor
) -> None:
    """Add the states h_BLD[mask_BL], 2 D^2 FLOPs each.

    h_BLD: any float dtype, computed in that of the sums. mask_BL: bool; what it excludes adds
    exactly 0, even if it is not finite. row_B: int64, the number in 0..R-1 that each row is counted
    under; parts of a row (chunks, sequence shards) share it. No value is read on the host: the same
    kernels run for every batch. The product has torch.get_float32_matmul_precision(); what
    bfloat16 states differ by less than 1/256 of their size was lost before they came here.
    """
    h_BLD = h_BLD.to(sums.product_DD.dtype)
    mask_BL1 = mask_BL.unsqueeze(-1)
    # Not any one state: the first of a row may be an attention sink, far from all others.
    mean_D = h_BLD.masked_fill(~mask_BL1, 0.0).sum((0, 1)) / mask_BL.sum().clamp(min=1)
    sums.shift_D.copy_(torch.where(sums.num_states == 0, mean_D, sums.shift_D))
    x_TD = (h_BLD - sums.shift_D).masked_fill(~mask_BL1, 0.0).flatten(0, 1)
    sums.sum_D.add_(x_TD.sum(0))
    sums.product_DD.addmm_(x_TD.T, x_TD)
    sums.num_states.add_(mask_BL.sum())
    unit_BLD = _unit(h_BLD).masked_fill(~mask_BL1, 0.0)
    sums.unit_sum_RD.index_add_(0, row_B, unit_BLD.sum(1))
    sums.count_R.index_add_(0, row_B, mask_BL.sum(1))


def _unit(x: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    is_zero = norm <= EPS
    return (x / norm.masked_fill(is_zero, 1.0)).masked_fill(is_zero, 0.0)


# ------------------------------------------------------------------- effective rank, in float64


class Moments(NamedTuple):
    """Mean and centred products of a set of states, float64."""

    num_states: torch.Tensor  # n; if 0, so are mean and scatter
    mean_D: torch.Tensor
    scatter_DD: torch.Tensor  # sum (h - mean) (h - mean)^T: n times the covariance

    def scatter_about(self, mean_D: torch.Tensor) -> torch.Tensor:
        """sum (h - mean) (h - mean)^T about another mean. About that of a union of disjoint parts,
        as of ranks or batches, they add up to the union's scatter:

            sum_p  scatter_p + n_p (mean_p - mean) (mean_p - mean)^T

        Being centred, they may be added in float32, and a triangle of each is enough.
        """
        offset_D = self.mean_D - mean_D
        return self.scatter_DD + self.num_states * offset_D.outer(offset_D)

    def effective_rank(self) -> torch.Tensor:
        """exp of the entropy of the covariance's eigenvalues, in [1, min(n - 1, D)] (method
        section 4; Roy & Vetterli's definition takes singular values).

        The covariance's normaliser cancels. Zero vectors are states like any other. Ours: 1 if all
        states are equal, NaN for fewer than two.
        """
        is_finite = self.scatter_DD.isfinite().all()  # of other matrices eigvalsh raises
        # Rounding can turn eigenvalues that are 0 negative.
        lambda_D = torch.linalg.eigvalsh(self.scatter_DD.where(is_finite, 0.0)).clamp(min=0.0)
        total = lambda_D.sum()
        p_D = lambda_D / total.where(total > 0, 1.0)
        return torch.special.entr(p_D).sum().exp().where(is_finite & (self.num_states >= 2), NAN)


def centre(sums: StateSums) -> Moments:
    """The moments of the states that were added, whatever the shift."""
    num_states = sums.num_states.double()
    offset_D = sums.sum_D.double() / num_states.clamp(min=1)  # of the mean from the shift
    scatter_DD = sums.product_DD.double() - num_states * offset_D.outer(offset_D)
    return Moments(num_states, sums.shift_D.double() + offset_D, scatter_DD)


# ------------------------------------------------- cosines and the constant's loss, in float64


class PairSums(NamedTuple):
    """What the cosines of all pairs need, float64: each field adds up over sets of whole rows."""

    num_states: torch.Tensor  # n
    unit_sum_D: torch.Tensor  # S
    square_sum: torch.Tensor  # sum_b |S_b|^2
    count_square_sum: torch.Tensor  # sum_b n_b^2

    def average_cosine(self) -> torch.Tensor:
        """Mean of cos(h_i, h_j) over all pairs of states of different rows, in [-1, 1] (method
        section 4).

        The normaliser is the number of ordered pairs. A pair with a zero vector counts as cosine 0.
        NaN without a pair: where fewer than two rows have states.
        """
        num_pairs = self.num_states.square() - self.count_square_sum
        pair_sum = self.unit_sum_D.square().sum() - self.square_sum
        return (pair_sum / num_pairs).where(num_pairs > 0, NAN)

    def constant_loss(self) -> torch.Tensor:
        """1 - |S| / n, in [0, 1]: of the targets of all valid pairs, the least cosine loss of a
        prediction that ignores its input. A zero vector counts as cosine 0. NaN without a state."""
        return (1.0 - self.unit_sum_D.norm() / self.num_states).where(self.num_states > 0, NAN)


def pair_sums(unit_sum_RD: torch.Tensor, count_R: torch.Tensor) -> PairSums:
    """The fields of `StateSums`, added first over the ranks that share rows: squares of parts of a
    row would leave pairs within it."""
    unit_sum_RD, count_R = unit_sum_RD.double(), count_R.double()
    return PairSums(
        count_R.sum(), unit_sum_RD.sum(0), unit_sum_RD.square().sum(), count_R.square().sum()
    )


def skill(nitp_loss: float, constant_loss: float) -> float:
    """1 - L_NITP / constant loss: 0 has learnt nothing that a constant does not know, 1 all. For
    the cosine loss only. NaN where the constant loss is below MIN_CONSTANT_LOSS, or NaN itself."""
    return 1.0 - nitp_loss / constant_loss if constant_loss >= MIN_CONSTANT_LOSS else NAN


# ---------------------------------------------------------------- of whole states, all at once


@torch.no_grad()
def effective_rank(h_TD: torch.Tensor) -> torch.Tensor:
    """`Moments.effective_rank` of the states h_TD, any float dtype, in float64."""
    mean_D = h_TD.double().mean(0)
    x_TD = h_TD - mean_D
    num_states = torch.tensor(len(h_TD), dtype=torch.float64, device=h_TD.device)
    return Moments(num_states, mean_D, x_TD.T @ x_TD).effective_rank()


@torch.no_grad()
def average_cosine(h_TD: torch.Tensor, row_T: torch.Tensor) -> torch.Tensor:
    """`PairSums.average_cosine` of the states h_TD, any float dtype, in float64.

    row_T: integers; states of equal number are of one row.
    """
    rows_R, index_T, count_R = row_T.unique(return_inverse=True, return_counts=True)
    sums_RD = h_TD.new_zeros((len(rows_R), h_TD.shape[1]), dtype=torch.float64)
    sums_RD.index_add_(0, index_T, _unit(h_TD.double()))
    return pair_sums(sums_RD, count_R).average_cosine()
