"""train_configs/ntp_*.toml and nitp_*.toml are the runs of the paper: its Table 4, typed again. And
docs/paper.md: its table of counts, its commands."""

import os
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from recipes.build import build_config
from recipes.config.degrees import check_ranks
from recipes.config.rules import check_settings
from recipes.config.settings import COMMAND_LINE, Settings, resolve_settings
from recipes.run.summary import Size, compute_size, tabulate
from recipes.run.trainer import RunTrainer

V = 152064


class Row(NamedTuple):
    """A column of the paper's Table 4. tokens: in billions; k of `depth` layers."""

    lr: float
    batch: int
    tokens: int
    d: int
    depth: int
    head_dim: int
    num_heads: int
    num_kv_heads: int
    ffn: int
    k: int
    weight: float
    top_k: int = 0
    expert_ffn: int = 0


ROWS = {
    "1.9b": Row(6.0e-4, 256, 105, 512, 16, 64, 8, 4, 10944, 3, 1.0, 8, 496),
    "3b": Row(8.7e-4, 512, 200, 768, 17, 96, 8, 4, 10944, 4, 1.0, 8, 544),
    "9b": Row(4.2e-4, 1024, 330, 1280, 24, 160, 8, 4, 10944, 5, 0.8, 8, 640),
    "45b": Row(2.8e-4, 768, 240, 3072, 24, 128, 24, 8, 12288, 5, 0.6, 12, 1408),
    "dense_0.5b": Row(4.2e-4, 512, 200, 896, 24, 64, 14, 2, 4864, 5, 1.0),
    "dense_2b": Row(4.2e-4, 1024, 330, 1792, 28, 128, 14, 2, 10752, 6, 1.0),
    "dense_3b": Row(4.2e-4, 1024, 330, 2560, 28, 128, 20, 4, 10240, 6, 0.8),
}
NUM_EXPERTS = 144
ROUNDED_COUNTS = {
    "1.9b": (1.843, 0.289), "3b": (3.198, 0.471), "9b": (8.750, 1.062), "45b": (44.937, 5.542),
    "dense_0.5b": (0.494, 0.494), "dense_2b": (2.097, 2.097), "dense_3b": (3.032, 3.032),
}  # fmt: skip
"""(total, active) in billions."""

RUNS = [f"{kind}_{name}" for name in ROWS for kind in ("ntp", "nitp")]


@cache
def load(run: str) -> Settings:
    settings = resolve_settings(f"train_configs/{run}.toml", [])
    check_settings(settings)  # the data are on the cluster
    return settings


@cache
def build(run: str) -> RunTrainer.Config:
    return build_config(load(run))


@cache
def size_of(run: str) -> Size:
    """From the model on meta."""
    return compute_size(build(run))


def count(row: Row) -> tuple[int, int]:
    """(total, active) by closed form. Matrices: embedding and, with experts, an unembedding of its
    own; q, k, v, o and two norms in each layer; a last norm; three of each SwiGLU."""
    swiglu = 3 * row.d * row.ffn
    attention = 2 * row.d * row.head_dim * (row.num_heads + row.num_kv_heads)
    common = row.d + row.depth * (attention + 2 * row.d)
    if not row.top_k:
        return (common + V * row.d + row.depth * swiglu,) * 2
    common += 2 * V * row.d + swiglu
    router, expert = NUM_EXPERTS * row.d, 3 * row.d * row.expert_ffn
    total, active = (
        common + (row.depth - 1) * (router + (1 + routed) * expert)
        for routed in (NUM_EXPERTS, row.top_k)
    )
    return total, active


@pytest.mark.parametrize("name", ROWS)
def test_the_counts_on_meta_are_the_closed_forms(name: str) -> None:
    total, active = count(ROWS[name])
    assert (round(total / 1e9, 3), round(active / 1e9, 3)) == ROUNDED_COUNTS[name]
    d = ROWS[name].d
    # Per token, NITP: 6 a weight of the projector and 18 d for the cosine; geometry: 2 d^2 for the
    # states after and before the norm, and for the targets.
    for kind, projector, nitp_flops, num_states in (
        ("ntp", 0, 0, 2), ("nitp", 12 * d**2, 72 * d**2 + 18 * d, 3)
    ):  # fmt: skip
        size = size_of(f"{kind}_{name}")
        assert (size.backbone, size.active, size.projector) == (total, active, projector)
        assert (size.nitp_flops, size.geometry_flops) == (nitp_flops, num_states * 2 * d**2)
        assert size.backbone_flops == size_of(f"ntp_{name}").backbone_flops


