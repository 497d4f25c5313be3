"""Evaluate models side by side: python scripts/evaluate.py
--run DIR [--step N] | --model FOLDER ... --suite paper|mteb|FILE [--output DIR]; installed,
python -m recipes.evaluation ...

Prints one table, and writes it as evaluation.md and evaluation.json. The first model is what the
others are compared with. What is done is kept in the output: the same command goes on where it was
interrupted, and does no task twice. Exit code 0 done, 1 failure (of one task: the others are done),
2 bad usage, 130 if stopped by a signal; what went wrong is one line on stderr
that starts with `error: `.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.command import ArgumentParser, folder, path, path_text, print_error, report_error
from recipes.evaluation.request import EvaluateRequest, Subject
from recipes.evaluation.suite import Suite
from recipes.run.lock import RunLock

_OUTPUT = "outputs/evaluation"


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        request = parse_request(arguments)
        suite = request.load_suite()
        with RunLock(str(request.output), "--output"):
            return _evaluate(request, suite)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)


def _evaluate(request: EvaluateRequest, suite: Suite) -> int:
    # Before this line nothing needs torch.
    from recipes.evaluation.models import find_models
    from recipes.evaluation.runner import Runner, open_harness
    from recipes.evaluation.table import build_table

    models = find_models(request.subjects, request.step)
    harness = open_harness(suite, request)
    harness.check()
    runner = Runner(suite, request.output, harness)
    scores = runner.run(models)
    table = build_table(suite, [model.label for model in models], scores)
    table.write(request.output)
    print(f"\n{table.to_markdown()}", end="")
    for failure in runner.failures:
        print_error(ValueError(failure))
    return 1 if runner.failures else 0


def parse_request(arguments: Sequence[str]) -> EvaluateRequest:
    """Raises ValueError for arguments that are none; prints and exits for --help."""
    parser = ArgumentParser(
        prog="evaluate.py", description=(__doc__ or "").partition(":")[0],
        repeatable=("--run", "--model"),
    )  # fmt: skip
    add = parser.add_argument
    subjects: Any = {"nargs": "+", "type": folder, "action": _Append, "dest": "subjects"}
    add("--run", **subjects, default=[], metavar="DIR",
        help="run directories (job.dump_folder), whose checkpoint is exported first")  # fmt: skip
    add("--model", **subjects, default=[], metavar="FOLDER",
        help="Hugging Face folders of causal models, with their tokenizers")  # fmt: skip
    add("--step", default="latest", metavar="N",
        help='of every run: "latest" (the default) or a number')  # fmt: skip
    add("--suite", type=path_text, required=True, metavar="paper|mteb|FILE",
        help="the paper's benchmarks, its 25 tasks of MTEB, or a file of your own")  # fmt: skip
    add("--output", type=path, metavar="DIR",
        help=f"folder for results and table (default: {_OUTPUT}/<suite>)")  # fmt: skip
    add("--batch-size", type=int, default=8, metavar="N",
        help="sequences at once (default: %(default)s)")  # fmt: skip
    add("--device", metavar="D", help="such as cuda:1; by default CUDA if there is one, else cpu")
    given = parser.parse_args(arguments)
    if given.step != "latest" and not given.step.isdecimal():
        raise ValueError(f'--step ({given.step}) must be "latest" or a number.')
    return EvaluateRequest(
        subjects=given.subjects,
        suite=given.suite,
        output=given.output or Path(_OUTPUT, Path(given.suite).stem),
        step=None if given.step == "latest" else int(given.step),
        batch_size=given.batch_size,
        device=given.device,
    )


class _Append(argparse.Action):
    """--run and --model keep the order they are given in: it is that of the table."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert option_string is not None
        added = [Subject(folder=value, is_run=option_string == "--run") for value in values]
        namespace.subjects = [*namespace.subjects, *added]
