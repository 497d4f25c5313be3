"""The parity command around the runs: data, choice of cells, verdicts, report, exit code."""

import json
import math
import os
import runpy
import sys
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.config import load_config
from recipes.parity import cells, problem, report, worker
from recipes.parity.cells import CELLS, Cell, select_cells
from recipes.parity.compare import compare
from recipes.parity.masking import mask_prompts
from recipes.parity.tolerance import CUDA, EXACT, FLOAT32, Tolerance
from recipes.parity.worker import merge, rank_environment
from recipes.parity.world import Case, Failure, Result, worker_environment
from tests.waiting import DEADLINE_S

SCRIPT = Path(__file__).parents[2] / "scripts/parity.py"
IGNORE_INDEX = -100


# ------------------------------------------------------------------------------- the data


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Inputs, positions and labels of three global batches of the standard problem, [24, L]."""
    data = problem.write_data(tmp_path_factory.mktemp("data"))
    config_file, model = problem.MODELS["dense"]
    config = mask_prompts(load_config(config_file, [*problem.OVERRIDES, *model, *data]))
    loader = config.dataloader.build(
        dp_world_size=1,
        dp_rank=0,
        tokenizer=HuggingFaceTokenizer(tokenizer_path=config.hf_assets_path),
        seq_len=config.training.seq_len,
        local_batch_size=3 * config.training.global_batch_size,
    )
    inputs, labels = next(iter(loader))
    return {**inputs, "labels": labels}


def test_rows_hold_one_document_or_many(rows):
    num_documents = (rows["positions"] == 0).sum(1).tolist()
    assert min(num_documents) == 1 and max(num_documents) > 5


def test_documents_go_on_in_the_next_row(rows):
    """Row i + 8 follows row i; its first token is then the last label of row i."""
    ends, starts = rows["labels"][:-8, -1], rows["input"][8:, 0]
    assert (ends == starts).sum() > 8, "most rows end within a document"


def test_labels_are_masked_unevenly(rows):
    num_masked = (rows["labels"] == IGNORE_INDEX).sum(1)
    assert (num_masked > 0).all() and num_masked.unique().numel() > 10


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_have_different_numbers_of_pairs(rows, num_ranks):
    """Else a mean per rank would pass for the global mean: over rows, and over the sequence."""
    is_pair = rows["labels"] != IGNORE_INDEX
    is_pair[:, :-1] &= rows["positions"][:, 1:] == rows["positions"][:, :-1] + 1
    first_step = is_pair[:8]
    by_row = [first_step[rank::num_ranks].sum().item() for rank in range(num_ranks)]
    by_token = [part.sum().item() for part in first_step.chunk(num_ranks, dim=1)]
    assert len(set(by_row)) == len(set(by_token)) == num_ranks


# ---------------------------------------------------------------------- which cells run, and how


def test_every_cell_is_listed_once_for_each_model_it_is_for():
    ids = [entry.id for entry in select_cells("cpu", max_ranks=8)]
    assert len(set(ids)) == len(ids) == sum(len(cell.models) for cell in CELLS.values())


def test_the_cpu_runs_every_cell_but_those_that_say_why_not():
    not_run = {e.name: e.not_run for e in select_cells("cpu", max_ranks=8) if e.not_run}
    assert not_run == {name: cell.not_on_cpu for name, cell in CELLS.items() if cell.not_on_cpu}


def test_cells_larger_than_the_machine_are_listed_as_not_run():
    entries = {entry.id: entry for entry in select_cells("cuda", max_ranks=2)}
    assert entries["moe-fsdp_4"].not_run == "needs 4 ranks; at most 2 here"
    # A later leg counts too, and what only a GPU can do runs there.
    assert entries["moe-fsdp_4_then_tp_2_cp_2_then_hsdp_2x2"].not_run
    assert not entries["moe-fsdp_2"].not_run and not entries["dense-cpu_offload"].not_run


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("fsdp_2", {"dense-fsdp_2", "moe-fsdp_2"}), ("moe-fsdp_2", {"moe-fsdp_2"}), ("fsdp", set())],
)
def test_a_pattern_fits_names_with_or_without_the_model(pattern, expected):
    assert {entry.id for entry in select_cells("cpu", 8, pattern)} == expected


def test_cuda_tolerances_only_widen_and_leave_exact_cells_exact():
    assert CELLS["fsdp_2"].tolerance_on("cuda") == CUDA
    assert CELLS["weight_0_1"].tolerance_on("cuda") == EXACT
    wide = Tolerance(0.1, 0.1, "a reason of its own")
    assert replace(CELLS["fsdp_2"], tolerance=wide).tolerance_on("cuda") == wide


def test_a_cpu_matrix_hides_the_gpus_and_a_cuda_one_does_not(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert worker_environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    nvml = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    assert worker_environment("cuda") == {**os.environ, **nvml}


@pytest.mark.parametrize("has_cuda", [False, True])
def test_a_rank_has_a_device_of_its_own_where_there_are_enough(monkeypatch, has_cuda):
    """TorchTitan picks device LOCAL_RANK."""
    monkeypatch.setattr(worker, "ON_CPU", not has_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    environment = rank_environment(3, num_ranks=4, port=1234)
    assert environment["RANK"] == environment["LOCAL_RANK"] == "3"
    assert environment["WORLD_SIZE"] == "4" and environment["MASTER_PORT"] == "1234"
    assert "CUDA_VISIBLE_DEVICES" not in environment


@pytest.mark.parametrize(("visible", "expected"), [(None, "0101"), ("", "0101"), ("6,2", "6262")])
def test_ranks_share_devices_by_turns_where_there_are_too_few(monkeypatch, visible, expected):
    """TorchTitan gives each the only device that it sees; NCCL must be told that this is meant."""
    monkeypatch.setattr(worker, "ON_CPU", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = [rank_environment(rank, num_ranks=4, port=1) for rank in range(4)]
    assert "".join(e["CUDA_VISIBLE_DEVICES"] for e in environments) == expected
    assert {e["NCCL_MULTI_RANK_GPU_ENABLE"] for e in environments} == {"1"}


def test_cuda_runs_first_what_a_cpu_cannot_show():
    names = list(dict.fromkeys(entry.name for entry in select_cells("cuda", max_ranks=8)))
    assert names[:2] == ["cuda_graphs", "fsdp_2"] and set(names) == set(CELLS)
    assert tuple(names[: len(cells.FIRST_ON_CUDA)]) == cells.FIRST_ON_CUDA
    assert CELLS[names[-1]].max_ranks == 8


# ------------------------------------------------------------------------------------- verdicts


def make_result(**changes) -> Result:
    figures = {"loss_metrics/global_avg_loss": 7.0, "loss_metrics/nitp_loss": 1.0}
    metrics = [{**figures, "grad_norm": 2.0, "nitp/cosine": 0.0, "nitp/grad_ratio": 0.5}]
    tensors = {"w": torch.ones(100), "b": torch.zeros(3)}
    result = Result(
        metrics=metrics, grads=tensors, initial={}, state=tensors, batches=[], num_accumulated=2,
        validation={"validation_metrics/loss": 6.0}, probes=[],
    )  # fmt: skip
    return replace(result, **changes)


def test_equal_runs_pass_at_zero_tolerance():
    assert compare(make_result(), make_result()).find_excess(EXACT) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metrics": [{**make_result().metrics[0], "loss_metrics/nitp_loss": 1.1}]},
         "loss 1.0e-01 (loss_metrics/nitp_loss at step 1)"),
        ({"metrics": [{**make_result().metrics[0], "loss_metrics/nitp_loss": math.nan}]},
         "loss nan (loss_metrics/nitp_loss at step 1)"),
        ({"metrics": [{**make_result().metrics[0], "grad_norm": 2.2}]},
         "metric 1.0e-01 (grad_norm at step 1)"),
        ({"metrics": [{k: v for k, v in make_result().metrics[0].items() if k != "grad_norm"}]},
         "metric nan (grad_norm at step 1)"),
        ({"validation": {"validation_metrics/loss": 6.6}},
         "validation 1.0e-01 (validation_metrics/loss at step 1)"),
        ({"validation": {}}, "validation nan (validation_metrics/loss at step 1)"),
        ({"grads": {"w": torch.full((100,), 1.1), "b": torch.zeros(3)}}, "gradient 1.0e-01 (w)"),
        ({"grads": {"w": torch.ones(100)}}, "gradient nan (b is on one side only)"),
        ({"grads": {"w": torch.ones(100), "b": torch.full((3,), 1e-30)}}, "gradient inf (b)"),
        ({"state": {"w": torch.full((100,), math.nan), "b": torch.zeros(3)}}, "state nan (w)"),
    ],
)  # fmt: skip
def test_the_largest_error_of_each_kind_is_named(changes, expected):
    assert compare(make_result(**changes), make_result()).find_excess(FLOAT32) == expected


def test_metrics_may_have_a_tolerance_of_their_own():
    metrics = [{**make_result().metrics[0], "grad_norm": 2.2}]
    comparison = compare(make_result(metrics=metrics), make_result())
    assert comparison.find_excess(Tolerance(0.0, 0.0, "reason", metric=0.11)) == ""
    assert comparison.find_excess(Tolerance(0.2, 0.2, "reason", metric=0.09)) != ""


def test_the_gradient_ratio_may_be_missing_as_under_tensor_parallelism():
    metrics = [{k: v for k, v in make_result().metrics[0].items() if k != "nitp/grad_ratio"}]
    assert compare(make_result(metrics=metrics), make_result()).find_excess(EXACT) == ""


def test_a_missing_step_is_an_error():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        compare(make_result(metrics=[]), make_result())


def test_pipeline_stages_join_by_name_and_the_last_stage_has_the_figures():
    def part(name, loss, has_loss):
        tensors = {name: torch.ones(1)}
        return {"initial": tensors, "grads": tensors, "state": tensors, "has_loss": has_loss,
                "metrics": [{"loss": loss}], "validation": {"loss": loss}}  # fmt: skip

    merged = merge([part("layers.0", -2.0, False), part("layers.1", 7.0, True)])
    assert merged["metrics"] == [{"loss": 7.0}] and merged["validation"] == {"loss": 7.0}
    for key in ("initial", "grads", "state"):
        assert merged[key].keys() == {"layers.0", "layers.1"}


# ----------------------------------------------------------------------------------- the command


def run_script(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    return runpy.run_path(str(SCRIPT))["main"](arguments)


def test_failing_and_crashing_cells_are_shown_and_do_not_stop_the_rest(
    monkeypatch, capsys, tmp_path
):
    dense = {"models": ["dense"], "validate": False, "num_steps": 1}
    table = {
        "differs": Cell(1, ["--nitp.weight=0.5"], **dense),
        "crashes": Cell(2, [cells.TP.format(3)], **dense),
        "no_reference": Cell(1, problem=["--nitp.target_layer=9"], **dense),
        "large": Cell(4, **dense),
        "good": Cell(1, **dense),
    }
    monkeypatch.setattr(cells, "CELLS", table)
    monkeypatch.setattr(report, "GROUPS", {"all of it": table, "no cell": {}})
    logs = tmp_path / "logs"
    arguments = ["--max-ranks=2", f"--output={tmp_path / 'matrix.md'}", f"--logs={logs}"]
    assert run_script(monkeypatch, *arguments) == 1
    printed = capsys.readouterr().out
    assert (tmp_path / "matrix.md").read_text() == printed
    rows = [line.split(" | ") for line in printed.splitlines() if " | dense | " in line]
    verdicts = {row[0].removeprefix("| "): row[-1].removesuffix(" |") for row in rows}
    assert list(verdicts) == list(table)
    assert verdicts["good"] == "pass"
    assert verdicts["large"] == "not run: needs 4 ranks; at most 2 here"
    assert verdicts["differs"].startswith("**FAIL** loss ")
    assert "(loss_metrics/global_avg_loss at step 1)" in verdicts["differs"]
    assert "**FAIL** rank " in verdicts["crashes"] and " of 2: " in verdicts["crashes"]
    assert "**FAIL** its reference: rank 0 of 1: " in verdicts["no_reference"]
    assert "nitp.target_layer (9)" in verdicts["no_reference"]
    assert "1 passed, 3 failed, 1 not run" in printed
    loss = next(row[3] for row in rows if row[0] == "| differs")
    assert f"| all of it | 1 of 4 | 1, 2 | {loss} | " in printed and "no cell" not in printed
    kept = {path.stem.removeprefix("dense-"): path.read_text() for path in logs.iterdir()}
    assert kept.keys() == {"crashes", "no_reference"}
    assert "Traceback" in kept["crashes"] and "nitp.target_layer (9)" in kept["no_reference"]
    assert "torchtitan 0.3.0" in printed and "python scripts/parity.py --max-ranks=2" in printed


def test_what_is_not_done_in_time_is_listed_as_not_run(monkeypatch, capsys):
    """The time is up before the worker has imported anything: not even a reference is begun."""
    assert run_script(monkeypatch, "--only=dense-fsdp_[24]", "--minutes=1e-9") == 0
    printed = capsys.readouterr().out
    assert printed.count("not run: the time was up") == 2
    assert "0 passed, 0 failed, 2 not run" in printed


@pytest.mark.slow
def test_ranks_can_be_started_afresh_where_they_cannot_be_forked(tmp_path):
    overrides = ["--model.num_layers=1", "--nitp.target_layer=1", "--training.seq_len=64",
                 "--training.global_batch_size=2", "--training.local_batch_size=1",
                 "--validation.enable=false"]  # fmt: skip
    case = Case("fresh", "train_configs/debug.toml", overrides, num_steps=1, legs=[(2, [])])
    assert worker.run_case(asdict(case), tmp_path, "spawn", timeout_s=DEADLINE_S) is None
    assert len(torch.load(tmp_path / "fresh.pt")["metrics"]) == 1


def test_a_run_that_the_deadline_ends_is_out_of_time_and_not_failed(monkeypatch, tmp_path):
    """The first case ends well, the second at the deadline, and the third is never begun."""
    clock = SimpleNamespace(now_s=1000.0)
    clock.time = lambda: clock.now_s
    limits_s = []

    def run_case(case, folder, start_method, timeout_s):
        limits_s.append(timeout_s)
        clock.now_s += 12.0 if case["name"] == "ends" else timeout_s
        if case["name"] == "ends":
            return None
        error = {"rank": 0, "error": f"no end within {timeout_s:g} s", "log": ""}
        return {"case": case["name"], "num_ranks": 1, **error}

    monkeypatch.setattr(worker, "time", clock)
    monkeypatch.setattr(worker, "run_case", run_case)
    cases = [asdict(Case(name, "train_configs/debug.toml")) for name in ("ends", "hangs", "waits")]
    report = StringIO()
    worker.run_all({"cases": cases, "timeout_s": 30.0, "deadline_s": 1020.0}, tmp_path, report)
    ended, *failures = map(json.loads, report.getvalue().splitlines())
    assert ended is None and limits_s == [20.0, 8.0]
    assert [Failure(**failure).error for failure in failures] == ["no end within 8 s", "not begun"]
    assert all(failure["is_out_of_time"] for failure in failures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks-per-device=0"], "error: --ranks-per-device (0) must be at least 1."),
        (["--only", "fdsp"], "error: --only (fdsp) fits no cell."),
        (["--ranks-per-device=2"], "error: --ranks-per-device (2) has no effect with --device cpu"),
        (["--output=x", "--output=y"], "error: command line: --output is given twice."),
        (["--device", "cuda"], "error: --device (cuda) needs a CUDA device."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run_script(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(message)
