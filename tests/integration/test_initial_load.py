"""Training starts from Hugging Face weights, or from a checkpoint with or without a projector."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from recipes.config import load_config
from recipes.parity.world import Case, run_world
from tests.integration.hf_folders import RUNS, save_hf_folder
from tests.launch import compose

# isort: split

from nitp.checkpoint import _ProjectorPlanner
from recipes.export.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hf")
    for name in RUNS:
        save_hf_folder(folder / name, name)
    return {name: folder / name for name in RUNS}


def load(name: str, folder: Path | str, *extra: str):
    config, overrides = RUNS[name]
    # A run that has checkpoints goes on from those: the default folder may hold one.
    paths = [f"--checkpoint.initial_load_path={folder}", f"--job.dump_folder={folder}/run"]
    given = [*overrides, *paths, "--checkpoint.initial_load_in_hf", *extra]
    return load_config(config, compose(given))


@pytest.mark.parametrize("name", RUNS)
def test_a_folder_of_stock_transformers_is_accepted_by_a_relative_path_too(folders, name):
    config = load(name, os.path.relpath(folders[name]))
    assert config.checkpoint.initial_load_path == str(folders[name])
    assert config.checkpoint.initial_load_model_only


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("llama", "--model.rope_theta=1e6", "has rope_theta = 50000.0, the model 1000000.0"),
        ("llama", "--model.norm_eps=1e-6", "has rms_norm_eps = 1e-05, the model 1e-06"),
        ("llama", "--model.qk_norm", 'architectures = ["LlamaForCausalLM"], the model ["Qwen3'),
        ("qwen3_tied", "--model.tie_embeddings=false", "has tie_word_embeddings = true"),
        ("glm4_moe", "--model.top_k=3", "has num_experts_per_tok = 2, the model 3"),
        ("glm4_moe", "--parallelism.data_parallel_replicate_degree=2", "cannot split replicated"),
    ],
)
def test_a_folder_of_another_model_is_refused(folders, name, option, message):
    with pytest.raises(ValueError) as raised:
        load(name, folders[name], option)
    assert message in str(raised.value) and "checkpoint.initial_load" in str(raised.value)


def test_what_is_no_model_folder_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        load("llama", tmp_path)
    (tmp_path / "config.json").write_text((folders["llama"] / "config.json").read_text())
    with pytest.raises(ValueError, match="has neither model.safetensors nor model.safet"):
        load("llama", tmp_path)
    with pytest.raises(ValueError, match="needs checkpoint.initial_load_path"):
        load_config(RUNS["llama"][0], ["--checkpoint.initial_load_in_hf"])


def test_a_tensor_too_many_or_too_few_is_refused(folders, tmp_path):
    config = json.loads((folders["llama"] / "config.json").read_text())
    for layers, message in ((2, "model.layers.2.*, in the model missing"), (4, "is missing, in")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        for file in folders["llama"].glob("*.safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        with pytest.raises(ValueError, match=message):
            load("llama", tmp_path, f"--model.num_layers={layers}")


STATE = {
    "norm.weight": torch.ones(4),
    "optimizer": {"state.norm.weight.exp_avg": torch.full((4,), 2.0)},
}
PROJECTOR = {
    "nitp_projector.w1.weight": torch.full((4, 4), 3.0),
    "optimizer": {
        **STATE["optimizer"],
        "state.nitp_projector.w1.weight.exp_avg": torch.full((4, 4), 4.0),
    },
}


def load_into(folder: Path, has_projector: bool, allow_change: bool):
    """Load the checkpoint into a state of zeros."""
    state = {**STATE, **PROJECTOR} if has_projector else STATE
    state = torch.utils._pytree.tree_map(torch.zeros_like, state)
    planner = _ProjectorPlanner(has_projector, allow_change)
    dcp.load(state, checkpoint_id=folder, planner=planner, no_dist=True)
    return state, planner.change


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("has_projector", [False, True])
def test_the_projector_is_loaded_or_changes_with_permission_only(tmp_path, is_saved, has_projector):
    saved = {**STATE, **PROJECTOR} if is_saved else STATE
    dcp.save(dict(saved), checkpoint_id=tmp_path, no_dist=True)
    if is_saved != has_projector:
        with pytest.raises(CheckpointException, match="allow_projector_change = true"):
            load_into(tmp_path, has_projector, allow_change=False)
    state, change = load_into(tmp_path, has_projector, allow_change=is_saved != has_projector)
    assert bool(change) == (is_saved != has_projector)
    assert torch.equal(state["norm.weight"], STATE["norm.weight"])
    moments = state["optimizer"]
    assert moments["state.norm.weight.exp_avg"][0] == 2.0
    if has_projector:
        assert state["nitp_projector.w1.weight"][0, 0] == (3.0 if is_saved else 0.0)
        moment = moments["state.nitp_projector.w1.weight.exp_avg"][0, 0]
        assert moment == (4.0 if is_saved else 0.0)


def test_half_a_projector_is_an_error_even_with_permission(tmp_path):
    half = {**STATE, "nitp_projector.w1.weight": PROJECTOR["nitp_projector.w1.weight"]}
    dcp.save(half, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CheckpointException, match="Missing key"):
        load_into(tmp_path, has_projector=True, allow_change=True)


@pytest.mark.slow
def test_nitp_turns_on_and_off_across_full_checkpoints_by_permission(tmp_path):
    """Two steps without NITP, two with, two without: one model, one optimizer, one data stream."""
    config, overrides = RUNS["llama"]

    def train(name: str, steps: int, *extra: str) -> tuple[int, str]:
        options = [
            *overrides, f"--job.dump_folder={tmp_path / name}", f"--training.steps={steps}",
            "--lr_scheduler.warmup_steps=1", "--lr_scheduler.total_steps=6",
            "--validation.enable=false", "--metrics.log_freq=1", *extra,
        ]  # fmt: skip
        command = [sys.executable, "-m", "recipes.train", "--job.config_file", config]
        command += compose(options)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def start(name: str, step: int) -> list[str]:
        path = tmp_path / name / "checkpoint" / f"step-{step}"
        return [
            f"--checkpoint.initial_load_path={path}", "--checkpoint.allow_pickle",
            "--checkpoint.initial_load_model_only=false",
        ]  # fmt: skip

    allow = "--checkpoint.allow_projector_change"
    assert train("off", 2, "--nitp.enable=false")[0] == 0
    code, log = train("on", 4, *start("off", 2))
    assert code == 1 and "error: checkpoint" in log and "Traceback" not in log
    assert "has no projector, which this run trains" in log
    code, log = train("on", 4, *start("off", 2), allow)
    assert code == 0 and "The projector starts fresh, this checkpoint has none" in log
    assert re.findall(r"step +(\d+)  loss", log) == ["3", "4"]
    code, log = train("off_again", 6, *start("on", 4), "--nitp.enable=false")
    assert code == 1 and "has a projector, which this run does not train" in log
    code, log = train("off_again", 6, *start("on", 4), "--nitp.enable=false", allow)
    assert code == 0 and "The projector of this checkpoint is left out" in log
    saved = Checkpoint(tmp_path / "off_again" / "checkpoint" / "step-6")
    assert "norm.weight" in saved and "nitp_projector.w1.weight" not in saved


@pytest.mark.slow
def test_nitp_turns_on_and_off_under_pipeline_parallelism(tmp_path):
    """Only the last stage has the projector; the stages must not disagree about it."""
    config, overrides = RUNS["llama"]
    pp = ["--parallelism.pipeline_parallel_degree=2", "--training.disable_cuda_graphs"]
    options = [
        *overrides, "--training.local_batch_size=2", "--training.global_batch_size=4",
        "--validation.enable=false",
    ]  # fmt: skip

    def run(name: str, size: int, *extra: str) -> dict[str, torch.Tensor]:
        folder = f"--job.dump_folder={tmp_path / name}"
        case = Case(name, config, [*options, *extra, folder], num_steps=0, save=True)
        run_world([case], (size,))
        saved = Checkpoint(tmp_path / name / "checkpoint" / "step-0")
        names = ["layers.0.ffn_norm.weight", "lm_head.weight", "nitp_projector.w1.weight"]
        return {name: saved.load(name) for name in names if name in saved}

    def start(name: str) -> list[str]:
        path = tmp_path / name / "checkpoint" / "step-0"
        return [
            f"--checkpoint.initial_load_path={path}", "--checkpoint.allow_pickle",
            "--checkpoint.initial_load_model_only=false", "--checkpoint.allow_projector_change",
        ]  # fmt: skip

    off = run("off", 1, "--nitp.enable=false", "--debug.seed=1")
    on = run("on", 2, *pp, *start("off"))
    again = run("again", 2, *pp, "--nitp.enable=false", *start("on"))
    assert "nitp_projector.w1.weight" in on and off.keys() == again.keys()
    for name, value in off.items():
        assert torch.equal(value, on[name]) and torch.equal(value, again[name]), name
