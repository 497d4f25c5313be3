"""The figures against loops over states and pairs in float64, and against closed cases.

Tolerances: 1e-12 where both sides are float64; 1e-6 where the product's sums are float32 (rounding
6e-8 an operation, most of it averaging out); another tolerance says why.
"""

import itertools
import math

import pytest
import torch

from nitp import geometry, objective
from nitp.geometry import Moments, PairSums, StateSums

B, L, D = 4, 9, 6
FLOAT64, FLOAT32 = 1e-12, 1e-6


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States of rows with means of their own, float64, and a mask that leaves some out."""
    generator = torch.Generator().manual_seed(seed)
    row_means = torch.randn(B, 1, D, generator=generator, dtype=torch.float64)
    h = 2 * row_means + torch.randn(B, L, D, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, L, generator=generator) < 0.7
    return h, mask


def _sums(h: torch.Tensor, mask: torch.Tensor, *, dtype: torch.dtype = torch.float64) -> StateSums:
    sums = geometry.build_sums(len(h), h.shape[-1], dtype=dtype)
    geometry.update_(sums, h, mask, torch.arange(len(h)))
    return sums


def _all(h_TD: torch.Tensor, num_chunks: int = 1) -> Moments:
    """Moments of states that come in chunks, through float32 sums."""
    sums = geometry.build_sums(1, h_TD.shape[1])
    for chunk in h_TD.chunk(num_chunks):
        geometry.update_(sums, chunk[None], torch.ones(1, len(chunk)) > 0, torch.tensor([0]))
    return geometry.centre(sums)


def _pairs(sums: StateSums) -> PairSums:
    return geometry.pair_sums(sums.unit_sum_RD, sums.count_R)


def _merge(parts: list[Moments]) -> Moments:
    num_states = torch.stack([part.num_states for part in parts]).sum()
    mean = sum(part.num_states * part.mean_D for part in parts) / num_states.clamp(min=1)
    return Moments(num_states, mean, sum(part.scatter_about(mean) for part in parts))


def _naive_rank(states: torch.Tensor) -> float:
    """From singular values of the centred states: no covariance is formed."""
    x = states.double() - states.double().mean(0)
    squares = [s * s for s in torch.linalg.svdvals(x).tolist()]
    shares = [s / sum(squares) for s in squares]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def _naive_cosine(states: list[tuple[int, torch.Tensor]]) -> float:
    """Mean over the pairs of (row, state) whose rows differ."""
    cosines = []
    for (row, x), (other_row, y) in itertools.combinations(states, 2):
        if row != other_row:
            norms = math.sqrt(x @ x) * math.sqrt(y @ y)
            cosines.append((x @ y).item() / norms if norms > 0 else 0.0)
    return sum(cosines) / len(cosines)


def _listed(h: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    return [(b, h[b, t].double()) for b, t in mask.nonzero().tolist()]


# ------------------------------------------------------------------------ against naive loops


@pytest.mark.parametrize(
    ("states", "sums", "tolerance"),
    [
        (torch.float64, torch.float64, FLOAT64),
        (torch.float32, torch.float32, FLOAT32),
        (torch.bfloat16, torch.float32, FLOAT32),
        (torch.float16, torch.float64, FLOAT64),
    ],
)
def test_figures_of_the_valid_states_equal_naive_loops(states, sums, tolerance):
    h, mask = _batch()
    h = h.to(states)  # rounded before either side sees it
    expected_rank = _naive_rank(h[mask])
    expected_cosine = _naive_cosine(_listed(h, mask))
    found = _sums(h, mask, dtype=sums)
    rank = geometry.centre(found).effective_rank()
    assert rank.dtype == torch.float64
    assert rank.item() == pytest.approx(expected_rank, rel=tolerance)
    assert _pairs(found).average_cosine().item() == pytest.approx(expected_cosine, rel=tolerance)
    rows = mask.nonzero()[:, 0] * 7 - 3  # any numbers
    assert geometry.effective_rank(h[mask]).item() == pytest.approx(expected_rank, rel=FLOAT64)
    cosine = geometry.average_cosine(h[mask], rows)
    assert cosine.item() == pytest.approx(expected_cosine, rel=FLOAT64)


def test_constant_loss_is_the_least_loss_of_any_constant_prediction():
    z, mask = _batch(1)
    targets = z[mask]

    def loss(constant: torch.Tensor) -> float:
        loss_sum, num = objective.cosine_alignment_sum(
            constant.expand_as(targets), targets, torch.ones(len(targets))
        )
        return (loss_sum / num).item()

    least = _pairs(_sums(z, mask)).constant_loss().item()
    best = (targets / targets.norm(dim=1, keepdim=True)).mean(0)
    assert loss(best) == pytest.approx(least, rel=FLOAT64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = best + 0.1 * torch.randn(D, generator=generator, dtype=torch.float64)
        assert loss(other) > least


def test_skill_is_the_share_of_the_constants_loss_that_the_model_takes_away():
    assert geometry.skill(0.204, 0.204) == 0.0
    assert geometry.skill(0.0, 0.5) == 1.0
    assert geometry.skill(0.059, 0.068) == pytest.approx(0.1324, abs=5e-5)
    assert math.isnan(geometry.skill(1e-7, 0.9e-4))
    assert math.isnan(geometry.skill(0.1, math.nan))


# ------------------------------------------------------------------------------- sums that add


@pytest.mark.parametrize("seed", range(5))
def test_moments_merged_in_any_order_and_cut_are_those_of_the_whole(seed):
    h, mask = _batch(seed)
    generator = torch.Generator().manual_seed(seed)
    part_BL = torch.randint(0, 5, (B, L), generator=generator)
    mask[part_BL == 0] = False  # an empty part
    parts = []
    for p in range(5):
        mask_of_part = mask & (part_BL == p)
        spoilt = h.masked_fill(~mask_of_part.unsqueeze(-1), math.nan)
        parts.append(geometry.centre(_sums(spoilt, mask_of_part)))
    assert parts[0].num_states == 0
    expected = _naive_rank(h[mask])
    order = torch.randperm(5, generator=generator).tolist()
    at_once = _merge([parts[i] for i in order])
    by_twos = parts[order[0]]
    for i in order[1:]:
        by_twos = _merge([by_twos, parts[i]])
    x = h[mask] - h[mask].mean(0)
    for merged in (at_once, by_twos):
        assert merged.num_states == mask.sum()
        torch.testing.assert_close(merged.mean_D, h[mask].mean(0), rtol=FLOAT64, atol=FLOAT64)
        torch.testing.assert_close(merged.scatter_DD, x.T @ x, rtol=FLOAT64, atol=FLOAT64 * L * B)
        assert merged.effective_rank().item() == pytest.approx(expected, rel=FLOAT64)


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 9])
def test_micro_batches_and_chunks_of_rows_add_up(num_chunks):
    h, mask = _batch(2)
    sums = geometry.build_sums(B, D, dtype=torch.float64)
    for rows in ([2], [0, 3], [1]):
        for h_chunk, mask_chunk in zip(
            h[rows].chunk(num_chunks, 1), mask[rows].chunk(num_chunks, 1), strict=True
        ):
            geometry.update_(sums, h_chunk, mask_chunk, torch.tensor(rows))
    rank, cosine = geometry.centre(sums).effective_rank(), _pairs(sums).average_cosine()
    assert rank.item() == pytest.approx(_naive_rank(h[mask]), rel=FLOAT64)
    assert cosine.item() == pytest.approx(_naive_cosine(_listed(h, mask)), rel=FLOAT64)


def test_row_sums_are_completed_over_shards_before_they_are_squared():
    h, mask = _batch(3)
    shards = [_sums(h[:, :4], mask[:, :4]), _sums(h[:, 4:], mask[:, 4:])]
    unit_sum = shards[0].unit_sum_RD + shards[1].unit_sum_RD
    count = shards[0].count_R + shards[1].count_R
    expected = _naive_cosine(_listed(h, mask))
    whole = geometry.pair_sums(unit_sum, count)
    assert whole.average_cosine().item() == pytest.approx(expected, rel=FLOAT64)
    # The pair sums of different rows, as of data-parallel ranks, then add.
    halves = [geometry.pair_sums(unit_sum[rows], count[rows]) for rows in ([0, 3], [1, 2])]
    added = PairSums(*map(torch.add, *halves))
    assert added.average_cosine().item() == pytest.approx(expected, rel=FLOAT64)


def test_freed_rows_are_numbered_again_and_everything_else_adds_on():
    """As over the batches of a validation set, of which two rows are held at a time."""
    h, mask = _batch(5)
    sums = geometry.build_sums(2, D, dtype=torch.float64)
    pairs = []
    for rows in ([0, 3], [2, 1]):
        geometry.update_(sums, h[rows], mask[rows], torch.arange(2))
        pairs.append(_pairs(sums))
        geometry.zero_rows_(sums)
    added = PairSums(*map(torch.add, *pairs))
    assert added.average_cosine().item() == pytest.approx(
        _naive_cosine(_listed(h, mask)), rel=FLOAT64
    )
    rank = geometry.centre(sums).effective_rank().item()
    assert rank == pytest.approx(_naive_rank(h[mask]), rel=FLOAT64)


def test_sums_start_anew_in_the_same_place():
    h, mask = _batch(4)
    sums = _sums(h + 100, mask)
    addresses = [x.data_ptr() for x in sums]
    geometry.zero_(sums)
    assert not any(x.any() for x in sums)
    geometry.update_(sums, h, mask, torch.arange(B))
    assert [x.data_ptr() for x in sums] == addresses
    for found, fresh in zip(sums, _sums(h, mask), strict=True):
        assert torch.equal(found, fresh)


def test_no_value_is_read_on_the_host():
    """Meta tensors have none: reading or branching on one raises."""
    sums = geometry.build_sums(B, D, device="meta")
    h, mask, row = (torch.empty(B, L, D), torch.empty(B, L, dtype=torch.bool), torch.arange(B))
    geometry.update_(sums, h.to("meta"), mask.to("meta"), row.to("meta"))
    merged = _merge([geometry.centre(sums)] * 2)
    figures = (merged.effective_rank(), _pairs(sums).average_cosine(), _pairs(sums).constant_loss())
    assert all(figure.is_meta and figure.dim() == 0 for figure in figures)


# ------------------------------------------------------------------------ states that are alike


def _alike(cosine: float) -> torch.Tensor:
    """4096 float32 states of this average cosine; their differences have variances i^-1.6."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.arange(1, 257) ** -0.8
    direction = torch.nn.functional.normalize(torch.randn(256, generator=generator), dim=0)
    size = math.sqrt(deviation.square().sum() * cosine / (1 - cosine))
    return size * direction + torch.randn(4096, 256, generator=generator) * deviation


