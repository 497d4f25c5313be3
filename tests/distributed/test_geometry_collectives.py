"""What ranks send to measure the geometry, message by message: nothing but at steps that are
logged, and then exactly what is listed here."""

from collections import Counter

import pytest

from recipes.parity.world import Case, Result, run_world
from tests.distributed.collectives import COUNT, Message, read_messages
from tests.distributed.test_collectives import ALL, COMMON, GLOBAL_BATCH, Layout

FLOAT, DOUBLE, INT64 = 4, 8, 8
NUM_STATES = 3  # hidden, before the norm, targets
FIRST_STEP, STEP, VALIDATION = range(3)
TRIANGLES = "reduce_"


def measuring(layout: Layout, dim: int, has_triangles: bool) -> Counter[Message]:
    """A reading. Rows that are shared are completed; then what is O(dim), and the triangles of the
    three products, to one rank."""

    def send(kind: str, axes: str, num_bytes: int, number: int = 1) -> Counter[Message]:
        return layout.send(kind, "forward", axes, num_bytes, number)

    num_rows = GLOBAL_BATCH // (layout.dp_replicate * layout.dp_shard)
    messages = send("all_reduce", "dp_replicate+dp_shard", NUM_STATES * (dim + 3) * DOUBLE)
    for axis in ("cp", "tp"):
        messages += send("all_reduce", axis, NUM_STATES * num_rows * dim * FLOAT)
        messages += send("all_reduce", axis, NUM_STATES * num_rows * INT64)
    for axes in ("tp", "dp_replicate+dp_shard+cp"):
        messages += send("all_reduce", axes, NUM_STATES * DOUBLE)
        messages += send("all_reduce", axes, NUM_STATES * dim * DOUBLE)
    triangle_bytes = dim * (dim + 1) // 2 * FLOAT
    messages += send(TRIANGLES, "tp", triangle_bytes, NUM_STATES)
    if has_triangles:
        messages += send(TRIANGLES, "dp_replicate+dp_shard+cp", triangle_bytes, NUM_STATES)
    return messages


def run_layout(layout: Layout) -> tuple[Result, Result]:
    """Measured and not."""
    overrides = [
        *COMMON, "--training.local_batch_size=1",
        f"--parallelism.data_parallel_replicate_degree={layout.dp_replicate}",
        f"--parallelism.context_parallel_degree={layout.cp}",
        f"--parallelism.tensor_parallel_degree={layout.tp}",
        *layout.overrides,
    ]  # fmt: skip
    cases = [
        Case(key, "train_configs/debug.toml", [*overrides, f"--geometry.enable={value}"],
             num_steps=2, validate=True, probe=COUNT)
        for key, value in (("measured", "true"), ("not", "false"))
    ]  # fmt: skip
    results = run_world(cases, (layout.num_ranks,))
    return results["measured", layout.num_ranks], results["not", layout.num_ranks]


def check(layout: Layout, measured: Result, plain: Result) -> None:
    dim = measured.initial["norm.weight"].numel()
    for index in (FIRST_STEP, STEP, VALIDATION):
        for rank, (ours, theirs) in enumerate(
            zip(measured.probes[index], plain.probes[index], strict=True)
        ):
            with_messages, without = read_messages(ours), read_messages(theirs)
            expected = measuring(layout, dim, has_triangles=rank % layout.tp == 0)
            assert without - with_messages == Counter()
            assert with_messages - without == (expected if index != STEP else Counter()), rank
    sent = [m.num_bytes * n for m, n in expected.items() if m.kind == TRIANGLES]
    assert sum(sent) <= (6 * dim**2 + 6 * dim) * (2 if layout.tp > 1 else 1)


SLOW = ["fsdp_2", "cp_2_headtail", "hsdp_2x2", "fsdp_2_cp_2", "fsdp_2_tp_2", "tp_2_cp_2"]


@pytest.mark.parametrize(
    "name",
    ["tp_2_sequence_parallel", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_triangles_go_to_one_rank_and_only_at_logged_steps(name):
    check(ALL[name], *run_layout(ALL[name]))
