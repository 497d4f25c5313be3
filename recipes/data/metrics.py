"""What each source has given to training, as figures to log."""

import torch
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.utils import dist_sum_tensor
from torchtitan.tools.utils import device_type

from recipes.data.loader import PackedDataLoader


def count_sources(loader: PackedDataLoader, dims: ParallelDims) -> dict[str, int]:
    """`data/tokens_<source>`, its tokens so far, and with data.on_error = "skip"
    `data/skipped_<source>`, its bad documents passed over: of all ranks and all sessions.

    Every rank must call it: the bad documents are summed over the data-parallel ranks.
    """
    counts = {f"data/tokens_{name}": count for name, count in loader.num_tokens.items()}
    if not loader.skips_bad:
        return counts
    skipped = loader.num_skipped
    total = torch.tensor([*skipped.values()], device=device_type)
    if dims.dp_enabled:
        total = dist_sum_tensor(total, dims.get_mesh("batch"))
    names = (f"data/skipped_{name}" for name in skipped)
    return counts | dict(zip(names, total.tolist(), strict=True))