@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_the_papers_settings(run: str) -> None:
    kind, _, name = run.partition("_")
    row, config = ROWS[name], build(run)
    training, (group,) = config.training, config.optimizer.param_groups
    assert training.seq_len == 8192 and training.max_norm == 1.0
    assert training.global_batch_size == row.batch
    # The number of steps whose tokens are nearest to the paper's.
    assert abs(training.steps * row.batch * 8192 - row.tokens * 1e9) <= row.batch * 8192 / 2
    assert (group.optimizer_name, group.optimizer_kwargs["lr"]) == ("AdamW", row.lr)
    assert group.optimizer_kwargs["betas"] == (0.9, 0.95)
    assert group.optimizer_kwargs["weight_decay"] == 0.1
    assert (config.lr_scheduler.warmup_steps, config.lr_scheduler.decay_ratio) == (2000, 0.2)
    assert config.validator.enable and config.checkpoint.enable
    assert config.nitp.is_active == (kind == "nitp")
    if config.nitp.is_active:
        nitp = (config.nitp.target_layer, config.nitp.weight, config.nitp.projector_ratio)
        assert nitp == (row.k, row.weight, 4.0)


@pytest.mark.parametrize("name", ROWS)
def test_a_run_and_its_baseline_differ_by_one_table(name: str) -> None:
    nitp, ntp = (load(f"{kind}_{name}").values for kind in ("nitp", "ntp"))
    assert {table for table in ntp if ntp[table] != nitp[table]} == {"job", "nitp"}
    assert ntp["job"]["dump_folder"] != nitp["job"]["dump_folder"]


def test_the_largest_model_falls_exponentially_to_a_tenth() -> None:
    """A fifth of 38147 steps, 7629, is decay; TorchTitan lets the last step be short of its end."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    config = build("nitp_45b").lr_scheduler
    optimizer: Any = torch.optim.AdamW([parameter], lr=2.8e-4)
    (scheduler,) = config.build(optimizers=[optimizer], training_steps=38147)
    (factor,) = scheduler.lr_lambdas
    assert [factor(step - 1) for step in (1, 2000, 2001, 30519)] == [1 / 2000, 1.0, 1.0, 1.0]
    for step in (30520, 34333, 38147):
        assert factor(step - 1) == pytest.approx(10 ** (-(step - 30519) / 7629), rel=1e-12)


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 8])
@pytest.mark.parametrize("run", RUNS)
def test_nodes_of_eight_gpus_share_the_batch_the_streams_and_the_experts(
    run: str, num_nodes: int
) -> None:
    config, num_gpus = build(run), 8 * num_nodes
    check_ranks(config, num_gpus)
    assert load(run).values["data"]["num_streams"] % num_gpus == 0
    assert 8 % config.parallelism.expert_parallel_degree == 0, "experts stay within a node"


# docs/paper.md

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/paper.md").read_text()
COMMANDS = [shlex.split(line)[1:] for line in PAGE.splitlines() if line.startswith("$train ")]
ABLATIONS = {
    ("nitp_3b", f"--nitp.{override}")
    for override in (
        "target_layer=0", "target_layer=2", "target_layer=6", "target_layer=8", "target_layer=14",
        "shift=0", "loss=mse", "loss=smooth_l1", "loss=kl", "loss=token_cosine",
        "stop_gradient=false", "start_step=1000", "start_step=2000", "start_step=3000",
        "projector=none", "weight=0.5", "weight=2.0",
    )
} | {("nitp_9b", "--nitp.target_layer=4"), ("nitp_9b", "--nitp.target_layer=6")}  # fmt: skip
"""The rows of the paper's tables, but for those that are a file as it is."""


