"""Export a run's checkpoint: python scripts/export.py --run DIR --output DIR [--step N]
[--dtype bfloat16] [--verify logits]

Reads the run's config.toml and checkpoint, and writes a Hugging Face folder (nitp.export). Exit
code 0 done, 1 failure, 2 bad usage; what went wrong is one line on stderr that starts with
`error: `.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, get_args

from recipes.checks import check_settings, check_verify
from recipes.command import report_error
from recipes.data.tokenizer import check_tokenizer
from recipes.options import ExportDtype, ExportOptions, ExportVerify
from recipes.settings import Settings, resolve_settings


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportRequest:
    """What to export, where to, and how; the defaults are those of the `[export]` table."""

    run: Path
    """A run directory: config.toml and the checkpoint folder."""

    output: Path
    """The folder to write; must not exist."""

    step: int | None = None
    """None is the latest complete checkpoint."""

    dtype: ExportDtype = ExportOptions.dtype
    verify: ExportVerify = ExportOptions.verify

    def load_settings(self) -> Settings:
        """The run's own settings. Raises ValueError for what can be refused without torch."""
        path = self.run / "config.toml"
        if not path.is_file():
            raise ValueError(f"{self.run} is not a run directory: it has no config.toml.")
        if os.path.lexists(self.output):
            raise ValueError(f"{self.output} exists. Remove it, or name another output.")
        settings = resolve_settings(str(path), [])
        check_settings(settings)
        check_tokenizer(settings.values["tokenizer"]["path"])
        check_verify(self.verify)
        return settings


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        request = parse_request(arguments)
        settings = request.load_settings()
        # Before this line nothing needs torch.
        from recipes.export_run import prepare_export

        export = prepare_export(request, settings)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)
    try:
        print(export())
    except (ValueError, OSError) as error:
        return report_error(error, 1)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See --help.")


def parse_request(arguments: Sequence[str]) -> ExportRequest:
    """Raises ValueError for arguments that are none; prints and exits for --help."""
    default = ExportRequest(run=Path(), output=Path())
    parser = _Parser(prog="export.py", description=__doc__.partition(":")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run directory (job.dump_folder)")
    add("--output", type=Path, required=True, help="folder to write; must not exist")
    add("--step", default="latest", help='"latest" (the default) or a number')
    add("--dtype", choices=get_args(ExportDtype), default=default.dtype, help="of the weights")
    add("--verify", choices=get_args(ExportVerify), default=default.verify,
        help="logits: files, and float32 logits of stock transformers against our model; "
             "keys: files only; none")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.step != "latest" and not given.step.isdecimal():
        raise ValueError(f'--step ({given.step}) must be "latest" or a number.')
    return ExportRequest(
        run=given.run,
        output=given.output,
        step=None if given.step == "latest" else int(given.step),
        dtype=given.dtype,
        verify=given.verify,
    )
