"""Speed of the data path: python scripts/benchmark_data.py --job.config_file F [--table.key value]

Reads, tokenizes and packs as rank 0 of 1, 4 and 64 data-parallel ranks would (as far as they divide
data.num_streams), with the data, tokenizer, sequence length and workers of the configuration, and
prints what one rank gets a second. With --tokenized again from Parquet files of token ids, as
scripts/tokenize_data.py writes them. Trains nothing.
"""

import argparse
import re
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import tomli

import recipes.platform  # noqa: F401  first: torchtitan resolves its device once

# isort: split

from recipes.command import ArgumentParser, report_error, run_command
from recipes.config import load_config
from recipes.config.arguments import check_used
from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import load_documents
from recipes.data.encoder import Encoder
from recipes.data.loader import HuggingFaceTokenizer, PackedDataLoader
from recipes.tokenize.command import USED
from recipes.tokenize.parts import write_part
from recipes.tokenize.plan import format_sources, plan_parts


def measure_rows_per_s(
    data: DataConfig, tokenizer: HuggingFaceTokenizer, seq_len: int, num_ranks: int, seconds: float
) -> float:
    """Rows that rank 0 of `num_ranks` draws a second, after one from each of its streams."""
    loader: Any = PackedDataLoader.Config(data=data).build(
        dp_world_size=num_ranks, dp_rank=0, tokenizer=tokenizer, seq_len=seq_len, local_batch_size=1
    )
    rows = iter(loader)
    for _ in range(data.num_streams // num_ranks):
        next(rows)
    begin, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        next(rows)
        count += 1
    return count / elapsed


def measure_index(data: DataConfig) -> tuple[float, int]:
    """Seconds to index the sources, and the bytes that the index takes."""
    tracemalloc.start()
    begin = time.perf_counter()
    documents = load_documents(data, "train")
    seconds, num_bytes = time.perf_counter() - begin, tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert documents
    return seconds, num_bytes


def tokenize_sources(data: DataConfig, tokenizer: HuggingFaceTokenizer, folder: Path) -> DataConfig:
    """The same documents as Parquet files of token ids in `folder`."""
    encoder = Encoder(tokenizer, data.bos)
    for parts in plan_parts(data, Path(tokenizer.tokenizer_path), folder):
        for part in parts:
            part.path.parent.mkdir(parents=True, exist_ok=True)
            write_part(part, encoder)
    tables = tomli.loads(format_sources(data, folder))["data"]["sources"]
    return replace(data, sources=[SourceConfig(**table) for table in tables])


def print_rates(
    what: str, data: DataConfig, tokenizer: HuggingFaceTokenizer, seq_len: int,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """A line of the table for each number of ranks; speeds are medians of the repeats."""
    for num_ranks in map(int, options.ranks.split(",")):
        if data.num_streams % num_ranks == 0:
            rates = [
                measure_rows_per_s(data, tokenizer, seq_len, num_ranks, options.seconds)
                for _ in range(options.repeats)
            ]
            rows = median(rates)
            cells = [rows, rows * seq_len]
            per_process = [rate * seq_len / max(data.num_workers, 1) for rate in rates]
            cells += [min(per_process), median(per_process), max(per_process)]
            print(f"| {what} | {num_ranks} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |")


def main(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each")
    parser.add_argument("--ranks", default="1,4,64", help="numbers of simulated ranks")
    parser.add_argument("--tokenized", action="store_true",
        help="tokenize the documents into a temporary folder, and measure that too")  # fmt: skip
    try:
        options, overrides = parser.parse_known_args(arguments)
        for option, value in (("--seconds", options.seconds), ("--repeats", options.repeats)):
            if not 0 < value < inf:
                raise ValueError(f"{option} ({value}) must be greater than 0.")
        if not re.fullmatch(r"0*[1-9]\d*(,0*[1-9]\d*)*", options.ranks):
            raise ValueError(f"--ranks ({options.ranks}) must be numbers such as 1,4,64.")
        check_used(overrides, (*USED, "training.seq_len"))
        config = load_config(None, overrides)
    except ValueError as error:
        return report_error(error, 2)
    data = replace(config.dataloader.data, num_epochs=-1)
    seq_len, num_workers = config.training.seq_len, data.num_workers
    tokenizer = HuggingFaceTokenizer(tokenizer_path=config.hf_assets_path)
    seconds, num_bytes = measure_index(data)
    print(f"index: {num_bytes / 2**20:.1f} MiB in {seconds:.2f} s")
    print(f"rows of {seq_len} tokens, {data.num_streams} streams, {num_workers} workers")
    columns = ["documents", "ranks", "rows/s of a rank", "tokens/s of a rank"]
    columns += ["tokens/s per process: least", "median", "most"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print_rates("as configured", data, tokenizer, seq_len, options)
    if options.tokenized:
        with TemporaryDirectory() as folder:
            tokenized = tokenize_sources(data, tokenizer, Path(folder))
            print_rates("tokenized", tokenized, tokenizer, seq_len, options)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
