"""TensorBoard tags that the report reads."""

import re
from collections.abc import Iterable

NTP, NITP = "loss_metrics/ntp_loss", "loss_metrics/nitp_loss"
TOTAL = "loss_metrics/global_avg_loss"
CONSTANT, SKILL = "nitp/constant_loss", "nitp/skill"
RANK, COSINE = "geometry/effective_rank", "geometry/average_cosine"
PRE_RANK, PRE_COSINE = "geometry/pre_norm_effective_rank", "geometry/pre_norm_average_cosine"
TARGET_RANK, TARGET_COSINE = "geometry/target_effective_rank", "geometry/target_average_cosine"
LAYER = "geometry/layer_{}_{}"
"""Of a layer and a measure: effective_rank or average_cosine."""
VALIDATION = "validation_metrics/loss"
VALIDATION_NITP = "validation_metrics/nitp_loss"
VALIDATION_CONSTANT = "validation_metrics/constant_loss"
VALIDATION_SKILL = "validation_metrics/skill"
VALIDATION_RANK = "validation_metrics/effective_rank"
VALIDATION_COSINE = "validation_metrics/average_cosine"
VALIDATION_PRE_RANK = "validation_metrics/pre_norm_effective_rank"
VALIDATION_PRE_COSINE = "validation_metrics/pre_norm_average_cosine"
VALIDATION_TARGET_RANK = "validation_metrics/target_effective_rank"
VALIDATION_TARGET_COSINE = "validation_metrics/target_average_cosine"
STEP_TIME, THROUGHPUT = "time_metrics/end_to_end(s)", "throughput(tps)"
MFU, MEMORY = "mfu(%)", "memory/max_reserved(GiB)"
SET_LOSS, SET_BITS = "validation_metrics/{}/loss", "validation_metrics/{}/bits_per_byte"
"""Of a held-out set."""


def list_sets(tags: Iterable[str]) -> list[str]:
    """Names of the held-out sets that have a loss among the tags, each once, sorted."""
    matches = (re.fullmatch(SET_LOSS.format("([^/]+)"), tag) for tag in tags)
    return sorted({match[1] for match in matches if match})
