"""A checkpoint becomes a Hugging Face folder that stock transformers computes the same with."""

import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from recipes.build import build_model
from recipes.config import load_config
from recipes.config.settings import resolve_settings
from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.export import exporter
from recipes.export import run as export_run
from recipes.export.config import build_hf_config
from recipes.export.request import ExportRequest
from recipes.export.run import prepare_export
from recipes.platform.cpu import build_float32_config
from tests.integration.export_runs import (
    DENSE,
    MOE,
    SMALL,
    SMALL_MOE,
    save_checkpoint,
    save_run,
)
from tests.launch import compose
from tests.unit.test_export_tokenizer import save_tokenizer

# isort: split

from recipes.export.checkpoint import find_checkpoint
from recipes.export.exporter import plan_export
from recipes.export.reference import Reference
from recipes.export.verify import (
    _run_stock_model,
    check_tokenizer,
    compare_logits,
    load_stock_model,
)
from recipes.export.writer import INDEX_NAME, write_weights

# name -> (configuration, overrides, stock architecture)
MODELS = {
    "llama_tied": (DENSE, [*SMALL, "--model.tie_embeddings"], "LlamaForCausalLM"),
    "qwen3_ntp": (DENSE, [*SMALL, "--model.qk_norm", "--nitp.enable=false"], "Qwen3ForCausalLM"),
    "glm4_moe": (MOE, SMALL_MOE, "Glm4MoeForCausalLM"),
    "glm4_moe_wide": (
        MOE,
        [*SMALL_MOE, "--model.qk_norm", "--model.num_dense_layers=2", "--model.top_k=3",
         "--model.num_shared_experts=2", "--model.rope_theta=5000", "--model.norm_eps=1e-4"],
        "Glm4MoeForCausalLM",
    ),
}  # fmt: skip


def export(run: Path, output: Path, **options) -> None:
    request = ExportRequest(run=run, output=output, **options)
    prepare_export(request, request.load_settings())()


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, (config, overrides, _) in MODELS.items():
        save_run(folder / name, config, overrides)
    return {name: folder / name for name in MODELS}


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory) -> dict[str, Path]:
    """Every model exported in bfloat16, its logits compared."""
    folder = tmp_path_factory.mktemp("exported")
    for name, run in runs.items():
        export(run, folder / name)
    return {name: folder / name for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_is_a_stock_architecture_without_the_projector(folders, name):
    folder = folders[name]
    assert read_json(folder / "config.json")["architectures"] == [MODELS[name][2]]
    names = set(read_json(folder / "model.safetensors.index.json")["weight_map"])
    assert not [key for key in names if "nitp" in key or "projector" in key]
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, framework="pt") as weights:
        assert set(weights.keys()) == names and weights.metadata() == {"format": "pt"}
    assert ("lm_head.weight" in names) == (name != "llama_tied")
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o444 == 0o444, path


@pytest.mark.parametrize("name", ["llama_tied", "glm4_moe"])
def test_weights_are_rounded_to_the_dtype_and_the_selection_bias_is_not(folders, runs, name):
    state = find_checkpoint(runs[name] / "checkpoint", None)
    weights = load_file(folders[name] / "model-00001-of-00001.safetensors")
    query = state.load("layers.1.attention.qkv_linear.wq.weight")
    assert torch.equal(weights["model.layers.1.self_attn.q_proj.weight"], query.bfloat16())
    if name == "glm4_moe":
        bias = state.load("layers.1.moe.expert_bias_E")
        assert bias.abs().min() > 0
        assert torch.equal(weights["model.layers.1.mlp.gate.e_score_correction_bias"], bias)
        down = state.load("layers.1.moe.routed_experts.inner_experts.w2_EDF")[5]
        assert torch.equal(
            weights["model.layers.1.mlp.experts.5.down_proj.weight"], down.bfloat16()
        )


@pytest.mark.parametrize("name", MODELS)
def test_training_accepts_the_folder_to_continue_from(folders, name):
    config, overrides, _ = MODELS[name]
    path = f"--checkpoint.initial_load_path={folders[name]}"
    load_config(config, compose([*overrides, path, "--checkpoint.initial_load_in_hf"]))


