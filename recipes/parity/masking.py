"""Labels that do not count, as in fine-tuning: the beginning of each row is a prompt."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.config import derive
from torchtitan.trainer import Trainer

from recipes.data.loader import PackedDataLoader

ConfigT = TypeVar("ConfigT", bound=Trainer.Config)


class PromptMaskedDataLoader(PackedDataLoader):
    """The rows of PackedDataLoader. Up to half of a row's labels are ignored; how many is a
    function of its first token, so it differs from row to row and not between layouts."""

    @dataclass(kw_only=True, slots=True)
    class Config(PackedDataLoader.Config):
        pass

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for inputs, labels_BL in super().__iter__():
            length = labels_BL.shape[1]
            prompt_B1 = inputs["input"][:, :1] % (length // 2)
            yield inputs, labels_BL.masked_fill(torch.arange(length) < prompt_B1, IGNORE_INDEX)


def mask_prompts(config: ConfigT) -> ConfigT:
    """A copy of `config` whose training and validation data have masked labels."""
    loader, validator = PromptMaskedDataLoader.Config, config.validator
    return replace(
        config,
        dataloader=derive(config.dataloader, loader),
        validator=replace(validator, dataloader=derive(validator.dataloader, loader)),
    )
