"""with_nitp: the one point where NITP meets a TorchTitan training configuration."""

from torchtitan.config import derive
from torchtitan.trainer import Trainer

from nitp.config import NITPConfig
from nitp.parts import fit_parts
from nitp.trainer import NITPTrainer


def with_nitp(trainer_config: Trainer.Config, nitp: NITPConfig) -> NITPTrainer.Config:
    """A training configuration that adds NITP to `trainer_config`, which stays as it is.

    `trainer_config` must train a TorchTitan `Decoder` with ChunkedLossWrapper over cross entropy
    (TorchTitan's usual loss). Its metrics, validator and checkpoint must be TorchTitan's classes,
    or subclasses of NITP's, which are kept. With `nitp.enable = false` or `nitp.weight = 0` all of
    it is kept: the next-token baseline, bit for bit.

    The result's field `nitp` has the options, on TorchTitan's command line too (`--nitp.weight`);
    `geometry` what a run with NITP measures of its states.

    Raises ValueError, naming the field, for anything else.
    """
    if type(trainer_config) is not Trainer.Config:
        raise ValueError(
            f"with_nitp takes a torchtitan Trainer.Config, not "
            f"{type(trainer_config).__qualname__}. Apply it once, to the plain configuration."
        )
    return derive(trainer_config, NITPTrainer.Config, nitp=nitp, **fit_parts(trainer_config, nitp))
