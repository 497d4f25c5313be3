"""Hugging Face weights: the files that transformers reads, the defaults that it takes, or one line.

Transformers itself says what is right.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import recipes.platform  # noqa: F401  first: torchtitan resolves its device once

# isort: split

from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.models.qwen3.model import Qwen3Model

from recipes.build import build_model
from recipes.config import load_config
from recipes.config.settings import resolve_settings
from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.models.hf.mapping import DecoderStateDictAdapter
from recipes.models.hf.reading import check_hf_folder, complete_config
from recipes.models.hf.weights import (
    INDEX_NAME,
    SINGLE_NAME,
    as_transformers_reads,
    find_weight_files,
)

DIM = 32
OVERRIDES = [
    "--model.num_layers=2", f"--model.dim={DIM}", "--model.num_heads=2", "--model.num_kv_heads=1",
    "--model.head_dim=16", "--model.ffn_dim=64", "--model.vocab_size=300",
    "--nitp.target_layer=1", "--model.norm_eps=1e-6", "--model.rope_theta=10000",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Qwen3Model.Config:
    spec = build_model(resolve_settings("train_configs/debug.toml", OVERRIDES))
    assert isinstance(spec.model, Qwen3Model.Config)
    return spec.model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards and their index."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=DIM, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    assert len([*folder.glob("*.safetensors")]) == 3
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "llama")


def merge(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def load_as_we_do(folder: Path, adapter: type, model: Qwen3Model.Config) -> dict[str, torch.Tensor]:
    reader = as_transformers_reads(adapter)(model, None).get_hf_storage_reader(str(folder))
    entries = reader.read_metadata().state_dict_metadata
    state = {name: torch.zeros(entry.size) for name, entry in entries.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


# What lies beside the weights, and is not among them.
LEFTOVERS = ("model-00001-of-00005.safetensors", "z.safetensors", "consolidated.safetensors")


@pytest.mark.parametrize("adapter", [DecoderStateDictAdapter, Llama3StateDictAdapter])
@pytest.mark.parametrize("is_sharded", [True, False])
@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_leftovers_beside_the_weights_are_never_read(
    folder: Path, model: Qwen3Model.Config, adapter: type, is_sharded: bool, leftover: str
) -> None:
    state = merge(folder)
    if not is_sharded:
        for path in [*folder.glob("*.safetensors"), folder / INDEX_NAME]:
            path.unlink()
        save_file(state, folder / SINGLE_NAME, metadata={"format": "pt"})
    halves = {name: value / 2 for name, value in state.items()}
    save_file(halves, folder / leftover, metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    check_hf_folder(folder, model)
    ours = load_as_we_do(folder, adapter, model)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_an_index_of_the_single_file_is_no_contradiction(
    folder: Path, model: Qwen3Model.Config
) -> None:
    state = merge(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_file(state, folder / SINGLE_NAME, metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(state, SINGLE_NAME)}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    assert find_weight_files(folder) == [folder / SINGLE_NAME]
    check_hf_folder(folder, model)


def test_what_older_files_have_of_rope_is_ignored(folder: Path, model: Qwen3Model.Config) -> None:
    """Llama 2's; transformers ignores it too."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_shard(folder, lambda state: state | {name: torch.ones(8)})
    edit_json(folder / INDEX_NAME, lambda index: index["weight_map"].update({name: first(folder)}))
    check_hf_folder(folder, model)


def first(folder: Path) -> str:
    return min(path.name for path in folder.glob("*.safetensors"))


def edit_shard(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict]) -> None:
    path = folder / first(folder)
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(values))


def edit_index(edit: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / INDEX_NAME, lambda index: edit(index["weight_map"]))


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / first(folder)
    path.write_bytes(path.read_bytes()[:-100])


def quantize(folder: Path) -> None:
    edit_shard(folder, lambda state: {name: value.to(torch.int8) for name, value in state.items()})


