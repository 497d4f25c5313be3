"""What ranks send because of NITP, message by message: exactly what is listed here."""

from collections import Counter
from dataclasses import dataclass
from math import prod

import pytest

from recipes.parity.world import Case, Result, run_world
from tests.distributed.collectives import Message, make_pair, read_messages

MODELS = {"dense": "train_configs/debug.toml", "moe": "train_configs/debug_moe.toml"}
SEQ_LEN, GLOBAL_BATCH = 256, 4
COMMON = [
    f"--training.seq_len={SEQ_LEN}", f"--training.global_batch_size={GLOBAL_BATCH}",
    "--training.disable_cuda_graphs", "--model.num_layers=2", "--nitp.target_layer=1",
    "--validation.steps=1", "--metrics.log_freq=1000",
]  # fmt: skip
FLOAT, INT64 = 4, 8
NUM_WEIGHTS = 3  # of P
LOG_STEP, STEP, VALIDATION = range(3)


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism. Micro-batches are single rows."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    num_runs: int = 1
    """Contiguous runs of a rank's part of the sequence: 2 in head-tail order."""

    overrides: tuple[str, ...] = ()
    """Further options of the run and of its baseline."""

    @property
    def num_ranks(self) -> int:
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def num_micro_batches(self) -> int:
        return GLOBAL_BATCH // (self.dp_replicate * self.dp_shard)

    def send(
        self, kind: str, phase: str, axes: str, num_bytes: int, number: int = 1
    ) -> Counter[Message]:
        """`number` messages along `axes`; none where a rank would be alone."""
        degrees = {axis: getattr(self, axis) for axis in axes.split("+")}
        size, name = prod(degrees.values()), "+".join(a for a, n in degrees.items() if n > 1)
        return Counter({Message(kind, name, size, phase, num_bytes): number} if size > 1 else {})


LAYOUTS = {
    "fsdp_2": Layout(dp_shard=2),
    "cp_2_headtail": Layout(cp=2, num_runs=2),
    "tp_2_sequence_parallel": Layout(tp=2),
}
IN_ORDER = ("--parallelism.context_parallel_load_balancer=none",)
SLOW = {
    "cp_2_in_order": Layout(cp=2, overrides=IN_ORDER),
    "tp_2": Layout(tp=2, overrides=("--parallelism.enable_sequence_parallel=false",)),
    "tp_2_full_checkpointing": Layout(tp=2, overrides=("--activation_checkpoint.mode=full",)),
    "fsdp_2_one_chunk": Layout(dp_shard=2, overrides=("--loss.num_chunks=1",)),
    "fsdp_4": Layout(dp_shard=4),
    "hsdp_2x2": Layout(dp_replicate=2, dp_shard=2),
    "fsdp_2_cp_2": Layout(dp_shard=2, cp=2, num_runs=2),
    "fsdp_2_tp_2": Layout(dp_shard=2, tp=2),
    "tp_2_cp_2": Layout(cp=2, tp=2),  # each slice is one of the two chunks
}
ALL = LAYOUTS | SLOW
CELLS = [("dense", name) for name in LAYOUTS]
SLOW_CELLS = [("dense", name) for name in SLOW] + [("moe", name) for name in ALL]


