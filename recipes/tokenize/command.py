"""Tokenize: python scripts/tokenize_data.py --job.config_file F --output DIR [--workers N]

Writes the token ids of all documents of [[data.sources]], held-out ones too, to Parquet files, each
read back before it counts, and prints the sources that read them. It does not tokenize
[[validation.sets]]: for them name their files as data.sources, with validation off. The same
command goes on where it was interrupted. Exit code 0 done; 1 if a file cannot be written; 2 bad
usage or data; 130 if stopped by a signal; what went wrong is one line on stderr
that starts with `error: `.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.command import ArgumentParser, path, report_error
from recipes.config.arguments import check_used
from recipes.config.parts import build_data
from recipes.config.rules import check_files, check_settings
from recipes.config.settings import resolve_settings
from recipes.data.config import DataConfig, source_names
from recipes.data.inputs import (
    compare_files,
    group_by_owner,
    load_inputs,
    save_inputs,
    shorten_list,
)
from recipes.data.sources import SourceFile, find_files
from recipes.data.tokenizer import digest_tokenizer, resolve_tokenizer_path
from recipes.run.folder import check_is_writable
from recipes.run.lock import RunLock

USED = ("job.config_file", "model.*", "tokenizer.*", "data.*", "validation.*")
"""Options of the configuration that matter: of the data, and of what is checked with them."""


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        given, overrides = _parse(arguments)
        check_is_writable(str(given.output), "--output")
        settings = resolve_settings(None, overrides)
        check_settings(settings)
        check_files(settings)
        data = build_data(settings)
        tokenizer = resolve_tokenizer_path(settings.values["tokenizer"]["path"])
        with RunLock(str(given.output), "--output"):
            _tokenize(data, tokenizer, given.output, given.workers)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)
    return 0


def _tokenize(data: DataConfig, tokenizer: str, output: Path, num_workers: int) -> None:
    """Raises ValueError, OSError."""
    # Those import pyarrow and numpy: after what is checked at once.
    from recipes.tokenize.parts import Part, Written, read_count
    from recipes.tokenize.plan import format_sources, plan_parts
    from recipes.tokenize.run import load_encoder, write_parts

    load_encoder(tokenizer, data.bos)  # what is wrong with it, here and once
    plan = plan_parts(data, Path(tokenizer), output)
    counts = {part.path: read_count(part) for parts in plan for part in parts}
    missing = [part for parts in plan for part in parts if counts[part.path] is None]
    files = group_by_owner(find_files(data))
    if len(missing) < len(counts):
        _check_content(output, files)
    save_inputs(output, digest_tokenizer(Path(tokenizer)), files, load_inputs(output))
    print(f"{len(counts) - len(missing)} of {len(counts)} parts are there.", flush=True)
    num_tokens, busy_s, begin = 0, 0.0, time.perf_counter()

    def report(part: Part, written: Written) -> None:
        nonlocal num_tokens, busy_s
        counts[part.path] = written.count
        num_tokens += written.count.num_tokens
        busy_s += written.seconds
        rate = written.count.num_tokens / written.seconds
        name = part.path.relative_to(output)
        print(f"{name}: {written.count.num_tokens:,} tokens, {rate:,.0f} a second", flush=True)

    if missing:
        for part in missing:
            part.path.parent.mkdir(parents=True, exist_ok=True)
        write_parts(
            missing, tokenizer=tokenizer, bos=data.bos, num_workers=num_workers, report=report
        )
        elapsed_s = time.perf_counter() - begin
        print(
            f"{num_tokens:,} tokens in {elapsed_s:,.1f} s: {num_tokens / elapsed_s:,.0f} a second, "
            f"{num_tokens / busy_s:,.0f} per worker."
        )
    print("\n| source | documents | tokens | passed over |\n|---|---|---|---|")
    for name, parts in zip(source_names(data), plan, strict=True):
        documents, tokens, bad = (
            sum(column)
            for column in zip(*(counts[part.path] or (0, 0, 0) for part in parts), strict=True)
        )
        print(f"| {name} | {documents:,} | {tokens:,} | {bad:,} |")
    print(f"\nRead them in training, with the same tokenizer, as\n\n{format_sources(data, output)}")


def _check_content(output: Path, files: Mapping[str, Sequence[SourceFile]]) -> None:
    """Raise ValueError where the parts that are there were made of other content."""
    inputs = load_inputs(output)
    for owner, own in files.items():
        if inputs is None or owner not in inputs.files:
            continue
        difference = compare_files(inputs, owner, own)
        if difference.changed:
            raise ValueError(
                f"--output ({output}) has token ids of other content: of {owner}, "
                f"{shorten_list(difference.changed)}. Name another folder, or remove it."
            )
        if difference.touched:
            print(
                f"{owner}: another time has {shorten_list(difference.touched)}; size and a sample "
                "of the content are the same.",
                flush=True,
            )


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own arguments, and the configuration's. Raises ValueError."""
    parser = ArgumentParser(
        prog="tokenize_data.py", description=(__doc__ or "").partition(":")[0],
        epilog="--job.config_file and any other --table.key value are the configuration's.",
    )  # fmt: skip
    add = parser.add_argument
    add("--output", type=path, required=True, metavar="DIR", help="where the Parquet files go")
    add("--workers", type=int, default=os.cpu_count(), metavar="N",
        help="processes (default: one for each CPU)")  # fmt: skip
    given, overrides = parser.parse_known_args(arguments)
    if given.workers < 1:
        raise ValueError(f"--workers ({given.workers}) must be at least 1.")
    check_used(overrides, USED)
    return given, overrides
