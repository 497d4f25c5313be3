"""The equations against naive loops and the closed forms of the method, in float64."""

import math

import pytest
import torch

from nitp import objective

T, D = 7, 5


def _vectors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.randn(2, T, D, generator=generator, dtype=torch.float64)
    return pred, target


def _naive_distance(name: str, p: list[float], z: list[float]) -> float:
    def softmax(v: list[float]) -> list[float]:
        exps = [math.exp(x) for x in v]
        return [e / sum(exps) for e in exps]

    diffs = [a - b for a, b in zip(p, z, strict=True)]
    if name == "cosine":
        dot = sum(a * b for a, b in zip(p, z, strict=True))
        return 1 - dot / math.sqrt(sum(a * a for a in p)) / math.sqrt(sum(b * b for b in z))
    if name == "mse":
        return sum(d * d for d in diffs) / len(p)
    if name == "smooth_l1":
        return sum(d * d / 2 if abs(d) < 1 else abs(d) - 0.5 for d in diffs) / len(p)
    q_target, q_pred = softmax(z), softmax(p)
    return sum(t * math.log(t / q) for t, q in zip(q_target, q_pred, strict=True))


@pytest.mark.parametrize("name", sorted(objective.DISTANCES))
def test_each_distance_equals_its_naive_formula(name: str) -> None:
    pred, target = _vectors()
    weight = torch.linspace(0.0, 1.0, T, dtype=torch.float64)
    expected = sum(
        w * _naive_distance(name, p, z)
        for w, p, z in zip(weight.tolist(), pred.tolist(), target.tolist(), strict=True)
    )
    value = objective.alignment_sum(pred, target, weight, name)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(objective.DISTANCES))
def test_each_distance_has_the_gradient_of_its_finite_differences(name: str) -> None:
    pred, target = _vectors(1)
    weight = torch.rand(T, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, z: objective.alignment_sum(p, z, weight, name),
        (pred.requires_grad_(), target.requires_grad_()),
    )


def test_cosine_gradient_and_hessian_equal_the_closed_forms() -> None:
    """Method section 1: gradient -A/r; Hessian (s (I - u u^T) + u A^T + A u^T) / r^2."""
    pred, target = (x[0] for x in _vectors(2))

    def loss(h: torch.Tensor) -> torch.Tensor:
        value, _ = objective.cosine_alignment_sum(h[None], target[None], torch.ones(1))
        return value

    r = pred.norm()
    u, v = pred / r, target / target.norm()
    s = u @ v
    a = v - s * u
    eye = torch.eye(D, dtype=torch.float64)
    hessian = (s * (eye - u.outer(u)) + u.outer(a) + a.outer(u)) / r**2
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(loss, pred), -a / r, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        torch.autograd.functional.hessian(loss, pred), hessian, rtol=1e-11, atol=1e-13
    )


def test_curvature_is_zero_along_the_state_and_s_over_r_squared_across_it() -> None:
    pred, target = (x[0] for x in _vectors(3))
    r, u, v = pred.norm(), pred / pred.norm(), target / target.norm()
    hessian = torch.autograd.functional.hessian(
        lambda h: objective.cosine_distance(h[None], target[None]).sum(), pred
    )
    across = torch.linalg.qr(torch.stack([u, v, *torch.eye(D, dtype=torch.float64)[:3]]).T)[0][:, 2]
    assert (u @ hessian @ u).item() == pytest.approx(0.0, abs=1e-14)
    assert (across @ hessian @ across).item() == pytest.approx((u @ v / r**2).item(), rel=1e-10)


@pytest.mark.parametrize("zero", ["pred", "target"])
def test_a_zero_vector_counts_as_cosine_zero_with_zero_gradient(zero: str) -> None:
    pred, target = _vectors(4)
    (pred if zero == "pred" else target)[2] = 0.0
    pred.requires_grad_(), target.requires_grad_()
    assert objective.cosine(pred, target)[2] == 0.0
    objective.alignment_sum(pred, target, torch.ones(T), "cosine").backward()
    for x in (pred, target):
        assert x.grad is not None and x.grad.isfinite().all()
        assert (x.grad[2] == 0).all()
        assert (x.grad[1] != 0).any()


