"""Real training steps and validation, through the data loader, equal the paper's equations in
float64: every figure that is logged and every gradient."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitp.config import NITPConfig
from recipes.models.shapes import DecoderShape
from recipes.parity.world import Case, Result, relative_difference, run_cases
from tests import reference, reference_geometry
from tests.reference_corpus import SEQ_LEN, VOCAB_SIZE, Corpus, mask_prompts, split
from tests.unit.data_samples import write_jsonl

DENSE = DecoderShape(
    vocab_size=VOCAB_SIZE, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=48
)  # fmt: skip
MOE = DecoderShape(
    vocab_size=VOCAB_SIZE, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    ffn_dim=48, num_dense_layers=1, num_experts=8, num_shared_experts=1, top_k=2, expert_dim=16,
)  # fmt: skip
SOFTMAX = replace(MOE, router_score_func="softmax")
SHAPES = {"dense": DENSE, "moe": MOE, "moe_softmax": SOFTMAX}
NITP = {"target_layer": 1, "weight": 0.7}
BATCH = 4
# Less than half of the gradient norm of any case: every step clips.
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.1, "max_norm": 0.3}
UNCHECKED = (
    "throughput", "tflops", "mfu", "time_metrics/", "memory/",
    "validation_metrics/throughput", "validation_metrics/memory",
)  # fmt: skip
"""What depends on clock and machine."""
VALIDATION_STEPS = 2
# Held-out sets. On two ranks of two rows a batch the first has one row less than whole batches, the
# second fewer rows than ranks; their characters are of one to four bytes, each a token or more.
SETS = {
    "code": ["def f(x):\n    return x\n", "", "naïve café\n" * 8, "x", "def g():\n    pass\n" * 4],
    "signs": ["日本🙂"],
}
LEARNING_RATES = [5e-3, 1e-2, 1e-2, 5e-3]
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


def _case(name: str, shape: DecoderShape, corpus: Corpus, options: dict, *extra: str) -> Case:
    """A step of two accumulated batches of packed short documents."""
    shape_options = {field: getattr(shape, field) for field in shape.__slots__}
    overrides = [
        *(f"--model.{key}={value}" for key, value in shape_options.items()),
        *(f"--nitp.{key}={value}" for key, value in options.items()),
        *corpus.overrides,
        "--validation.enable=false",
        "--training.local_batch_size=2",
        f"--training.global_batch_size={BATCH}",
        f"--training.max_norm={ADAMW['max_norm']}",
        *extra,
    ]
    config = f"train_configs/debug{'_moe' if shape.is_moe else ''}.toml"
    return Case(name, config, overrides, num_steps=1)


def _run_case(num_ranks: int, corpus: Corpus, sets: str) -> Case:
    """Four steps that warm up, stay and decay, of batches of one row, and a validation with sets;
    the beginning of each row, not of the sets, has no labels."""
    case = _case(
        f"run_{num_ranks}", DENSE, corpus, NITP,
        "--validation.enable", f"--validation.steps={VALIDATION_STEPS}",
        f"--validation.sets={sets}",
        "--training.local_batch_size=1", "--optimizer.lr=1e-2", "--lr_scheduler.warmup_steps=2",
        "--lr_scheduler.decay_ratio=0.5", f"--lr_scheduler.total_steps={len(LEARNING_RATES)}",
        f"--training.steps={len(LEARNING_RATES)}",
        "--optimizer.betas=[0.9, 0.95]", "--optimizer.eps=1e-3", "--optimizer.weight_decay=0.1",
    )  # fmt: skip
    case.num_steps, case.validate, case.masks_prompts = len(LEARNING_RATES), True, True
    case.legs = [(num_ranks, [])]
    return case


def _sets_case(num_ranks: int, corpus: Corpus, sets: str) -> Case:
    """A validation on sets alone."""
    case = _case(
        f"sets_{num_ranks}", DENSE, corpus, NITP,
        "--validation.enable", f"--validation.sets={sets}",
    )  # fmt: skip
    case.num_steps, case.validate, case.legs = 0, True, [(num_ranks, [])]
    return case


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The loops are of tiny tensors, for which threads only wait."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> tuple[Corpus, Corpus]:
    """All of it for training; a quarter of it for validation."""
    folder = tmp_path_factory.mktemp("data")
    return Corpus(folder / "whole", held_out=0.0), Corpus(folder / "split", held_out=0.25)


@pytest.fixture(scope="module")
def steps(corpora, tmp_path_factory) -> dict[str, Result]:
    corpus, in_splits = corpora
    sets = _write_sets(tmp_path_factory.mktemp("sets"))
    cases = [
        *(_run_case(num_ranks, in_splits, sets) for num_ranks in (1, 2)),
        *(_sets_case(num_ranks, corpus, sets) for num_ranks in (1, 2)),
        _case("one_chunk", DENSE, corpus, NITP, "--loss.num_chunks=1"),
        _case("eight_chunks", DENSE, corpus, NITP, "--loss.num_chunks=8"),
    ]
    for name, shape in SHAPES.items():
        layers = ["--geometry.layers=all"] if name == "dense" else []
        cases.append(_case(name, shape, corpus, NITP, *layers))
        cases.append(_case(f"{name}_ntp", shape, corpus, {"enable": False}))
        off = {"enable": False}
        cases.append(_case(f"{name}_unmeasured", shape, corpus, off, "--geometry.enable=false"))
        cases.append(_case(f"{name}_zero", shape, corpus, NITP | {"weight": 0}))
    for name, options in VARIANTS.items():
        cases.append(_case(name, DENSE, corpus, NITP | options))
    late = _case("late_start", DENSE, corpus, NITP | {"start_step": 2})
    late.num_steps = 2
    cases.append(late)
    single_tokens = tmp_path_factory.mktemp("data") / "single_tokens.jsonl"
    single_tokens.write_text('{"text": "a"}\n' * 40)
    cases.append(
        _case("no_pairs", DENSE, corpus, NITP, f"--data.sources=[{{path = '{single_tokens}'}}]")
    )
    results = {}
    for case, result in run_cases(cases):
        assert isinstance(result, Result), f"{result}\n{result.log}"
        results[case.name] = result
    return results


def _write_sets(folder: Path) -> str:
    """The value of validation.sets."""
    for name, texts in SETS.items():
        write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    tables = (f"{{name = '{name}', path = '{folder / name}.jsonl'}}" for name in SETS)
    return f"[{', '.join(tables)}]"


def _set_figures(corpus: Corpus, params: reference.Params) -> dict[str, float]:
    """What a validation logs of each set: the documents one by one, rows only cut them."""
    figures = {}
    for name, texts in SETS.items():
        losses = reference.losses(params, split(corpus.pack(texts)), DENSE, NITPConfig(**NITP))
        num_bytes = 0
        for text in filter(None, texts):
            first, *_ = corpus.encode([text])[0]
            # Byte-level BPE spells a token with one character a byte.
            num_bytes += len(text.encode()) - len(corpus.tokenizer.id_to_token(first))
        nats = losses.ntp.item() * losses.num_labels
        figures[f"validation_metrics/{name}/loss"] = losses.ntp.item()
        figures[f"validation_metrics/{name}/bits_per_byte"] = nats / math.log(2) / num_bytes
    return figures


def _figures(losses: reference.Losses, params: reference.Params, nitp: NITPConfig) -> dict:
    """What a step logs of its losses; leaves their gradients in `params`."""
    ratio = losses.grad_ratio(nitp.weight)
    losses.total.backward()
    assert all(param.grad is not None for param in params.values())
    figures = {
        "loss_metrics/ntp_loss": losses.ntp.item(),
        "loss_metrics/nitp_loss": losses.nitp.item(),
        "loss_metrics/global_avg_loss": losses.total.item(),
        "nitp/cosine": losses.cosine.item(),
        "nitp/valid_fraction": losses.valid_fraction,
        "nitp/weight": nitp.weight,
        "nitp/grad_ratio": ratio,
        "grad_norm": reference.norm(param.grad for param in params.values()),
    }
    projector = [param.grad for name, param in params.items() if name.startswith("nitp_projector")]
    return figures | ({"nitp/projector_grad_norm": reference.norm(projector)} if projector else {})


def _assert_logged(metrics: dict[str, float], expected: dict[str, float]) -> None:
    """Exactly these figures. 1e-6 for means over tokens, 1e-5 for gradient norms, their ratio and
    effective ranks: float32 rounding of a three-layer network against float64. 1e-7 absolute:
    cosines, and KL between two nearly uniform distributions, are small sums of terms that cancel;
    1e-6: skill, a difference of ratios of such means."""
    logged = {name: value for name, value in metrics.items() if not name.startswith(UNCHECKED)}
    assert logged.keys() == expected.keys()
    for name, value in expected.items():
        rel = 1e-5 if "grad" in name or "rank" in name else 1e-6
        absolute = 1e-6 if name.endswith("skill") else 1e-7
        assert logged[name] == pytest.approx(value, rel=rel, abs=absolute), name


@pytest.mark.parametrize("name", [*SHAPES, *VARIANTS])
def test_step_equals_the_float64_loops_in_every_figure_and_gradient(steps, corpora, name):
    """1e-5: as above."""
    step, rows = steps[name], corpora[0].training_rows(BATCH)
    documents = split(rows)
    assert len(documents) > BATCH, "rows must hold several documents"
    nitp = NITPConfig(**(NITP | VARIANTS.get(name, {})))
    params = {key: value.double().requires_grad_() for key, value in step.initial.items()}
    shape = SHAPES.get(name, DENSE)
    losses = reference.losses(params, documents, shape, nitp)
    figures = _figures(losses, params, nitp)
    assert figures["grad_norm"] > 2 * ADAMW["max_norm"], "the step must clip"
    tokens = BATCH * SEQ_LEN
    (metrics,) = step.metrics
    _assert_logged(metrics, {
        **figures, "loss_metrics/global_max_loss": losses.total.item(), "n_tokens_seen": tokens,
        "data/tokens_0": tokens, "lr/AdamW": 1e-3 / 40,
        **reference_geometry.figures(
            params, rows, shape, nitp, losses.nitp.item(), has_layers=name == "dense"
        ),
    })  # fmt: skip
    assert step.grads.keys() == params.keys()
    clipped = reference.AdamW(**ADAMW).clip({key: param.grad for key, param in params.items()})
    for key, grad in clipped.items():
        assert relative_difference(step.grads[key], grad) < 1e-5, key


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_and_its_validation_equal_the_float64_loops_in_every_figure(
    steps, corpora, num_ranks
):
    """On two ranks as on one, though ranks have different numbers of labels and pairs."""
    run, nitp = steps[f"run_{num_ranks}"], NITPConfig(**NITP)
    params = {key: value.double().requires_grad_() for key, value in run.initial.items()}
    optimizer = reference.AdamW(**ADAMW)
    rows = mask_prompts(corpora[1].training_rows(BATCH * len(LEARNING_RATES)))
    for step, lr in enumerate(LEARNING_RATES):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        losses = reference.losses(params, split(batch), DENSE, nitp)
        most = max(
            _local_loss(reference.losses(params, split(own), DENSE, nitp), losses, nitp)
            for own in (batch[rank::num_ranks] for rank in range(num_ranks))
        )
        tokens = (step + 1) * BATCH * SEQ_LEN
        _assert_logged(run.metrics[step], {
            **_figures(losses, params, nitp), "loss_metrics/global_max_loss": most,
            "n_tokens_seen": tokens, "data/tokens_0": tokens, "lr/AdamW": lr,
            **reference_geometry.figures(params, batch, DENSE, nitp, losses.nitp.item()),
        })  # fmt: skip
        assert run.metrics[step]["grad_norm"] > 2 * ADAMW["max_norm"], "the step must clip"
        params = optimizer.step(params, {key: p.grad for key, p in params.items()}, lr)
    rows = mask_prompts(corpora[1].validation_rows(BATCH * VALIDATION_STEPS))
    losses = reference.losses(params, split(rows), DENSE, nitp)
    _assert_logged(run.validation, {
        "validation_metrics/loss": losses.ntp.item(),
        "validation_metrics/nitp_loss": losses.nitp.item(),
        **_set_figures(corpora[1], params),
        **reference_geometry.figures(
            params, rows, DENSE, nitp, losses.nitp.item(), is_validation=True
        ),
    })  # fmt: skip


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sets_alone_are_read_whole_and_the_first_has_the_untagged_figures(
    steps, corpora, num_ranks
):
    """On two ranks, which have different numbers of labels, as on one."""
    step, nitp, corpus = steps[f"sets_{num_ranks}"], NITPConfig(**NITP), corpora[0]
    params = {key: value.double() for key, value in step.initial.items()}
    rows = corpus.pack(SETS["code"])
    losses = reference.losses(params, split(rows), DENSE, nitp)
    _assert_logged(step.validation, {
        "validation_metrics/loss": losses.ntp.item(),
        "validation_metrics/nitp_loss": losses.nitp.item(),
        **_set_figures(corpus, params),
        **reference_geometry.figures(
            params, rows, DENSE, nitp, losses.nitp.item(), is_validation=True
        ),
    })  # fmt: skip


def _local_loss(own: reference.Losses, every: reference.Losses, nitp: NITPConfig) -> float:
    """A rank's share of the loss, per label of its own."""
    nitp_sum = own.nitp * own.num_pairs / every.num_pairs
    return (own.ntp + nitp.weight * nitp_sum * every.num_labels / own.num_labels).item()


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
def test_the_baselines_states_are_measured_and_change_nothing(steps, corpora, name):
    """Bit for bit."""
    measured, plain = steps[f"{name}_ntp"], steps[f"{name}_unmeasured"]
    params = {key: value.double() for key, value in measured.initial.items()}
    rows, off = corpora[0].training_rows(BATCH), NITPConfig(enable=False)
    figures = reference_geometry.figures(params, rows, SHAPES[name], off, 0.0)
    logged = {k: v for k, v in measured.metrics[0].items() if k.startswith("geometry/")}
    assert logged == pytest.approx(figures, rel=1e-5, abs=1e-7)
    assert not any(tag.startswith("geometry/") for tag in plain.metrics[0])
    for tag in logged.keys() | plain.metrics[0].keys():
        if not tag.startswith(("geometry/", *UNCHECKED)):
            assert measured.metrics[0][tag] == plain.metrics[0][tag], tag
    assert measured.state.keys() == plain.state.keys()
    for tensors in ("grads", "state"):
        for key, tensor in getattr(plain, tensors).items():
            assert torch.equal(getattr(measured, tensors)[key], tensor), key


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
