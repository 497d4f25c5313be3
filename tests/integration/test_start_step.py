"""Before nitp.start_step a run is the baseline bit for bit, and the projector as initialised."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recipes.run.trainer import RunTrainer
from tests.integration.test_nonfinite import plant
from tests.launch import SMALL, assert_equal_states, load_state, read_curves, run

START, NUM_STEPS, NUM_RANKS = 4, 5, 2
# Clipped at every step: the norm must have the same bits too.
RUN = [
    *SMALL, f"--training.steps={NUM_STEPS}", "--lr_scheduler.total_steps=5",
    "--lr_scheduler.warmup_steps=1", "--checkpoint.interval=1", "--checkpoint.keep_latest_k=0",
    "--training.max_norm=0.01", "--optimizer.weight_decay=0.5",
]  # fmt: skip
LATE = [*RUN, f"--nitp.start_step={START}"]


def save_initial(folder: Path, rank: int) -> None:
    """Note the projector as it was before the first step."""
    train_step = RunTrainer.train_step

    def note(self: RunTrainer, data_iterator) -> None:
        if self.step == 1:
            projector = self.model_parts[-1].nitp_projector
            values = {
                f"nitp_projector.{name}": value.full_tensor()
                for name, value in projector.state_dict().items()
            }
            if dist.get_rank() == 0:
                torch.save(values, folder / "initial.pt")
        train_step(self, data_iterator)

    RunTrainer.train_step = note


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A whole run with a late start, and its baseline."""
    folder = tmp_path_factory.mktemp("runs")
    late = [*LATE, f"--job.dump_folder={folder / 'late'}"]
    run(late, folder / "log", NUM_RANKS, functools.partial(save_initial, folder))
    ntp = [*RUN, f"--job.dump_folder={folder / 'ntp'}", "--nitp.enable=false"]
    run(ntp, folder / "log-ntp", NUM_RANKS)
    return folder


def saved(run: Path, step: int) -> tuple[dict, dict]:
    """(backbone with its moments and all else, projector with its moments) of a checkpoint.

    Without the random state: a projector has drawn its initial values, after the backbone.
    """
    state = load_state(run / "checkpoint" / f"step-{step}")
    state = {name: value for name, value in state.items() if not name.startswith("random_state")}
    projector = {name: value for name, value in state.items() if "nitp_projector." in name}
    return {name: state[name] for name in state.keys() - projector.keys()}, projector


def moments(projector: dict) -> dict:
    return {k: v for k, v in projector.items() if ".state." in k}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_until_the_start_the_backbone_is_the_baseline_and_the_projector_the_initial_one(
    folder, step
):
    backbone, projector = saved(folder / "late", step)
    assert_equal_states(backbone, saved(folder / "ntp", step)[0])
    initial = torch.load(folder / "initial.pt")
    assert len(initial) == 3
    for name, value in initial.items():
        assert torch.equal(projector[name], value), name
    assert len(moments(projector)) == 9
    assert all((value == 0).all() for value in moments(projector).values())


def test_at_the_start_the_projector_takes_its_first_step(folder):
    backbone, projector = saved(folder / "late", START)
    initial = torch.load(folder / "initial.pt")
    assert not any(torch.equal(projector[name], value) for name, value in initial.items())
    counts = [value for name, value in projector.items() if name.endswith(".step")]
    assert counts == [1, 1, 1]
    baseline = saved(folder / "ntp", START)[0]
    assert not torch.equal(
        backbone["layers.0.ffn_norm.weight"], baseline["layers.0.ffn_norm.weight"]
    )
    curves = read_curves(folder / "late")
    assert sorted(curves["loss_metrics/nitp_loss"]) == [4, 5]
    baseline_curves = read_curves(folder / "ntp")
    for step in range(1, START):
        assert curves["grad_norm"][step] == baseline_curves["grad_norm"][step] > 0.01


@pytest.mark.parametrize("last", [1, START - 1, START])
def test_a_run_resumed_before_at_and_after_the_start_is_the_whole_one(folder, tmp_path, last):
    resumed = tmp_path / "resumed"
    shutil.copytree(folder / "late", resumed)
    for step in range(last + 1, NUM_STEPS + 1):
        shutil.rmtree(resumed / "checkpoint" / f"step-{step}")
    run([*LATE, f"--job.dump_folder={resumed}"], tmp_path / "log", NUM_RANKS)
    for step in range(last + 1, NUM_STEPS + 1):
        states = (load_state(f / "checkpoint" / f"step-{step}") for f in (folder / "late", resumed))
        assert_equal_states(*states)


def test_a_skipped_step_before_the_start_leaves_the_projector(tmp_path):
    """The first one, which is also the one that makes the moments."""
    run(
        [*LATE, f"--job.dump_folder={tmp_path / 'run'}", "--training.on_nonfinite=skip"],
        tmp_path / "log", NUM_RANKS,
        functools.partial(plant, float("nan"), "gradient", [1], [1]),
    )  # fmt: skip
    first, third, fourth = (saved(tmp_path / "run", step)[1] for step in (1, 3, START))
    assert_equal_states(first, third)
    assert all((value == 0).all() for value in moments(third).values())
    assert [value for name, value in fourth.items() if name.endswith(".step")] == [1, 1, 1]
