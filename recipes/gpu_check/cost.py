"""What NITP costs: its step beside the baseline's and beside TorchTitan's own trainer."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from recipes.gpu_check.section import Section, format_table
from recipes.parity.cells import COMPILE, GRAPHS
from recipes.parity.tolerance import BFLOAT16
from recipes.parity.world import Case, Device, Result, run_cases

# The paper's dense 0.5B (method section 2), one GPU's share of a batch.
DENSE_500M = [
    "--model.vocab_size=152064", "--model.dim=896", "--model.num_layers=24", "--model.num_heads=14",
    "--model.num_kv_heads=2", "--model.head_dim=64", "--model.ffn_dim=4864",
    "--model.tie_embeddings", "--nitp.target_layer=5", "--training.seq_len=8192",
    "--training.local_batch_size=2", "--loss.num_chunks=8", COMPILE,
    "--training.mixed_precision_param=bfloat16",
]  # fmt: skip
TINY = [
    "--model.vocab_size=8192", "--model.dim=64", "--model.num_layers=2", "--model.num_heads=4",
    "--model.num_kv_heads=2", "--model.head_dim=16", "--model.ffn_dim=128",
    "--model.tie_embeddings", "--nitp.target_layer=1", "--training.seq_len=256",
    "--training.local_batch_size=2", "--training.mixed_precision_param=bfloat16",
]  # fmt: skip
COMMON = [
    "--metrics.log_freq=1000000", "--training.max_norm=1.0", "--training.global_batch_size=-1",
    "--validation.enable=false", "--checkpoint.enable=false",
]  # fmt: skip
"""Logged at step 1 only: logging waits for the device."""

BASELINE, UNMEASURED = "--nitp.enable=false", "--geometry.enable=false"
NUM_ROUNDS = 3
NUM_STEPS = {"cuda": 20, "cpu": 6}


class Arm(NamedTuple):
    """One of the trainings that are compared."""

    name: str
    is_plain: bool
    overrides: Sequence[str]
    needs_graphs: bool = False


ARMS = (
    Arm("TorchTitan", True, [BASELINE]),  # its own trainer, no module of ours but model and data
    Arm("NTP", False, [BASELINE, UNMEASURED]),
    Arm("NITP", False, [UNMEASURED]),
    # Replayed from a graph, every step measures the geometry; else those that are logged do.
    Arm("NITP and geometry", False, [], needs_graphs=True),
)
MODES = {"graphs": GRAPHS, "no graphs": "--training.disable_cuda_graphs"}


class Planned(NamedTuple):
    """One arm in one round, to be run."""

    case: Case
    arm: Arm
    mode: str
    round: int


class Timing(NamedTuple):
    """One arm in one round."""

    arm: str
    mode: str
    round: int
    figures: dict[str, Any]
    """Of speed.run_timed."""

    loss: float
    """Cross entropy of step 1."""

    @property
    def step_s(self) -> float:
        return statistics.median(self.figures["seconds"])


def plan(device: Device, num_devices: int) -> Iterator[Planned]:
    """Every arm in every round; the order turns round, so that no arm is always the first."""
    modes = list(MODES) if device == "cuda" else ["no graphs"]
    shape = DENSE_500M if device == "cuda" else TINY
    order = [(m, arm) for m in modes for arm in ARMS if m == "graphs" or not arm.needs_graphs]
    streams = f"--data.num_streams={2 * num_devices}"
    for number in range(NUM_ROUNDS):
        for mode, arm in order if number % 2 == 0 else order[::-1]:
            case = Case(
                name=f"{arm.name}-{mode}-{number}".replace(" ", "_"),
                config="train_configs/debug.toml",
                overrides=[*shape, *COMMON, streams, MODES[mode], *arm.overrides],
                num_steps=NUM_STEPS[device],
                legs=[(num_devices, [])],
                is_plain=arm.is_plain,
                runner="recipes.gpu_check.speed:run_timed",
            )
            yield Planned(case, arm, mode, number)


def measure_cost(section: Section, device: Device, num_devices: int, deadline_s: float) -> None:
    """As many rounds as there is time for."""
    planned = list(plan(device, num_devices))
    cases = [entry.case for entry in planned]
    overrides = " ".join(cases[0].overrides)
    section.commands = [f"recipes.gpu_check.cost, each arm: train_configs/debug.toml {overrides}"]
    timings: list[Timing] = []
    runs = run_cases(cases, device=device, deadline_s=deadline_s)
    try:
        for (case, arm, mode, number), (_, outcome) in zip(planned, runs, strict=True):
            if isinstance(outcome, Result):
                (figures,) = outcome.probes
                metrics = outcome.metrics[0]
                loss = metrics.get("loss_metrics/ntp_loss", metrics["loss_metrics/global_avg_loss"])
                timings.append(Timing(arm.name, mode, number, figures, loss))
            elif outcome.is_out_of_time:
                section.not_run.append(f"{arm.name}, {mode}, round {number + 1}: the time was up")
            else:
                section.problems.append(f"{arm.name}, {mode}, round {number + 1}: {outcome}")
                section.logs[f"cost-{case.name}"] = outcome.log
    finally:
        section.problems += find_disagreement(timings)
        section.text, section.figures = summarise(timings)


def find_disagreement(timings: Sequence[Timing]) -> list[str]:
    """Arms whose first step does not have the cross entropy of the first arm's: the same batch and
    initial weights, to bfloat16's rounding."""
    return [
        f"{t.arm}, {t.mode}, round {t.round + 1}: L_NTP of step 1 is {t.loss:.6f}, "
        f"not {timings[0].loss:.6f} as with {timings[0].arm}"
        for t in timings
        if not abs(t.loss - timings[0].loss) <= BFLOAT16.loss * timings[0].loss
    ]


