"""What AdamW decays with optimizer.decay_norms_and_embeddings = false, in models as built."""

import re

import pytest
import torch

from recipes.build import build_config
from recipes.config.settings import resolve_settings
from tests.launch import PIPELINE, SMALL, read_curves, run

ALONE = ["--model.num_layers=2", "--model.dim=32", "--model.qk_norm", "--nitp.target_layer=1"]
NO_TOKENIZER = ["--tokenizer.path=elsewhere"]  # theirs are smaller than the embedded one
MODELS = {
    "tied": ["--model.flavor=debug", "--model.tie_embeddings", *ALONE],
    "untied": ["--model.flavor=debug", *ALONE],
    "moe": ["--model.flavor=debug_moe", *ALONE],
    "llama3": ["--model.name=llama3", "--model.flavor=debugmodel", *NO_TOKENIZER],
    "deepseek_v3": ["--model.name=deepseek_v3", "--model.flavor=debugmodel", *NO_TOKENIZER],
    "muse_glimmer": ["--model.name=muse_glimmer", "--model.flavor=debugmodel", *NO_TOKENIZER],
}


def build_groups(arguments: list[str]) -> list[dict]:
    """Parameter groups of a model on meta, and of its projector."""
    arguments = ["--job.config_file=train_configs/debug.toml", *arguments]
    config = build_config(resolve_settings(None, arguments))
    assert config.model_spec is not None
    config.model_spec.model.update_from_config(config=config)
    with torch.device("meta"):
        model = config.model_spec.model.build()
    (adamw,) = config.optimizer.build(model_parts=[model])
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(
        list(model.parameters())
    )
    return adamw.param_groups


def test_by_default_all_parameters_are_one_group_that_decays():
    (group,) = build_groups(MODELS["untied"])
    assert group["weight_decay"] == 0.1
    assert {"norm.weight", "tok_embeddings.weight"} <= set(group["param_names"])


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_embedding_do_not_decay_and_every_matrix_of_layers_does(name):
    exempt, decayed = build_groups([*MODELS[name], "--optimizer.decay_norms_and_embeddings=false"])
    assert (exempt["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    for key in ("lr", "betas", "eps"):
        assert exempt[key] == decayed[key]
    embedding = exempt["param_names"][0]
    assert embedding.startswith("tok_embeddings.")
    norms = dict(zip(exempt["param_names"][1:], exempt["params"][1:], strict=True))
    assert "norm.weight" in norms and any(re.match(r"layers\.1\..*norm", n) for n in norms)
    assert all(value.ndim == 1 and "norm" in key for key, value in norms.items())
    assert all(value.ndim >= 2 for value in decayed["params"])
    projector = [f"nitp_projector.w{i}.weight" for i in (1, 2, 3)]
    assert set(projector) <= set(decayed["param_names"])


@pytest.mark.parametrize(("name", "decays"), [("tied", False), ("untied", True), ("moe", True)])
def test_an_unembedding_decays_unless_it_is_the_embedding(name, decays):
    _, decayed = build_groups([*MODELS[name], "--optimizer.decay_norms_and_embeddings=false"])
    assert ("lm_head.weight" in decayed["param_names"]) == decays


@pytest.mark.slow
def test_both_stages_of_a_pipeline_have_both_groups_and_log_their_rates(tmp_path):
    arguments = [
        *SMALL, *PIPELINE, "--optimizer.decay_norms_and_embeddings=false", "--training.steps=3",
        f"--job.dump_folder={tmp_path}", "--checkpoint.enable=false",
    ]  # fmt: skip
    for rank in run(arguments, tmp_path / "logs", num_ranks=2):
        assert rank.errors() == []
    curves = read_curves(tmp_path)
    assert curves["lr/AdamW/0"] == curves["lr/AdamW/1"] and len(curves["lr/AdamW/0"]) == 3
    assert "lr/AdamW" not in curves
