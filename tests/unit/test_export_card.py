"""The model card says what trained the weights, and nothing that did not."""

import pytest

from nitp.config import NITPConfig
from recipes.export.card import Provenance, format_card
from recipes.run.origin import Origin

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
    "max_position_embeddings": 64,
}  # fmt: skip


def card(nitp: NITPConfig, *, step: int = 100, origin: Origin | None = None) -> str:
    provenance = Provenance(
        model="nitp debug", step=step, num_tokens=1, nitp=nitp, origin=origin, config_sha256="0",
        has_embedded_tokenizer=False,
    )  # fmt: skip
    return format_card(provenance, CONFIG, num_params=7, verification=[])


@pytest.mark.parametrize(
    ("start", "step", "steps"),
    [
        (0, 100, "1 to 100"),
        (1, 100, "1 to 100"),
        (40, 1000, "40 to 1,000"),
        (100, 100, "100 to 100"),
    ],
)
def test_nitp_is_named_with_lambda_layer_and_steps(start, step, steps):
    text = card(NITPConfig(target_layer=5, weight=0.8, start_step=start), step=step)
    assert "trained by next-token prediction and Next Implicit Token Prediction" in text
    assert f"NITP trained steps {steps}: lambda = 0.8, target layer k = 5." in text
    assert "The training-only projector is not part" in text and "| weight | 0.8 |" in text


@pytest.mark.parametrize(
    ("nitp", "reason"),
    [
        (NITPConfig(target_layer=2, weight=0.0), "NITP did not train it."),
        (NITPConfig(target_layer=2, enable=False), "NITP did not train it."),
        (NITPConfig(target_layer=2, start_step=101),
         "NITP was to begin at step 101 and has trained none of these steps."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("origin", [None, Origin(source="Llama")])
def test_nitp_that_did_not_train_is_not_said_to(nitp, reason, origin):
    text = card(nitp, origin=origin)
    assert reason in text and "trained by next-token prediction" in text
    assert "Implicit" not in text and "projector" not in text and "NITP settings" not in text


def test_weights_that_were_continued_are_named_and_nothing_is_said_of_their_training():
    text = card(NITPConfig(target_layer=2), origin=Origin(source="Llama"))
    assert "from the weights of `Llama`, of whose training nothing is recorded here." in text
    assert "Base language model" not in text


def test_steps_of_the_run_before_are_not_counted_as_this_ones():
    origin = Origin(source="baseline/step-60", first_step=61)
    assert "NITP trained steps 61 to 100: " in card(NITPConfig(target_layer=2), origin=origin)


def test_an_ablation_without_target_or_projector_has_none_in_its_card():
    nitp = NITPConfig(target_layer=2, loss="token_cosine", projector="none")
    text = card(nitp)
    assert "lambda = 0.8." in text and "target layer k" not in text and "training-only" not in text