def summarise(timings: Sequence[Timing]) -> tuple[list[str], dict[str, Any]]:
    """The tables, and their numbers. MFU counts the decoder's FLOPs and never NITP's."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    groups: dict[tuple[str, str], list[Timing]] = {}
    for timing in sorted(timings, key=lambda t: (list(MODES).index(t.mode), t.round)):
        groups.setdefault((timing.mode, timing.arm), []).append(timing)
    flops = {t.figures["flops_per_token"] for t in timings if t.arm == "TorchTitan"}
    for (mode, arm), group in groups.items():
        steps = sorted(second for t in group for second in t.figures["seconds"])
        tokens = group[0].figures["tokens_per_step"]
        median = statistics.median(steps)
        entry = {
            "rounds": len(group),
            "step_s": median,
            "step_s_quartiles": [steps[len(steps) // 4], steps[3 * len(steps) // 4]],
            "tokens_per_s": tokens / median,
            "active_gib": max(t.figures["active_gib"] for t in group),
            "reserved_gib": max(t.figures["reserved_gib"] for t in group),
        }
        peak = group[0].figures["peak_flops"] * group[0].figures["num_devices"]
        if flops and math.isfinite(peak):
            entry["mfu"] = max(flops) * entry["tokens_per_s"] / peak
        figures[f"{arm}, {mode}"] = entry
        low, high = entry["step_s_quartiles"]
        rows.append([
            arm, mode, str(len(group)), f"{1e3 * median:.2f}",
            f"{1e3 * low:.2f} to {1e3 * high:.2f}", f"{entry['tokens_per_s']:,.0f}",
            f"{entry['mfu']:.1%}" if "mfu" in entry else "-",
            f"{entry['active_gib']:.2f}", f"{entry['reserved_gib']:.2f}",
        ])  # fmt: skip
    columns = ["arm", "mode", "rounds", "step, median (ms)", "quartiles (ms)", "tokens/s", "MFU",
               "active (GiB)", "reserved (GiB)"]  # fmt: skip
    text = format_table(columns, rows) if rows else []
    for what, arm, base in (
        ("NITP over NTP", "NITP", "NTP"),
        ("NTP over TorchTitan's own trainer", "NTP", "TorchTitan"),
        ("Geometry in every step", "NITP and geometry", "NITP"),
    ):
        for mode in MODES:
            ratios = find_ratios(timings, mode, arm, base)
            if ratios:
                figures[f"{what}, {mode}"] = {"ratios": ratios}
                text.append(
                    f"\n{what}, {mode}: step time {statistics.median(ratios) - 1:+.2%} "
                    f"({min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%} over {len(ratios)} rounds)."
                )
    return text, figures


def find_ratios(timings: Sequence[Timing], mode: str, arm: str, base: str) -> list[float]:
    """Step time of one arm over another's, in each round that has both."""
    found = {(t.round, t.arm): t.step_s for t in timings if t.mode == mode}
    rounds = sorted({number for number, _ in found})
    return [
        found[r, arm] / found[r, base] for r in rounds if (r, arm) in found and (r, base) in found
    ]
