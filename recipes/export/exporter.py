"""The steps of an export, in order: plan, write, verify, describe, rename."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchtitan.models.common.decoder import Decoder
from torchtitan.protocols.model_spec import ModelSpec

from recipes.data.encoder import Encoder
from recipes.export.card import Provenance, format_card
from recipes.export.checkpoint import Checkpoint, Dropped
from recipes.export.record import write_record
from recipes.export.tokenizer import write_tokenizer
from recipes.export.verify import check_files
from recipes.export.writer import MAX_SHARD_BYTES, staged_folder, write_json, write_weights
from recipes.models.hf.mapping import Entry, model_shapes, plan_entries

Compare = Callable[[Path, list[Entry]], str]
"""(written folder, its entries) -> a line about the comparison. Raises ValueError if it fails."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Report:
    """What an export did."""

    checkpoint: Path
    output: Path
    num_tensors: int
    num_params: int
    num_bytes: int
    dropped: list[Dropped]
    verification: list[str]

    def __str__(self) -> str:
        lines = [
            f"checkpoint {self.checkpoint}",
            f"wrote      {self.num_tensors} tensors, {self.num_params:,} parameters, "
            f"{self.num_bytes:,} bytes",
        ]
        lines += [
            f"dropped    {part.name}: {part.num_tensors} tensors, {part.num_params:,} numbers"
            for part in self.dropped
        ]
        lines += [f"verified   {line}" for line in self.verification or ["nothing"]]
        return "\n".join([*lines, f"exported   {self.output}"])


def plan_export(
    checkpoint: Checkpoint, spec: ModelSpec, dtype: torch.dtype
) -> tuple[list[Entry], Callable[[str], dict[str, torch.Tensor]]]:
    """Every tensor of the folder, and what makes one source's tensors from the checkpoint.

    `spec` is the backbone's. Raises ValueError unless each key of the checkpoint is mapped or
    training-only, and none of the model's is missing.
    """
    if spec.state_dict_adapter is None:
        raise ValueError(f"{spec.name} has no Hugging Face counterpart (no state_dict_adapter).")
    model = spec.model
    assert isinstance(model, Decoder.Config)
    shapes = model_shapes(model)
    checkpoint.check_model(shapes)
    # None: the folder that the weights go to has no earlier index to follow.
    adapter = spec.state_dict_adapter(model, None)
    if model.enable_weight_tying:
        pair = (checkpoint.load(name) for name in ("tok_embeddings.weight", "lm_head.weight"))
        if not torch.equal(*pair):
            raise ValueError(
                f"{checkpoint.folder}: tok_embeddings.weight and lm_head.weight differ, though the "
                "model ties them."
            )
    entries = plan_entries(adapter, shapes, dtype, is_tied=model.enable_weight_tying)
    return entries, lambda source: adapter.to_hf({source: checkpoint.load(source)})


def export_checkpoint(
    *,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    dtype: torch.dtype,
    config: dict[str, Any],
    generation_config: dict[str, Any],
    tokenizer: Encoder,
    provenance: Provenance,
    source: Mapping[str, Any],
    output: Path,
    check: bool = True,
    compare: Compare | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Report:
    """Write `output`: weights, config.json, tokenizer, model card. It appears complete or not at
    all. `config` is the content of config.json, `generation_config` that of its namesake;
    `tokenizer` is what encoded the training data; `source` says what the export is made from.
    `check`: whether to read the files back; `compare` is a further check, of what they compute.

    Raises ValueError for a checkpoint that does not fit `spec`, an existing `output`, or a failed
    check; OSError for a damaged checkpoint or a full disk.
    """
    with staged_folder(output) as folder:
        entries, load = plan_export(checkpoint, spec, dtype)
        write_weights(folder, entries, load, max_shard_bytes)
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", generation_config)
        write_tokenizer(folder, tokenizer)
        lines = [check_files(folder, entries, max_shard_bytes)] if check else []
        lines += [compare(folder, entries)] if compare else []
        num_params = sum(entry.num_params for entry in entries)
        card = format_card(provenance, config, num_params=num_params, verification=lines)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_record(folder, source)
    return Report(
        checkpoint=checkpoint.folder,
        output=output,
        num_tensors=len(entries),
        num_params=num_params,
        num_bytes=sum(entry.num_bytes for entry in entries),
        dropped=checkpoint.dropped(),
        verification=lines,
    )
