"""The grid of a sweep: what `--grid table.key=v1,v2` stands for, and what its runs are called."""

import hashlib
import re
from collections.abc import Sequence
from itertools import product

Overrides = tuple[tuple[str, str], ...]
"""(`table.key`, value as the user wrote it), in the order of the grid."""

MAX_NAME = 120
"""Characters; file systems allow 255 bytes, of which logs and checkpoints add some."""


def parse_grid(texts: Sequence[str]) -> list[Overrides]:
    """All combinations, the last key changing fastest.

    Raises ValueError for what is no `table.key=v1,v2`, a key given twice, or a value given twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, has_values, values = text.partition("=")
        if not re.fullmatch(r"\w+\.\w+", key) or not has_values:
            raise ValueError(f"--grid ({text}) must be table.key=v1,v2, such as nitp.weight=0.5,1.")
        if key in axes:
            raise ValueError(f"--grid has {key} twice. Give all its values at once.")
        axes[key] = split_values(values)
        for value in axes[key]:
            if not value:
                raise ValueError(f"--grid ({text}) has an empty value. Remove a comma.")
            if axes[key].count(value) > 1:
                raise ValueError(f"--grid ({text}) has the value {value} twice. Give it once.")
    keys = list(axes)
    return [tuple(zip(keys, values, strict=True)) for values in product(*axes.values())]


def split_values(text: str) -> list[str]:
    """At commas, but for those in brackets: a value that is a list is written `[0.9,0.95]`."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def name_run(overrides: Overrides, seed: int, *, is_baseline: bool = False) -> str:
    """`target_layer=0_weight=0.5_seed=1`; of a baseline `baseline_lr=0.1_seed=1`.

    A key's table is left out where no other key of the overrides is called the same. Brackets and
    quotes are left out, other characters than a file's usual ones become `-`, and what that, or the
    limit of length, makes ambiguous gets a hash: two runs of one grid never share a name.
    """
    short = [key.partition(".")[2] for key, _ in overrides]
    parts = ["baseline"] if is_baseline else []
    for (key, value), name in zip(overrides, short, strict=True):
        parts.append(f"{name if short.count(name) == 1 else key}={value}")
    text = "_".join(parts)
    bare_text = re.sub(r"""[][{}"' ]""", "", text)
    readable = re.sub(r"[^\w.+=,-]+", "-", bare_text, flags=re.ASCII)[:MAX_NAME]
    if readable != text:
        readable += "_" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{readable}_seed={seed}"
