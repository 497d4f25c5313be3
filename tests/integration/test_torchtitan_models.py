"""with_nitp on TorchTitan's own decoders: nothing of the model changes, and it trains."""

import json
from pathlib import Path

import pytest
import torch

from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.parity.world import Case, Result, run_world

MODELS = {
    "llama3": ("llama3", "debugmodel"),
    "qwen3": ("qwen3", "debugmodel"),
    "qwen3_moe": ("qwen3", "debugmodel_moe"),
    "deepseek_v3": ("deepseek_v3", "debugmodel"),
    "gpt_oss": ("gpt_oss", "debugmodel"),
}


ON_TWO_RANKS = ("llama3", "qwen3_moe")


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict[tuple[str, int], Result]:
    """A step of every model with NITP (on 1 and 2 ranks) and without."""
    folder: Path = tmp_path_factory.mktemp("data")
    corpus = folder / "rows.jsonl"
    texts = [f"row {i}: {i * i} and {i * 7919 % 1000}" for i in range(100)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_bpe_tokenizer(folder / "tokenizer", texts, vocab_size=512)
    common = [
        f"--tokenizer.path={folder / 'tokenizer'}",
        f"--data.sources=[{{path = '{corpus}'}}]",
        "--data.num_streams=2",
        "--data.validation_fraction=0",
        "--validation.enable=false",
        "--training.seq_len=64",
        "--training.local_batch_size=1",
        "--training.global_batch_size=2",
    ]
    on_one, on_two = [], []
    for name, (model, flavor) in MODELS.items():
        overrides = [*common, f"--model.name={model}", f"--model.flavor={flavor}"]
        if name == "gpt_oss":  # its experts give bfloat16 whatever they get
            overrides.append("--training.mixed_precision_param=bfloat16")
        config = "train_configs/debug.toml"
        case = Case(name, config, overrides, num_steps=1)
        on_one += [case, Case(f"{name}_ntp", config, [*overrides, "--nitp.enable=false"], 1)]
        on_two += [case] if name in ON_TWO_RANKS else []
    return run_world(on_one, (1,)) | run_world(on_two, (2,))


@pytest.mark.parametrize("name", MODELS)
def test_names_and_initial_values_of_the_model_stay(steps, name):
    nitp, baseline = steps[name, 1].initial, steps[f"{name}_ntp", 1].initial
    assert [key for key in nitp if not key.startswith("nitp_projector.")] == list(baseline)
    assert list(nitp)[-3:] == [f"nitp_projector.{w}.weight" for w in ("w1", "w2", "w3")]
    for key, value in baseline.items():
        assert torch.equal(value, nitp[key]), key


@pytest.mark.parametrize("name", MODELS)
def test_cross_entropy_is_the_models_own(steps, name):
    (nitp,), (baseline,) = steps[name, 1].metrics, steps[f"{name}_ntp", 1].metrics
    assert nitp["loss_metrics/ntp_loss"] == baseline["loss_metrics/ntp_loss"]
    assert 0.0 < nitp["loss_metrics/nitp_loss"] < 2.0


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_that_learns_without_nitp_learns_with_it(steps, name):
    nitp, baseline = steps[name, 1].grads, steps[f"{name}_ntp", 1].grads
    for key in nitp:
        assert nitp[key].isfinite().all(), key
        if key not in baseline or (baseline[key] != 0).any():
            assert (nitp[key] != 0).any(), key


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_two_ranks_give_the_losses_of_one_process(steps, name):
    """1e-5: float32 sums in another order."""
    (one,), (two,) = steps[name, 1].metrics, steps[name, 2].metrics
    for loss in ("global_avg_loss", "ntp_loss", "nitp_loss"):
        key = f"loss_metrics/{loss}"
        assert two[key] == pytest.approx(one[key], rel=1e-5), key
