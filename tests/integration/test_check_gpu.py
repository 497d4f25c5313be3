"""`make check-gpu`: each of its checks sees its fault, and the report says what was and was not."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.gpu_check import command, cost, report, trained
from recipes.gpu_check.cost import Timing, find_disagreement, find_ratios, plan, summarise
from recipes.gpu_check.report import describe_platform, write_report
from recipes.gpu_check.section import Section
from recipes.gpu_check.trained import NITP, NTP, RECORDED, find_problems
from recipes.parity.cells import select_cells
from recipes.parity.matrix import Outcome
from recipes.parity.tolerance import FLOAT32
from recipes.parity.world import Failure, Result
from tests.waiting import DEADLINE_S, wait_until

# --------------------------------------------------------------------------- the recipes' runs


def make_curves(**changes) -> dict[str, dict[int, float]]:
    curves = {
        NTP: {1: 9.0, 5: 7.0}, NITP: {1: 1.0, 5: 0.2}, "grad_norm": {1: 2.0, 5: 1.0},
        "validation_metrics/loss": {5: 6.5}, "time_metrics/end_to_end(s)": {1: 0.5, 5: 0.25},
        "memory/max_reserved(GiB)": {1: 1.0, 5: 2.0},
    }  # fmt: skip
    return curves | changes


def test_a_run_that_learns_has_no_problem():
    assert find_problems(make_curves(), RECORDED, graphs=True) == []
    assert find_problems(make_curves(), "", graphs=False) == []


@pytest.mark.parametrize(
    ("curves", "problem"),
    [
        (make_curves(**{NTP: {1: 7.0, 5: 7.1}}), "L_NTP did not fall (7.0000 -> 7.1000)"),
        (make_curves(**{NTP: {1: 7.0, 3: math.nan, 5: 6.0}}), f"{NTP} is not finite"),
        (make_curves(**{NITP: {1: 1.0, 5: math.inf}}), f"{NITP} is not finite"),
        (make_curves(**{NITP: {1: 1.0, 5: 2.1}}), "L_NITP is not in [0, 2]"),
        (make_curves(grad_norm={1: math.nan}), "grad_norm is not finite"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(curves, problem):
    assert any(problem in found for found in find_problems(curves, RECORDED, graphs=True))


def test_a_default_run_that_was_not_captured_is_a_problem_on_a_gpu():
    (problem,) = find_problems(make_curves(), "step 1", graphs=True)
    assert "no step was captured" in problem


def test_a_command_that_fails_or_hangs_is_reported_with_its_error_and_log(monkeypatch, tmp_path):
    outputs = {
        "debug.toml": (1, "noise\nerror: nitp.weight (x) is wrong.\nbye", 1.0),
        "debug_moe.toml": (124, "step 1\nno end within 3 s", 3.0),
    }
    monkeypatch.setattr(
        trained, "run_command", lambda arguments, *_: outputs[Path(arguments[3]).name]
    )
    section, runs = Section("recipes"), dict[str, Path]()
    trained.check_recipes(section, runs, "cpu", 1, tmp_path, 10)
    assert runs == {} and not section.has_passed
    assert section.problems == [
        "dense: exit code 1: error: nitp.weight (x) is wrong.",
        "moe: exit code 124: no end within 3 s",
    ]
    assert section.logs["recipe-dense"].startswith("noise")
    exports = Section("exports")
    trained.check_exports(exports, runs, "cpu", tmp_path, 10)
    assert sorted(exports.not_run) == ["dense: its training failed", "moe: its training failed"]
    assert not exports.has_passed


@pytest.mark.parametrize(("device", "wants_graphs"), [("cpu", []), ("cuda", ["dense"])])
def test_a_run_that_ends_well_is_judged_by_its_curves(monkeypatch, tmp_path, device, wants_graphs):
    """On a GPU the dense recipe must have been captured too; experts cannot be."""
    curves = make_curves()
    monkeypatch.setattr(trained, "run_command", lambda *_: (0, "step 5", 9.0))
    monkeypatch.setattr(
        trained,
        "read_curves",
        lambda run: curves if run.name == "dense" else curves | {NTP: {5: 6}},
    )
    section, runs = Section("recipes"), dict[str, Path]()
    trained.check_recipes(section, runs, device, 1, tmp_path, 10)
    captured = "no step was captured as a CUDA graph, TorchTitan's default"
    assert section.problems == [
        *(f"{model}: {captured}" for model in wants_graphs),
        "moe: L_NTP did not fall (6.0000 -> 6.0000)",
    ]
    assert list(section.logs) == [f"recipe-{model}" for model in (*wants_graphs, "moe")]
    assert runs == ({} if wants_graphs else {"dense": tmp_path / "dense"})
    assert section.figures["dense"] == {
        "L_NTP, last": 7.0, "L_NITP, last": 0.2, "validation": 6.5, "step, median (s)": 0.375,
        "memory, peak (GiB)": 2.0, "wall (s)": 9.0,
    }  # fmt: skip


def test_an_export_that_differs_is_a_problem(monkeypatch, tmp_path):
    output = "error: logits differ by 0.3, at most 0.0001 is allowed."
    monkeypatch.setattr(trained, "run_command", lambda *_: (1, output, 1.0))
    section = Section("exports")
    trained.check_exports(section, {"dense": tmp_path}, "cpu", tmp_path, 10)
    assert section.problems == [f"dense: exit code 1: {output}"]


def test_a_command_is_ended_with_all_it_started_when_its_time_is_up(monkeypatch, tmp_path):
    """That is when its child, which holds the same pipe, has begun."""

    class Popen(subprocess.Popen):
        def communicate(self, input=None, timeout=None):
            if timeout is None:
                return super().communicate(timeout=DEADLINE_S)  # of a pipe that stays open
            assert timeout == 3.0
            wait_until((tmp_path / "begun").exists)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(trained.subprocess, "Popen", Popen)
    child = f"""
