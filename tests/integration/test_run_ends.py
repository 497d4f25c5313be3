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

from recipes.data import unigram
from recipes.run.checkpoint_folder import find_steps
from recipes.run.trainer import RunTrainer
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
    assert (
        "To resume: torchrun --nproc_per_node=2 -m recipes.train --job.config_file "
        f"{stopped}/config.toml" in text
    )
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
