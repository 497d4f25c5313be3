"""What a step with NITP computes and holds beyond the same step without."""

from collections import Counter

import pytest

from recipes.parity.world import Case, run_world

pytestmark = pytest.mark.slow

SEQ_LEN, NUM_STEPS, FLOAT = 256, 2, 4
COMMON = [
    f"--training.seq_len={SEQ_LEN}", "--training.local_batch_size=1",
    "--training.global_batch_size=2", "--model.num_layers=3", "--nitp.target_layer=1",
    "--validation.steps=1", "--metrics.log_freq=1000", "--geometry.enable=false",
]  # fmt: skip
NUM_TOKENS = 2 * SEQ_LEN
# Where the projector's activations outweigh the unembedding's and the optimizer's temporaries.
WIDE, NUM_ROWS = 64, 16
MODES = ("none", "selective", "full")
LOG_STEP, STEP, VALIDATION = 0, 1, 2  # indices of probes; the first step sets up


def make_cases(name: str, overrides: list[str], probe: str) -> list[Case]:
    """A run with NITP, and its baseline."""
    overrides, probe = [*COMMON, *overrides], f"tests.integration.costs:{probe}"
    off, config = [*overrides, "--nitp.enable=false"], "train_configs/debug.toml"
    return [
        Case(name, config, overrides, NUM_STEPS, validate=True, probe=probe),
        Case(f"{name}_ntp", config, off, NUM_STEPS, validate=True, probe=probe),
    ]


@pytest.fixture(scope="module")
def runs():
    cases = []
    for mode in MODES:
        checkpointing = f"--activation_checkpoint.mode={mode}"
        cases += make_cases(f"operations_{mode}", [checkpointing], "count_operations")
        cases += make_cases(f"memory_{mode}", [checkpointing], "track_memory")
    measured = ["--geometry.enable=true"]
    cases.append(make_cases("operations_measured", measured, "count_operations")[0])
    for num_chunks in (2, 4, 8):
        overrides = [
            f"--loss.num_chunks={num_chunks}", f"--nitp.projector_ratio={WIDE}",
            f"--training.local_batch_size={NUM_ROWS}", f"--training.global_batch_size={NUM_ROWS}",
        ]  # fmt: skip
        cases += make_cases(f"memory_wide_{num_chunks}", overrides, "track_memory")[:1]
    return {name: result for (name, _), result in run_world(cases, (1,)).items()}


def extra_operations(runs, mode: str, index: int) -> dict[str, int]:
    nitp, ntp = (runs[f"operations_{mode}{which}"].probes[index] for which in ("", "_ntp"))
    extra = Counter(nitp["operations"])
    extra.subtract(ntp["operations"])
    return {name: number for name, number in extra.items() if number}


@pytest.mark.parametrize("mode", MODES)
def test_nitp_costs_its_projector_once_forward_and_twice_backward(runs, mode):
    """72 d^2 FLOPs a token (paper, appendix C), 24 d^2 in validation; nothing is recomputed."""
    dim = runs["operations_none"].initial["norm.weight"].numel()
    for index, factor in ((STEP, 72), (VALIDATION, 24)):
        nitp, ntp = (runs[f"operations_{mode}{which}"].probes[index] for which in ("", "_ntp"))
        assert nitp["flops"] - ntp["flops"] == factor * dim**2 * NUM_TOKENS


@pytest.mark.parametrize(("index", "factor"), [(LOG_STEP, 6), (STEP, 0), (VALIDATION, 6)])
def test_the_geometry_costs_a_product_a_state_where_it_is_read(runs, index, factor):
    """2 d^2 FLOPs a token for each of h, h before the norm, and the target."""
    measured, plain = (runs[f"operations_{which}"].probes[index] for which in ("measured", "none"))
    dim = runs["operations_none"].initial["norm.weight"].numel()
    assert measured["flops"] - plain["flops"] == factor * dim**2 * NUM_TOKENS


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_repeats_no_operation_of_nitp(runs, mode):
    assert extra_operations(runs, mode, STEP) == extra_operations(runs, "none", STEP)


def extra_bytes(runs, name: str) -> int:
    peak, baseline = (runs[f"{name}{which}"].probes[STEP]["peak_bytes"] for which in ("", "_ntp"))
    return peak - baseline


@pytest.mark.parametrize("mode", MODES)
def test_nitp_holds_two_gradients_at_the_peak_and_no_target(runs, mode):
    """Memory peaks in cross entropy. By then NITP has left P's gradient and its gradient of h, both
    float32; the target is layer k's output itself, which backward needs anyway. The rest is pair
    weights and scalars, below 16 bytes a token."""
    initial = runs["operations_none"].initial
    projector = sum(p.numel() for name, p in initial.items() if name.startswith("nitp_projector."))
    held = (projector + SEQ_LEN * initial["norm.weight"].numel()) * FLOAT
    assert held <= extra_bytes(runs, f"memory_{mode}") <= held + 16 * NUM_TOKENS


def test_projector_activations_exist_for_one_chunk_at_a_time(runs):
    """A wide projector sets the peak: linear in the tokens of a chunk. In the backward of
    silu(gate) * up six tensors of P's hidden width live: gate, silu and up, and the gradients of
    the product, of silu and of up; the rest has width d, a 64th."""
    two, four, eight = (runs[f"memory_wide_{n}"].probes[STEP]["peak_bytes"] for n in (2, 4, 8))
    assert two - four == pytest.approx(2 * (four - eight), rel=1e-3)
    hidden = runs["memory_wide_2"].initial["nitp_projector.w1.weight"].shape[0]
    assert 6 <= (two - four) / (NUM_ROWS * SEQ_LEN // 4 * hidden * FLOAT) < 6.1