import signal
from pathlib import Path
signal.alarm({2 * DEADLINE_S:.0f})
Path({str(tmp_path / "begun")!r}).touch()
signal.pause()
"""
    parent = "import subprocess, sys; print('on', flush=True)\n"
    parent += f"subprocess.run([sys.executable, '-c', {child!r}])"
    code, output, wall_s = trained.run_command(["-c", parent], "cpu", 3.0)
    assert (code, output) == (124, "on\n\nno end within 3 s")
    assert wall_s > 0


# ------------------------------------------------------------------------------- what NITP costs


def make_timing(arm, mode, number, seconds, **changes) -> Timing:
    figures = {"seconds": seconds, "tokens_per_step": 1000, "flops_per_token": 2e6,
               "peak_flops": 1e12, "num_devices": 2, "active_gib": 1.0 + number,
               "reserved_gib": 3.0}  # fmt: skip
    loss = changes.pop("loss", 7.0)
    return Timing(arm, mode, number, figures | changes, loss)


TIMINGS = [
    make_timing("TorchTitan", "graphs", 0, [0.10, 0.10, 0.30]),
    make_timing("NTP", "graphs", 0, [0.10, 0.10, 0.12]),
    make_timing("NITP", "graphs", 0, [0.12, 0.11, 0.13], flops_per_token=3e6),
    make_timing("NITP", "graphs", 1, [0.15, 0.15, 0.15], flops_per_token=3e6),
    make_timing("NTP", "graphs", 1, [0.12, 0.12, 0.12]),
]


def test_ratios_pair_the_arms_of_a_round():
    """0.12 / 0.10 and 0.15 / 0.12; TorchTitan has only the first round."""
    assert find_ratios(TIMINGS, "graphs", "NITP", "NTP") == pytest.approx([1.2, 1.25])
    assert find_ratios(TIMINGS, "graphs", "NTP", "TorchTitan") == pytest.approx([1.0])
    assert find_ratios(TIMINGS, "no graphs", "NITP", "NTP") == []


def test_the_table_has_median_spread_rate_and_use_of_the_device():
    """NITP: steps .11 .12 .13 .15 .15 .15, median .14; 1000 / .14 tokens/s; the decoder's 2e6 FLOPs
    a token, not NITP's 3e6, over 2 devices of 1e12."""
    text, figures = summarise(TIMINGS)
    nitp = figures["NITP, graphs"]
    assert nitp["rounds"] == 2 and nitp["step_s"] == pytest.approx(0.14)
    assert nitp["step_s_quartiles"] == [0.12, 0.15]
    assert nitp["tokens_per_s"] == pytest.approx(1000 / 0.14)
    assert nitp["mfu"] == pytest.approx(2e6 * 1000 / 0.14 / 2e12)
    assert nitp["active_gib"] == 2.0 and nitp["reserved_gib"] == 3.0
    assert "| NITP | graphs | 2 | 140.00 | 120.00 to 150.00 | 7,143 | 0.7% | 2.00 | 3.00 |" in text
    joined = "\n".join(text)
    assert "NITP over NTP, graphs: step time +22.50% (+20.00% to +25.00% over 2 rounds)." in joined
    assert "NTP over TorchTitan's own trainer, graphs: step time +0.00%" in joined


