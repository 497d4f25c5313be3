"""A text's vector is what its definition says, whatever stands beside it in a batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import (
    AutoTokenizer,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.evaluation import reference
from tests.evaluation.mteb_data import draw_texts
from tests.integration.stock_models import (
    CONTEXT,
    FAMILIES,
    NUM_LAYERS,
    TEXT,
    VOCAB_SIZE,
    build_opt,
    save_model,
)

pytestmark = pytest.mark.slow  # importing mteb takes seconds

# Uneven, without tokens, and longer than the model's context.
TEXTS = ["", "to be", f"{TEXT} " * 4, "question", TEXT, "", *draw_texts(6, seed=0)]

TOLERANCE = 1e-5
"""Of the entries of vectors of length 1: float32 through three layers measures 1e-6 at most.
Padding that counts, or states before the final norm, give 1e-2 and more."""

_MOE = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_experts_per_tok": 2, "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}  # fmt: skip


def build_qwen3_moe() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_MOE, num_experts=4))


def build_glm4_moe() -> PreTrainedModel:
    return Glm4MoeForCausalLM(
        Glm4MoeConfig(**_MOE, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1)
    )


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: build for name, (build, _) in FAMILIES.items()},
    "qwen3_moe": build_qwen3_moe,
    "glm4_moe": build_glm4_moe,
    "opt": build_opt,
}


def load(folder: Path, batch_size: int = 4) -> Any:
    from recipes.evaluation.hidden_states import HiddenStateEncoder

    return HiddenStateEncoder(folder, device="cpu", batch_size=batch_size)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama") / "model", BUILDERS["llama"])


@pytest.mark.parametrize("family", BUILDERS)
def test_vector_is_the_mean_of_what_the_unembedding_is_given(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", BUILDERS[family])
    # Padding needs no token.
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    expected_ND = reference.embed(folder, TEXTS, CONTEXT)
    found_ND = load(folder).embed(TEXTS)
    np.testing.assert_allclose(found_ND, expected_ND, rtol=0, atol=TOLERANCE)
    assert found_ND.dtype == np.float32


def test_text_without_tokens_gives_zeros(llama: Path) -> None:
    assert np.array_equal(load(llama).embed(["", ""]), np.zeros((2, 32)))


def test_vectors_do_not_depend_on_the_batch(llama: Path) -> None:
    alone_ND, together_ND = (load(llama, size).embed(TEXTS) for size in (1, len(TEXTS)))
    np.testing.assert_allclose(alone_ND, together_ND, rtol=0, atol=TOLERANCE)


def test_special_tokens_of_the_tokenizer_count(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", BUILDERS["llama"])
    without_ND = load(folder).embed(TEXTS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = tokenizer.id_to_token(0)
    own = tokenizer.post_processor
    added = processors.TemplateProcessing(single=f"{eos} $A", special_tokens=[(eos, 0)])
    tokenizer.post_processor = processors.Sequence([own, added]) if own else added
    tokenizer.save(str(folder / "tokenizer.json"))
    expected_ND = reference.embed(folder, TEXTS, CONTEXT)
    found_ND = load(folder).embed(TEXTS)
    np.testing.assert_allclose(found_ND, expected_ND, rtol=0, atol=TOLERANCE)
    # Also the text without any other token has one.
    assert np.abs(found_ND - without_ND).max(axis=1).min() > 1e-2


def test_model_computes_in_the_dtype_of_its_files(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", lambda: BUILDERS["llama"]().to(torch.bfloat16))
    encoder = load(folder)
    assert encoder.model.dtype == torch.bfloat16
    found_ND = encoder.embed(TEXTS)
    assert found_ND.dtype == np.float32
    # In bfloat16 a length would be 1 to 0.004 only.
    expected_N = [float(bool(text)) for text in TEXTS]
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), expected_N, rtol=0, atol=1e-6)


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def build() -> PreTrainedModel:
        model = BUILDERS["llama"]()
        model.get_input_embeddings().weight.data[:] = torch.inf
        return model

    folder = save_model(tmp_path / "model", build)
    with pytest.raises(ValueError, match="^[^\n]*model: hidden states are not finite in [^\n]*$"):
        load(folder).embed(TEXTS)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    def build() -> PreTrainedModel:
        model = BUILDERS["llama"]()
        model.resize_token_embeddings(100)
        return model

    folder = save_model(tmp_path / "model", build)
    with pytest.raises(ValueError, match="^[^\n]* has only 100 embeddings[^\n]*$"):
        load(folder).embed(TEXTS)


@pytest.mark.parametrize("fault", ["no weights", "a weight missing", "no model"])
def test_folder_that_cannot_be_loaded_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", BUILDERS["llama"])
    message = "cannot be loaded by transformers: "
    if fault == "no weights":
        (folder / "model.safetensors").unlink()
    elif fault == "no model":
        (folder / "config.json").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        config["num_hidden_layers"] += 1
        (folder / "config.json").write_text(json.dumps(config))
        message = "transformers reports missing_keys: layers.3"
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        load(folder)
