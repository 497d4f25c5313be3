"""The 9B recipe on 64 ranks, as far as one process can go: sharding, stages, the projector."""

import json
import subprocess
import sys

import pytest

from recipes.parity.world import REPOSITORY
from tests.waiting import DEADLINE_S

NUM_RANKS = 64
TP, CP = "--parallelism.tensor_parallel_degree={}", "--parallelism.context_parallel_degree={}"
EP, PP = "--parallelism.expert_parallel_degree={}", "--parallelism.pipeline_parallel_degree={}"
HSDP = "--parallelism.data_parallel_replicate_degree={}"
BATCH = "--training.local_batch_size=4"  # a pipeline needs a micro-batch per stage
# name -> (pipeline stages, overrides)
LAYOUTS = {
    "fsdp": (1, []),
    "hsdp": (1, [HSDP.format(8)]),
    "tp_cp": (1, [TP.format(2), CP.format(2)]),
    "ep": (1, [EP.format(8)]),
    "cpu_offload": (1, ["--training.enable_cpu_offload"]),
    "pp_tp_cp_ep": (4, [PP.format(4), TP.format(2), CP.format(2), EP.format(8), BATCH]),
}
NUM_PARAMS, NUM_LAYERS = 8_769_332_480, 24
"""Backbone and projector, as `--job.dry_run` counts them."""


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[dict]]:
    """The first rank of each pipeline stage, by layout."""
    jobs = [
        (name, [NUM_RANKS, stage * NUM_RANKS // stages, overrides])
        for name, (stages, overrides) in LAYOUTS.items()
        for stage in range(stages)
    ]
    command = [sys.executable, "-m", "tests.distributed.at_scale", json.dumps([j for _, j in jobs])]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, list[dict]] = {}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for (name, _), line in zip(jobs, lines, strict=True):
        found.setdefault(name, []).append(json.loads(line))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stages_make_up_the_model_and_the_last_one_has_the_projector(ranks, layout):
    stages = ranks[layout]
    assert sum(stage["num_params"] for stage in stages) == NUM_PARAMS
    assert sum(stage["num_layers"] for stage in stages) == NUM_LAYERS
    assert [len(stage["projector"]) for stage in stages] == [0] * (len(stages) - 1) + [3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_holds_its_shard_only(ranks, layout):
    """At most a third more than an even share: FSDP2 cuts dimensions that do not divide unevenly,
    and the first rank has the largest part."""
    replicas = 8 if layout == "hsdp" else 1
    for stage in ranks[layout]:
        even = stage["num_params"] * len(ranks[layout]) * replicas / NUM_RANKS
        assert 0.99 * even <= stage["num_local_params"] <= 1.34 * even


def test_offloading_to_cpu_includes_the_projector(ranks):
    (with_offloading,), (without,) = ranks["cpu_offload"], ranks["fsdp"]
    others = ["tok_embeddings", "norm", "lm_head"]
    units = [*map(str, range(NUM_LAYERS)), *others, "nitp_projector"]
    assert with_offloading["offloading"] == sorted(units)
    assert not without["offloading"]