@dataclass(frozen=True)
class Cell:
    """What a rank sends in a log step, in another step and in a validation, with NITP and without;
    and in closed form what NITP adds."""

    layout: Layout
    nitp: list[Counter[Message]]
    baseline: list[Counter[Message]]
    dim: int
    num_parameters: int
    projector_bytes: int
    unembedding_bytes: int
    """Of FSDP2's unit of norm and unembedding."""

    def target(self) -> Counter[Message]:
        """A micro-batch: the first row of each run of each shard, in forward. No gradient."""
        send, cp, tp = self.layout.send, self.layout.cp, self.layout.tp
        rows_bytes = self.layout.num_runs * self.dim * FLOAT
        return send("all_gather", "forward", "tp", tp * rows_bytes) + send(
            "all_gather", "forward", "cp", cp * tp * rows_bytes
        )

    def projector(self) -> Counter[Message]:
        """A micro-batch: P, gathered once for all chunks."""
        return self.layout.send("all_gather", "forward", "dp_shard+cp", self.projector_bytes)

    def projector_gradient(self) -> Counter[Message]:
        """A micro-batch: P's gradient, reduced once for all chunks. Over the tensor-parallel ranks
        weight by weight: each projects its own slice of the sequence."""
        send, num_bytes = self.layout.send, self.projector_bytes
        num_shards = self.layout.dp_shard * self.layout.cp
        return (
            send("reduce_scatter", "backward", "dp_shard+cp", num_bytes)
            + send("all_reduce", "backward", "dp_replicate", num_bytes // num_shards)
            + send("all_reduce", "backward", "tp", num_bytes // NUM_WEIGHTS, NUM_WEIGHTS)
        )

    def slice_sums(self) -> Counter[Message]:
        """A micro-batch: L_NITP, cosine, weight and squared gradient, over the slices."""
        return self.layout.send("all_reduce", "forward", "tp", 4 * FLOAT)

    def pair_count(self) -> Counter[Message]:
        """A step: the number of pairs, and of valid positions."""
        return self.layout.send("all_reduce", "forward", "dp_replicate+dp_shard", 2 * INT64)

    def gradient_norms(self, num_parameters: int) -> Counter[Message]:
        """A step, without NITP too: one norm a parameter, for clipping."""
        send, num_bytes = self.layout.send, num_parameters * FLOAT
        return send("all_reduce", "forward", "dp_shard+cp", num_bytes) + send(
            "all_reduce", "forward", "tp", num_bytes
        )

    def loss_sums(self) -> Counter[Message]:
        """A log step, and a validation: the sums behind the logged figures."""
        return self.layout.send("all_reduce", "forward", "dp_replicate+dp_shard+cp", 6 * FLOAT)

    def projector_norms(self) -> Counter[Message]:
        """A log step: the norms of P's gradients."""
        return self.layout.send("all_reduce", "forward", "dp_shard+cp", NUM_WEIGHTS * FLOAT)

    def difference(self, index: int) -> tuple[Counter[Message], Counter[Message]]:
        """(added, removed) by NITP."""
        nitp, baseline = self._settle(self.nitp[index]), self._settle(self.baseline[index])
        return nitp - baseline, baseline - nitp

    def _settle(self, messages: Counter[Message]) -> Counter[Message]:
        """One phase for the gather of the unembedding: in P's backward FSDP2 prefetches what it
        gathers right after that without NITP."""
        settled: Counter[Message] = Counter()
        for message, number in messages.items():
            if message.kind == "all_gather" and message.num_bytes == self.unembedding_bytes:
                message = message._replace(phase="forward")
            settled[message] += number
        return settled


def times(number: int, messages: Counter[Message]) -> Counter[Message]:
    return Counter({message: number * count for message, count in messages.items()})


def run_cells(names: list[tuple[str, str]]) -> dict[tuple[str, str], Cell]:
    """Every (model, layout) with NITP and without."""
    by_size: dict[int, list[Case]] = {}
    for model, name in names:
        layout = ALL[name]
        overrides = [
            "--training.local_batch_size=1",
            f"--parallelism.data_parallel_replicate_degree={layout.dp_replicate}",
            f"--parallelism.context_parallel_degree={layout.cp}",
            f"--parallelism.tensor_parallel_degree={layout.tp}",
            *layout.overrides,
        ]
        cases = by_size.setdefault(layout.num_ranks, [])
        cases += make_pair(f"{model}-{name}", MODELS[model], [*COMMON, *overrides])
    results: dict[str, Result] = {}
    for size, cases in by_size.items():
        results |= {name: result for (name, _), result in run_world(cases, (size,)).items()}
    cells = {}
    for model, name in names:
        nitp, baseline = results[f"{model}-{name}"], results[f"{model}-{name}-baseline"]
        numel = {key: tensor.numel() for key, tensor in nitp.initial.items()}
        projector = sum(n for key, n in numel.items() if key.startswith("nitp_projector."))
        norm, unembedding = numel["norm.weight"], numel["lm_head.weight"] // ALL[name].tp
        cells[model, name] = Cell(
            ALL[name],
            [same_on_every_rank(ranks) for ranks in nitp.probes],
            [same_on_every_rank(ranks) for ranks in baseline.probes],
            dim=norm,
            num_parameters=len(numel),
            projector_bytes=projector * FLOAT,
            unembedding_bytes=(norm + unembedding) * FLOAT,
        )
    return cells


def same_on_every_rank(ranks: list[list[tuple]]) -> Counter[Message]:
    first, *others = map(read_messages, ranks)
    assert all(other == first for other in others)
    return first


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], Cell]:
    return run_cells(CELLS)


@pytest.fixture(scope="module")
def slow_cells() -> dict[tuple[str, str], Cell]:
    return run_cells(SLOW_CELLS)


def check(cell: Cell) -> None:
    num_micro_batches = cell.layout.num_micro_batches
    forward = cell.target() + cell.projector() + cell.slice_sums()
    step = times(num_micro_batches, forward + cell.projector_gradient()) + cell.pair_count()
    added = step + cell.gradient_norms(cell.num_parameters)
    removed = cell.gradient_norms(cell.num_parameters - NUM_WEIGHTS)
    to_log = cell.loss_sums() + cell.projector_norms()
    assert cell.difference(STEP) == (added, removed)
    assert cell.difference(LOG_STEP) == (added + to_log, removed)
    validation = times(num_micro_batches, forward) + cell.loss_sums()
    assert cell.difference(VALIDATION) == (validation, Counter())


@pytest.mark.parametrize(("model", "name"), CELLS)
def test_nitp_sends_rows_at_boundaries_and_its_projector_once(cells, model, name):
    check(cells[model, name])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), SLOW_CELLS)
def test_nitp_sends_rows_at_boundaries_and_its_projector_once_slow(slow_cells, model, name):
    check(slow_cells[model, name])
