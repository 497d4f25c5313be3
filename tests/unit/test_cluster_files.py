"""scripts/train.sky.yaml and scripts/train.trainjob.yaml: what in them must agree with the rest.

Neither has been run. Their schemas are not here; what is asserted of them is what this project's
own configuration and command must find there."""

import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.config.settings import resolve_settings

ROOT = Path(__file__).parents[2]
SKY, KUBERNETES = ROOT / "scripts" / "train.sky.yaml", ROOT / "scripts" / "train.trainjob.yaml"
GPUS_PER_NODE = 8


def load(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def sky_command(folder: Path, task: dict[str, Any], rank: int) -> list[str]:
    """What torchrun is given where SkyPilot runs `run`, in a checkout and with a volume in
    `folder`; the torchrun there prints it."""
    binaries = folder / "nitp-venv" / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    (binaries / "activate").write_text(f"PATH={binaries}:$PATH\n")
    (binaries / "torchrun").write_text('#!/bin/bash\npwd; printf "%s\\n" "$@"\n')
    (binaries / "torchrun").chmod(0o755)
    (folder / "volume").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(GPUS_PER_NODE),
    }  # fmt: skip
    (mount,) = task["volumes"]
    script = task["run"].replace(mount, str(folder / "volume"))
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    working_folder, *arguments = done.stdout.splitlines()
    assert working_folder == str(folder / "volume")
    return arguments


@pytest.fixture
def sky(tmp_path) -> dict[str, Any]:
    (task,) = load(SKY)
    return {
        "num_nodes": task["num_nodes"],
        "gpus": int(task["resources"]["accelerators"].partition(":")[2]),
        "grace_s": task["config"]["hooks"][0]["timeout"],
        "arguments": sky_command(tmp_path, task, rank=1),
        "environment": task["envs"],
    }


@pytest.fixture
def kubernetes() -> dict[str, Any]:
    runtime, job = load(KUBERNETES)
    trainer = job["spec"]["trainer"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    command = [*trainer["command"], *trainer["args"]]
    assert command[0] == "torchrun"
    return {
        "num_nodes": trainer["numNodes"],
        "gpus": trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"],
        "grace_s": node["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        "arguments": [part.replace("/opt/nitp", str(ROOT)) for part in command[1:]],
        "environment": {entry["name"]: entry["value"] for entry in trainer["env"]},
    }


@pytest.fixture(params=["sky", "kubernetes"])
def start(request) -> dict[str, Any]:
    return request.getfixturevalue(request.param)


def split(start: dict[str, Any]) -> tuple[list[str], str, list[str]]:
    """torchrun's options, the module, and the module's options."""
    arguments = start["arguments"]
    at = arguments.index("-m")
    return arguments[:at], arguments[at + 1], arguments[at + 2 :]


def test_the_command_is_there_and_takes_its_options(start):
    _, module, options = split(start)
    assert importlib.util.find_spec(module) is not None
    settings = resolve_settings(None, options)
    assert settings.values["model"]["flavor"] == "9b_a1b"
    assert settings.values["nitp"]["enable"]
    assert settings.values["checkpoint"]["enable"], "preemption would start from nothing"


def test_the_ranks_share_the_batch_and_the_streams_of_the_configuration(start):
    values = resolve_settings(None, split(start)[2]).values
    num_ranks = start["num_nodes"] * start["gpus"]
    assert num_ranks == 64
    training, parallelism = values["training"], values["parallelism"]
    assert training["global_batch_size"] % (training["local_batch_size"] * num_ranks) == 0
    assert values["data"]["num_streams"] % num_ranks == 0
    assert num_ranks % parallelism["expert_parallel_degree"] == 0


def test_the_ranks_get_less_time_to_save_than_their_nodes(start):
    (given_s,) = (re.match(r"--shutdown_timeout=(\d+)", a) for a in split(start)[0] if "shut" in a)
    assert given_s is not None and int(given_s[1]) < start["grace_s"]


def test_no_variable_is_set_that_torchtitan_or_torchrun_would_override(start):
    """TorchTitan's flight recorder follows its [comm] table."""
    assert not [name for name in start["environment"] if re.match("TORCH_|PET_|RANK|WORLD", name)]


def test_a_node_of_skypilot_finds_the_others(sky):
    options, _, _ = split(sky)
    assert options[:5] == [
        "--nnodes=8", "--nproc_per_node=8", "--node_rank=1", "--master_addr=10.0.0.7",
        "--master_port=29500",
    ]  # fmt: skip


def test_the_hook_of_skypilot_is_a_script_that_stops_torchrun_and_waits():
    (task,) = load(SKY)
    (hook,) = task["config"]["hooks"]
    assert hook["events"] == ["preemption"]
    assert shlex.split(hook["run"])[:4] == ["pkill", "-TERM", "-x", "torchrun"]
    for script in (hook["run"], task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)


def test_the_job_of_kubernetes_and_its_runtime_agree():
    runtime, job = load(KUBERNETES)
    assert job["spec"]["runtimeRef"] == {
        "kind": runtime["kind"], "name": runtime["metadata"]["name"]
    }  # fmt: skip
    trainer = job["spec"]["trainer"]
    assert trainer["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # Trainer finds the pods and the container that it completes by these.
    assert node["name"] == container["name"] == "node"
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert node["template"]["metadata"]["labels"] == label
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert container["workingDir"] == mounts["nitp"]


def test_all_pods_start_again_after_one_is_preempted():
    runtime, _ = load(KUBERNETES)
    jobset = runtime["spec"]["template"]["spec"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    assert jobset["failurePolicy"]["maxRestarts"] > 0
    assert jobset["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


@pytest.mark.parametrize("path", [SKY, KUBERNETES], ids=lambda path: path.name)
def test_the_file_says_that_it_was_not_run(path):
    assert "\n# Not run: " in path.read_text()
