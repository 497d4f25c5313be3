"""The order of a run's starts, which no clock decides."""

from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from recipes.run.curves import name_next_start, read_curves, read_starts

NOON_S = 1_780_000_000.0
"""Seconds since 1970."""


def write_start(folder: Path, curve: dict[int, float], began_s: float = NOON_S) -> None:
    """One start's event file, as TensorBoard's writer makes it."""
    folder.mkdir(parents=True)
    with (folder / f"events.out.tfevents.{began_s:.0f}.host.1.0").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=began_s, file_version="brain.Event:2").SerializeToString())
        for step, value in curve.items():
            summary = Summary(value=[Summary.Value(tag="loss", simple_value=value)])
            event = Event(wall_time=began_s + step, step=step, summary=summary)
            writer.write(event.SerializeToString())


def losses(run: Path) -> list[dict[int, float]]:
    return [start["loss"] for start in read_starts(run)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("20261201-210000", "20261201-120005"),  # Tokyo, then UTC
        ("20261025-025959", "20261025-020004"),  # the end of summer time
        ("20261201-120000-9", "20261201-120000-10"),
        ("20261201-1200", "20261201-1159"),  # TorchTitan's own
    ],
)
def test_starts_named_by_the_time_of_day_are_in_the_order_of_what_they_wrote(
    tmp_path, first, second
):
    write_start(tmp_path / "tb" / first, {1: 9.0, 6: 8.0, 7: 7.0}, NOON_S)
    write_start(tmp_path / "tb" / second, {6: 8.5, 200: 1.0}, NOON_S + 5)
    assert losses(tmp_path) == [{1: 9.0, 6: 8.0, 7: 7.0}, {6: 8.5, 200: 1.0}]
    assert read_curves(tmp_path)["loss"] == {1: 9.0, 6: 8.5, 200: 1.0}


def test_numbered_starts_follow_their_numbers_whatever_the_clock_was_and_come_after_others(
    tmp_path,
):
    names = ["20261201-120000", "start-0002", "start-0010", "start-9999", "start-10000"]
    for index, name in enumerate(names):
        write_start(tmp_path / "tb" / name, {index: 0.0}, NOON_S - index * 3600)
    assert losses(tmp_path) == [{index: 0.0} for index in range(5)]


def test_a_start_has_the_number_above_all_that_are_there(tmp_path):
    folder = tmp_path / "tb"
    assert name_next_start(folder) == "start-0001"
    for name, following in (
        ("20261201-120000", "start-0002"), ("20261201-120000-2", "start-0003"),
        ("start-0003", "start-0004"), ("start-0011", "start-0012"), ("start-0005", "start-0012"),
        ("start-12345", "start-12346"),
    ):  # fmt: skip
        (folder / name).mkdir(parents=True)
        assert name_next_start(folder) == following


def test_starts_without_a_value_and_names_of_patterns_are_no_matter(tmp_path):
    write_start(tmp_path / "tb[1]" / "start-0001" / "rank_0", {1: 0.5})
    write_start(tmp_path / "tb[1]" / "start-0001" / "rank_1", {1: 0.75})
    write_start(tmp_path / "tb[1]" / "start-0002", {})
    (tmp_path / "tb[1]" / "start-0003").mkdir()
    assert read_starts(tmp_path, "tb[1]") == [{"loss": {1: 0.5}}]
    assert read_starts(tmp_path) == []
