"""with_nitp on every decoder of TorchTitan: nothing of the model changes, it trains, and it trains
the same under the parallelisms that TorchTitan has for it."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchtitan.models
from torchtitan.trainer import Trainer

from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.parity.compare import compare
from recipes.parity.tolerance import FLOAT32, Tolerance
from recipes.parity.world import Case, Failure, Result, run_cases

BASELINE = "_baseline"
"""Ending of a layout's name: without NITP."""

# name -> (number of ranks, overrides)
LAYOUTS = {
    "one": (1, []),
    "fsdp": (2, []),
    "tp": (2, ["--parallelism.tensor_parallel_degree=2"]),
    "cp": (2, ["--parallelism.context_parallel_degree=2"]),
    "ep": (2, ["--parallelism.expert_parallel_degree=2"]),
    "pp": (2, ["--parallelism.pipeline_parallel_degree=2", "--training.local_batch_size=2"]),
}


@dataclass(frozen=True)
class Model:
    name: str
    """Its module in torchtitan.models."""

    flavor: str = "debugmodel"
    techniques: tuple[str, ...] = ("fsdp", "tp", "cp", "pp")
    overrides: tuple[str, ...] = ()
    tolerance: Tolerance = FLOAT32


BFLOAT16 = Tolerance(
    2**-8,
    2 * 2**-8,
    "each rank rounds its part of a gradient to bfloat16, and the sum is rounded once more",
)
MUSE = Tolerance(
    5e-6, 3e-5, "its attention's gradients differ by 1.4e-5 under TP, with NITP or without"
)
MODELS = {
    "llama3": Model("llama3"),
}
SLOW_MODELS = {
    "qwen3": Model("qwen3", techniques=("fsdp", "tp", "cp")),
    "qwen3_moe": Model("qwen3", "debugmodel_moe", ("fsdp", "tp", "cp", "ep")),
    "deepseek_v3": Model("deepseek_v3", techniques=("fsdp", "tp", "cp", "ep")),
    # Its experts give bfloat16 whatever they get. Not under tensor parallelism: there TorchTitan's
    # own gradient of the experts' mlp2_bias_ED is off by its own size, with NITP or without.
    "gpt_oss": Model(
        "gpt_oss",
        techniques=("fsdp", "cp", "pp"),
        overrides=("--training.mixed_precision_param=bfloat16",),
        tolerance=BFLOAT16,
    ),
    "kimi_k2_7": Model("kimi_k2_7", techniques=("fsdp", "tp", "ep")),
    "muse_glimmer": Model("muse_glimmer", tolerance=MUSE),
    "muse_glimmer_multimodal": Model(
        "muse_glimmer", "debugmodel_mm", ("fsdp", "tp"), tolerance=MUSE
    ),
    "qwen3_5": Model("qwen3_5", techniques=("fsdp", "tp")),
    "qwen3_5_moe": Model("qwen3_5", "debugmodel_moe", ("fsdp", "tp")),
}
ALL_MODELS = MODELS | SLOW_MODELS
NOT_DECODERS = {"flux"}
REFUSED_BY_TORCHTITAN = {
    ("qwen3", "pp"): "Weight tying is not supported with Pipeline Parallel",
    ("kimi_k2_7", "cp"): "Context Parallel is not yet supported for Kimi K2.5",
    ("muse_glimmer_multimodal", "cp"): "context parallel is not supported for the Muse Glimmer",
    ("qwen3_5", "cp"): "Context Parallel is not yet supported for Qwen3.5",
}
slow = pytest.mark.slow
IN_ONE_PROCESS = [*MODELS, *(pytest.param(name, marks=slow) for name in SLOW_MODELS)]
IN_PARALLEL = [
    pytest.param(name, technique, marks=() if name == "llama3" else slow)
    for name, model in ALL_MODELS.items()
    for technique in model.techniques
]
Train = Callable[[tuple[str, ...], tuple[str, ...]], dict[tuple[str, str], Result | Failure]]


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Iterator[Train]:
    """(models, layouts) -> a step of each model in each layout, all from the same values."""
    data = write_data(tmp_path_factory.mktemp("data"))

    @functools.cache
    def run(
        models: tuple[str, ...], layouts: tuple[str, ...]
    ) -> dict[tuple[str, str], Result | Failure]:
        cases = {(m, layout): make_case(m, layout, data) for m in models for layout in layouts}
        outcomes = {case.name: outcome for case, outcome in run_cases(list(cases.values()))}
        return {key: outcomes[case.name] for key, case in cases.items()}

    with pytest.MonkeyPatch.context() as patch:
        # Qwen3.5 imports flash-linear-attention, which runs on CUDA alone.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "stand_ins"))
        yield run