def _uncentred_moments(h: torch.Tensor, num_chunks: int) -> Moments:
    """The obvious way: float32 sums of h and h h^T, subtracted at the end."""
    total, product = torch.zeros(256), torch.zeros(256, 256)
    for chunk in h.chunk(num_chunks):
        total += chunk.sum(0)
        product += chunk.T @ chunk
    scatter = (product - total.outer(total) / len(h)).double()
    return Moments(torch.tensor(float(len(h))), total.double() / len(h), scatter)


@pytest.mark.parametrize("num_chunks", [1, 16])
def test_states_that_are_alike_keep_their_rank(num_chunks):
    h = _alike(0.99999)
    expected = _naive_rank(h)
    uncentred = _uncentred_moments(h, num_chunks)
    assert torch.linalg.eigvalsh(uncentred.scatter_DD)[0] < 0
    assert uncentred.effective_rank().item() != pytest.approx(expected, rel=0.01)
    assert _all(h, num_chunks).effective_rank().item() == pytest.approx(expected, rel=FLOAT32)


def test_float32_states_equal_up_to_noise_keep_the_noises_rank_and_bfloat16_ones_do_not():
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(8, 64, generator=generator)
    noise = 1e-3 * torch.randn(4096, 8, generator=generator) @ mixing
    h = torch.randn(64, generator=generator) + noise
    expected = _naive_rank(noise)
    # Rounding leaves 1e-7 of the variance in directions that the noise has not, times its log.
    assert _all(h, 8).effective_rank().item() == pytest.approx(expected, rel=1e-5)
    assert _all(h.bfloat16(), 8).effective_rank().item() != pytest.approx(expected, rel=0.01)


