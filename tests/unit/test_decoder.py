"""The NITP decoder is called as TorchTitan's Decoder is."""

import copy

import pytest
import torch

from nitp import NITPConfig
from nitp.decoder import NITPDecoder, NITPOutput, nitp_decoder_class
from recipes.models.decoder import TyingQwen3Model, build_model_config
from recipes.models.shapes import DecoderShape
from recipes.platform.cpu import build_float32_config

# isort: split

from torchtitan.config import derive

SHAPE = DecoderShape(
    vocab_size=64, dim=16, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=24
)  # fmt: skip
TOKENS = torch.randint(64, (1, 16), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.cat([torch.arange(7), torch.arange(9)])[None]
POSITIONS = 2 * DOCUMENTS
"""Two documents whose tokens stand farther apart than without positions."""


@pytest.fixture(scope="module")
def decoders() -> tuple[TyingQwen3Model, NITPDecoder]:
    """(plain, with NITP), of equal weights."""
    plain = build_float32_config(build_model_config(SHAPE))
    config = derive(
        plain,
        nitp_decoder_class(TyingQwen3Model).Config,
        nitp=NITPConfig(target_layer=1),
        nitp_projector=None,
    )
    models = plain.build(), config.build()
    for model in models:
        torch.manual_seed(0)
        model.init_states()
    return models


CALLS = {
    "tokens": lambda model, masks: model(TOKENS, attention_masks=masks),
    "tokens_positions": lambda model, masks: model(TOKENS, POSITIONS, attention_masks=masks),
    "all_by_position": lambda model, masks: model(TOKENS, POSITIONS, masks),
    "all_by_name": lambda model, masks: model(
        tokens=TOKENS, positions=POSITIONS, attention_masks=masks
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_those_of_torchtitans_decoder_in_its_order(decoders, name):
    plain, nitp = decoders
    with torch.no_grad():
        logits, others = (
            CALLS[name](model, model.get_attention_masks(DOCUMENTS)) for model in decoders
        )
        without_positions = plain(TOKENS, attention_masks=plain.get_attention_masks(DOCUMENTS))
    assert torch.equal(logits, others)
    if name != "tokens":
        assert not torch.equal(logits, without_positions), "positions must matter"


@pytest.mark.parametrize("name", [name for name in CALLS if name != "tokens"])
def test_with_pair_weights_too(decoders, name):
    plain, nitp = decoders
    weight = torch.rand(TOKENS.shape)
    masks = nitp.get_attention_masks(DOCUMENTS)

    def with_weights(*args, **kwargs):
        return nitp(*args, pair_weight_BL=weight, **kwargs)

    with torch.no_grad():
        nitp._skip_lm_head = plain._skip_lm_head = True
        out = NITPOutput(*CALLS[name](with_weights, masks))
        expected = CALLS[name](plain, masks)
        nitp._skip_lm_head = plain._skip_lm_head = False
    assert torch.equal(out.h_BLD, expected)
    assert out.positions_BL is POSITIONS and out.pair_weight_BL is weight


def test_only_where_there_is_no_embedding_is_the_second_argument_the_target(decoders):
    """As the last stage of a pipeline gets it from the one before."""
    stage = copy.deepcopy(decoders[1])
    stage.tok_embeddings, stage._skip_lm_head = None, True
    del stage.layers["0"], stage.layers["1"]
    h, z = torch.rand(2, 1, 16, SHAPE.dim)
    masks = stage.get_attention_masks(DOCUMENTS)
    weight = torch.rand(TOKENS.shape)
    with torch.no_grad():
        out = NITPOutput(
            *stage(h, z, positions=POSITIONS, attention_masks=masks, pair_weight_BL=weight)
        )
        expected = stage.norm(stage.layers["2"](h, masks, POSITIONS))
    assert out.z_BLD is z and out.positions_BL is POSITIONS
    assert torch.equal(out.h_BLD, expected)