def write_data(folder: Path) -> list[str]:
    """Short documents, and a tokenizer small enough for every debug vocabulary."""
    corpus = folder / "rows.jsonl"
    texts = [f"row {i}: {i * i} and {i * 7919 % 1000}" for i in range(400)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_bpe_tokenizer(folder / "tokenizer", texts, vocab_size=512)
    return [
        f"--tokenizer.path={folder / 'tokenizer'}",
        f"--data.sources=[{{path = '{corpus}'}}]",
        "--data.num_streams=2",
        "--data.validation_fraction=0",
        "--validation.enable=false",
        "--training.seq_len=256",
        "--training.local_batch_size=1",
        "--training.global_batch_size=2",
        "--training.disable_cuda_graphs",
    ]


def make_case(name: str, layout: str, data: list[str]) -> Case:
    model = ALL_MODELS[name]
    num_ranks, options = LAYOUTS[layout.removesuffix(BASELINE)]
    overrides = [
        *data,
        f"--model.name={model.name}",
        f"--model.flavor={model.flavor}",
        *model.overrides,
        *(["--nitp.enable=false"] if layout.endswith(BASELINE) else []),
    ]
    return Case(
        f"{name}-{layout}",
        "train_configs/debug.toml",
        overrides,
        num_steps=1,
        legs=[(num_ranks, options)],
        start=f"{name}-one" if layout in ALL_MODELS[name].techniques else None,
        probe="tests.integration.test_torchtitan_models:complete",
    )


@contextmanager
def complete(trainer: Trainer) -> Iterator[None]:
    """A probe (see world.Case) that adds what two models lack when trained on text."""
    spec = trainer.config.model_spec
    if trainer.step == 1 and spec.name == "muse_glimmer" and trainer.model_parts[-1].norm:
        # Initialised to 0, the final norm hides the decoder from the first step's loss.
        torch.nn.init.ones_(trainer.model_parts[-1].norm.weight)
    if trainer.step == 1 and spec.name == "qwen3_5":
        # Asks which tokens stand for images, which only TorchTitan's multimodal loader tells it.
        process = trainer.post_dataloading_process

        def process_with_special_tokens(input_dict: Any, labels: Any) -> Any:
            inputs, labels, model_inputs = process(input_dict, labels)
            special_tokens = {"image_id": -1, "video_id": -1}
            return inputs, labels, {**model_inputs, "special_tokens": special_tokens}

        trainer.post_dataloading_process = process_with_special_tokens
    yield


def in_one_process(train: Train, name: str) -> tuple[Result, Result]:
    """(with NITP, without)."""
    group = MODELS if name in MODELS else SLOW_MODELS
    outcomes = train(tuple(group), ("one", f"one{BASELINE}"))
    return done(outcomes[name, "one"]), done(outcomes[name, f"one{BASELINE}"])


def done(outcome: Result | Failure) -> Result:
    assert isinstance(outcome, Result), f"{outcome}\n{outcome.log}"
    return outcome


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_names_and_initial_values_of_the_model_stay(train, name):
    nitp, baseline = (result.initial for result in in_one_process(train, name))
    assert [key for key in nitp if not key.startswith("nitp_projector.")] == list(baseline)
    assert list(nitp)[-3:] == [f"nitp_projector.{w}.weight" for w in ("w1", "w2", "w3")]
    for key, value in baseline.items():
        assert torch.equal(value, nitp[key]), key


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_cross_entropy_is_the_models_own(train, name):
    nitp, baseline = (result.metrics[0] for result in in_one_process(train, name))
    assert nitp["loss_metrics/ntp_loss"] == baseline["loss_metrics/ntp_loss"]
    assert 0.0 < nitp["loss_metrics/nitp_loss"] < 2.0


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_every_parameter_that_learns_without_nitp_learns_with_it(train, name):
    nitp, baseline = (result.grads for result in in_one_process(train, name))
    projector = {f"nitp_projector.{w}.weight" for w in ("w1", "w2", "w3")}
    assert nitp.keys() - baseline.keys() == projector
    for key in nitp:
        assert nitp[key].isfinite().all(), key
        if key in projector or (baseline[key] != 0).any():
            assert (nitp[key] != 0).any(), key


@pytest.mark.parametrize(("name", "technique"), IN_PARALLEL)
def test_two_ranks_give_every_loss_and_gradient_of_one_process(train, name, technique):
    model = ALL_MODELS[name]
    outcomes = train((name,), ("one", *model.techniques))
    one, two = done(outcomes[name, "one"]), done(outcomes[name, technique])
    comparison = compare(two, one)
    assert comparison.loss is not None and comparison.gradient is not None
    assert comparison.loss.value <= model.tolerance.loss
    assert comparison.gradient.value <= model.tolerance.tensor, comparison.gradient.where


@slow
@pytest.mark.parametrize(("name", "technique"), REFUSED_BY_TORCHTITAN)
def test_what_torchtitan_refuses_is_refused_in_its_words(train, name, technique):
    for outcome in train((name,), (technique, f"{technique}{BASELINE}")).values():
        assert isinstance(outcome, Failure)
        assert REFUSED_BY_TORCHTITAN[name, technique] in outcome.error


def test_no_model_of_torchtitan_is_missing_here():
    names = {model.name for model in ALL_MODELS.values()}
    assert names | NOT_DECODERS == torchtitan.models._supported_models