def test_a_device_of_unknown_peak_has_no_utilisation():
    text, figures = summarise(
        [make_timing("TorchTitan", "no graphs", 0, [0.1], peak_flops=math.nan)]
    )
    assert "mfu" not in figures["TorchTitan, no graphs"] and "| - |" in text[-1]


def test_arms_that_do_not_start_alike_are_a_problem():
    """4.6e-4 is bfloat16's bound of a loss; NITP's own loss may differ, cross entropy may not."""
    near = make_timing("NTP", "graphs", 0, [0.1], loss=7.0 * (1 + 4e-4))
    far = make_timing("NITP", "graphs", 1, [0.1], loss=7.0 * (1 + 6e-4))
    nan = make_timing("NITP", "graphs", 0, [0.1], loss=math.nan)
    assert find_disagreement([TIMINGS[0], near]) == []
    assert find_disagreement([TIMINGS[0], far])[0].startswith("NITP, graphs, round 2: L_NTP")
    assert len(find_disagreement([TIMINGS[0], nan])) == 1


def test_every_arm_runs_in_every_round_and_none_is_always_first():
    planned = list(plan("cuda", num_devices=2))
    rounds = [[(p.arm.name, p.mode) for p in planned if p.round == r] for r in range(3)]
    assert len(rounds[0]) == 7 and rounds[1] == rounds[0][::-1] and rounds[2] == rounds[0]
    assert all(p.case.legs == [(2, [])] for p in planned)
    assert {p.mode for p in plan("cpu", 1)} == {"no graphs"}
    assert [p.arm.name for p in planned if p.case.is_plain] == ["TorchTitan"] * 6


def test_an_arm_that_fails_or_has_no_time_is_reported_and_the_others_are_timed(monkeypatch):
    """The second arm fails, the third differs in its first step, the fourth is never begun."""
    loss = "loss_metrics/global_avg_loss"

    def run(cases, **_):
        for index, case in enumerate(cases):
            failure = Failure(case.name, 1, 2, "it broke", f"log of {case.name}", index >= 3)
            figures = make_timing("", "", 0, [0.1]).figures
            metrics = [{loss: 7.0}, {}, {loss: 8.0, NTP: 7.5}]
            result = Result(metrics[index:][:1], {}, {}, {}, [], 1, {}, [figures])
            yield case, failure if index in (1, 3, 4, 5) else result

    monkeypatch.setattr(cost, "run_cases", run)
    monkeypatch.setattr(cost, "NUM_ROUNDS", 2)
    section = Section("cost")
    cost.measure_cost(section, "cpu", 1, deadline_s=0.0)
    assert section.problems == [
        "NTP, no graphs, round 1: rank 1 of 2: it broke",
        "NITP, no graphs, round 1: L_NTP of step 1 is 7.500000, not 7.000000 as with TorchTitan",
    ]
    assert section.logs == {"cost-NTP-no_graphs-0": "log of NTP-no_graphs-0"}
    assert section.not_run == [
        f"{arm}, no graphs, round 2: the time was up" for arm in ("NITP", "NTP", "TorchTitan")
    ]
    assert section.figures.keys() == {"TorchTitan, no graphs", "NITP, no graphs"}


# -------------------------------------------------------------------------------------- parity


def test_a_cell_that_differs_crashes_or_has_no_time_is_reported(monkeypatch, tmp_path):
    """One of each, beside one that passes."""
    entries = select_cells("cpu", max_ranks=2, pattern="dense-[fc]*_2*")[:4]
    near, far = (SimpleNamespace(values=lambda x=x: {"loss": x}) for x in (1e-7, 0.5))
    changes = [
        {"comparison": near},
        {"comparison": far, "failure": "loss 0.5"},
        {"failure": "rank 1 of 2: it broke", "log": "Traceback"},
        {"not_run": "the time was up"},
    ]

    def report(selected, device, command, outcomes, deadline_s):
        assert selected == entries and (device, deadline_s) == ("cpu", 5.0)
        outcomes += [
            Outcome(entry, FLOAT32, **change)
            for entry, change in zip(entries, changes, strict=True)
        ]
        return ["# Parity matrix", "command", "platform", "the table"]

    monkeypatch.setattr(command, "select_cells", lambda *_: entries)
    monkeypatch.setattr(command, "format_report", report)
    section = Section("parity")
    command.check_parity(section, "cpu", 1, "*", 5.0, tmp_path)
    names = [entry.id for entry in entries]
    assert section.problems == [f"{names[1]}: loss 0.5", f"{names[2]}: rank 1 of 2: it broke"]
    assert section.not_run == [f"{names[3]}: the time was up"]
    assert section.figures == {names[0]: {"loss": 1e-7}, names[1]: {"loss": 0.5}}
    assert section.text == ["the table"]
    assert (tmp_path / f"{names[2]}.log").read_text().endswith("it broke\n\nTraceback\n")


