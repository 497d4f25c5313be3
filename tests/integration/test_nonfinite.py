"""Numbers that are not finite: found in the step they appear in, placed, never saved."""

import functools
import os
import signal
from itertools import chain

import pytest
import torch

from recipes.run.trainer import RunTrainer
from tests.launch import (
    PIPELINE,
    SMALL,
    all_errors,
    assert_equal_states,
    load_state,
    read_curves,
    run,
    start,
    wait,
)

RUN = [*SMALL, "--lr_scheduler.total_steps=8", "--checkpoint.interval=2"]
NAN, INF = float("nan"), float("inf")
SLOW = pytest.mark.slow


def plant(value: float, where: str, steps: list[int], bad_ranks: list[int], rank: int) -> None:
    """Spoil the loss, or one number of one gradient, of some ranks at some steps."""
    backward = RunTrainer._forward_backward_body

    def spoil(self: RunTrainer, *arguments):
        loss = backward(self, *arguments)
        if self.step not in steps or rank not in bad_ranks:
            return loss
        print("given", *self.dataloader.recent_documents(1)[0], sep=" | ")
        if where == "loss":
            return loss * value
        next(self.model_parts[0].parameters()).grad._local_tensor[0, 0] = value
        return loss

    RunTrainer._forward_backward_body = spoil


