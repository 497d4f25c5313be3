"""What cannot be exported is refused in one line, and nothing is written or lost."""

import copy
import dataclasses
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from recipes.config import rules
from recipes.config.settings import resolve_settings
from recipes.export import run as export_run
from recipes.export.checkpoint import find_checkpoint
from recipes.export.command import main
from recipes.export.final import check_model
from tests.integration.export_runs import (
    DENSE,
    MOE,
    SMALL,
    SMALL_MOE,
    save_checkpoint,
    save_run,
)

TIED = [*SMALL, "--model.tie_embeddings"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("saved") / "run"
    return folder, save_run(folder, DENSE, TIED)


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return shutil.copytree(saved[0], tmp_path / "run")


def refuse(capsys, run: Path, *arguments: str, code: int) -> str:
    """Export `run`, expect `code`, one line on stderr and no output; returns the line."""
    output = run.parent / "out"
    before = sorted(path.name for path in run.parent.iterdir())
    usual = {"--run": f"--run={run}", "--output": f"--output={output}", "--verify": "--verify=keys"}
    given = {argument.partition("=")[0] for argument in arguments}
    options = [option for name, option in usual.items() if name not in given]
    assert main([*options, *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sorted(path.name for path in run.parent.iterdir()) == before
    return printed.err


def test_the_command_exports_and_says_what_it_dropped(capsys, run):
    output = run.parent / "out"
    assert main(["--run", str(run), "--output", str(output), "--verify", "keys"]) == 0
    printed = capsys.readouterr().out
    assert "dropped    nitp_projector: 3 tensors, 49,152 numbers" in printed
    assert f"exported   {output}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "7"], "no complete checkpoint of step 7. It has 3."),
        (["--step", "x"], '--step (x) must be "latest" or a number.'),
        (["--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
        (["--output="], "--output () is no path."),
        (["--output=$NOT_SET_AT_ALL/x"], "--output ($NOT_SET_AT_ALL/x) names the environment var"),
        (["--output=~nobody-of-that-name/x"], "which is no home directory."),
        (["--output=pyproject.toml/x"], "--output (pyproject.toml) is no folder"),
        (["--run="], "--run () is no path."),
        (["--verfy", "none"], "unrecognized arguments: --verfy none"),
    ],
)
def test_a_wrong_argument_is_bad_usage(capsys, run, arguments, message):
    assert message in refuse(capsys, run, *arguments, code=2)


def test_a_folder_that_is_no_run_is_bad_usage(capsys, run):
    (run / "config.toml").unlink()
    assert ") is not a run directory: it has no config.toml" in refuse(capsys, run, code=2)


def test_an_existing_output_is_bad_usage_and_kept(capsys, run):
    (run.parent / "out").mkdir()
    (run.parent / "out" / "precious").touch()
    assert "out) exists" in refuse(capsys, run, code=2)
    assert (run.parent / "out" / "precious").exists()


def test_a_missing_tokenizer_is_bad_usage(capsys, run):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("embedded://python-bpe-8k", "nowhere"))
    assert "tokenizer.path (nowhere) is not a folder" in refuse(capsys, run, code=2)


def test_logits_without_transformers_are_bad_usage(capsys, run, monkeypatch):
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None)
    assert "needs the package transformers" in refuse(capsys, run, "--verify", "logits", code=2)


def test_a_model_too_large_to_compare_here_is_bad_usage(capsys, run, monkeypatch):
    monkeypatch.setattr(export_run, "physical_memory_bytes", lambda: 2**20)
    message = "takes 0 GiB of memory for this model at depth 3; this machine has 0 GiB"
    assert message in refuse(capsys, run, "--verify", "logits", code=2)


def test_the_9b_model_is_compared_up_to_its_first_moe_layer(monkeypatch):
    """0.80 B parameters: 7.4 GiB."""
    settings = resolve_settings("train_configs/nitp_9b.toml", [])
    spec = export_run.build_model(settings)
    monkeypatch.setattr(export_run, "physical_memory_bytes", lambda: 8 * 2**30)
    assert export_run.choose_depth(spec) == 2
    monkeypatch.setattr(export_run, "physical_memory_bytes", lambda: 7 * 2**30)
    with pytest.raises(ValueError, match="takes 7 GiB of memory for this model at depth 2"):
        export_run.choose_depth(spec)


def test_softmax_scores_are_refused_before_training():
    settings = resolve_settings(
        "train_configs/debug_moe.toml", ["--model.router_score_func=softmax", "--export.enable"]
    )
    with pytest.raises(ValueError, match=r'^model\.router_score_func \("softmax"\) must be'):
        check_model(settings)


def test_an_unfinished_checkpoint_is_no_checkpoint(capsys, run):
    (run / "checkpoint/step-3/.metadata").unlink()
    expected = "has no complete checkpoint (step-3: it has no .metadata, so its save did not end)"
    assert expected in refuse(capsys, run, code=2)


def test_a_damaged_checkpoint_is_refused_naming_what_is_damaged(capsys, run):
    checkpoint = run / "checkpoint/step-3"
    (data,) = checkpoint.glob("*.distcp")
    size = data.stat().st_size
    os.truncate(data, size // 2)
    assert f"(step-3: {data.name} has {size // 2} of " in refuse(capsys, run, code=2)
    data.unlink()
    assert f"(step-3: {data.name} has 0 of " in refuse(capsys, run, code=2)
    (checkpoint / ".metadata").write_bytes(b"garbage")
    assert "(step-3: its .metadata cannot be read (" in refuse(capsys, run, code=2)


def test_a_newer_checkpoint_that_was_cut_off_is_passed_over_by_name(caplog, run):
    folder = run / "checkpoint"
    (folder / "step-5").mkdir()
    assert find_checkpoint(folder, None).step == 3
    assert f"{folder / 'step-5'} is passed over: it has no .metadata" in caplog.text
    with pytest.raises(ValueError, match="no complete checkpoint of step 5 .*It has 3"):
        find_checkpoint(folder, 5)


def edited(state: dict, **edits) -> dict:
    """The state with tensors replaced, or removed where the edit is None."""
    state = {key: copy.copy(value) for key, value in state.items()}
    for name, value in edits.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"layers__3__ffn_norm__weight": torch.ones(64)}, "is neither a parameter of the model"),
        ({"ema__norm__weight": torch.ones(64)}, "ema.norm.weight is neither a parameter"),
        ({"layers__2__ffn_norm__weight": None}, "layers.2.ffn_norm.weight is missing"),
        ({"norm__weight": torch.ones(65)}, "norm.weight has shape [65], the model [64]"),
        ({"norm__weight": torch.full((64,), float("nan"))}, "norm.weight has values that are not"),
        ({"lm_head__weight": torch.ones(8192, 64)}, "tok_embeddings.weight and lm_head.weight dif"),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_model_fails(capsys, run, saved, edits, message):
    save_checkpoint(run, edited(saved[1], **edits), step=4)
    assert message in refuse(capsys, run, code=1)


def test_a_tensor_that_is_not_whole_fails(capsys, run):
    """DCP would leave the missing part as memory happened to be."""
    path = run / "checkpoint/step-3/.metadata"
    metadata = pickle.loads(path.read_bytes())
    entry = metadata.state_dict_metadata["norm.weight"]
    entry.chunks[0] = dataclasses.replace(entry.chunks[0], sizes=torch.Size([63]))
    path.write_bytes(pickle.dumps(metadata))
    assert "parts of norm.weight are missing" in refuse(capsys, run, code=1)


def test_a_full_disk_fails_and_leaves_nothing(capsys, run):
    """A file size limit stands for the disk: writing beyond it raises the same OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert "File too large" in refuse(capsys, run, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--model.num_shared_experts=0"], "model.num_shared_experts (0) must be at least 1"),
        (["--model.tie_embeddings"], "A mixture of experts must be untied."),
        (["--model.router_score_func=softmax"], 'model.router_score_func ("softmax") must be "sig'),
    ],
)
def test_a_model_without_a_stock_architecture_is_refused(capsys, tmp_path, overrides, message):
    save_run(tmp_path / "run", MOE, [*SMALL_MOE, *overrides])
    assert message in refuse(capsys, tmp_path / "run", code=2)
