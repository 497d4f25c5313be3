"""What to export. Free of torch: what is refused here costs a second."""

import os
from dataclasses import dataclass
from pathlib import Path

from recipes.config.options import ExportDtype, ExportOptions, ExportVerify
from recipes.config.rules import check_settings, check_verify
from recipes.config.settings import Settings, resolve_settings
from recipes.data.inputs import check_recorded_tokenizer
from recipes.data.tokenizer import check_tokenizer
from recipes.export.record import read_source
from recipes.run.folder import check_is_writable


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportRequest:
    """What to export, where to, and how; the defaults are those of the `[export]` table."""

    run: Path
    """A run directory: config.toml and the checkpoint folder."""

    output: Path
    """The folder to write; must not exist, unless it is this very export."""

    step: int | None = None
    """None is the latest complete checkpoint."""

    dtype: ExportDtype = ExportOptions.dtype
    verify: ExportVerify = ExportOptions.verify

    def load_settings(self) -> Settings:
        """The run's own settings. Raises ValueError for what can be refused without torch."""
        if os.path.lexists(self.output) and read_source(self.output) is None:
            raise ValueError(
                f"--output ({self.output}) exists and is no complete export. Remove it, or name "
                "another."
            )
        check_is_writable(str(self.output.parent), "--output")
        settings = load_run_settings(self.run)
        check_verify(self.verify)
        return settings


def load_run_settings(run: Path) -> Settings:
    """The settings of a run directory, whose tokenizer is on this machine, and as the run began
    with it. Raises ValueError."""
    path = run / "config.toml"
    if not path.is_file():
        raise ValueError(
            f"--run ({run}) is not a run directory: it has no config.toml. Give the "
            "job.dump_folder of a run."
        )
    settings = resolve_settings(str(path), [])
    check_settings(settings)
    tokenizer = settings.values["tokenizer"]["path"]
    check_tokenizer(tokenizer)
    check_recorded_tokenizer(run, tokenizer)
    return settings
