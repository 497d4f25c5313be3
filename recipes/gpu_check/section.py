"""A part of the report. Free of torch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Section:
    """What one part of the check did, found and could not do."""

    title: str
    commands: list[str] = field(default_factory=list)
    """As a user types them."""

    text: list[str] = field(default_factory=list)
    """Lines of Markdown."""

    figures: dict[str, Any] = field(default_factory=dict)
    """The same for programs: numbers and strings."""

    problems: list[str] = field(default_factory=list)
    """What failed, a line each."""

    not_run: list[str] = field(default_factory=list)
    """What was left out, and why, a line each."""

    logs: dict[str, str] = field(default_factory=dict)
    """Name -> output of what failed."""

    @property
    def has_passed(self) -> bool:
        """Whether something ran and nothing failed."""
        return bool(self.figures) and not self.problems


def find_nonfinite(section: Section) -> list[str]:
    """Figures that are no finite number, as problems, but for those of what has a problem
    already."""
    return [
        f"{path} is {value}"
        for path, value in _list_numbers(section.figures, "")
        if not math.isfinite(value)
        and not any(path.startswith(problem.split(":")[0]) for problem in section.problems)
    ]


def _list_numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """("outer: inner", number)"""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _list_numbers(inner, f"{path}: {name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _list_numbers(inner, path)


def write_logs(section: Section, folder: Path) -> None:
    for name, text in section.logs.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.log").write_text(text, encoding="utf-8")


def format_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
