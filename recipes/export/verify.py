"""Checks a written folder: the files against the plan, stock transformers against our own model."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from recipes.export.writer import INDEX_NAME, plan_shards
from recipes.models.hf.mapping import Entry
from recipes.models.hf.stock import load_float32

MAX_LOGIT_DIFFERENCE = 1e-4
"""Float32 sums in another order, through the whole model; our own against stock transformers
measure 1e-6 to 1e-5. A wrong RoPE base, epsilon or name gives 1e-2 and more."""

NEAR_TIE = 1e-5
"""Routers choose experts by scores in (0, 1) that two correct float32 implementations compute to
about 1e-6. Below this gap either choice is right, and what follows differs."""

NUM_NEW_TOKENS = 32

Logits = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""tokens_BL -> (logits_BLV, router_gap_BL), as recipes.export.reference.Reference."""


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Logits of the exported folder against our own model's."""

    depth: int
    max_difference: float = 0.0
    num_positions: int = 0

    num_left_out: int = 0
    """Positions at or after a router near-tie of their row: not compared."""

    num_generated: int = 0
    """Of the compared positions, those generated with the key-value cache."""

    def add(self, ours_LV: torch.Tensor, theirs_LV: torch.Tensor, gap_L: torch.Tensor) -> int:
        """Compare one row up to its first near-tie; returns the number of compared positions."""
        near_ties = (gap_L < NEAR_TIE).nonzero()
        end = int(near_ties[0]) if len(near_ties) else len(gap_L)
        if end:
            difference = (ours_LV[:end] - theirs_LV[:end]).abs().max()
            # maximum() keeps a NaN; Python's max() would not.
            self.max_difference = difference.maximum(torch.tensor(self.max_difference)).item()
        self.num_positions += end
        self.num_left_out += len(ours_LV) - end
        return end


def check_files(folder: Path, entries: list[Entry], max_shard_bytes: int) -> str:
    """Raise ValueError unless the safetensors library finds in `folder` exactly `entries`, by
    name, shape and dtype, where the index says. Returns a line about it."""
    planned = plan_shards(entries, max_shard_bytes)
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
    if index != {entry.name: name for name, shard in planned.items() for entry in shard}:
        raise ValueError(f"{folder / INDEX_NAME} differs from the plan.")
    for file_name, shard in planned.items():
        with safe_open(folder / file_name, framework="pt") as file:
            if sorted(file.keys()) != sorted(entry.name for entry in shard):
                raise ValueError(f"{folder / file_name} has other tensors than planned.")
            for entry in shard:
                view = file.get_slice(entry.name)
                # One row: the dtype as PyTorch reads it, at no cost.
                if tuple(view.get_shape()) != entry.shape or view[:1].dtype != entry.dtype:
                    raise ValueError(f"{folder / file_name}: {entry.name} is not as planned.")
    return f"files: {len(entries)} tensors in {len(planned)} files, names, shapes and dtypes"


def check_tokenizer(
    folder: Path, texts: Sequence[str], rows: Sequence[Sequence[int]], bos_id: int | None
) -> None:
    """Raise ValueError unless stock transformers tokenizes `texts` to `rows`, by default with
    `bos_id` before each unless it is None."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    bos = [] if bos_id is None else [bos_id]
    for text, row in zip(texts, rows, strict=True):
        for asked, expected in ((False, [*row]), (True, [*bos, *row])):
            found = tokenizer(text, add_special_tokens=asked)["input_ids"]
            if found != expected:
                same = len(os.path.commonprefix([found, expected]))
                raise ValueError(
                    f"{folder}: transformers tokenizes text differently than training: with "
                    f"add_special_tokens={asked} to {found[same : same + 3]} after {same} tokens, "
                    f"where training has {expected[same : same + 3]}."
                )


def load_stock_model(folder: Path, depth: int) -> Any:
    """The folder's first `depth` layers as AutoModelForCausalLM loads them, in float32.

    Raises ValueError for anything in transformers' loading report: it warns only.
    """
    from transformers import AutoConfig

    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["num_hidden_layers"] = depth
    config = AutoConfig.for_model(content.pop("model_type"), **content)
    model, report = load_float32(folder, config)
    for what, names in report.items():
        kept = [name for name in map(str, names) if not _is_beyond(name, depth)]
        if kept:
            raise ValueError(f"transformers reports {what} in {folder}: {', '.join(kept[:3])}.")
    return model


def _is_beyond(name: str, depth: int) -> bool:
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and int(parts[2]) >= depth


def compare_logits(
    folder: Path,
    build_ours: Callable[[], Logits],
    rows: Sequence[Sequence[int]],
    depth: int,
) -> Comparison:
    """Compare the stock model with our own on each row of tokens, and on what the stock model
    generates greedily with its key-value cache after the first half of the first row.

    One model is in memory at a time. Raises ValueError if a logit differs by more than
    MAX_LOGIT_DIFFERENCE (which bounds arg-max flips to top-2 gaps of twice that), or if near-ties
    leave out half of the positions or more.
    """
    theirs = [*_run_stock_model(folder, rows, depth)]
    ours = build_ours()
    result = Comparison(depth=depth)
    for tokens_L, theirs_LV in theirs:
        logits_BLV, gap_BL = ours(tokens_L[None])
        start = len(tokens_L) - len(theirs_LV)
        # A near-tie before the compared positions counts at the first, which sees all of it.
        gap_BL[0, start] = gap_BL[0, : start + 1].min()
        count = result.add(logits_BLV[0, start:], theirs_LV, gap_BL[0, start:])
        result.num_generated += count if start else 0
    if not result.max_difference <= MAX_LOGIT_DIFFERENCE:
        raise ValueError(
            f"logits of the exported weights differ from our model's by {result.max_difference:.3g}"
            f" (at most {MAX_LOGIT_DIFFERENCE:g} is float32 noise)."
        )
    if result.num_positions <= result.num_left_out:
        raise ValueError(
            f"router near-ties left only {result.num_positions} positions to compare, of "
            f"{result.num_positions + result.num_left_out}. Use verify = keys."
        )
    return result


@torch.no_grad()
def _run_stock_model(
    folder: Path, rows: Sequence[Sequence[int]], depth: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(tokens_L, logits_TV of the last T of them): all of each row; the tokens that the first half
    of the first row makes it generate."""
    from transformers import GenerationConfig

    model = load_stock_model(folder, depth)
    # Greedy, whatever generation_config.json says of penalties and beams.
    model.generation_config = GenerationConfig()
    for row in rows:
        tokens_BL = torch.tensor([row])
        yield tokens_BL[0], model(tokens_BL).logits[0]
    prompt_BL = torch.tensor([rows[0][: len(rows[0]) // 2]])
    generated = model.generate(
        prompt_BL,
        attention_mask=torch.ones_like(prompt_BL),
        do_sample=False,
        use_cache=True,
        min_new_tokens=NUM_NEW_TOKENS,
        max_new_tokens=NUM_NEW_TOKENS,
        pad_token_id=0,  # a batch of one is never padded
        output_logits=True,
        return_dict_in_generate=True,
    )
    # The logits of a generated token are those at the position before it.
    yield generated.sequences[0, :-1], torch.cat(generated.logits)
