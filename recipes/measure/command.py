"""Measure the geometry of a model's hidden states: python scripts/geometry.py
--model FOLDER | --run DIR [--step N] --data PATH [--layers all|0,4,...] [--target-layer K]
[--rows N] [--seq-len L] [--output DIR]; installed, python -m recipes.measure ...

Prints one table; --output writes it as geometry.md and geometry.json too. The rows are those that
training packs, and attention stays within a document, as in training. Exit code 0 done, 1 failure,
2 bad usage; what went wrong is one line on stderr that starts with `error: `.
"""

import re
from collections.abc import Sequence

from recipes.command import ArgumentParser, folder, path, path_text, report_error
from recipes.measure.request import Layers, MeasureRequest


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        request = parse_request(arguments)
        inputs = request.load_inputs()
        # Before this line nothing needs torch.
        from recipes.measure.measure import prepare_measurement

        measure = prepare_measurement(request, inputs)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)
    try:
        report = measure()
        if request.output is not None:
            report.write(request.output)
        print(report.to_markdown(), end="")
    except (ValueError, OSError) as error:
        return report_error(error, 1)
    return 0


def parse_request(arguments: Sequence[str]) -> MeasureRequest:
    """Raises ValueError for arguments that are none; prints and exits for --help."""
    parser = ArgumentParser(prog="geometry.py", description=(__doc__ or "").partition(":")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model", type=folder, metavar="FOLDER",
        help="a Hugging Face folder of a causal model, with its tokenizer",
    )  # fmt: skip
    what.add_argument("--run", type=folder, metavar="DIR", help="a run directory (job.dump_folder)")
    add = parser.add_argument
    add("--step", metavar="N", help='of the run: "latest" (the default) or a number')
    add("--data", nargs="+", type=path_text, metavar="PATH",
        help="a file, a quoted glob, hf://owner/name or embedded://python, as data.sources.path; "
             "or a configuration (.toml), of which the [data] table is taken: the documents held "
             "out, if any are. With --run by default the run's own")  # fmt: skip
    add("--layers", default="", metavar="all|0,4,...",
        help="also the residual stream after so many layers; 0: the embeddings")  # fmt: skip
    add("--target-layer", type=int, metavar="K",
        help="also the implicit targets E_K(x) and the loss of a constant prediction; with --run "
             "by default nitp.target_layer")  # fmt: skip
    add("--rows", type=int, default=MeasureRequest().num_rows, metavar="N",
        help="packed rows (default: %(default)s)")  # fmt: skip
    add("--seq-len", type=int, metavar="L",
        help="tokens of a row; by default training.seq_len of the run, or of the model "
             "max_position_embeddings, at most 2048")  # fmt: skip
    add("--output", type=path, metavar="DIR", help="folder for geometry.md and geometry.json")
    given = parser.parse_args(arguments)
    if given.data is not None and len(given.data) > 1:
        raise ValueError(
            f"--data ({' '.join(given.data[:3])} ...) must be one path. Quote a glob, or list "
            "several sources in a configuration."
        )
    return MeasureRequest(
        model=given.model,
        run=given.run,
        step=given.step,
        data=None if given.data is None else given.data[0],
        layers=_parse_layers(given.layers),
        target_layer=given.target_layer,
        num_rows=given.rows,
        seq_len=given.seq_len,
        output=given.output,
    )


def _parse_layers(text: str) -> Layers:
    if text == "all":
        return "all"
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f'--layers ({text}) must be "all" or numbers such as 0,4,8.')
    return tuple(sorted({int(number) for number in text.split(",") if number}))
