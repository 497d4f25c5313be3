"""Export a run's checkpoint: python scripts/export.py --run DIR --output DIR [--step N]
[--dtype bfloat16] [--verify logits]; installed, python -m recipes.export ...

Reads the run's config.toml and checkpoint, and writes a Hugging Face folder. Exit code 0 done, 1
failure, 2 bad usage; what went wrong is one line on stderr that starts with `error: `.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from recipes.command import ArgumentParser, folder, path, report_error
from recipes.config.options import ExportDtype, ExportVerify
from recipes.export.request import ExportRequest


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        request = parse_request(arguments)
        settings = request.load_settings()
        # Before this line nothing needs torch.
        from recipes.export.run import prepare_export

        export = prepare_export(request, settings)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)
    try:
        print(export() or f"exported already: {request.output}")
    except (ValueError, OSError) as error:
        return report_error(error, 1)
    return 0


def parse_request(arguments: Sequence[str]) -> ExportRequest:
    """Raises ValueError for arguments that are none; prints and exits for --help."""
    default = ExportRequest(run=Path(), output=Path())
    parser = ArgumentParser(prog="export.py", description=__doc__.partition(":")[0])
    add = parser.add_argument
    add("--run", type=folder, required=True, help="run directory (job.dump_folder)")
    add("--output", type=path, required=True,
        help="folder to write; must not exist, unless it is this very export")  # fmt: skip
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
