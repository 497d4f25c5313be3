"""One real training step, through the data loader, equals the paper's equations in float64."""

import json

import pytest
import torch

from nitp.config import NITPConfig
from recipes.models.shapes import DecoderShape
from recipes.parity.world import Case, Result, relative_difference, run_world
from tests import reference

DENSE = DecoderShape(
    vocab_size=8192, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=48
)  # fmt: skip
MOE = DecoderShape(
    vocab_size=8192, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=48,
    num_dense_layers=1, num_experts=8, num_shared_experts=1, top_k=2, expert_dim=16,
)  # fmt: skip
SHAPES = {"dense": DENSE, "moe": MOE}
NITP = {"target_layer": 1, "weight": 0.7}
# Every row of the ablation tables that changes the objective.
VARIANTS = {
    "embedding": {"target_layer": 0},
    "last_layer": {"target_layer": 3},
    "mse": {"loss": "mse"},
    "smooth_l1": {"loss": "smooth_l1"},
    "kl": {"loss": "kl"},
    "token_cosine": {"loss": "token_cosine"},
    "no_shift": {"shift": 0},
    "no_stop_gradient": {"stop_gradient": False},
    "no_projector": {"projector": "none"},
    "pre_norm": {"hidden": "pre_norm"},
    "pre_norm_moving_last_layer": {
        "hidden": "pre_norm",
        "target_layer": 3,
        "stop_gradient": False,
    },
    "wide_projector": {"projector_ratio": 6.0},
}


