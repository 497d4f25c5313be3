"""The commands of the README, as a user types them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from recipes.config import load_config
from recipes.config.degrees import check_ranks
from recipes.run.summary import summarize
from tests.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
DEBUG = "train_configs/debug.toml"
SMALL = [
    "--model.num_layers=2", "--model.dim=32", "--model.num_heads=2", "--model.num_kv_heads=1",
    "--model.head_dim=16", "--model.ffn_dim=64", "--nitp.target_layer=1", "--training.seq_len=64",
    "--validation.steps=1", "--metrics.log_freq=1",
]  # fmt: skip


def train(*arguments: str, modules: Path | None = None) -> subprocess.CompletedProcess:
    """modules: a folder whose modules take the place of others of that name."""
    command = [sys.executable, "-m", "recipes.train", *arguments]
    environment = os.environ | ({"PYTHONPATH": f"{modules}:{ROOT}"} if modules else {})
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def scalars(run: Path) -> dict[str, list[float]]:
    """The curves of a run; TensorBoard's folders are named by the minute of each start."""
    curves: dict[str, list[float]] = {}
    for folder in sorted((run / "tb").iterdir()):
        events = EventAccumulator(str(folder)).Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    return curves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nitp.targt_layer=3"], "nitp.targt_layer is not an option. Did you mean nitp."),
        (["--training.steps=many"], 'training.steps ("many") must be an integer.'),
        (["--nitp.target_layer=30"], "nitp.target_layer (30) must be at most the number"),
        (["--data.sources=[{path='nowhere/*.txt'}]"], "data.sources[0].path (nowhere/*.txt) "),
        (["--tokenizer.path=nowhere"], "tokenizer.path (nowhere) is not a folder."),
        (["--export.enable", "--checkpoint.enable=false"],
         "export.enable (true) needs checkpoint.enable = true"),
        (["--model.flavor=debig"], 'model.flavor ("debig") does not exist. Did you mean debug?'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_torch_is_imported(tmp_path, arguments, message):
    """To import it takes ten seconds; here it fails."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch is imported')")
    done = train("--job.config_file", DEBUG, *arguments, modules=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_missing_config_file_names_the_nearest():
    done = train("--job.config_file", "train_configs/debg.toml")
    assert done.returncode == 2
    assert done.stderr == (
        "error: train_configs/debg.toml does not exist. Did you mean train_configs/debug.toml?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parallelism.context_parallel_degree=2",
          "--parallelism.context_parallel_load_balancer=ptrr"],
         'parallelism.context_parallel_load_balancer ("ptrr") must be "headtail" or "none"'),
        (["--parallelism.tensor_parallel_degree=2", "--nitp.stop_gradient=false"],
         "nitp.stop_gradient (false) is not implemented with tensor, context"),
        (["--parallelism.context_parallel_degree=2", "--nitp.loss=token_cosine"],
         'nitp.loss ("token_cosine") is not implemented with tensor, context'),
        (["--parallelism.tensor_parallel_degree=2", "--nitp.hidden=pre_norm"],
         'nitp.hidden ("pre_norm") is not implemented with tensor parallelism'),
        (["--parallelism.spmd_backend=full_dtensor"],
         'parallelism.spmd_backend ("full_dtensor") must be "spmd_types"'),
        (["--parallelism.spmd_backend=partial_dtensor", "--parallelism.tensor_parallel_degree=2"],
         'parallelism.spmd_backend ("partial_dtensor") must be "spmd_types"'),
        (["--debug.spmd_typechecking"], "debug.spmd_typechecking (true) must be false"),
        (["--training.enable_cpu_offload"], "training.enable_cpu_offload (true) has no meaning"),
        (["--parallelism.pipeline_parallel_degree=2",
          "--parallelism.pipeline_parallel_schedule=ZBVZeroBubble"],
         "validation.enable (true) must be false"),
        (["--activation_checkpoint.mode=memory_budget"],
         "Memory budget activation checkpointing requires the model to be compiled"),
        (["--training.seq_len=250"], "training.seq_len (250) must be a multiple of loss.num"),
        (["--training.seq_len=264", "--loss.num_chunks=8",
          "--parallelism.tensor_parallel_degree=2"],
         "training.seq_len (264) must be a multiple of loss.num_chunks (8) times the tensor-par"),
        (["--training.seq_len=768", "--loss.num_chunks=256",
          "--parallelism.context_parallel_degree=2"],
         "training.seq_len (768) must be a multiple of loss.num_chunks (256) times the tensor-p"),
        (["--model.vocab_size=8191"], "model.vocab_size (8191) must be more than the tokenizer's"),
        (["--data.bos=always"], "data.bos (always) needs a tokenizer with BOS."),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(DEBUG, arguments)


@pytest.mark.parametrize(
    ("num_ranks", "overrides", "message"),
    [
        (4, [], "training.global_batch_size (8) must be a multiple of training.local_batch"),
        (4, ["--parallelism.data_parallel_replicate_degree=4"],
         "training.global_batch_size (8) must be a multiple of training.local_batch_size (4) times "
         "the data-parallel degree (4)"),
        (2, ["--parallelism.data_parallel_shard_degree=3"], "parallelism: "),
    ],
)  # fmt: skip
def test_ranks_that_cannot_share_the_batch_are_refused(num_ranks, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_ranks(load_config(DEBUG, overrides), num_ranks)


def test_a_refusal_after_torch_is_imported_is_one_line_too():
    done = train("--job.config_file", DEBUG, "--parallelism.expert_parallel_degree=2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]


def test_the_9b_summary_equals_the_closed_form():
    """Method section 2: 8.750 B in all, 1.062 B active, NITP 2.3 % of the paper's FLOPs."""
    done = train("--job.config_file", "train_configs/nitp_9b.toml", "--job.dry_run")
    assert done.returncode == 0, done.stderr
    d, V, layers, experts, top_k, expert_dim = 1280, 152064, 24, 144, 8, 640
    attention = d * 8 * 160 * 2 + d * 4 * 160 * 2
    one_expert = 3 * d * expert_dim
    always = (
        2 * V * d
        + layers * (attention + 2 * d)
        + d
        + 3 * d * 10944
        + (layers - 1) * (one_expert + experts * d)
    )
    total = always + (layers - 1) * experts * one_expert
    active = always + (layers - 1) * top_k * one_expert
    assert (round(total / 1e9, 4), round(active / 1e9, 4)) == (8.7497, 1.0623)
    assert f"parameters, backbone  {total:,}" in done.stdout
    assert f"active per token    {active:,}" in done.stdout
    assert f"parameters, projector {12 * d * d:,}" in done.stdout
    assert f"of which NITP {72 * d * d + 18 * d:.4g}" in done.stdout
    assert "ranks                 8 (8 shards of each parameter)" in done.stdout
    # Float32 values, gradients and two moments of a backbone and projector in 8 shards.
    gib = 4 * (total + 12 * d * d) / 8 / 2**30
    assert (
        f"memory per rank       parameters {gib:.3f} GiB; with gradients and AdamW's moments "
        f"{4 * gib:.3f} GiB" in done.stdout
    )


@pytest.mark.parametrize(
    ("degree", "num_ranks", "num_shards"),
    [
        ("data_parallel_shard", 2, 2),
        ("data_parallel_replicate", 4, 2),
        ("context_parallel", 4, 4),
        ("tensor_parallel", 2, 2),
        ("pipeline_parallel", 2, 2),
    ],
)
def test_every_degree_but_replication_cuts_the_memory_of_a_rank(degree, num_ranks, num_shards):
    """Ranks beyond the degree shard the data. In GiB: parameters of 4 bytes, four times over."""
    config = load_config(
        DEBUG, [f"--parallelism.{degree}_degree=2", "--training.disable_cuda_graphs"]
    )
    text = summarize(config, num_ranks)
    backbone, projector = (
        int(re.search(rf"parameters, {part} +([\d,]+)", text)[1].replace(",", ""))
        for part in ("backbone", "projector")
    )
    gib = 4 * (backbone + projector) / num_shards / 2**30
    assert f"ranks                 {num_ranks} ({num_shards} shards of each parameter)" in text
    assert f"parameters {gib:.3f} GiB; with gradients and AdamW's moments {4 * gib:.3f}" in text


def test_a_tokenizer_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match=r"^tokenizer\.path \(.*\) cannot be loaded: EOF"):
        load_config(DEBUG, [f"--tokenizer.path={tmp_path}"])


