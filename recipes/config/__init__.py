"""TOML files and command line -> checked settings -> TorchTitan's typed configuration.

Free of torch, but for `degrees` and `float8`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipes.config.rules import check_files, check_settings
from recipes.config.settings import Settings, resolve_settings

if TYPE_CHECKING:
    from recipes.run.trainer import RunTrainer


def load_config(
    path: str | None, overrides: Sequence[str] = (), *more: Sequence[str]
) -> "RunTrainer.Config":
    """The trainer configuration of a TOML file with `--table.key value` overrides.

    more: further overrides, each list more specific than the one before.

    Raises ValueError, one line, for a user's mistake. Without an accelerator the result runs on
    CPU; import recipes.platform before anything of torchtitan there.
    """
    settings = load_settings(path, overrides, *more)
    from recipes.build import build_config  # it needs torch; what settings refuse does not

    return build_config(settings)


def load_settings(
    path: str | None, overrides: Sequence[str] = (), *more: Sequence[str]
) -> Settings:
    """Resolved and checked settings, as `load_config`'s. Raises ValueError, one line, for a user's
    mistake."""
    settings = resolve_settings(path, overrides, *more)
    check_settings(settings)
    check_files(settings)
    return settings
