"""Numbers that TorchTitan takes as they come: what they must be. Free of torch.

Left to TorchTitan, these divide by zero, or train nothing or nonsense without a word.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from recipes.settings import Settings


class Range(NamedTuple):
    """What the values of an option have in common."""

    words: str
    """Complete "must be ..."."""

    holds: Callable[[Any], bool]


AT_LEAST_1 = Range("at least 1", lambda n: n >= 1)
AT_LEAST_0 = Range("at least 0", lambda n: n >= 0)
POSITIVE = Range("greater than 0", lambda n: n > 0)
SHARE = Range("from 0 to 1", lambda n: 0 <= n <= 1)
COUNT_OR_FREE = Range("at least 1, or -1", lambda n: n >= 1 or n == -1)

RANGES: dict[str, Range] = {
    "training.steps": AT_LEAST_1,
    "training.seq_len": AT_LEAST_1,
    "training.local_batch_size": AT_LEAST_1,
    "training.global_batch_size": COUNT_OR_FREE,
    "training.max_norm": POSITIVE,
    "training.gc_freq": AT_LEAST_1,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": Range(
        "at least 0 and less than 1, each", lambda b: 0 <= min(b) <= max(b) < 1
    ),
    "optimizer.eps": AT_LEAST_0,
    "optimizer.weight_decay": AT_LEAST_0,
    "lr_scheduler.warmup_steps": AT_LEAST_0,
    "lr_scheduler.total_steps": AT_LEAST_1,
    "lr_scheduler.decay_ratio": SHARE,
    "lr_scheduler.min_lr_factor": SHARE,
    "loss.num_chunks": AT_LEAST_1,
    "metrics.log_freq": AT_LEAST_1,
    "validation.freq": AT_LEAST_1,
    "validation.steps": COUNT_OR_FREE,
    "checkpoint.interval": AT_LEAST_1,
    "checkpoint.keep_latest_k": Range("0 (all) or at least 2", lambda n: n == 0 or n >= 2),
    "checkpoint.load_step": Range("at least 0, or -1 (the latest)", lambda n: n >= -1),
    "comm.init_timeout_seconds": AT_LEAST_1,
    "comm.train_timeout_seconds": AT_LEAST_1,
    "profiler.profile_freq": AT_LEAST_1,
    "debug.seed": AT_LEAST_0,
}
"""Option -> range. None (not set) is always in range."""


def check_ranges(settings: Settings) -> None:
    """Raise ValueError naming the first option whose value is out of range."""
    for option, given in RANGES.items():
        table, _, key = option.partition(".")
        value = settings.values[table][key]
        if value is not None and not given.holds(value):
            raise ValueError(f"{option} ({value}) must be {given.words}.")