# ------------------------------------------------------------------------------------ the report


def test_a_report_says_what_failed_what_was_left_out_and_on_what(tmp_path):
    sections = [
        Section("good", commands=["make good"], figures={"x": 1.5}, not_run=["y: the time was up"]),
        Section("bad", figures={"x": 2}, problems=["a", "b"]),
        Section("empty", not_run=["all: the time was up"]),
    ]
    facts = describe_platform("cpu")
    write_report(tmp_path, facts, "python scripts/check_gpu.py", sections, 1.25)
    text, content = (tmp_path / "report.md").read_text(), (tmp_path / "report.json").read_text()
    for line in ("| good | passed; 1 not run |", "| bad | **FAIL**: 2 of what was tried |",
                 "| empty | not run |", "* not run: y: the time was up", "* **FAIL** b",
                 "    make good", "1.2 minutes."):  # fmt: skip
        assert line in text, line
    assert "torch 2.14" in text and "torchtitan 0.3.0" in text
    data = json.loads(content)
    assert not data["has_passed"] and data["sections"][0]["figures"] == {"x": 1.5}
    assert [s["has_passed"] for s in data["sections"]] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device=cuda"], "error: --device (cuda) needs a CUDA device."),
        (["--device=cpu", "--minutes=0"], "error: --minutes (0) must be greater than 0."),
        (["--device=cpu", "--cells=fdsp"], "error: --cells (fdsp) fits no cell."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 0)
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_report_that_is_there_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "report.md").write_text("mine")
    assert command.main(["--device=cpu", f"--output={tmp_path}"]) == 2
    assert (tmp_path / "report.md").read_text() == "mine"


def stand_in(monkeypatch, **parts) -> None:
    """Parts that need no training; `recipes`, `exports`, `parity` or `cost` does what is given."""
    functions = {
        "recipes": "check_recipes", "exports": "check_exports", "parity": "check_parity",
        "cost": "measure_cost",
    }  # fmt: skip

    def fine(section, *_):
        section.figures["x"] = 1.0

    for name, function in functions.items():
        monkeypatch.setattr(command, function, parts.get(name, fine))