def test_the_tokenizer_gives_what_generate_takes(folders):
    config = read_json(folders["llama_tied"] / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_the_card_says_where_the_weights_come_from(folders):
    card = (folders["glm4_moe"] / "README.md").read_text()
    for row in (
        "| architecture | Glm4MoeForCausalLM |", "| step | 3 |",
        f"| global tokens seen | {6 * 64} |", "| target_layer | 1 |",
        "| torchtitan version | 0.3.0 |",
    ):  # fmt: skip
        assert row in card
    assert "llama.cpp's convert_hf_to_gguf.py does not convert this folder" in card


@pytest.mark.parametrize("template", [None, "BOS"])
@pytest.mark.parametrize("bos", ["auto", "always"])
def test_a_tokenizer_that_adds_bos_verifies_and_exports(tmp_path, template, bos):
    """Its ids have a hole, as of a pruned vocabulary: EOS is above their number."""
    save_tokenizer(tmp_path / "tokenizer", "PreTrainedTokenizerFast", template)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    content = read_json(path)
    (eos,) = (token for token in content["added_tokens"] if token["content"] == "</s>")
    eos["id"] += 20
    content["model"]["vocab"] |= {
        token["content"]: token["id"] for token in content["added_tokens"]
    }
    path.write_text(json.dumps(content))
    run = [*SMALL, f"--tokenizer.path={path.parent}", f"--data.bos={bos}"]
    save_run(tmp_path / "run", DENSE, run)
    export(tmp_path / "run", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["eos_token_id"] == theirs.eos_token_id == eos["id"] > len(theirs)
    assert config["bos_token_id"] == theirs.bos_token_id
    starts_with_bos = theirs.encode("one")[0] == theirs.bos_token_id
    assert starts_with_bos == (template == "BOS" or bos == "always")
    assert "llama.cpp" not in (tmp_path / "out" / "README.md").read_text()


def test_readers_learn_the_context_and_the_special_tokens(folders, tmp_path):
    """The embedded tokenizer has no BOS; another one's is named."""
    folder = folders["llama_tied"]
    config, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    eos = read_json(folder / "tokenizer_config.json")["eos_token"]
    (eos_id,) = (token["id"] for token in tokenizer["added_tokens"] if token["content"] == eos)
    assert config["max_position_embeddings"] == 64
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, eos_id)
    assert read_json(folder / "generation_config.json") == {"eos_token_id": eos_id}
    save_bpe_tokenizer(tmp_path / "t", ["a word"], vocab_size=260)
    path = tmp_path / "t" / "tokenizer_config.json"
    path.write_text(json.dumps(read_json(path) | {"bos_token": "a"}))
    settings = resolve_settings(DENSE, [*SMALL, f"--tokenizer.path={tmp_path / 't'}"])
    encoder = export_run.load_encoder(settings)
    named = build_hf_config(settings, build_model(settings), encoder, torch.bfloat16)
    assert (
        named["bos_token_id"] == read_json(tmp_path / "t" / "tokenizer.json")["model"]["vocab"]["a"]
    )


def test_a_tokenizer_that_transformers_reads_differently_fails(
    folders, runs, tmp_path, monkeypatch
):
    texts = ["def f(x):", "a word"]
    check = partial(check_tokenizer, folders["llama_tied"], bos_id=None)
    tokenizer = Tokenizer.from_file(str(folders["llama_tied"] / "tokenizer.json"))
    rows = [tokenizer.encode(text).ids for text in texts]
    check(texts, rows)
    for wrong in (rows[::-1], [rows[0], rows[1][:-1]], [rows[0], [*rows[1], 0]]):
        with pytest.raises(ValueError, match="transformers tokenizes text differently than"):
            check(texts, wrong)
    seen = []
    monkeypatch.setattr(
        export_run,
        "check_tokenizer",
        lambda folder, texts, rows, bos_id: seen.append((texts, rows)),
    )
    export(runs["llama_tied"], tmp_path / "out")
    ((texts, rows),) = seen
    assert len(texts) == 4 and min(map(len, texts)) > 4000
    assert rows == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.parametrize("verify", ["logits", "keys", "none"])
def test_the_written_files_are_read_back_unless_told_otherwise(runs, tmp_path, monkeypatch, verify):
    """The index has lost a tensor, which is nothing to the logits."""

    def write(folder: Path, *rest) -> None:
        write_weights(folder, *rest)
        index = read_json(folder / INDEX_NAME)
        del index["weight_map"]["model.norm.weight"]
        (folder / INDEX_NAME).write_text(json.dumps(index))

    monkeypatch.setattr(exporter, "write_weights", write)
    is_read = verify != "none"
    with pytest.raises(ValueError, match="differs from the plan") if is_read else nullcontext():
        export(runs["llama_tied"], tmp_path / "out", verify=verify)
    assert (tmp_path / "out").exists() != is_read


def test_what_is_compared_includes_text_that_the_stock_model_generates(folders):
    """Greedily, from half of the first row, as choosing again and again without the cache gives."""
    row = torch.randint(0, 8192, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    whole, (generated, logits) = _run_stock_model(folders["qwen3_ntp"], [row], depth=3)
    assert whole[0].tolist() == row and whole[1].shape == (64, 8192)
    model, tokens = load_stock_model(folders["qwen3_ntp"], depth=3), row[:32]
    with torch.no_grad():
        for step in range(32):
            expected = model(torch.tensor([tokens])).logits[0, -1]
            assert torch.allclose(logits[step], expected, atol=1e-4)
            tokens.append(int(expected.argmax()))
    assert generated.tolist() == tokens[:-1]


def test_the_router_gap_is_that_between_the_last_expert_chosen_and_the_first_not(tmp_path):
    """Gates of zero score every expert 1/2: the selection is by the bias alone. 2 of 8 experts."""
    state = save_run(tmp_path, MOE, SMALL_MOE)
    gaps = {1: 0.25, 2: 0.0625}
    for layer, gap in gaps.items():
        bias = torch.tensor([0.0, 0.5, 0.0, 0.5 - gap, -0.5, 1.0, -0.25, -1.0])
        state[f"layers.{layer}.moe.expert_bias_E"] = bias
        gate = f"layers.{layer}.moe.router.gate.weight"
        state[gate] = torch.zeros_like(state[gate])
    save_checkpoint(tmp_path, state, step=4)
    checkpoint = find_checkpoint(tmp_path / "checkpoint", 4)
    spec = build_model(resolve_settings(MOE, SMALL_MOE))
    entries, _ = plan_export(checkpoint, spec, torch.bfloat16)
    for depth, gap in ((2, gaps[1]), (3, gaps[2])):
        ours = Reference(build_float32_config(spec.model), checkpoint, entries, depth)
        logits_BLV, gap_BL = ours(torch.tensor([[5, 3, 2, 4]]))
        assert logits_BLV.shape == (1, 4, 8192)
        assert gap_BL.tolist() == [[gap] * 4]


# What must not pass: (model, file, edit of its content).
FAULTS = {
    "rope_base": ("llama_tied", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}),
    "norm_epsilon": ("qwen3_ntp", {"rms_norm_eps": 1e-2}),
    "half_rotation": ("glm4_moe", {"partial_rotary_factor": 0.5, "rope_parameters": None}),
    "routing_scale": ("glm4_moe", {"routed_scaling_factor": 1.1}),
    "top_k": ("glm4_moe", {"num_experts_per_tok": 3}),
}


def compare(run: Path, folder: Path, depth: int = 3):
    request = ExportRequest(run=run, output=folder.with_name("unwritten"))
    spec = build_model(request.load_settings())
    checkpoint = find_checkpoint(run / "checkpoint", None)
    entries, _ = plan_export(checkpoint, spec, torch.bfloat16)
    build_ours = partial(Reference, build_float32_config(spec.model), checkpoint, entries, depth)
    rows = torch.randint(0, 8192, (1, 64), generator=torch.Generator().manual_seed(0)).tolist()
    return compare_logits(folder, build_ours, rows, depth)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_config_fails_the_comparison(folders, runs, tmp_path, fault):
    name, edit = FAULTS[fault]
    folder = shutil.copytree(folders[name], tmp_path / "edited")
    config = read_json(folder / "config.json") | edit
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="differ from our model's by"):
        compare(runs[name], folder)


@pytest.mark.parametrize("lost", ["model.norm.weight", "model.layers.1.mlp.gate.weight"])
def test_a_tensor_that_transformers_misses_is_an_error(folders, runs, tmp_path, lost):
    folder = shutil.copytree(folders["glm4_moe"], tmp_path / "edited")
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes().replace(lost.encode(), lost.replace("m", "x").encode()))
    with pytest.raises(ValueError, match="transformers reports missing_keys"):
        compare(runs["glm4_moe"], folder)


def test_a_large_model_is_compared_at_truncated_depth(folders, runs):
    result = compare(runs["glm4_moe"], folders["glm4_moe"], depth=2)
    assert result.num_positions > 60 and result.max_difference < 1e-4