def test_an_attention_sink_in_the_first_place_does_not_become_the_shift():
    h = _alike(0.9)
    h[0] = 30 * h[-1].flip(0)
    assert _all(h, 8).effective_rank().item() == pytest.approx(_naive_rank(h), rel=FLOAT32)


def test_autocast_does_not_lower_the_precision():
    h = _alike(0.9)
    with torch.autocast("cpu", torch.bfloat16):
        rank = _all(h).effective_rank()
    assert rank.item() == pytest.approx(_naive_rank(h), rel=FLOAT32)


# -------------------------------------------------------------------------------- closed cases


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_a_covariance_of_known_spectrum_has_its_rank(power):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(512, 32, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(x - x.mean(0))[0]  # orthonormal columns of mean 0
    spectrum = [(i + 1) ** -power for i in range(32)]
    shares = [s / sum(spectrum) for s in spectrum]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    h = white * torch.tensor(spectrum, dtype=torch.float64).sqrt() + 5
    assert geometry.effective_rank(h).item() == pytest.approx(expected, rel=FLOAT64)
    # White states of rank D, and float32 rounds h, which is 5 where its deviation is 0.04 or less.
    assert _all(h.float()).effective_rank().item() == pytest.approx(expected, rel=1e-4)


def test_isotropic_gaussian_states_have_nearly_the_rank_of_the_space():
    h = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(3))
    # n samples spread the eigenvalues (Marchenko-Pastur): rank D exp(-(D + 1) / 2n) on average,
    # with a relative deviation of about 1 / n; four of these.
    expected = 64 * math.exp(-65 / 40_000)
    assert _all(h).effective_rank().item() == pytest.approx(expected, rel=4 / 20_000)


