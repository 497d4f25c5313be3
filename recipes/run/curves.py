"""Reads a run's TensorBoard curves. Free of torch."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = dict[int, float]
"""Step -> value."""


def read_starts(run: Path, folder: str = "tb") -> list[dict[str, Curve]]:
    """{tag: curve} of every start of the run, in order; `folder` is metrics.save_tb_folder."""
    starts = []
    for start in sorted((run / folder).iterdir()) if (run / folder).is_dir() else ():
        # metrics.save_for_all_ranks: the losses are global, so any rank has them.
        rank_0 = start / "rank_0"
        source = rank_0 if rank_0.is_dir() else start
        events = EventAccumulator(str(source), size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()["scalars"]
        starts.append({tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags})
    return [start for start in starts if start]


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