FIRST, EMBEDDING = "model-00001-of-00003.safetensors", "model.embed_tokens.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1087968\n"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard missing": (
        lambda folder: (folder / FIRST).unlink(),
        f"{INDEX_NAME} names {FIRST}, which is missing",
    ),
    "shard cut off": (truncate, f"{FIRST} is damaged \\("),
    "shard empty": (write(FIRST, b""), f"{FIRST} is damaged \\("),
    "shard a pointer of Git LFS": (write(FIRST, POINTER), f"{FIRST} is damaged \\("),
    "shard a page of HTML": (write(FIRST, "<html>" * 99), f"{FIRST} is damaged \\("),
    "shard of other tensors": (
        lambda folder: edit_shard(folder, lambda state: {"x": torch.ones(1)}),
        f"places .* in {FIRST}, which does not hold it",
    ),
    "shard with a tensor of another": (
        lambda folder: edit_shard(folder, lambda s: s | {"model.norm.weight": torch.ones(DIM)}),
        f"{FIRST} holds model.norm.weight, which {INDEX_NAME} places in model-0000",
    ),
    "shard with a tensor too many": (
        lambda folder: edit_shard(folder, lambda state: state | {"x": torch.ones(1)}),
        f"{FIRST} holds x, which {INDEX_NAME} places nowhere",
    ),
    "shard quantized": (quantize, "has the dtype I8, a quantized one"),
    "both kinds": (
        lambda folder: save_file({"x": torch.ones(1)}, folder / SINGLE_NAME),
        f"has {INDEX_NAME}, and {SINGLE_NAME}, which is not in it",
    ),
    "shards without index": (
        lambda folder: (folder / INDEX_NAME).unlink(),
        f"has neither {SINGLE_NAME} nor {INDEX_NAME}",
    ),
    "index cut off": (write(INDEX_NAME, '{"weight_map": {'), f"{INDEX_NAME} cannot be read as JS"),
    "index a list": (write(INDEX_NAME, "[]"), f"{INDEX_NAME} is not a JSON object"),
    "index without map": (write(INDEX_NAME, '{"metadata": {}}'), f"{INDEX_NAME} has no weight_map"),
    "index not text": (write(INDEX_NAME, b"\xff\xfe"), f"{INDEX_NAME} cannot be read as JSON"),
    "index to a number": (edit_index(lambda m: m.update(x=3)), "places x in 3, no file name"),
    "index to elsewhere": (
        edit_index(lambda m: m.update({EMBEDDING: f"../{FIRST}"})),
        'embed_tokens.weight in "../model-00001-of-00003.safetensors", no file name',
    ),
    "index without a tensor": (
        edit_index(lambda m: m.pop(EMBEDDING)),
        "holds model.embed_tokens.weight, which .* places nowhere",
    ),
    "index with a tensor too many": (
        edit_index(lambda m: m.update({"lm_head.bias": FIRST})),
        f"places lm_head.bias in {FIRST}, which does not hold it",
    ),
    "config cut off": (
        write("config.json", '{"model_type":'),
        "config.json cannot be read as JSON",
    ),
    "config a string": (write("config.json", '"llama"'), "config.json is not a JSON object"),
    "config a number of heads": (edit_config(num_attention_heads="2"), "num_attention_heads = "),
    "config no heads": (edit_config(num_attention_heads=0, head_dim=None), "num_attention_heads ="),
    "rope scaled, in older words": (
        edit_config(rope_scaling={"type": "linear", "factor": 2.0}),
        'has rope_type = "linear", the model "default"',
    ),
    "rope a word": (edit_config(rope_scaling="linear"), 'config.json: RoPE by layers \\("linear"'),
    "rope by layers": (
        edit_config(rope_parameters={"full_attention": {"rope_theta": 5e5}}),
        "config.json: RoPE by layers",
    ),
    "rope twice": (
        edit_config(rope_theta=5e5),
        "config.json: rope_theta is 500000.0 at the top and 10000.0 in the RoPE parameters",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_loaded_is_one_line_that_names_the_file(
    folder: Path, model: Qwen3Model.Config, damage: str
) -> None:
    apply, message = DAMAGES[damage]
    check_hf_folder(folder, model)
    apply(folder)
    with pytest.raises(ValueError, match=message) as raised:
        check_hf_folder(folder, model)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize("name", ["shard missing", "shard cut off", "index cut off"])
def test_they_are_one_line_for_models_of_torchtitan_too(
    folder: Path, tmp_path: Path, name: str
) -> None:
    tokenizer = tmp_path / "tokenizer"
    save_bpe_tokenizer(tokenizer, ["one two"], vocab_size=270)
    apply, message = DAMAGES[name]
    apply(folder)
    options = [
        "--model.name=llama3", "--model.flavor=debugmodel",
        f"--tokenizer.path={tokenizer}",
        "--checkpoint.initial_load_in_hf", f"--checkpoint.initial_load_path={folder}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=message):
        load_config("train_configs/debug_ntp.toml", options)


@pytest.mark.parametrize("given", [{}, {"hidden_size": 1024, "num_attention_heads": 16}], ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "glm4_moe"])
def test_what_config_json_leaves_out_is_what_transformers_takes(
    kind: str, given: dict, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind, **given}))
    theirs = AutoConfig.from_pretrained(tmp_path)
    ours = complete_config({"model_type": kind, **given})
    for key in ours.keys() - {"architectures", "model_type"}:
        nested = theirs.rope_parameters.get(key)
        expected = nested if nested is not None else getattr(theirs, key, None)
        if key == "head_dim" and expected is None:
            expected = theirs.hidden_size // theirs.num_attention_heads
        assert ours[key] == expected, key


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps", "head_dim", "tie_word_embeddings"])
def test_a_folder_whose_defaults_are_the_model_s_is_accepted(
    folder: Path, model: Qwen3Model.Config, key: str
) -> None:
    def leave_out(config: dict) -> None:
        config.pop(key, None)
        config["rope_parameters"].pop(key, None)

    edit_json(folder / "config.json", leave_out)
    check_hf_folder(folder, model)
    edit_json(folder / "config.json", lambda config: config.pop("architectures"))
    check_hf_folder(folder, model)
