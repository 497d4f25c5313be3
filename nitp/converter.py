"""with_nitp: the one point where NITP meets a TorchTitan training configuration."""

from typing import Any

from torchtitan.config import derive
from torchtitan.trainer import Trainer

from nitp.config import NITPConfig
from nitp.extend import extended_config
from nitp.parts import fit_parts
from nitp.trainer import NITPTrainer


def with_nitp(trainer_config: Trainer.Config, nitp: NITPConfig) -> Trainer.Config:
    """A training configuration that adds NITP to `trainer_config`, which stays as it is.

    `trainer_config` is that of TorchTitan's Trainer or of any subclass, and trains a TorchTitan
    `Decoder` with cross entropy, in chunks or whole (NITP then joins it in TorchTitan's default
    number of chunks, which changes its value by rounding only). Trainer, metrics processor,
    validator and checkpoint manager become subclasses of the given ones: NITP's methods run first
    and hand on to theirs. Where `trainer_config` has NITP already, `nitp` replaces its options.

    With `nitp.enable = false` or `nitp.weight = 0` all of it is kept: the next-token baseline, bit
    for bit.

    The result's field `nitp` has the options, on TorchTitan's command line too (`--nitp.weight`);
    `geometry` what a run with NITP measures of its states.

    Raises ValueError, naming the field, for anything else.
    """
    if not isinstance(trainer_config, Trainer.Config):
        raise ValueError(
            f"with_nitp takes the configuration of a torchtitan Trainer or of a subclass, not "
            f"{type(trainer_config).__qualname__}. Pass that of the run."
        )
    given: Any = type(trainer_config)
    config_class = extended_config(NITPTrainer, given)
    parts = fit_parts(trainer_config, nitp, rebuild_projector=True)
    return derive(trainer_config, config_class, nitp=nitp, **parts)
