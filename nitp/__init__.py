"""Next Implicit Token Prediction for TorchTitan.

from nitp import NITPConfig, with_nitp
trainer_config = with_nitp(trainer_config, NITPConfig(target_layer=5, weight=0.8))
"""

from typing import TYPE_CHECKING

from nitp.config import NITPConfig

if TYPE_CHECKING:
    from nitp.converter import with_nitp

__all__ = ["NITPConfig", "with_nitp"]


def __getattr__(name: str) -> object:
    # with_nitp needs torch and torchtitan; NITPConfig must be checkable without waiting for them.
    if name == "with_nitp":
        from nitp.converter import with_nitp

        return with_nitp
    raise AttributeError(f"module 'nitp' has no attribute {name!r}")