def run_check(output: Path) -> tuple[int, list[dict]]:
    """The exit code, and the sections of a report that is valid JSON."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    code = command.main(["--device=cpu", "--cells=cpu_offload", f"--output={output}"])
    text = (output / "report.json").read_text()
    return code, json.loads(text, parse_constant=refuse)["sections"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["recipes", "parity", "cost"])
def test_a_figure_that_is_no_number_fails_its_part_and_the_others_run(
    monkeypatch, tmp_path, part, value
):
    def nonfinite(section, *_):
        section.figures["dense"] = {"fine": 1.0, "validation": value, "steps": [1.0, value]}

    stand_in(monkeypatch, **{part: nonfinite})
    code, sections = run_check(tmp_path)
    index = ["recipes", "exports", "parity", "cost"].index(part)
    assert code == 1 and [s["has_passed"] for s in sections] == [i != index for i in range(4)]
    assert sections[index]["figures"]["dense"]["validation"] == str(value)
    assert sections[index]["problems"] == [
        f"dense: validation is {value}", f"dense: steps is {value}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [RuntimeError("the worker process has ended:\nlog"), KeyError("x"), SystemExit(3),
              StopIteration(), AssertionError(), MemoryError()],
)  # fmt: skip
@pytest.mark.parametrize("part", ["recipes", "exports", "parity", "cost"])
def test_a_part_that_raises_keeps_what_it_found_and_the_others_run(
    monkeypatch, tmp_path, part, error, capsys
):
    def broken(section, *_):
        section.figures["y"] = 2.0
        raise error

    stand_in(monkeypatch, **{part: broken})
    code, sections = run_check(tmp_path)
    index = ["recipes", "exports", "parity", "cost"].index(part)
    assert code == 1 and [s["has_passed"] for s in sections] == [i != index for i in range(4)]
    assert sections[index]["figures"] == {"y": 2.0}
    (problem,) = sections[index]["problems"]
    assert problem.startswith(f"this part broke off: {type(error).__name__}")
    assert "Traceback" in (tmp_path / f"part-{index + 1}.log").read_text()
    assert problem in capsys.readouterr().out


def test_an_interruption_leaves_a_report_of_all_parts(monkeypatch, tmp_path):
    def interrupted(section, *_):
        raise KeyboardInterrupt

    stand_in(monkeypatch, parity=interrupted)
    code, sections = run_check(tmp_path)
    assert code == 130 and [s["has_passed"] for s in sections] == [True, True, False, False]
    assert sections[2]["problems"] == ["interrupted"] and sections[3]["not_run"] == ["not begun"]


def test_a_part_that_is_killed_with_the_check_is_named_in_the_report(monkeypatch, tmp_path):
    """What the report says while a part runs is what it says if that never returns."""
    seen = []

    def look(section, *_):
        seen.append(json.loads((tmp_path / "report.json").read_text())["sections"])

    stand_in(monkeypatch, exports=look)
    run_check(tmp_path)
    assert [len(s["figures"]) for s in seen[0]] == [1, 0, 0, 0]
    assert seen[0][1]["not_run"] == ["not finished when this report was written"]
    assert [s["not_run"] for s in seen[0][2:]] == [["not begun"]] * 2


def test_cells_and_arms_that_were_done_stay_when_the_rest_breaks_off(monkeypatch, tmp_path):
    entry = select_cells("cpu", max_ranks=2, pattern="dense-[fc]*_2*")[0]

    def report(selected, device, pattern, outcomes, deadline_s):
        outcomes.append(
            Outcome(entry, FLOAT32, comparison=SimpleNamespace(values=lambda: {"l": 0.0}))
        )
        yield from ["# Parity matrix", "command", "platform", "a row"]
        raise RuntimeError("the worker process has ended")

    monkeypatch.setattr(command, "format_report", report)
    section = Section("parity")
    with pytest.raises(RuntimeError):
        command.check_parity(section, "cpu", 1, "*", 5.0, tmp_path)
    assert section.figures == {entry.id: {"l": 0.0}} and section.text == ["a row"]

    def run(cases, **_):
        figures = make_timing("", "", 0, [0.1]).figures
        yield (
            cases[0],
            Result(
                [{NTP: 7.0, "loss_metrics/global_avg_loss": 7.0}], {}, {}, {}, [], 1, {}, [figures]
            ),
        )
        raise RuntimeError("the worker process has ended")

    monkeypatch.setattr(cost, "run_cases", run)
    section = Section("cost")
    with pytest.raises(RuntimeError):
        cost.measure_cost(section, "cpu", 1, deadline_s=0.0)
    assert section.figures["TorchTitan, no graphs"]["rounds"] == 1


def test_a_recipe_that_logs_less_and_an_export_without_a_verdict_are_problems(
    monkeypatch, tmp_path
):
    curves = make_curves()
    del curves["validation_metrics/loss"]
    monkeypatch.setattr(trained, "run_command", lambda *_: (0, "step 5", 9.0))
    monkeypatch.setattr(trained, "read_curves", lambda run: curves)
    section, runs = Section("recipes"), dict[str, Path]()
    trained.check_recipes(section, runs, "cpu", 1, tmp_path, 10)
    assert section.problems == [
        f"{m}: not logged: validation_metrics/loss" for m in trained.CONFIGS
    ]
    assert section.figures["moe"]["L_NTP, last"] == 7.0 and runs == {}
    exports = Section("exports")
    trained.check_exports(exports, {"dense": tmp_path}, "cpu", tmp_path, 10)
    assert exports.problems == ["dense: exit code 0: step 5"]


def test_a_query_of_the_machine_that_hangs_does_not_fail_the_report(monkeypatch):
    def hang(command, timeout, **_):
        raise report.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(report.subprocess, "run", hang)
    assert describe_platform("cpu")["commit"].startswith("unknown (Command '['git',")


@pytest.mark.slow
def test_the_whole_check_runs_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "NUM_ROUNDS", 1)
    output = tmp_path / "report"
    arguments = ["--device=cpu", "--minutes=6", "--cells=dense-fsdp_2", f"--output={output}"]
    assert command.main(arguments) == 0
    data = json.loads((output / "report.json").read_text())
    assert data["has_passed"] and [len(s["figures"]) >= 1 for s in data["sections"]] == [True] * 4
    recipes, exports, parity, costs = data["sections"]
    assert recipes["figures"].keys() == exports["figures"].keys() == {"dense", "moe"}
    assert parity["figures"]["dense-fsdp_2"]["loss"] < 5e-6
    assert costs["figures"]["NITP, no graphs"]["step_s"] > 0