def test_help_lists_every_option_with_its_docstring():
    done = train("--help", "nitp")
    assert done.returncode == 0
    assert "target_layer" in done.stdout and "residual stream after k decoder layers" in done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of 4 steps, exported; the same from its saved configuration; 2 steps and then the other
    2."""
    folder = tmp_path_factory.mktemp("runs")
    first, again, resumed = (folder / name for name in ("first", "again", "resumed"))
    done = train("--job.config_file", DEBUG, *SMALL, "--training.steps=4",
                 "--lr_scheduler.warmup_steps=1", "--checkpoint.interval=2", "--export.enable",
                 "--data.on_error=skip", f"--job.dump_folder={first}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "log").write_text(done.stdout)
    for extra in (
        [f"--job.dump_folder={again}"],
        [f"--job.dump_folder={resumed}", "--training.steps=2", "--lr_scheduler.total_steps=4"],
        [f"--job.dump_folder={resumed}", "--lr_scheduler.total_steps=4"],
    ):
        config = str(first / "config.toml")
        done = train("--job.config_file", config, "--export.enable=false", *extra)
        assert done.returncode == 0, done.stderr
    return {"first": first, "again": again, "resumed": resumed, "folder": folder}


def test_a_log_that_is_no_terminal_has_no_escape_codes(runs):
    text = (runs["folder"] / "log").read_text()
    assert "step      4" in text and "\x1b" not in text


def test_a_run_leaves_configuration_checkpoint_and_curves(runs):
    run = runs["first"]
    assert (run / "config.toml").is_file()
    assert (run / "checkpoint" / "step-4" / ".metadata").is_file()
    tags = scalars(run)
    for tag in (
        "loss_metrics/global_avg_loss", "loss_metrics/ntp_loss", "loss_metrics/nitp_loss",
        "nitp/cosine", "nitp/valid_fraction", "nitp/weight", "nitp/projector_grad_norm",
        "nitp/grad_ratio", "grad_norm", "throughput(tps)", "lr/AdamW",
    ):  # fmt: skip
        assert len(tags[tag]) == 4, tag
    assert tags["data/tokens_0"] == [8 * 64 * step for step in range(1, 5)]
    assert tags["data/skipped_0"] == [0] * 4
    # The debug configuration validates at step 1 and every 100.
    assert len(tags["validation_metrics/loss"]) == len(tags["validation_metrics/nitp_loss"]) == 1


def test_a_run_ends_by_naming_its_files_and_what_to_do_next(runs):
    log = (runs["folder"] / "log").read_text()
    for text in (
        f"tensorboard --logdir {runs['first']}/tb",
        f"Checkpoint: {runs['first']}/checkpoint/step-4", "To train on: ", "-m recipes.train",
    ):  # fmt: skip
        assert text in log


def test_a_run_that_asks_for_it_ends_with_an_export_and_can_still_be_resumed(runs):
    folder = runs["first"] / "exported" / "step-4"
    log = (runs["folder"] / "log").read_text()
    assert f"exported   {folder}" in log and "verified   logits: at most" in log
    weights = load_file(folder / "model-00001-of-00001.safetensors")
    state = load_checkpoint(runs["first"] / "checkpoint" / "step-4")
    assert torch.equal(weights["lm_head.weight"], state["lm_head.weight"].bfloat16())
    assert "optimizer.state.lm_head.weight.exp_avg" in state


def test_the_saved_configuration_gives_the_same_run(runs):
    first, again = scalars(runs["first"]), scalars(runs["again"])
    for tag in ("loss_metrics/global_avg_loss", "loss_metrics/nitp_loss", "grad_norm"):
        assert first[tag] == again[tag], tag


def test_a_stopped_run_continues_as_if_it_had_not_stopped(runs):
    first, resumed = scalars(runs["first"]), scalars(runs["resumed"])
    for tag in ("loss_metrics/global_avg_loss", "loss_metrics/nitp_loss", "grad_norm", "lr/AdamW",
                "data/tokens_0"):  # fmt: skip
        assert first[tag] == resumed[tag], tag
    ends = [runs[name] / "checkpoint" / "step-4" for name in ("first", "resumed")]
    states = [load_checkpoint(end) for end in ends]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
