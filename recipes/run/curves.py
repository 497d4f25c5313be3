"""Reads a run's TensorBoard curves."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = dict[int, float]
"""Step -> value."""


def read_curves(run: Path) -> dict[str, Curve]:
    """{tag: curve} over all starts of the run; a later start wins where steps overlap."""
    curves: dict[str, Curve] = {}
    for folder in sorted(run.glob("tb/*")):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, {}).update((e.step, e.value) for e in events.Scalars(tag))
    return curves
