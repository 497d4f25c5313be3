"""Names and config.json of the stock architectures."""

import pytest
import torch

from recipes.models.decoder import build_model_config
from recipes.models.shapes import FLAVORS, DecoderShape

# isort: split

from nitp.checkpoint import without_projector
from recipes.models.hf.config import build_config, build_generation_config, keep_original
from recipes.models.hf.mapping import DecoderStateDictAdapter, model_shapes, plan_entries

SMALL = {
    "vocab_size": 96, "dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 8, "ffn_dim": 48,
}  # fmt: skip
SHAPES = {
    "llama": DecoderShape(**SMALL),
    "tied": DecoderShape(**SMALL, tie_embeddings=True),
    "qwen3": DecoderShape(**SMALL, qk_norm=True),
    "glm4_moe": DecoderShape(
        **SMALL, num_dense_layers=1, num_experts=4, num_shared_experts=2, top_k=2, expert_dim=16
    ),
}


def build(shape: DecoderShape):
    model = build_model_config(shape)
    return model, DecoderStateDictAdapter(model, None)


@pytest.mark.parametrize("name", SHAPES)
def test_to_hugging_face_and_back_is_the_same_state(name):
    model, adapter = build(SHAPES[name])
    state = {key: torch.randn(shape) for key, shape in model_shapes(model).items()}
    if name == "tied":
        state["lm_head.weight"] = state["tok_embeddings.weight"]
    there = adapter.to_hf(state)
    assert "lm_head.weight" not in there or name != "tied"
    back = adapter.from_hf(there)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("name", SHAPES)
def test_one_tensor_at_a_time_gives_what_all_at_once_give(name):
    model, adapter = build(SHAPES[name])
    shapes = model_shapes(model)
    state = {key: torch.randn(shape) for key, shape in shapes.items()}
    entries = plan_entries(adapter, shapes, torch.bfloat16, is_tied=name == "tied")
    whole = adapter.to_hf(state)
    assert sorted(entry.name for entry in entries) == sorted(whole)
    for entry in entries:
        assert entry.shape == whole[entry.name].shape
        is_bias = entry.name.endswith("e_score_correction_bias")
        assert entry.dtype == (torch.float32 if is_bias else torch.bfloat16)
        alone = adapter.to_hf({entry.source: state[entry.source]})
        assert torch.equal(alone[entry.name], whole[entry.name])


def test_the_projector_reaches_no_adapter():
    model, _ = build(SHAPES["llama"])
    adapter = without_projector(DecoderStateDictAdapter)(model, None)
    assert without_projector(DecoderStateDictAdapter) is type(adapter)
    state = {"norm.weight": torch.ones(32), "nitp_projector.w1.weight": torch.ones(4, 4)}
    assert list(adapter.to_hf(state)) == ["model.norm.weight"]


@pytest.mark.parametrize(
    ("direction", "name"),
    [
        ("to_hf", "layers.0.attention.sinks"),
        ("to_hf", "nitp_projector.w1.weight"),
        ("from_hf", "model.layers.0.self_attn.q_proj.bias"),
        ("from_hf", "model.vision.weight"),
    ],
)
def test_a_name_without_a_counterpart_is_an_error(direction, name):
    _, adapter = build(SHAPES["llama"])
    with pytest.raises(ValueError, match=f"no counterpart is known for {name}"):
        getattr(adapter, direction)({name: torch.ones(1)})


def test_rope_is_in_the_form_of_transformers_4_and_of_5():
    for name, shape in SHAPES.items():
        config = build_config(
            build_model_config(shape),
            max_position_embeddings=128,
            dtype=torch.bfloat16,
            bos_token_id=None,
            eos_token_id=0,
        )
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6, name
        if name == "glm4_moe":  # its default rotates half of each head
            assert config["partial_rotary_factor"] == 1.0
            assert config["rope_parameters"]["partial_rotary_factor"] == 1.0
        assert build_generation_config(config) == {"eos_token_id": 0}


def test_the_9b_model_is_described_as_the_paper_has_it():
    config = build_config(
        build_model_config(FLAVORS["9b_a1b"]),
        max_position_embeddings=8192,
        dtype=torch.bfloat16,
        bos_token_id=None,
        eos_token_id=151643,
    )
    expected = {
        "architectures": ["Glm4MoeForCausalLM"], "hidden_size": 1280, "num_hidden_layers": 24,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 160,
        "intermediate_size": 10944, "first_k_dense_replace": 1, "n_routed_experts": 144,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 640,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0, "use_qk_norm": False, "attention_bias": False,
        "tie_word_embeddings": False, "max_position_embeddings": 8192, "vocab_size": 152064,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected


def test_layers_that_differ_have_no_stock_architecture():
    model = build_model_config(SHAPES["llama"])
    model.layers[1].attention.rope.theta = 1e4
    with pytest.raises(ValueError, match="layers with different attention"):
        build_config(
            model,
            max_position_embeddings=128,
            dtype=torch.bfloat16,
            bos_token_id=None,
            eos_token_id=0,
        )


# ------------------------------------------------------------- of weights that training continued

ORIGINAL = {
    "_name_or_path": "x/y", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 5,
    "initializer_range": 0.013, "attention_dropout": 0.1, "use_cache": False, "pretraining_tp": 1,
    "torch_dtype": "float16", "dtype": "float16", "transformers_version": "4.1",
    "rope_scaling": None, "rope_theta": 10_000.0, "layer_types": ["full_attention"] * 3,
}  # fmt: skip


def build_continued(original: dict, *, seq_len: int = 64, bos: int | None, eos: int | None):
    model, _ = build(SHAPES["llama"])
    config = build_config(
        model, max_position_embeddings=seq_len, dtype=torch.bfloat16, bos_token_id=bos,
        eos_token_id=eos,
    )  # fmt: skip
    return keep_original(config, original)


def test_what_training_did_not_change_is_that_of_the_original():
    config = build_continued(ORIGINAL, bos=None, eos=2)
    names = (
        "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
        "initializer_range", "attention_dropout", "use_cache", "pretraining_tp",
    )  # fmt: skip
    for key in names:
        assert config[key] == ORIGINAL[key], key
    assert config["torch_dtype"] == "bfloat16" and config["hidden_size"] == 32
    for key in ("_name_or_path", "dtype", "transformers_version", "rope_scaling", "layer_types"):
        assert key not in config


def test_what_training_changed_is_trainings():
    config = build_continued(ORIGINAL, seq_len=16384, bos=3, eos=4)
    assert config["max_position_embeddings"] == 16384
    assert (config["bos_token_id"], config["eos_token_id"]) == (3, 4)
    without = build_continued({"model_type": "llama"}, bos=None, eos=4)
    assert without["max_position_embeddings"] == 64 and without["eos_token_id"] == 4


def test_generation_is_as_the_original_says_with_the_tokens_of_training():
    config = build_continued(ORIGINAL, bos=None, eos=2)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 5}
    assert build_generation_config(config) == ids
    original = {"temperature": 0.6, "eos_token_id": [2, 7, 8]}
    assert build_generation_config(config, original) == ids | original
    other = build_continued(ORIGINAL, bos=None, eos=4)
    assert build_generation_config(other, original)["eos_token_id"] == 4
