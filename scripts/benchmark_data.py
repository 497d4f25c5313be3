"""Speed of the data path: python scripts/benchmark_data.py --job.config_file F [--table.key value]

Reads, tokenizes and packs as rank 0 of 1, 4 and 64 data-parallel ranks would (as far as they divide
data.num_streams), with the data, tokenizer, sequence length and workers of the configuration, and
prints what one rank gets a second. Trains nothing.
"""

import argparse
import sys
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import recipes.platform  # noqa: F401  first: torchtitan resolves its device once

# isort: split

from recipes.config import load_config
from recipes.data.config import DataConfig
from recipes.data.documents import load_documents
from recipes.data.loader import HuggingFaceTokenizer, PackedDataLoader


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--ranks", default="1,4,64", help="numbers of simulated ranks")
    options, overrides = parser.parse_known_args()
    try:
        config = load_config(None, overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = replace(config.dataloader.data, num_epochs=-1)
    seq_len, num_workers = config.training.seq_len, data.num_workers
    tokenizer = HuggingFaceTokenizer(tokenizer_path=config.hf_assets_path)
    seconds, num_bytes = measure_index(data)
    print(f"index: {num_bytes / 2**20:.1f} MiB in {seconds:.2f} s")
    print(f"rows of {seq_len} tokens, {data.num_streams} streams, {num_workers} workers")
    print("| ranks | rows/s of a rank | tokens/s of a rank | tokens/s per process |")
    print("|---|---|---|---|")
    for num_ranks in map(int, options.ranks.split(",")):
        if data.num_streams % num_ranks == 0:
            rows = measure_rows_per_s(data, tokenizer, seq_len, num_ranks, options.seconds)
            tokens = rows * seq_len
            per_process = tokens / max(num_workers, 1)
            print(f"| {num_ranks} | {rows:,.0f} | {tokens:,.0f} | {per_process:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
