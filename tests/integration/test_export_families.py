"""TorchTitan's own models, trained through with_nitp, export with their own adapters."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import LlamaConfig, Qwen3Config

from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.export.command import main
from tests.integration.export_runs import DENSE, save_run

pytestmark = pytest.mark.slow

_COMMON = {"vocab_size": 2048, "hidden_size": 256, "max_position_embeddings": 64}
CONFIGS = {
    "llama3": LlamaConfig(
        **_COMMON,
        architectures=["LlamaForCausalLM"],
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=16,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    ),
    "qwen3": Qwen3Config(
        **_COMMON,
        architectures=["Qwen3ForCausalLM"],
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    ),
}  # fmt: skip


@pytest.fixture
def options(tmp_path) -> list[str]:
    texts = [f"row {i}: {i * i} and {i * 7919 % 1000}" for i in range(100)]
    save_bpe_tokenizer(tmp_path / "tokenizer", texts, vocab_size=512)
    return [f"--tokenizer.path={tmp_path / 'tokenizer'}", "--training.seq_len=64"]


def export(folder: Path, options: list[str], model: str, flavor: str, verify: str) -> int:
    model_options = [f"--model.name={model}", f"--model.flavor={flavor}"]
    save_run(folder / "run", DENSE, [*options, *model_options])
    arguments = ["--run", str(folder / "run"), "--output", str(folder / "out")]
    return main([*arguments, "--verify", verify])


@pytest.mark.parametrize("model", CONFIGS)
def test_a_dense_family_computes_what_stock_transformers_computes(tmp_path, options, model):
    (tmp_path / "tokenizer" / "config.json").write_text(CONFIGS[model].to_json_string())
    assert export(tmp_path, options, model, "debugmodel", "logits") == 0


def test_deepseek_v3_keeps_its_selection_bias_in_float32(tmp_path, options):
    config = {"architectures": ["DeepseekV3ForCausalLM"]}
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps(config))
    assert export(tmp_path, options, "deepseek_v3", "debugmodel", "keys") == 0
    with safe_open(tmp_path / "out" / "model-00001-of-00001.safetensors", "pt") as file:
        names = list(file.keys())
        bias = file.get_slice("model.layers.1.mlp.gate.e_score_correction_bias")
        assert bias.get_dtype() == "F32"
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in names
    assert not [name for name in names if "nitp" in name]


def test_what_a_familys_adapter_drops_is_an_error(tmp_path, options, capsys):
    """TorchTitan trains Qwen3's mixture with a selection bias that Qwen3Moe cannot express."""
    config = {"architectures": ["Qwen3MoeForCausalLM"]}
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps(config))
    assert export(tmp_path, options, "qwen3", "debugmodel_moe", "keys") == 1
    error = capsys.readouterr().err
    assert "moe.expert_bias_E has no counterpart in Hugging Face weights" in error
    assert not (tmp_path / "out").exists()


def test_a_family_without_its_config_is_refused(tmp_path, options, capsys):
    assert export(tmp_path, options, "llama3", "debugmodel", "keys") == 2
    assert "has no config.json. TorchTitan's llama3 exports with" in capsys.readouterr().err
