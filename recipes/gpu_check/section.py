"""A part of the report. Free of torch."""

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


def write_logs(section: Section, folder: Path) -> None:
    for name, text in section.logs.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.log").write_text(text, encoding="utf-8")


def format_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
