"""What was measured, and the figures: one table."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recipes.markdown import align_table, escape
from recipes.measure.states import POST_NORM, PRE_NORM, TARGET, Figures, Target

LIBRARIES = ("nitp-torchtitan", "torchtitan", "torch")


@dataclass(kw_only=True, slots=True, frozen=True)
class Report:
    """Of one model on one set of rows."""

    model: str
    """The checkpoint or model folder."""

    num_layers: int | None
    data: str
    num_rows: int
    seq_len: int

    attention: str
    """How it stayed within a document."""

    target: Target | None
    notes: Sequence[str]
    figures: Sequence[Figures] = ()

    def to_markdown(self) -> str:
        facts = [
            f"model: {self.model}"
            + ("" if self.num_layers is None else f", {self.num_layers} layers"),
            f"data: {self.num_rows} rows of {self.seq_len} tokens, {self.data}",
            f"attention: {self.attention}",
            *self.notes,
        ]
        header = ["states", "effective rank", "average cosine", "constant loss", "number"]
        rows = [
            [self._describe(f.states), _show(f.effective_rank, 2), _show(f.average_cosine, 4),
             _show(f.constant_loss, 4), f"{f.num_states:,}"]
            for f in self.figures
        ]  # fmt: skip
        return "\n".join(
            [*(f"* {escape(fact)}" for fact in facts), "", *align_table(header, rows), ""]
        )

    def to_json(self) -> dict[str, Any]:
        """NaN, which JSON has not, becomes null."""
        figures = [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(f).items()}
            for f in self.figures
        ]
        versions = {name: version(name) for name in LIBRARIES}
        return asdict(self) | {"figures": figures, "versions": versions}

    def write(self, folder: Path) -> None:
        """geometry.md and geometry.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "geometry.md").write_text(self.to_markdown(), encoding="utf-8")
        content = json.dumps(self.to_json(), indent=2) + "\n"
        (folder / "geometry.json").write_text(content, encoding="utf-8")

    def _describe(self, states: str) -> str:
        if states == TARGET:
            assert self.target is not None
            return f"implicit targets, layer {self.target.layer}, shift {self.target.shift}"
        if states == PRE_NORM:
            return "before the final norm"
        if states == POST_NORM:
            return "last hidden states"
        k = int(states.removeprefix("layer_"))
        return f"after layer {k}" if k else "embeddings"


def _show(value: float | None, num_digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{num_digits}f}"
