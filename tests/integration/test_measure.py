"""Figures of a model's states, against NumPy in float64 on states that transformers gives out.

Both sides run float32 models, documents in other batches: 1e-5 relative is what that leaves.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from recipes.data.config import DataConfig, SourceConfig
from recipes.export.command import main as export
from recipes.measure import rows as measure_rows
from recipes.measure.command import main
from recipes.measure.rows import batch_documents, load_encoder, read_rows
from recipes.measure.states import Target, measure_states
from recipes.measure.stock import load_stock, load_stock_config
from tests.integration.export_runs import DENSE, MOE, SMALL, SMALL_MOE, save_run
from tests.integration.stock_models import (
    CONTEXT,
    FAMILIES,
    NUM_LAYERS,
    build_opt,
    save_model,
    save_text,
)

TOLERANCE, SEQ_LEN = 1e-5, 48


@pytest.fixture(autouse=True)
def several_batches(monkeypatch) -> None:
    monkeypatch.setattr(measure_rows, "TOKENS_PER_BATCH", 4 * SEQ_LEN)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "documents.jsonl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, build) for name, (build, _) in FAMILIES.items()}


def read(text: Path, tokenizer: Path, num_rows: int) -> np.ndarray:
    """The rows that the command reads."""
    data = DataConfig(sources=[SourceConfig(path=str(text))], num_streams=1)
    encoder = load_encoder(str(tokenizer), "auto")
    return read_rows(data, encoder, seq_len=SEQ_LEN, num_rows=num_rows)


# ------------------------------------------------------------------------- the other calculation


def rank(states: np.ndarray) -> float:
    """From singular values: no covariance is formed."""
    squares = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2
    shares = squares[squares > 0] / squares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cosine(states: np.ndarray, rows: np.ndarray) -> float:
    """The mean over all pairs of different rows, pair by pair."""
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    return float((unit @ unit.T)[rows[:, None] != rows[None]].mean())


def constant_loss(states: np.ndarray) -> float:
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    return float(1 - np.linalg.norm(unit.mean(0)))


@torch.no_grad()
def dump(model: PreTrainedModel, norm: str, rows: np.ndarray) -> dict[str, list]:
    """States by name, and their rows: document by document, alone; transformers' own record of
    the residual stream, and a hook on the norm, which is named."""
    before: list[torch.Tensor] = []
    hook = model.get_submodule(norm).register_forward_pre_hook(lambda _, a: before.append(a[0]))
    found: dict[str, list] = {"row": [], "target_row": []}
    for number, (tokens, positions, _) in enumerate(rows):
        starts = [*np.flatnonzero(positions == 0), len(tokens)]
        for begin, end in zip(starts, starts[1:], strict=False):
            ids = torch.from_numpy(tokens[begin:end])[None]
            stream = model(ids, output_hidden_states=True).hidden_states
            states = {f"layer_{k}": stream[k] for k in range(NUM_LAYERS)}
            states |= {"post_norm": stream[-1], "pre_norm": before[-1]}
            states |= {f"layer_{NUM_LAYERS}": before[-1], "target": stream[1][:, 1:]}
            for name, x in states.items():
                found.setdefault(name, []).extend(x[0].double().numpy())
            found["row"] += [number] * (end - begin)
            found["target_row"] += [number] * (end - begin - 1)
    hook.remove()
    return found


def measure(arguments: list[str], output: Path) -> dict:
    assert main([*arguments, "--output", str(output)]) == 0
    report = json.loads((output / "geometry.json").read_text())
    return report | {"figures": {f["states"]: f for f in report["figures"]}}


def check(figures: dict[str, dict], states: dict[str, list]) -> None:
    for name, found in figures.items():
        is_target = name == "target"
        expected = np.array(states[name])
        rows = np.array(states["target_row" if is_target else "row"])
        assert found["num_states"] == len(expected), name
        assert found["effective_rank"] == pytest.approx(rank(expected), rel=TOLERANCE), name
        assert found["average_cosine"] == pytest.approx(cosine(expected, rows), rel=TOLERANCE), name
        if is_target:
            assert found["constant_loss"] == pytest.approx(constant_loss(expected), rel=TOLERANCE)
        else:
            assert found["constant_loss"] is None


# ------------------------------------------------------------------------------- stock models


@pytest.mark.parametrize("name", FAMILIES)
def test_figures_of_a_family_are_numpys_of_what_transformers_gives_out(
    folders, text, tmp_path, capsys, name
):
    arguments = [
        "--model", str(folders[name]), "--data", str(text), "--rows=12", f"--seq-len={SEQ_LEN}",
        "--layers=all", "--target-layer=1",
    ]  # fmt: skip
    report = measure(arguments, tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "geometry.md").read_text()
    assert (report["num_rows"], report["seq_len"], report["notes"]) == (12, SEQ_LEN, [])
    layers = [f"layer_{k}" for k in range(NUM_LAYERS + 1)]
    assert list(report["figures"]) == ["post_norm", "pre_norm", *layers, "target"]
    assert report["figures"]["post_norm"]["num_states"] == 12 * SEQ_LEN
    rows = read(text, folders[name], num_rows=12)
    num_documents = (rows[:, 1] == 0).sum()
    assert 12 < num_documents < 12 * SEQ_LEN / 4
    build, norm = FAMILIES[name]
    model = type(build()).from_pretrained(folders[name]).eval()
    states = dump(model, norm, rows)
    check(report["figures"], states)
    # The two sides of the norm, and the layers, cannot be mistaken for each other.
    ranks = [report["figures"][key]["effective_rank"] for key in ("post_norm", *layers)]
    assert len({round(rank, 3) for rank in ranks}) == len(ranks)


def test_labels_that_are_ignored_do_not_count(folders, text):
    """As where a data path masks them: prompts, for one."""
    rows = read(text, folders["llama"], num_rows=4)
    rows[:, 2, ::3] = -100
    device = torch.device("cpu")
    subject = load_stock(folders["llama"], load_stock_config(folders["llama"]), device)
    figures = measure_states(
        subject, batch_documents(rows), num_rows=4, layers=[2], target=Target(layer=1, shift=0),
        device=device,
    )  # fmt: skip
    states = dump(subject.model, "model.norm", rows)
    kept = (rows[:, 2] != -100).flatten()
    states = {
        name: np.array(x)[kept]
        for name, x in states.items()
        if name not in ("target", "target_row")
    }
    states |= {"target": states["layer_1"], "target_row": states["row"]}  # shift 0
    check({f.states: asdict(f) for f in figures}, states)


def test_a_model_without_a_final_norm_leaves_its_row_out(text, tmp_path, capsys):
    folder = save_model(tmp_path / "opt", build_opt)
    arguments = ["--model", str(folder), "--data", str(text), "--rows=4", "--layers=0"]
    report = measure(arguments, tmp_path / "out")
    assert list(report["figures"]) == ["post_norm", "layer_0"]
    (note,) = report["notes"]
    assert note == ("no final norm is found in OPTForCausalLM: the states before it are left out")
    assert f"* {note}\n" in capsys.readouterr().out
    assert report["seq_len"] == CONTEXT


def test_text_that_gives_fewer_rows_than_asked_says_so(folders, text, tmp_path):
    arguments = ["--model", str(folders["llama"]), "--data", str(text), "--rows=1000"]
    report = measure(arguments, tmp_path / "out")
    assert 10 < report["num_rows"] < 200
    assert report["notes"] == ["the documents give no more than these of 1000 rows"]


# ---------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("config", "overrides"), [(DENSE, SMALL), (MOE, SMALL_MOE)])
def test_a_run_is_measured_as_its_export(tmp_path, text, capsys, config, overrides):
    run, exported = tmp_path / "run", tmp_path / "exported"
    save_run(run, config, overrides)
    options = ["--run", str(run), "--output", str(exported), "--dtype=float32", "--verify=none"]
    assert export(options) == 0
    # The embedded tokenizer splits these words: rows of 64 tokens.
    shared = ["--data", str(text), "--rows=8", "--layers=all"]
    ours = measure(["--run", str(run), *shared], tmp_path / "ours")
    theirs = measure(["--model", str(exported), *shared, "--target-layer=1"], tmp_path / "theirs")
    assert (ours["num_rows"], ours["seq_len"]) == (theirs["num_rows"], theirs["seq_len"]) == (8, 64)
    assert ours["target"] == {"layer": 1, "shift": 1}  # nitp.target_layer
    assert len(ours["figures"]) == 7 and list(ours["figures"]) == list(theirs["figures"])
    for name, found in ours["figures"].items():
        for figure, value in found.items():
            if isinstance(value, float):
                expected = pytest.approx(theirs["figures"][name][figure], rel=TOLERANCE)
                assert value == expected, (name, figure)
            else:
                assert value == theirs["figures"][name][figure], (name, figure)
    capsys.readouterr()


def test_a_run_has_its_own_data_by_default_and_a_baseline_no_targets(tmp_path, capsys):
    baseline = "train_configs/debug_ntp.toml"
    save_run(tmp_path / "run", baseline, [o for o in SMALL if "nitp" not in o])
    report = measure(["--run", str(tmp_path / "run"), "--step=3", "--rows=3"], tmp_path / "out")
    assert report["data"] == "held-out documents of embedded://python"
    assert (report["num_rows"], report["seq_len"]) == (3, 64)
    assert report["model"].endswith("checkpoint/step-3")
    assert list(report["figures"]) == ["post_norm", "pre_norm"]
    assert "| last hidden states " in capsys.readouterr().out
