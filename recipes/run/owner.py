"""The line of a lock that says whose it is. Free of torch."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, as its lock describes it."""

    host: str
    pid: int
    machine: str | None
    """Boot and process namespace; None where the kernel does not tell."""
    start_ticks: int | None
    """When the process began, in ticks since boot: process ids are used again."""
    slurm_job: str | None
    slurm_restart: int
    """How often SLURM has queued the job again."""
    since: str
    writes: tuple[str, ...] = ()
    """What it writes in the directory, of names that another could write to."""

    def __str__(self) -> str:
        job = f"SLURM job {self.slurm_job}, " if self.slurm_job else ""
        return f"host {self.host}, process {self.pid}, {job}since {self.since}"


def format_owner(owner: Owner) -> bytes:
    """The line."""
    return json.dumps(asdict(owner)).encode() + b"\n"


def parse_owner(content: bytes) -> Owner | None:
    """The owner whom the first line describes; None if it is damaged, and describes none."""
    try:
        values = json.loads(content.partition(b"\n")[0])
        if not isinstance(values, dict):
            return None
        owner = Owner(**{**values, "writes": tuple(values.get("writes", ()))})
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = [owner.pid, owner.slurm_restart]
    numbers += [] if owner.start_ticks is None else [owner.start_ticks]
    texts = [owner.host, owner.since, *owner.writes]
    texts += [text for text in (owner.machine, owner.slurm_job) if text is not None]
    is_sound = all(type(number) is int for number in numbers) and all(
        isinstance(text, str) and text.isprintable() for text in texts
    )
    # Other process ids stand for groups of processes, or are none.
    return owner if is_sound and 0 < owner.pid < 2**31 else None