def test_the_page_has_a_command_for_every_ablation() -> None:
    rows = {(Path(path).stem, *overrides[:1]) for path, *overrides in COMMANDS}
    assert rows == ABLATIONS | {("ntp_3b",), ("nitp_3b",), ("ntp_9b",), ("nitp_9b",)}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_page_is_one_override_of_a_run_that_builds(command: list[str]) -> None:
    path, *overrides = command
    settings = resolve_settings(path, overrides)
    check_settings(settings)
    check_ranks(build_config(settings), 8)
    plain = load(Path(path).stem).values
    given = [name for name, where in settings.origin.items() if where == COMMAND_LINE]
    assert len(given) == len(overrides) == (2 if overrides else 0)
    for table, _, key in (name.partition(".") for name in given):
        assert settings.values[table][key] != plain[table][key]


def test_no_two_commands_of_the_page_share_a_run_directory() -> None:
    folders = [
        resolve_settings(path, rest).values["job"]["dump_folder"] for path, *rest in COMMANDS
    ]
    assert len(set(map(os.path.normpath, folders))) == len(COMMANDS)


def test_the_pages_table_of_counts_is_what_its_command_prints() -> None:
    (command,) = (line for line in PAGE.splitlines() if "scripts/count_parameters.py" in line)
    assert command.endswith(" train_configs/nitp_{" + ",".join(ROWS) + "}.toml")
    table = tabulate(
        (load(f"nitp_{name}").values["model"]["flavor"], size_of(f"nitp_{name}")) for name in ROWS
    )
    assert f"\n\n{table}\n\n" in PAGE


def test_the_page_names_the_files_with_their_target_layers_weights_and_steps() -> None:
    for name, row in ROWS.items():
        files = " | ".join(f"`train_configs/{kind}_{name}.toml`" for kind in ("ntp", "nitp"))
        steps = build(f"ntp_{name}").training.steps
        assert f"| {files} | {row.k} of {row.depth} | {row.weight} | {steps} |\n" in PAGE


def test_what_eight_gpus_need_is_their_flops_over_those_of_a_token() -> None:
    """At 40 % of 989e12 each. FLOPs by closed form: 6 for each weight of a matrix product, of which
    an untied embedding is none, and 12 for each value of queries against 8192 keys."""
    page = (ROOT / "docs/bring_your_own_data.md").read_text()
    names = [line.split(" | ")[0][2:] for line in PAGE.splitlines() if "| `train_configs/" in line]
    for title, (name, row) in zip(names, ROWS.items(), strict=True):
        _, active = count(row)
        untied = V * row.d if row.top_k else 0
        attention = 12 * row.depth * row.num_heads * row.head_dim * 8192
        flops = 6 * (active - untied) + attention
        assert size_of(f"ntp_{name}").backbone_flops == flops
        need = 8 * 989e12 * 0.4 / flops
        assert f"\n| {title} | {flops / 1e9:.3f} | {need / 1e3:,.0f} |\n" in page
    assert "| MoE 9B-A1B | 8.226 | 385 |" in page  # 3.1648e15 / 8.226e9
    (text,) = (line.split(" | ")[1] for line in page.splitlines() if line.startswith("| text | "))
    fastest = 3.1648e15 / size_of("ntp_1.9b").backbone_flops
    assert 2 < fastest / float(text.replace(",", "")) < 3
    assert 8 * load("ntp_1.9b").values["data"]["num_workers"] == 32


def test_distances_are_to_the_sizes_in_a_flavors_name() -> None:
    size = Size(
        backbone=2_130_000_000, active=900_000_000, projector=0, backbone_flops=1, nitp_flops=0,
        geometry_flops=0,
    )  # fmt: skip
    *_, dense, moe, other = tabulate(
        [("dense_2b", size), ("x_2b_a1b", size), ("debugmodel", size)]
    ).splitlines()
    assert dense == "| dense_2b | 2,130,000,000 | +6.5% | 900,000,000 | -55.0% | 0 |"
    assert moe == "| x_2b_a1b | 2,130,000,000 | +6.5% | 900,000,000 | -10.0% | 0 |"
    assert other == "| debugmodel | 2,130,000,000 | - | 900,000,000 | - | 0 |"
