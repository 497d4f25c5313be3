"""Hugging Face weights -> training on several ranks -> checkpoint -> Hugging Face weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.config.settings import resolve_settings, save_settings
from recipes.export.command import main
from recipes.parity.world import Case, run_world
from tests.integration.hf_folders import RUNS, save_hf_folder

pytestmark = pytest.mark.slow

TP = "--parallelism.tensor_parallel_degree=2"
EP = "--parallelism.expert_parallel_degree=2"
PP = ["--parallelism.pipeline_parallel_degree=2", "--training.disable_cuda_graphs"]
# name -> (number of ranks, overrides)
LAYOUTS = {
    "one": (1, []),
    "fsdp_2": (2, []),
    "tp_2": (2, [TP]),
    "fsdp_2_tp_2": (4, [TP]),
    "pp_2": (2, [*PP, "--training.local_batch_size=2"]),
    "pp_2_fsdp_2": (4, [*PP, "--training.local_batch_size=2"]),
    "ep_2": (2, [EP]),
    "fsdp_2_tp_2_ep_4": (4, [TP, "--parallelism.expert_parallel_degree=4"]),
    "pp_2_ep_2": (4, [*PP, "--training.local_batch_size=2", EP]),
}
CELLS = [
    (model, layout)
    for model in RUNS
    for layout in LAYOUTS
    if not (model == "qwen3_tied" and "pp" in layout)  # TorchTitan ties within one stage only
    and (model == "glm4_moe" or "ep" not in layout)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """hf/MODEL; runs/MODEL-LAYOUT with a checkpoint of step 0; exported/MODEL-LAYOUT in float32."""
    folder = tmp_path_factory.mktemp("layouts")
    by_size: dict[int, list[Case]] = {}
    for model in RUNS:
        save_hf_folder(folder / "hf" / model, model)
    for model, layout in CELLS:
        (config, overrides), (size, extra) = RUNS[model], LAYOUTS[layout]
        run = folder / "runs" / f"{model}-{layout}"
        options = [
            *overrides, "--training.local_batch_size=1", "--training.global_batch_size=4",
            "--validation.enable=false", *extra, "--checkpoint.initial_load_in_hf",
            f"--checkpoint.initial_load_path={folder / 'hf' / model}", f"--job.dump_folder={run}",
        ]  # fmt: skip
        save_settings(resolve_settings(config, options), run / "config.toml")
        case = Case(run.name, config, options, num_steps=0, save=True)
        by_size.setdefault(size, []).append(case)
    for size, cases in by_size.items():
        run_world(cases, (size,))
    for run in (folder / "runs").iterdir():
        output = folder / "exported" / run.name
        verify = "logits" if run.name.endswith("-one") else "keys"
        arguments = ["--run", str(run), "--output", str(output), "--dtype", "float32"]
        assert main([*arguments, "--verify", verify]) == 0
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize(("model", "layout"), CELLS)
def test_weights_come_through_training_bit_for_bit(folder, model, layout):
    before = weights(folder / "hf" / model)
    after = weights(folder / "exported" / f"{model}-{layout}")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(("model", "layout"), [cell for cell in CELLS if cell[1] != "one"])
def test_every_layout_exports_the_bytes_of_one_process(folder, model, layout):
    one, other = (folder / "exported" / f"{model}-{name}" for name in ("one", layout))
    for file in one.iterdir():
        if file.name != "README.md":  # names the run's configuration and the verification
            assert file.read_bytes() == (other / file.name).read_bytes(), file.name