def test_masked_tokens_add_nothing_to_value_or_gradient() -> None:
    pred, target = _vectors(5)
    valid = torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
    pred.requires_grad_()
    value, num_pairs = objective.cosine_alignment_sum(pred, target, valid)
    alone, _ = objective.cosine_alignment_sum(pred[valid], target[valid], torch.ones(4))
    assert num_pairs == 4
    torch.testing.assert_close(value, alone, rtol=1e-14, atol=0)
    value.backward()
    assert (pred.grad[~valid] == 0).all() and (pred.grad[valid] != 0).all()


def test_float_weights_give_the_weighted_sum_and_count_their_non_zeros() -> None:
    pred, target = _vectors(6)
    weight = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0, 0.0, 1.0], dtype=torch.float64)
    value, num_pairs = objective.cosine_alignment_sum(pred, target, weight)
    assert num_pairs == 4
    expected = (objective.cosine_distance(pred, target) * weight).sum()
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    pred, target = (x.to(torch.bfloat16) for x in _vectors(7))
    value, _ = objective.cosine_alignment_sum(pred, target, torch.ones(T))
    exact, _ = objective.cosine_alignment_sum(pred.double(), target.double(), torch.ones(T))
    assert value.dtype == torch.float32
    # The inputs are the same numbers, so only float32 arithmetic separates the two.
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)


def test_pairs_never_cross_a_document_boundary() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 1], [5, 6, 7, 8, 0, 1, 2, 3]])
    labels = torch.ones_like(positions)
    labels[1, 1] = objective.IGNORE_INDEX
    mask = objective.next_token_pair_mask(positions, labels)
    expected = [
        [
            t + 1 < 8
            and positions[b, t + 1] == positions[b, t] + 1
            and labels[b, t] != objective.IGNORE_INDEX
            for t in range(8)
        ]
        for b in range(2)
    ]
    assert mask.tolist() == [[bool(x) for x in row] for row in expected]
    assert mask[0].tolist() == [True, True, False, True, False, False, True, False]


def test_without_shift_every_labelled_position_is_a_pair() -> None:
    positions = torch.tensor([[0, 1, 0, 1]])
    labels = torch.tensor([[3, objective.IGNORE_INDEX, 4, 5]])
    mask = objective.next_token_pair_mask(positions, labels, shift=0)
    assert mask.tolist() == [[True, False, True, True]]


def test_targets_move_left_by_one_and_the_last_row_is_empty() -> None:
    z = torch.arange(12.0).view(1, 4, 3)
    shifted = objective.shift_targets(z)
    assert torch.equal(shifted[:, :3], z[:, 1:]) and (shifted[:, 3] == 0).all()
    assert objective.shift_targets(z, shift=0) is z


def test_token_cosine_equals_the_double_loop_within_documents() -> None:
    generator = torch.Generator().manual_seed(8)
    h = torch.randn(2, 6, D, generator=generator, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 4]])
    documents = [[0, 0, 0, 1, 1, 1], [2, 3, 3, 3, 3, 3]]
    takes_part = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    assert objective.document_ids(positions).tolist() == documents

    tokens = [(b, t) for b in range(2) for t in range(6) if takes_part[b, t]]
    pairs = [
        (i, j) for i in tokens for j in tokens
        if i != j and documents[i[0]][i[1]] == documents[j[0]][j[1]]
    ]  # fmt: skip
    expected = sum(torch.cosine_similarity(h[i], h[j], dim=0) for i, j in pairs) / len(pairs)

    counts = objective.token_cosine_pair_counts(positions, takes_part)
    assert counts.sum() == len(pairs)
    value = objective.token_cosine_sum(h, positions, takes_part.double() / len(pairs))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(value, h, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, h)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-14)