@pytest.mark.parametrize(
    ("value", "where", "bad_ranks", "log_freq", "step"),
    [
        (INF, "gradient", [1], 100, 4),
        pytest.param(NAN, "loss", [1], 1, 3, marks=SLOW),
        pytest.param(1e30, "gradient", [1], 100, 3, marks=SLOW),
        pytest.param(1.5e19, "gradient", [0, 1], 100, 3, marks=SLOW),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run_and_names_the_place(
    tmp_path, value, where, bad_ranks, log_freq, step
):
    """The square of 1e30 is not finite, and so neither is the gradient norm; that of 1.5e19 is, but
    not the sum of two. Step 4 would be saved."""
    folder = tmp_path / "run"
    ranks = start(
        [*RUN, f"--job.dump_folder={folder}", "--training.steps=8",
         f"--metrics.log_freq={log_freq}"],
        tmp_path / "log", 2,
        before=functools.partial(plant, value, where, [step], bad_ranks),
    )  # fmt: skip
    assert wait(ranks) == [1, 1]
    (error,) = all_errors(ranks)
    rows = f"rows {8 * step - 8} to {8 * step - 1} of the data"
    place = "ranks 1" if bad_ranks == [1] else "no rank alone, but their sum"
    lines = [line for rank in bad_ranks for line in ranks[rank].text().splitlines()]
    given = [line.split(" | ")[1:] for line in lines if line.startswith("given")]
    assert len(given) == len(bad_ranks)
    documents = ", ".join(dict.fromkeys(chain(*given)))
    assert (
        f"The {where} of step {step} is not finite ({place}; {rows}; documents there: {documents})"
    ) in error
    assert f"The last good checkpoint is {folder}/checkpoint/step-2." in error
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-2"]


@pytest.mark.parametrize(
    ("value", "where", "log_freq"),
    [pytest.param(NAN, "loss", 1, marks=SLOW), (NAN, "gradient", 3)],
)
def test_skipping_leaves_parameters_and_moments_as_they_were(tmp_path, value, where, log_freq):
    """Steps 3 and 4; step 3 is logged, so that its update is skipped elsewhere. The learning rate
    warms up over six steps whatever becomes of them."""
    folder = tmp_path / "run"
    ranks = run(
        [*RUN, f"--job.dump_folder={folder}", "--training.steps=5", "--checkpoint.interval=1",
         "--checkpoint.keep_latest_k=0", "--training.on_nonfinite=skip",
         "--lr_scheduler.warmup_steps=6", f"--metrics.log_freq={log_freq}"],
        tmp_path / "log", 2, functools.partial(plant, value, where, [3, 4], [1]),
    )  # fmt: skip
    text = ranks[0].text()
    assert f"The {where} of step 3 is not finite (ranks 1; rows 16 to 23" in text
    assert "update skipped, 1 so far" in text and "update skipped, 2 so far" in text
    states = {n: load_state(folder / "checkpoint" / f"step-{n}") for n in (2, 3, 4, 5)}
    learning_rates = [name for name in states[2] if name.endswith(".lr")]
    assert learning_rates
    for step, state in states.items():
        # Saved with a step: the learning rate of the next one.
        expected = dict.fromkeys(learning_rates, 1e-3 * (step + 1) / 6)
        assert {name: state.pop(name) for name in learning_rates} == pytest.approx(expected)
    own = ("train_state", "dataloader", "lr_scheduler", "random_state")
    before, *skipped, after = (
        {k: v for k, v in s.items() if not k.startswith(own)} for s in states.values()
    )
    for state in skipped:
        assert_equal_states(before, state)
    changed = [k for k in after.keys() & before.keys() if k.endswith("weight")]
    assert not any(torch.equal(before[k], after[k]) for k in changed if "state" not in k)
    assert [s["train_state.num_skipped_steps"] for s in states.values()] == [0, 1, 2, 2]
    assert read_curves(folder)["training/skipped_steps"] == {3: 1.0, 4: 2.0}


UNSEEN = ["--checkpoint.enable=false", "--metrics.log_freq=100"]
"""Nothing is saved, and of four steps the first alone is logged."""


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_the_last_step_is_judged_though_it_is_neither_logged_nor_saved(tmp_path, policy):
    folder = tmp_path / "run"
    (rank,) = start(
        [*RUN, *UNSEEN, f"--job.dump_folder={folder}", "--training.steps=4",
         f"--training.on_nonfinite={policy}"],
        tmp_path / "log", before=functools.partial(plant, NAN, "gradient", [4], [0]),
    )  # fmt: skip
    text = "The gradient of step 4 is not finite (ranks 0; rows 24 to 31 of the data; "
    if policy == "stop":
        assert rank.wait() == 1
        (error,) = rank.errors()
        assert text in error and "The last good checkpoint is none." in error
        assert "Training completed" not in rank.text()
    else:
        assert rank.wait() == 0
        assert text in rank.text() and "update skipped, 1 so far" in rank.text()
        assert read_curves(folder)["training/skipped_steps"] == {4: 1.0}


def stop_and_plant(step: int, rank: int) -> None:
    """Ask to stop in the step before `step`, whose gradient is spoilt."""
    plant(NAN, "gradient", [step], [0], rank)
    train_step = RunTrainer.train_step

    def ask(self: RunTrainer, data_iterator) -> None:
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, data_iterator)

    RunTrainer.train_step = ask


def test_the_step_that_a_stop_request_ends_with_is_judged(tmp_path):
    """Step 4 ends the run of eight: only then all ranks know of the request in step 3."""
    (rank,) = start(
        [*RUN, *UNSEEN, f"--job.dump_folder={tmp_path / 'run'}", "--training.steps=8"],
        tmp_path / "log", before=functools.partial(stop_and_plant, 4),
    )  # fmt: skip
    assert rank.wait() == 1
    (error,) = rank.errors()
    assert "The gradient of step 4 is not finite" in error


def plant_in_a_stage(step: int, bad_rank: int, rank: int) -> None:
    """Spoil a gradient of one pipeline stage, and on the last one the loss, at one step."""
    backward = RunTrainer.pp_forward_backward_step

    def spoil(self: RunTrainer, **arguments):
        loss = backward(self, **arguments)
        if self.step == step and rank == bad_rank:
            next(self.model_parts[0].parameters()).grad.fill_(NAN)
            return loss * NAN if self.pp_has_last_stage else loss
        return loss

    RunTrainer.pp_forward_backward_step = spoil


@SLOW
@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize(("bad_rank", "what"), [(0, "gradient"), (1, "loss")])
@pytest.mark.parametrize(
    "extra",
    [
        ["--training.steps=4"],
        ["--training.steps=4", "--metrics.log_freq=100"],
        ["--training.steps=3", *UNSEEN],
    ],
    ids=["logged", "not-logged", "last"],
)
def test_all_pipeline_stages_learn_of_a_number_that_is_not_finite(
    tmp_path, policy, bad_rank, what, extra
):
    folder = tmp_path / "run"
    ranks = start(
        [*RUN, *PIPELINE, f"--job.dump_folder={folder}", f"--training.on_nonfinite={policy}",
         *extra],
        tmp_path / "log", 2, before=functools.partial(plant_in_a_stage, 3, bad_rank),
    )  # fmt: skip
    text = f"The {what} of step 3 is not finite (ranks {bad_rank}; rows 16 to 23 of the data; "
    if policy == "stop":
        assert wait(ranks) == [1, 1]
        assert [text in error for error in all_errors(ranks)] == [True]
    else:
        assert wait(ranks) == [0, 0]
        assert text in ranks[0].text() and "update skipped, 1 so far" in ranks[0].text()
        assert read_curves(folder)["training/skipped_steps"] == {3: 1.0}


def plant_always(rank: int) -> None:
    body = RunTrainer._forward_backward_body
    RunTrainer._forward_backward_body = lambda self, *a: body(self, *a) * NAN


@SLOW
def test_skipping_does_not_go_on_for_ever(tmp_path):
    steps = ["--training.steps=100", "--lr_scheduler.total_steps=100"]
    arguments = [*RUN, f"--job.dump_folder={tmp_path / 'run'}", *steps]
    (rank,) = start(
        [*arguments, "--training.on_nonfinite=skip"], tmp_path / "log", before=plant_always
    )
    assert rank.wait() == 1
    (error,) = rank.errors()
    assert "step 10 is not finite" in error and "it is the 10th step in succession" in error
