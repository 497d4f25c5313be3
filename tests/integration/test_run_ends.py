"""How runs end: asked to, and out of data."""

import json
import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from nitp.validate import NITPValidator
from recipes.data import unigram
from recipes.export import final
from recipes.run.checkpoint_folder import find_steps
from recipes.run.trainer import RunTrainer
from recipes.stop import INTERRUPTED
from tests.launch import (
    PIPELINE,
    SMALL,
    assert_equal_states,
    hold_after,
    load_state,
    read_curves,
    run,
    start,
    wait,
)
from tests.waiting import block

RUN = [*SMALL, "--lr_scheduler.total_steps=8", "--checkpoint.interval=2"]
LONG = ["--training.steps=99999", "--lr_scheduler.total_steps=99999"]
"""Further overrides for a run that does not end by itself."""


def test_a_signal_to_any_rank_ends_all_with_a_checkpoint_that_resumes(tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = [*RUN, "--checkpoint.interval=100", "--training.steps=8"]
    ranks = start(
        [*arguments, f"--job.dump_folder={stopped}"], tmp_path / "log", 2,
        before=partial(hold_after, 3, until=tmp_path / "go"),
    )  # fmt: skip
    ranks[0].wait_for("step      3")
    ranks[1].send(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert wait(ranks) == [0, 0]
    text = ranks[0].text()
    (step,) = find_steps(stopped / "checkpoint")
    assert 3 < step <= 6, "the step under way, or the next"
    assert f"Stopped by a signal to another rank after step {step} of 8." in text
    assert "To resume: " in text
    assert f"--nproc_per_node=2 -m recipes.train --job.config_file {stopped}/config.toml\n" in text
    for folder in (stopped, whole):
        run([*arguments, f"--job.dump_folder={folder}"], tmp_path / "log", 2)
    assert read_curves(stopped) == read_curves(whole)
    assert_equal_states(*(load_state(run / "checkpoint" / "step-8") for run in (stopped, whole)))


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_leaves_the_workers_to_the_step(tmp_path):
    """As torchrun and a terminal send it; the workers have data to give to the step under way."""
    folder = tmp_path / "run"
    arguments = [*RUN, f"--job.dump_folder={folder}", *LONG]
    (rank,) = start([*arguments, "--data.num_workers=2"], tmp_path / "log")
    rank.wait_for("step      3")
    workers = rank.children()
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    rank.wait_for("step      7")
    rank.send(signal.SIGTERM)
    assert rank.wait() == 0
    assert "Stopped by SIGTERM" in rank.text()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_a_signal_without_checkpoints_says_that_nothing_was_saved(tmp_path):
    arguments = [*RUN, f"--job.dump_folder={tmp_path / 'run'}", "--checkpoint.enable=false"]
    (rank,) = start([*arguments, *LONG], tmp_path / "log")
    rank.wait_for("step      2")
    rank.send(signal.SIGINT)
    assert rank.wait() == 0
    assert "Stopped by SIGINT" in rank.text() and "Nothing was saved." in rank.text()


@pytest.mark.slow
def test_a_signal_ends_all_pipeline_stages_with_a_checkpoint_that_resumes(tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = [*RUN, *PIPELINE, "--checkpoint.interval=100", "--training.steps=8"]
    ranks = start(
        [*arguments, f"--job.dump_folder={stopped}"], tmp_path / "log", 2,
        before=partial(hold_after, 3, until=tmp_path / "go"),
    )  # fmt: skip
    ranks[0].wait_for("step      3")
    ranks[0].send(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert wait(ranks) == [0, 0]
    for folder in (stopped, whole):
        run([*arguments, f"--job.dump_folder={folder}"], tmp_path / "log", 2)
    assert read_curves(stopped) == read_curves(whole)
    assert_equal_states(*(load_state(run / "checkpoint" / "step-8") for run in (stopped, whole)))


def say_when_validating(rank: int) -> None:
    validate = NITPValidator.validate

    def validate_aloud(self: NITPValidator, *arguments) -> None:
        print("validating", flush=True)
        validate(self, *arguments)

    NITPValidator.validate = validate_aloud


@pytest.mark.parametrize(
    "layout", [[], pytest.param(PIPELINE, marks=pytest.mark.slow)], ids=["data", "pipeline"]
)
def test_a_signal_to_one_rank_in_a_validation_without_end_is_acted_on_in_it(tmp_path, layout):
    folder = tmp_path / "run"
    arguments = [*RUN, *layout, *LONG, f"--job.dump_folder={folder}", "--checkpoint.interval=100"]
    ranks = start(
        [*arguments, "--validation.enable=true", "--validation.freq=3",
         "--validation.steps=1000000", "--export.enable", "--export.verify=keys"],
        tmp_path / "log", 2, before=say_when_validating,
    )  # fmt: skip
    ranks[0].wait_for("validating")  # at step 1
    ranks[1].send(signal.SIGUSR1)
    assert wait(ranks) == [0, 0]
    text = ranks[0].text()
    assert text.count("The validation at step 1 is left out: asked to stop.") == 1
    assert "Stopped by a signal to another rank after step 1 of 99999." in text
    assert "To resume: " in text and "--nproc_per_node=2 -m recipes.train" in text
    assert "xport" not in text
    assert list(find_steps(folder / "checkpoint")) == [1]
    assert not any(tag.startswith("validation") for tag in read_curves(folder))
    arguments += ["--training.steps=2"]
    ranks = run([*arguments, "--validation.enable=true", "--validation.steps=1"], tmp_path, 2)
    assert "Training starts at step 2" in ranks[0].text()


def signal_oneself_where_it_loads(rank: int) -> None:
    load = RunTrainer.load_state_dict

    def load_and_signal(self: RunTrainer, state_dict: dict) -> None:
        load(self, state_dict)
        os.kill(os.getpid(), signal.SIGTERM)

    RunTrainer.load_state_dict = load_and_signal


def signal_oneself_where_it_builds(rank: int) -> None:
    build = RunTrainer.init_distributed

    def build_and_signal(self: RunTrainer):
        os.kill(os.getpid(), signal.SIGTERM)
        return build(self)

    RunTrainer.init_distributed = build_and_signal


def test_a_signal_before_the_first_step_ends_a_start_that_leaves_all_as_it_was(tmp_path):
    folder = tmp_path / "run"
    arguments = [*RUN, f"--job.dump_folder={folder}", "--training.steps=2"]
    (rank,) = start(arguments, tmp_path / "log", before=signal_oneself_where_it_builds)
    assert rank.wait() == INTERRUPTED
    assert "Stopped by SIGTERM before training began. The same command starts again." in rank.text()
    assert "Traceback" not in rank.text() and not folder.exists()
    run(arguments, tmp_path / "log")
    arguments += ["--training.steps=4"]
    (rank,) = start(arguments, tmp_path / "log", before=signal_oneself_where_it_loads)
    assert rank.wait() == 0, rank.text()
    assert "Stopped by SIGTERM after step 2 of 4." in rank.text()
    assert list(find_steps(folder / "checkpoint")) == [2]


def signal_oneself_where_it_exports(rank: int) -> None:
    def export(settings):
        os.kill(os.getpid(), signal.SIGINT)
        block()

    final.export_final = export


def test_a_signal_in_the_export_ends_it_and_the_same_command_exports(tmp_path):
    folder = tmp_path / "run"
    arguments = [
        *RUN, f"--job.dump_folder={folder}", "--training.steps=1", "--export.enable",
        "--export.verify=keys",
    ]  # fmt: skip
    (rank,) = start(arguments, tmp_path / "log", before=signal_oneself_where_it_exports)
    assert rank.wait() == INTERRUPTED
    assert "Stopped by SIGINT in the export. The same command exports the" in rank.text()
    assert "Traceback" not in rank.text() and not (folder / "run.lock").exists()
    run(arguments, tmp_path / "log")
    assert (folder / "exported" / "step-1" / "config.json").is_file()


def test_data_that_run_out_end_the_run_saved_at_the_last_whole_step(tmp_path):
    """8 documents of 420 words are 6 rows of 64 tokens each: two steps of 20 rows, and 8 rows that
    are read for a third one that never comes."""
    corpus, folder = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    for index in range(8):
        (corpus / f"{index}.txt").write_text("word " * 420)
    arguments = [
        *RUN, f"--job.dump_folder={folder}", f"--data.sources=[{{path='{corpus}/*.txt'}}]",
        "--data.num_streams=8", "--data.validation_fraction=0", "--training.local_batch_size=2",
        "--training.global_batch_size=20", "--checkpoint.interval=1000", "--training.steps=1000",
        "--lr_scheduler.total_steps=1000",
    ]  # fmt: skip
    (rank,) = run([*arguments, "--data.num_epochs=1"], tmp_path / "log")
    assert "Ran out of data after step 2 of 1000." in rank.text()
    (state,) = map(load_state, find_steps(folder / "checkpoint").values())
    assert state["dataloader.rows"].tolist() == [40]
    assert state["train_state.ntokens_seen"] == 40 * 64
    (rank,) = run([*arguments, "--data.num_epochs=2"], tmp_path / "log")
    assert "data.num_epochs (1 -> 2)" in rank.text()
    assert "Training starts at step 3" in rank.text()
    assert list(find_steps(folder / "checkpoint")) == [2, 5]


def lose_data(corpus: Path, rank: int) -> None:
    """The data are gone when the last step has been made; a short sample is a baseline."""
    unigram.SAMPLE_LABELS = 500
    train_step = RunTrainer.train_step

    def train_and_lose(self: RunTrainer, data_iterator) -> None:
        train_step(self, data_iterator)
        if self.step == 2:
            shutil.rmtree(corpus)

    RunTrainer.train_step = train_and_lose


def break_curves(rank: int) -> None:
    def fail(self: SummaryWriter) -> None:
        raise OSError("no space left on device")

    SummaryWriter.close = SummaryWriter.flush = fail


@pytest.mark.parametrize("num_epochs", [-1, 1])
def test_a_run_whose_data_are_gone_when_it_ends_gives_its_baseline_and_exports(
    tmp_path, num_epochs
):
    """One document of the words 0 0 1 0 0 1 ... without end: a unigram model's loss is known."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text(json.dumps({"tokens": [5, 5, 7] * 2000}))
    arguments = [
        *RUN, f"--data.sources=[{{path='{corpus}/*.jsonl', tokens='tokens'}}]",
        f"--job.dump_folder={tmp_path / 'run'}", "--training.steps=2", "--data.num_streams=1",
        "--data.validation_fraction=0", f"--data.num_epochs={num_epochs}",
        "--export.enable", "--export.verify=keys",
    ]  # fmt: skip
    (rank,) = run(arguments, tmp_path / "log", before=partial(lose_data, corpus))
    assert not corpus.exists()
    # Labels are the document from its second token: 333 of 500 are 5, 167 are 7.
    labels = ([5, 5, 7] * 200)[1:501]
    share = labels.count(7) / 500
    expected = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert f"; a unigram model's {expected:.4f}\n" in rank.text()
    assert (tmp_path / "run" / "exported" / "step-2" / "config.json").is_file()


def test_a_run_whose_curves_cannot_be_written_to_their_end_exports(tmp_path):
    arguments = [
        *RUN, f"--job.dump_folder={tmp_path / 'run'}", "--training.steps=2",
        "--export.enable", "--export.verify=keys",
    ]  # fmt: skip
    (rank,) = run(arguments, tmp_path / "log", before=break_curves)
    assert "The curves are not complete: OSError('no space left on device')" in rank.text()
    assert "unigram" not in rank.text()  # of two steps it would be no baseline
    assert (tmp_path / "run" / "exported" / "step-2" / "config.json").is_file()
