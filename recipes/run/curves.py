"""Where a run's TensorBoard curves are, by start, and what is in them. Free of torch."""

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = dict[int, float]
"""Step -> value."""


def name_next_start(folder: Path) -> str:
    """Of a folder in `folder` for the curves of a start: its number is above all that are there.

    A number, since clocks are set back and time zones differ.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    numbers = [_read_number(name) or 0 for name in names]
    # Folders without a number are of TorchTitan or an earlier version: starts as well.
    return f"start-{max([numbers.count(0), *numbers]) + 1:04d}"


def read_starts(run: Path, folder: str = "tb") -> list[dict[str, Curve]]:
    """{tag: curve} of every start of the run, in order; `folder` is metrics.save_tb_folder.

    In the order of their numbers, after those named otherwise in the order of what each wrote
    first.
    """
    starts: list[tuple[tuple[int, float, str], dict[str, Curve]]] = []
    for start in (run / folder).iterdir() if (run / folder).is_dir() else ():
        # metrics.save_for_all_ranks: the losses are global, so any rank has them.
        rank_0 = start / "rank_0"
        source = rank_0 if rank_0.is_dir() else start
        events = EventAccumulator(str(source), size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()["scalars"]
        curves = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}
        if curves:
            number, began = _read_number(start.name) or 0, events.FirstEventTimestamp()
            starts.append(((number, 0.0 if number else began, start.name), curves))
    return [curves for _, curves in sorted(starts, key=lambda start: start[0])]


def _read_number(name: str) -> int | None:
    match = re.fullmatch(r"start-(\d+)", name)
    return int(match[1]) if match else None


def first_step(start: dict[str, Curve]) -> int:
    """The first step that a start logged."""
    return min(min(curve) for curve in start.values())


def merge_starts(starts: list[dict[str, Curve]]) -> dict[str, Curve]:
    """{tag: curve}: each start replaces all that earlier ones logged from its first step on, also
    where it has not come as far, or logs less often."""
    curves: dict[str, Curve] = {}
    for start in starts:
        begin = first_step(start)
        for tag in curves.keys() | start.keys():
            kept = {s: value for s, value in curves.get(tag, {}).items() if s < begin}
            curves[tag] = kept | start.get(tag, {})
    return {tag: curve for tag, curve in curves.items() if curve}


def read_curves(run: Path) -> dict[str, Curve]:
    """{tag: curve} over all starts of the run; a later start wins where steps overlap."""
    return merge_starts(read_starts(run))
