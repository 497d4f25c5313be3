"""A run's checkpoint in its own model."""

from typing import Any

import torch

from recipes.platform.cpu import build_float32_config  # first: torchtitan resolves its device once

# isort: split

from torchtitan.models.common.decoder import Decoder

from recipes.build import build_model
from recipes.config.settings import Settings
from recipes.export.checkpoint import Checkpoint
from recipes.export.reference import load_decoder
from recipes.measure.parts import Parts, Subject
from recipes.measure.rows import Batch, batch_rows
from recipes.models.hf.mapping import model_shapes


def build_decoder_config(settings: Settings) -> Decoder.Config:
    """The backbone, as it computes in float32. Raises ValueError."""
    model = build_model(settings).model
    assert isinstance(model, Decoder.Config)
    return build_float32_config(model)


def load_run(config: Decoder.Config, checkpoint: Checkpoint, device: torch.device) -> Subject:
    """Raises ValueError if the checkpoint does not fit, OSError if it cannot be read."""
    checkpoint.check_model(model_shapes(config))
    model: Any = load_decoder(config, checkpoint).to(device)

    def forward(batch: Batch) -> Any:
        masks = model.get_attention_masks(positions=batch.positions_BL)
        return model(batch.tokens_BL, positions=batch.positions_BL, attention_masks=masks)

    return Subject(
        model=model,
        parts=Parts(head=model.lm_head, norm=model.norm, layers=[*model.layers.values()]),
        vocab_size=config.vocab_size,
        batches=batch_rows,
        forward=forward,
        attention="packed rows, masked by position as in training",
    )
