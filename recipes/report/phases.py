"""The three phases of the NITP loss: fall to a minimum, hump, long decline (method, section 3)."""

from typing import NamedTuple

from recipes.run.curves import Curve

LEAST_RISE = 0.5
"""Of the minimum. A loss that rises by less again has no hump: steps differ by as much."""


class Phases(NamedTuple):
    """Where the NITP loss turns."""

    trough: int
    """The step at which phase I ends, of the minimum before the largest rise."""

    hump: int
    """The step at which phase II is at its top, and III begins."""


def find_phases(nitp: Curve) -> Phases | None:
    """Between which steps the loss rises most; None if it has no hump."""
    if not nitp:
        return None
    least = start = hump = min(nitp)
    for step in sorted(nitp):
        if nitp[step] <= nitp[least]:
            least = step
        if nitp[step] - nitp[least] > nitp[hump] - nitp[start]:
            start, hump = least, step
    return Phases(start, hump) if nitp[hump] > (1 + LEAST_RISE) * nitp[start] else None


def describe_phases(nitp: Curve) -> str:
    """`0.100 at step 4, 0.300 at step 6`: minimum and hump; the minimum alone if there is no hump,
    `-` if there is no loss."""
    if not nitp:
        return "-"
    phases = find_phases(nitp)
    if phases is None:
        least = min(nitp, key=lambda step: (nitp[step], -step))
        return f"{nitp[least]:.3f} at step {least}, no hump"
    trough, hump = phases
    return f"{nitp[trough]:.3f} at step {trough}, {nitp[hump]:.3f} at step {hump}"
