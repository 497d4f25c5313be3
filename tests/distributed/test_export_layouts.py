"""Hugging Face weights -> training on several ranks -> checkpoint -> Hugging Face weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.export import main
from recipes.parity.world import Case, run_world
from recipes.settings import resolve_settings, save_settings
from tests.integration.hf_folders import RUNS, save_hf_folder

pytestmark = pytest.mark.slow

TP = "--parallelism.tensor_parallel_degree=2"
# name -> (number of ranks, overrides)
LAYOUTS = {
    "one": (1, []),
    "fsdp_2": (2, []),
    "tp_2": (2, [TP]),
    "fsdp_2_tp_2": (4, [TP]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """hf/MODEL; runs/MODEL-LAYOUT with a checkpoint of step 0; exported/MODEL-LAYOUT in float32."""
    folder = tmp_path_factory.mktemp("layouts")
    by_size: dict[int, list[Case]] = {}
    for model, (config, overrides) in RUNS.items():
        save_hf_folder(folder / "hf" / model, model)
        for layout, (size, extra) in LAYOUTS.items():
            run = folder / "runs" / f"{model}-{layout}"
            options = [
                *overrides, *extra, "--training.local_batch_size=1",
                "--training.global_batch_size=4", "--validation.enable=false",
                f"--checkpoint.initial_load_path={folder / 'hf' / model}",
                "--checkpoint.initial_load_in_hf", f"--job.dump_folder={run}",
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


@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_through_training_bit_for_bit(folder, model, layout):
    before = weights(folder / "hf" / model)
    after = weights(folder / "exported" / f"{model}-{layout}")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_every_layout_exports_the_bytes_of_one_process(folder, model, layout):
    one, other = (folder / "exported" / f"{model}-{name}" for name in ("one", layout))
    for file in one.iterdir():
        if file.name != "README.md":  # names the run's configuration and the verification
            assert file.read_bytes() == (other / file.name).read_bytes(), file.name