def _case(name: str, shape: DecoderShape, corpus: str, options: dict, *extra: str) -> Case:
    """A step of two accumulated batches of packed short documents."""
    shape_options = {field: getattr(shape, field) for field in shape.__slots__}
    overrides = [
        *(f"--model.{key}={value}" for key, value in shape_options.items()),
        *(f"--nitp.{key}={value}" for key, value in options.items()),
        f"--data.sources=[{{path = '{corpus}'}}]",
        "--data.num_streams=4",
        "--data.validation_fraction=0",
        "--validation.enable=false",
        "--training.seq_len=32",
        "--training.local_batch_size=2",
        "--training.global_batch_size=4",
        *extra,
    ]
    config = f"train_configs/debug{'_moe' if shape.is_moe else ''}.toml"
    return Case(name, config, overrides, num_steps=1)


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict[str, Result]:
    corpus = tmp_path_factory.mktemp("corpus") / "short.jsonl"
    texts = [f"def f{i}(x):\n    return {'x + ' * (i % 7)}{i}\n" for i in range(40)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cases = [
        _case("one_chunk", DENSE, str(corpus), NITP, "--loss.num_chunks=1"),
        _case("eight_chunks", DENSE, str(corpus), NITP, "--loss.num_chunks=8"),
    ]
    for name, shape in SHAPES.items():
        cases.append(_case(name, shape, str(corpus), NITP))
        cases.append(_case(f"{name}_ntp", shape, str(corpus), {"enable": False}))
        cases.append(_case(f"{name}_zero", shape, str(corpus), NITP | {"weight": 0}))
    for name, options in VARIANTS.items():
        cases.append(_case(name, DENSE, str(corpus), NITP | options))
    late = _case("late_start", DENSE, str(corpus), NITP | {"start_step": 2})
    late.num_steps = 2
    cases.append(late)
    single_tokens = corpus.with_name("single_tokens.jsonl")
    single_tokens.write_text('{"text": "a"}\n' * 40)
    cases.append(_case("no_pairs", DENSE, str(single_tokens), NITP))
    return {name: result for (name, _), result in run_world(cases, (1,)).items()}


def _documents(step: Result) -> list[reference.Document]:
    documents: list[reference.Document] = []
    for batch in step.batches:
        rows = (batch[key].tolist() for key in ("input", "positions", "labels"))
        for inputs, positions, labels in zip(*rows, strict=True):
            documents += reference.split_documents(inputs, positions, labels)
    return documents


@pytest.mark.parametrize("name", [*SHAPES, *VARIANTS])
def test_step_equals_the_float64_loops_in_loss_and_every_gradient(steps, name):
    """1e-6 and 1e-5: float32 rounding of a three-layer network against float64. 1e-7 absolute:
    KL between two nearly uniform distributions is a small sum of terms that cancel."""
    step = steps[name]
    nitp = NITPConfig(**(NITP | VARIANTS.get(name, {})))
    params = {key: value.double().requires_grad_() for key, value in step.initial.items()}
    expected = reference.losses(params, _documents(step), SHAPES.get(name, DENSE), nitp)
    assert len(_documents(step)) > len(step.batches) * 2, "rows must hold several documents"
    (metrics,) = step.metrics
    assert metrics["loss_metrics/ntp_loss"] == pytest.approx(expected.ntp.item(), rel=1e-6)
    assert metrics["loss_metrics/nitp_loss"] == pytest.approx(
        expected.nitp.item(), rel=1e-6, abs=1e-7
    )
    assert metrics["loss_metrics/global_avg_loss"] == pytest.approx(expected.total.item(), rel=1e-6)
    expected.total.backward()
    assert step.grads.keys() == params.keys()
    for key, param in params.items():
        assert relative_difference(step.grads[key], param.grad) < 1e-5, key


def test_the_number_of_chunks_changes_nothing(steps):
    """1e-6: float32 sums in another order."""
    one, eight = steps["one_chunk"], steps["eight_chunks"]
    assert eight.metrics[0]["loss_metrics/nitp_loss"] == pytest.approx(
        one.metrics[0]["loss_metrics/nitp_loss"], rel=1e-6
    )
    for key, grad in one.grads.items():
        assert relative_difference(eight.grads[key], grad) < 1e-6, key


def test_before_the_start_step_training_is_the_baseline_bit_for_bit(steps):
    late, baseline = steps["late_start"], steps["dense_ntp"]
    first, second = late.metrics
    assert first["nitp/weight"] == 0.0 and "loss_metrics/nitp_loss" not in first
    assert first["loss_metrics/global_avg_loss"] == baseline.metrics[0]["loss_metrics/ntp_loss"]
    for key, grad in baseline.grads.items():
        assert torch.equal(late.grads[key], grad), key
    assert second["nitp/weight"] == pytest.approx(NITP["weight"])
    assert second["loss_metrics/nitp_loss"] > 0.0


def test_a_batch_without_a_valid_pair_gives_zero(steps):
    step = steps["no_pairs"]
    (metrics,) = step.metrics
    assert metrics["nitp/valid_fraction"] == metrics["loss_metrics/nitp_loss"] == 0.0
    assert metrics["loss_metrics/global_avg_loss"] == metrics["loss_metrics/ntp_loss"]
    for key, grad in step.grads.items():
        assert grad.isfinite().all(), key
        assert not key.startswith("nitp_projector") or (grad == 0).all(), key


@pytest.mark.parametrize("name", SHAPES)
def test_nitp_and_baseline_start_from_equal_backbones_and_see_the_same_data(steps, name):
    with_nitp, baseline = steps[name], steps[f"{name}_ntp"]
    projector = {key for key in with_nitp.initial if key.startswith("nitp_projector.")}
    assert len(projector) == 3
    assert with_nitp.initial.keys() - projector == baseline.initial.keys()
    for key, value in baseline.initial.items():
        assert torch.equal(value, with_nitp.initial[key]), key
    for a, b in zip(with_nitp.batches, baseline.batches, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", SHAPES)
def test_weight_zero_is_the_baseline_bit_for_bit(steps, name):
    zero, baseline = steps[f"{name}_zero"], steps[f"{name}_ntp"]
    assert zero.grads.keys() == baseline.grads.keys()
    for key, grad in baseline.grads.items():
        assert torch.equal(grad, zero.grads[key]), key
    loss = "loss_metrics/global_avg_loss"
    assert zero.metrics[0][loss] == baseline.metrics[0][loss]
