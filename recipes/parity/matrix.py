"""Runs cells and their references, and compares them."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.parity import problem
from recipes.parity.cells import Selected
from recipes.parity.compare import Comparison, compare
from recipes.parity.tolerance import Tolerance
from recipes.parity.world import Case, Device, Failure, Result, run_cases


@dataclass(frozen=True)
class Outcome:
    """What became of one cell of one model."""

    selected: Selected
    tolerance: Tolerance
    failure: str = ""
    """What failed or exceeds the tolerance, one line; else nothing."""

    not_run: str = ""
    """Why it was not run, or not to its end; else nothing."""

    log: str = ""
    """The end of the output of the rank that failed."""

    comparison: Comparison | None = None
    """None if a run failed, or the cell was not run."""

    result: Result | None = None
    reference: Result | None = None

    @property
    def has_passed(self) -> bool:
        return self.comparison is not None and not self.failure


def compare_cells(
    selected: Sequence[Selected], device: Device = "cpu", deadline_s: float | None = None
) -> Iterator[Outcome]:
    """Each cell as soon as it is done, in order. One that fails does not stop the others; those not
    done at `deadline_s` (as time.time() counts) are not run."""
    with tempfile.TemporaryDirectory() as folder:
        data = problem.write_data(Path(folder))
        references: list[Case] = []
        cases: list[Case] = []
        for entry in selected:
            if not entry.not_run:
                reference = _reference(entry, data, references)
                cases += [] if reference in cases else [reference]
                cases.append(_case(entry, data, reference))
        runs = run_cases(cases, device=device, deadline_s=deadline_s)
        results: dict[str, Result | Failure] = {}
        for entry in selected:
            tolerance = entry.cell.tolerance_on(device)
            if entry.not_run:
                yield Outcome(entry, tolerance, not_run=entry.not_run)
                continue
            while entry.id not in results:
                case, results[case.name] = next(runs)
            start = _reference(entry, data, references).name
            yield _judge(entry, tolerance, results.pop(entry.id), results[start])


def _judge(
    entry: Selected, tolerance: Tolerance, result: Result | Failure, reference: Result | Failure
) -> Outcome:
    for run, what in ((reference, "its reference: "), (result, "")):
        if isinstance(run, Failure):
            if run.is_out_of_time:
                return Outcome(entry, tolerance, not_run="the time was up")
            return Outcome(entry, tolerance, f"{what}{run}", log=run.log)
    assert isinstance(result, Result) and isinstance(reference, Result)
    comparison = compare(result, reference)
    excess = comparison.find_excess(tolerance)
    return Outcome(
        entry, tolerance, excess, comparison=comparison, result=result, reference=reference
    )


def _case(entry: Selected, data: list[str], reference: Case) -> Case:
    legs = entry.cell.legs
    assert entry.cell.num_steps % len(legs) == 0, f"{entry.name}: legs must share the steps evenly"
    # Both sides of a baseline draw their initial values alike, or the cell must fail.
    start = None if reference.is_plain else reference.name
    return replace(reference, name=entry.id, legs=legs, is_plain=False, start=start, probe=None)


def _reference(entry: Selected, data: list[str], known: list[Case]) -> Case:
    """The reference's case: one of `known` if it is there, else added to them."""
    cell = entry.cell
    config, model = problem.MODELS[entry.model]
    is_plain = cell.against == "torchtitan"
    has_routers = entry.model == "moe" and not is_plain
    case = Case(
        name="",
        config=config,
        overrides=[*problem.OVERRIDES, *model, *data, *cell.problem],
        num_steps=cell.num_steps,
        validate=cell.validate,
        legs=[(cell.ranks, cell.overrides)] if is_plain else [(1, [])],
        keeps_state=True,
        is_plain=is_plain,
        masks_prompts=True,
        probe="recipes.parity.routing:record_routing" if has_routers else None,
    )
    for other in known:
        if replace(other, name="") == case:
            return other
    known.append(replace(case, name=f"reference-{len(known)}"))
    return known[-1]
