"""Stop at any step, resume, stop and resume again: the run that was never stopped, bit for bit."""

import functools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from recipes.run.trainer import RunTrainer
from tests.launch import PIPELINE, SMALL, assert_equal_states, load_state, read_curves, run
from tests.unit.data_samples import write_jsonl

SIX_STEPS = [
    *SMALL, "--lr_scheduler.total_steps=6", "--checkpoint.interval=2",
    "--checkpoint.keep_latest_k=0", "--lr_scheduler.decay_ratio=0.5",
    "--lr_scheduler.decay_type=exponential", "--lr_scheduler.min_lr_factor=0.1",
]  # fmt: skip


def draw_random_numbers(rank: int) -> None:
    """Make every step draw from the global generator and log it: a model with dropout would."""
    train_step = RunTrainer.train_step

    def draw(self: RunTrainer, data_iterator) -> None:
        self.metrics_processor.logger.log({"random": torch.rand(()).item()}, self.step)
        train_step(self, data_iterator)

    RunTrainer.train_step = draw


def stopped_twice(folder: Path, arguments: list[str], num_ranks: int = 1) -> tuple[Path, Path]:
    """A run of 6 steps, and one of 3, which goes on from step 2 to 5 as if it had been killed in
    step 3, and then to the end."""
    whole, parts = folder / "whole", folder / "parts"
    arguments = [*SIX_STEPS, *arguments]
    for target, steps in ((whole, 6), (parts, 3), (parts, 5), (parts, 6)):
        extra = [f"--job.dump_folder={target}", f"--training.steps={steps}"]
        run([*arguments, *extra], folder / f"log{steps}", num_ranks, draw_random_numbers)
        if steps == 3:
            shutil.rmtree(parts / "checkpoint" / "step-3")
    return whole, parts


def assert_same_run(whole: Path, parts: Path) -> None:
    assert read_curves(whole) == read_curves(parts), "a step that was done twice has one value"
    for step in (2, 4, 6):
        states = [load_state(run / "checkpoint" / f"step-{step}") for run in (whole, parts)]
        assert_equal_states(*states)


def test_a_run_stopped_twice_is_the_run_that_was_never_stopped(tmp_path):
    """Saved asynchronously, of which DCP's stager cannot take a fused QKV weight as it is: step 2
    is still being written while step 3 trains. It validates on sets alone."""
    path = write_jsonl(tmp_path / "set.jsonl", [{"text": "x = 1\n" * n} for n in (3, 40)])
    sets = f"[{{name = 'first', path = '{path}'}}, {{name = 'one', path = '{path}', limit = 1}}]"
    whole, parts = stopped_twice(tmp_path, [
        "--checkpoint.async_mode=async", "--data.validation_fraction=0", "--validation.enable",
        "--validation.freq=1", f"--validation.sets={sets}",
    ])  # fmt: skip
    assert_same_run(whole, parts)
    curves = read_curves(whole)
    assert {"random", "lr/AdamW", "n_tokens_seen", "loss_metrics/nitp_loss"} <= curves.keys()
    assert curves["validation_metrics/loss"] == curves["validation_metrics/first/loss"]
    assert {f"validation_metrics/one/{tag}" for tag in ("loss", "bits_per_byte")} <= curves.keys()
    assert all(sorted(curve) == [1, 2, 3, 4, 5, 6] for curve in curves.values())
    assert len(set(curves["random"].values())) == 6