def test_states_on_a_line_have_rank_one():
    generator = torch.Generator().manual_seed(4)
    h = torch.randn(50, 1, generator=generator) * torch.randn(1, D, generator=generator)
    # What rounding leaves in the other directions, 1e-7 of the variance, times its log.
    assert _all(h + 1).effective_rank().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_states_have_rank_one_cosine_one_and_constant_loss_zero(dtype):
    """What rounding leaves of their differences must not count as directions."""
    state = torch.randn(50, generator=torch.Generator().manual_seed(5)).to(dtype)
    h = state.expand(7, 611, 50)
    mask = torch.rand(7, 611, generator=torch.Generator().manual_seed(6)) < 0.7
    sums = _sums(h, mask, dtype=torch.float32)
    merged, *others = (geometry.centre(_sums(h[[b]], mask[[b]])) for b in range(7))
    for other in others:
        merged = _merge([merged, other])
    for moments in (geometry.centre(sums), merged):
        assert moments.effective_rank().item() == pytest.approx(1.0, abs=FLOAT64)
    assert geometry.effective_rank(h[mask]).item() == pytest.approx(1.0, abs=FLOAT64)
    assert _pairs(sums).average_cosine().item() == pytest.approx(1.0, abs=FLOAT32)
    assert _pairs(sums).constant_loss().item() == pytest.approx(0.0, abs=FLOAT32)


@pytest.mark.parametrize(
    ("second", "cosine", "constant_loss"),
    [([0.0, 3.0], 0.0, 1 - math.sqrt(0.5)), ([-2.0, 0.0], -1.0, 1.0)],
    ids=["orthogonal", "opposite"],
)
def test_two_rows_of_one_direction_each(second, cosine, constant_loss):
    h = torch.tensor([[[1.0, 0.0]] * 3, [second] * 3], dtype=torch.float64)
    pairs = _pairs(_sums(h, torch.ones(2, 3) > 0))
    assert pairs.average_cosine().item() == pytest.approx(cosine, abs=FLOAT64)
    assert pairs.constant_loss().item() == pytest.approx(constant_loss, abs=FLOAT64)


