"""What pipeline stages send because of NITP: the target, from its stage on, and nothing back."""

from collections import Counter
from dataclasses import dataclass

import pytest

from recipes.parity.world import Case, Result, run_world
from tests.distributed.collectives import Message, make_pair, read_messages

SEQ_LEN, GLOBAL_BATCH, FLOAT = 256, 4, 4
STEP = 1  # index of the probe; the first step also exchanges shapes
COMMON = [
    f"--training.seq_len={SEQ_LEN}", f"--training.global_batch_size={GLOBAL_BATCH}",
    "--training.disable_cuda_graphs", "--validation.steps=1", "--metrics.log_freq=1000",
    "--model.num_layers=4",
    "--parallelism.pipeline_parallel_first_stage_less_layers=0",
    "--parallelism.pipeline_parallel_last_stage_less_layers=0",
]  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """Four layers, equally many on each stage; micro-batches of one row."""

    places: tuple[int, ...]
    """Pipeline rank of each stage, from the first to the last."""

    target_layer: int
    target_stage: int
    """The stage that holds layer k."""

    dp_shard: int = 1
    tp: int = 1
    schedule: str = "1F1B"

    @property
    def pp(self) -> int:
        return max(self.places) + 1

    @property
    def num_micro_batches(self) -> int:
        return GLOBAL_BATCH // self.dp_shard

    def overrides(self) -> list[str]:
        return [
            *COMMON,
            f"--nitp.target_layer={self.target_layer}",
            f"--training.local_batch_size={self.num_micro_batches}",
            f"--parallelism.pipeline_parallel_degree={self.pp}",
            f"--parallelism.pipeline_parallel_schedule={self.schedule}",
            f"--parallelism.tensor_parallel_degree={self.tp}",
        ]

    def hops(self, place: int, dim: int) -> Counter[Message]:
        """What a rank at `place` sends and receives of the target in a step: h's shape, sliced
        along the sequence like h under sequence parallelism."""
        num_bytes = SEQ_LEN // self.tp * dim * FLOAT
        hops: Counter[Message] = Counter()
        for stage in range(self.target_stage, len(self.places) - 1):
            for kind, end in ("send", stage), ("recv", stage + 1):
                if self.places[end] == place:
                    hops[Message(kind, "pp", self.pp, "forward", num_bytes)] += 1
        return Counter({hop: number * self.num_micro_batches for hop, number in hops.items()})


PIPELINES = {
    "k_on_the_first_stage": Pipeline((0, 1, 2, 3), target_layer=0, target_stage=0),
    "k_on_a_middle_stage": Pipeline((0, 1, 2, 3), target_layer=1, target_stage=1),
    "k_on_the_last_stage": Pipeline((0, 1, 2, 3), target_layer=3, target_stage=3),
    "interleaved": Pipeline((0, 1, 0, 1), 1, 1, schedule="Interleaved1F1B"),
    "with_tensor_parallelism": Pipeline((0, 1), target_layer=1, target_stage=0, tp=2),
    "with_fsdp": Pipeline((0, 1), target_layer=1, target_stage=0, dp_shard=2),
}


@pytest.fixture(scope="module")
def runs() -> dict[str, Result]:
    by_size: dict[int, list[Case]] = {}
    for name, pipeline in PIPELINES.items():
        cases = by_size.setdefault(pipeline.pp * pipeline.dp_shard * pipeline.tp, [])
        cases += make_pair(name, "train_configs/debug.toml", pipeline.overrides())
    results = {}
    for size, cases in by_size.items():
        results |= {name: result for (name, _), result in run_world(cases, (size,)).items()}
    return results


def added(runs: dict[str, Result], name: str) -> list[tuple[int, Counter[Message]]]:
    """(place, what NITP adds to a step) of every rank."""
    pipeline = PIPELINES[name]
    nitp, baseline = (runs[key].probes[STEP] for key in (name, f"{name}-baseline"))
    return [
        (
            rank // (pipeline.dp_shard * pipeline.tp),
            read_messages(with_nitp) - read_messages(without),
        )
        for rank, (with_nitp, without) in enumerate(zip(nitp, baseline, strict=True))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_the_target_hops_from_its_stage_to_the_last_and_no_gradient_returns(runs, name):
    pipeline, dim = PIPELINES[name], runs[name].initial["tok_embeddings.weight"].shape[1]
    for place, messages in added(runs, name):
        on_axis = Counter({m: n for m, n in messages.items() if m.axis == "pp"})
        assert on_axis == pipeline.hops(place, dim)