def write_mixture(folder: Path) -> list[str]:
    """Three weighted sources, one of them streamed by the hub's library; the overrides to use them.
    Small enough that documents come again within six steps."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(5, 300))) for _ in range(120)]
    write_jsonl(folder / "lines" / "part.jsonl", [{"text": text} for text in texts[:40]])
    for index, text in enumerate(texts[40:80]):
        (folder / f"{index}.txt").write_text(text)
    for shard in range(4):
        records = [{"text": text} for text in texts[80 + shard : 120 : 4]]
        write_jsonl(folder / "hub" / f"train-{shard}.jsonl", records)
    sources = [
        f"{{path = '{folder}/lines/*.jsonl', name = 'lines', weight = 2.0}}",
        f"{{path = '{folder}/*.txt', name = 'files', limit = 30}}",
        f"{{path = 'hf://{folder}/hub', name = 'hub', streaming = true}}",
    ]
    return [
        f"--data.sources=[{', '.join(sources)}]", "--data.num_streams=4",
        "--data.shuffle_buffer=3", "--data.validation_fraction=0",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_mixture_workers_accumulation_and_asynchronous_saves_resume_bit_for_bit(
    tmp_path, num_ranks, mode
):
    arguments = [
        *write_mixture(tmp_path / "data"), "--data.num_workers=2",
        "--training.global_batch_size=16", "--training.local_batch_size=4",
        f"--checkpoint.async_mode={mode}",
    ]  # fmt: skip
    whole, parts = stopped_twice(tmp_path, arguments, num_ranks)
    assert_same_run(whole, parts)
    curves = read_curves(whole)
    tokens = [curves[f"data/tokens_{name}"][6] for name in ("lines", "files", "hub")]
    # Shares are kept to within a few rows: here of 48, 24 and 24.
    assert sum(tokens) == 96 * 64
    assert tokens == pytest.approx([48 * 64, 24 * 64, 24 * 64], abs=3 * 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ["--parallelism.tensor_parallel_degree=2", "--model.num_kv_heads=2"],
        ["--parallelism.context_parallel_degree=2"],
        PIPELINE,
        ["--job.config_file=train_configs/debug_moe.toml", "--parallelism.expert_parallel_degree=2",
         "--training.disable_cuda_graphs", "--model.expert_dim=32"],
    ],
    ids=["tp", "cp", "pp", "ep"],
)  # fmt: skip
def test_other_layouts_resume_bit_for_bit(tmp_path, layout):
    layout = [*layout, "--training.seq_len=512", "--checkpoint.async_mode=async"]
    assert_same_run(*stopped_twice(tmp_path, layout, num_ranks=2))


def record(folder: Path, rank: int) -> None:
    """Note the state as loaded, and the rows of every step."""
    train_step = RunTrainer.train_step

    def note(self: RunTrainer, data_iterator) -> None:
        if self.num_steps_run == 0:
            states = self.checkpointer._flattened_model_states_sd()
            dcp.save({"loaded_step": self.step - 1, **states}, checkpoint_id=folder / "loaded")
        train_step(self, record_rows(self, data_iterator))

    def record_rows(self: RunTrainer, data_iterator):
        for index, (inputs, labels) in enumerate(data_iterator):
            name = f"step{self.step}-rank{dist.get_rank()}-{index}.pt"
            torch.save(torch.cat([inputs["input"], labels], dim=1), folder / name)
            yield inputs, labels

    RunTrainer.train_step = note


def rows_of(folder: Path, step: int) -> list[list[int]]:
    rows = [torch.load(file) for file in folder.glob(f"step{step}-rank*")]
    return sorted(torch.cat(rows).tolist())


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_continues_with_the_same_state_and_batches(tmp_path, first, then):
    """Losses differ by rounding only: the mean over a batch is summed in another order."""
    arguments = [*SIX_STEPS, *write_mixture(tmp_path / "data"), "--data.num_workers=2"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    seen = {}
    for target, steps, num_ranks in ((whole, 4, first), (moved, 2, first), (moved, 4, then)):
        seen[target] = tmp_path / f"{target.name}-seen{steps}"
        seen[target].mkdir()
        run(
            [*arguments, f"--job.dump_folder={target}", f"--training.steps={steps}"],
            tmp_path / "log",
            num_ranks,
            functools.partial(record, seen[target]),
        )
    saved = load_state(moved / "checkpoint" / "step-2")
    loaded = load_state(seen[moved] / "loaded")
    own_names = ("random_state", "loaded_step")  # per rank; and the count written by `record`
    assert loaded.pop("loaded_step") == 2
    loaded["train_state.step"] -= 1  # the loop counts before it calls the step
    assert_equal_states(
        *({k: v for k, v in s.items() if not k.startswith(own_names)} for s in (saved, loaded))
    )
    for step in (3, 4):
        assert rows_of(seen[whole], step) == rows_of(seen[moved], step)
        assert len(rows_of(seen[whole], step)) == 8
    curves = [read_curves(path) for path in (whole, moved)]
    assert curves[0]["n_tokens_seen"] == curves[1]["n_tokens_seen"]
    for step in (3, 4):
        loss, again = (curve["loss_metrics/global_avg_loss"][step] for curve in curves)
        # Float32 sums over 512 labels in another order.
        assert loss == pytest.approx(again, rel=1e-5)


def note_hyperparameters(path: Path, rank: int) -> None:
    """Append what the optimizer has when it steps, as JSON."""
    train_step = RunTrainer.train_step

    def note(optimizer, args, kwargs) -> None:
        keys = ("lr", "weight_decay", "betas", "eps")
        (group,) = optimizer.param_groups
        with path.open("a") as file:
            print(json.dumps({key: group[key] for key in keys}), file=file)

    def train(self: RunTrainer, data_iterator) -> None:
        if self.num_steps_run == 0:
            for optimizer in self.optimizers:
                optimizer.register_step_pre_hook(note)
        train_step(self, data_iterator)

    RunTrainer.train_step = train


def test_what_is_configured_and_logged_is_what_the_optimizer_uses(tmp_path):
    """A run of two steps is trained on to four, which moves its schedule; from there another one
    goes on with other values, moments and counts included."""
    first, second = tmp_path / "first", tmp_path / "second"
    stage = [
        f"--checkpoint.initial_load_path={first}/checkpoint/step-4", "--checkpoint.allow_pickle",
        "--checkpoint.initial_load_model_only=false", "--optimizer.lr=2e-4",
        "--optimizer.weight_decay=0.5", "--optimizer.betas=[0.8, 0.9]", "--optimizer.eps=1e-6",
    ]  # fmt: skip
    for target, steps, extra in ((first, 2, []), (first, 4, []), (second, 6, stage)):
        arguments = [*SMALL, *extra, f"--job.dump_folder={target}", f"--training.steps={steps}"]
        arguments += ["--lr_scheduler.warmup_steps=1", "--lr_scheduler.decay_ratio=0.5"]
        before = functools.partial(note_hyperparameters, tmp_path / f"{target.name}.jsonl")
        run(arguments, tmp_path / f"log{steps}", before=before)
    plain = {"weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
    staged = {"weight_decay": 0.5, "betas": [0.8, 0.9], "eps": 1e-6}
    # Of four steps the last is at a half, of six the last two are at two and one thirds.
    for target, expected, rates in (
        (first, plain, [1e-3, 1e-3, 1e-3, 5e-4]),
        (second, staged, [4e-4 / 3, 2e-4 / 3]),
    ):
        lines = (tmp_path / f"{target.name}.jsonl").read_text().splitlines()
        used = [json.loads(line) for line in lines]
        logged = [value for _, value in sorted(read_curves(target)["lr/AdamW"].items())]
        assert [entry.pop("lr") for entry in used] == pytest.approx(rates) == logged
        assert all(entry == expected for entry in used)
