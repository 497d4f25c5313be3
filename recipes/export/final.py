"""The export that `[export]` asks for at the end of a training."""

import os
from pathlib import Path

from recipes.export.run import choose_depth, load_encoder, prepare_export  # first, as there

# isort: split

from torchtitan.config import TORCH_DTYPE_MAP

from recipes.build import build_model
from recipes.config.settings import Settings
from recipes.export.checkpoint import find_checkpoint
from recipes.export.config import build_hf_config
from recipes.export.exporter import Report
from recipes.export.record import check_same, read_source
from recipes.export.request import ExportRequest
from recipes.run.checkpoint_folder import find_steps


def check_model(settings: Settings) -> None:
    """Raise ValueError unless the model that `settings` trains can be exported by them here, to
    where no other export is."""
    options, spec = settings.values["export"], build_model(settings)
    _check_final_output(settings)
    build_hf_config(settings, spec, load_encoder(settings), TORCH_DTYPE_MAP[options["dtype"]])
    if options["verify"] == "logits":
        choose_depth(spec)


def _check_final_output(settings: Settings) -> None:
    """Raise ValueError for a folder where the final export is to be, unless it may be that: before
    hours of training."""
    options, run = settings.values["export"], Path(settings.values["job"]["dump_folder"])
    step = settings.values["training"]["steps"]
    output = _final_output(settings, step)
    if not os.path.lexists(output):
        return
    known = {"step": step, "dtype": options["dtype"], "verify": options["verify"]}
    found = read_source(output) or {}
    check_same(output, found | known, "export.folder")
    if step not in find_steps(run / settings.values["checkpoint"]["folder"]):
        raise ValueError(
            f"export.folder ({output}) has an export of step {step}, which this run has yet to "
            "train. Remove it, or name another."
        )


def _final_output(settings: Settings, step: int) -> Path:
    run = Path(settings.values["job"]["dump_folder"])
    return run / settings.values["export"]["folder"] / f"step-{step}"


def export_final(settings: Settings) -> Report | None:
    """Export the latest checkpoint of the run as its `[export]` table says; None if it was before.

    Raises ValueError and OSError as `prepare_export` and `export_checkpoint`.
    """
    options, run = settings.values["export"], Path(settings.values["job"]["dump_folder"])
    step = find_checkpoint(run / settings.values["checkpoint"]["folder"], None).step
    request = ExportRequest(
        run=run,
        output=_final_output(settings, step),
        step=step,
        dtype=options["dtype"],
        verify=options["verify"],
    )
    return prepare_export(request, settings, "export.folder")()