# --------------------------------------------------------- zero vectors, absent and bad states


def test_a_zero_vector_is_a_state_and_counts_as_cosine_zero():
    h, mask = _batch(6)
    mask[0, 0], h[0, 0] = True, 0.0
    sums = _sums(h, mask)
    assert sums.count_R.sum() == mask.sum()
    rank, cosine = geometry.centre(sums).effective_rank(), _pairs(sums).average_cosine()
    assert rank.item() == pytest.approx(_naive_rank(h[mask]), rel=FLOAT64)
    assert cosine.item() == pytest.approx(_naive_cosine(_listed(h, mask)), rel=FLOAT64)


@pytest.mark.parametrize("norm", [0.9e-8, 1.1e-8])
def test_a_vector_counts_as_zero_exactly_when_it_does_in_the_loss(norm):
    tiny = torch.tensor([[norm, 0.0], [1.0, 0.0]], dtype=torch.float64)
    in_loss = objective.cosine(tiny[:1], tiny[1:]).item()
    assert geometry.average_cosine(tiny, torch.arange(2)).item() == pytest.approx(in_loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_the_mask_excludes_adds_exactly_nothing(value):
    h, mask = _batch(7)
    spoilt = h.masked_fill(~mask.unsqueeze(-1), value)
    empty = torch.zeros_like(mask)
    sums = geometry.build_sums(B, D, dtype=torch.float64)
    for given in (empty, mask, empty):  # before and after there is a shift
        geometry.update_(sums, spoilt, given, torch.arange(B))
    for found, clean in zip(sums, _sums(h, mask), strict=True):
        assert torch.equal(found, clean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_makes_figures_nan_and_raises_nothing(value):
    h, mask = _batch(8)
    h[1, 2], mask[1, 2] = value, True
    sums = _sums(h, mask)
    merged = _merge([geometry.centre(sums), geometry.centre(_sums(h[:1], mask[:1]))])
    for figure in (
        geometry.centre(sums).effective_rank(),
        merged.effective_rank(),
        geometry.effective_rank(h[mask]),
        _pairs(sums).average_cosine(),
        _pairs(sums).constant_loss(),
    ):
        assert figure.isnan()


@pytest.mark.parametrize(
    ("valid", "has_rank", "has_pairs", "has_constant"),
    [
        ([], False, False, False),
        ([(0, 1)], False, False, True),
        ([(0, 1), (0, 2)], True, False, True),
        ([(0, 1), (2, 0)], True, True, True),
    ],
    ids=["no state", "one state", "one row", "two rows"],
)
def test_figures_that_do_not_exist_are_nan(valid, has_rank, has_pairs, has_constant):
    h, mask = _batch(9)[0], torch.zeros(B, L, dtype=torch.bool)
    for b, t in valid:
        mask[b, t] = True
    sums = _sums(h, mask)
    rows = mask.nonzero()[:, 0]
    for rank in (geometry.centre(sums).effective_rank(), geometry.effective_rank(h[mask])):
        assert rank.isfinite() == has_rank
    for cosine in (_pairs(sums).average_cosine(), geometry.average_cosine(h[mask], rows)):
        assert cosine.isfinite() == has_pairs
    assert _pairs(sums).constant_loss().isfinite() == has_constant


def test_no_gradient_flows():
    h, mask = _batch(10)
    h.requires_grad_()
    sums = _sums(h, mask)
    figures = [
        geometry.centre(sums).effective_rank(),
        _pairs(sums).average_cosine(),
        geometry.effective_rank(h[mask]),
        geometry.average_cosine(h[mask], mask.nonzero()[:, 0]),
    ]
    assert not any(x.requires_grad for x in [*sums, *figures])
