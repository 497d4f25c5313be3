"""From a run's settings to its export."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from recipes.platform.cpu import build_float32_config  # first: torchtitan resolves its device once

# isort: split

from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.models.common.decoder import Decoder
from torchtitan.protocols.model_spec import ModelSpec

from recipes.build import build_model
from recipes.config.parts import build_nitp
from recipes.config.settings import Settings
from recipes.data.config import EMBEDDED_TOKENIZER
from recipes.data.corpus import find_corpus_files
from recipes.data.encoder import Encoder
from recipes.data.inputs import check_recorded_tokenizer
from recipes.data.tokenizer import resolve_tokenizer_path
from recipes.export.card import Provenance
from recipes.export.checkpoint import Checkpoint, find_checkpoint
from recipes.export.config import build_hf_config, find_generation_config
from recipes.export.exporter import Report, export_checkpoint
from recipes.export.record import check_same, digest_files, digest_json
from recipes.export.reference import Reference
from recipes.export.request import ExportRequest
from recipes.export.tokenizer import digest_tokenizer
from recipes.export.verify import MAX_LOGIT_DIFFERENCE, check_tokenizer, compare_logits
from recipes.models.hf.config import build_generation_config
from recipes.models.hf.mapping import Entry, model_shapes
from recipes.run.origin import Origin, load_origin

_ROWS, _ROW_LENGTH, _MIN_BYTES = 4, 256, 4096
"""What logits are compared on: the first tokens of documents of the embedded corpus."""

_WHOLE_UP_TO = 2e9
"""Parameters up to which logits are compared at full depth: 8 GB in float32."""

_MEMORY_FACTOR = 2.5
"""Memory that comparing takes over the float32 weights compared. Measured on mixtures of experts,
which transformers stacks while it loads: 2.1 to 2.3."""


class _Parts(NamedTuple):
    """What an export is made from."""

    checkpoint: Checkpoint
    spec: ModelSpec
    encoder: Encoder
    origin: Origin | None
    config: dict[str, Any]
    generation_config: dict[str, Any]
    source: dict[str, Any]
    """All of it, and how, by content: equal if and only if the exports are."""


def _read_parts(request: ExportRequest, settings: Settings) -> _Parts:
    check_recorded_tokenizer(request.run, settings.values["tokenizer"]["path"])
    checkpoint = find_checkpoint(
        request.run / settings.values["checkpoint"]["folder"], request.step
    )
    spec, encoder, origin = build_model(settings), load_encoder(settings), load_origin(request.run)
    config = build_hf_config(settings, spec, encoder, TORCH_DTYPE_MAP[request.dtype], origin)
    generation_config = build_generation_config(config, find_generation_config(settings, origin))
    source = {
        "step": checkpoint.step,
        # DCP gives each save an id of its own.
        "checkpoint": digest_files([checkpoint.folder / ".metadata"]),
        "dtype": request.dtype,
        "verify": request.verify,
        "config.json": digest_json(config | {"torch_dtype": None}),  # said above
        "generation_config.json": digest_json(generation_config),
        "tokenizer": digest_tokenizer(encoder),
    }
    return _Parts(checkpoint, spec, encoder, origin, config, generation_config, source)


def identify_export(request: ExportRequest, settings: Settings) -> dict[str, Any]:
    """What the export would be made from and how: another for any other. Raises ValueError and
    OSError as `prepare_export`."""
    return _read_parts(request, settings).source


def prepare_export(
    request: ExportRequest, settings: Settings, option: str = "--output"
) -> Callable[[], Report | None]:
    """Everything short of writing; None instead of a report if the output is this very export.

    option: what the user named the output by, for messages. Raises ValueError for a user's mistake,
    OSError for a checkpoint that cannot be read.
    """
    parts = _read_parts(request, settings)
    checkpoint, spec, encoder = parts.checkpoint, parts.spec, parts.encoder
    if os.path.lexists(request.output):
        check_same(request.output, parts.source, option)
        return lambda: None
    compare = None
    if request.verify == "logits":
        compare = partial(_compare, checkpoint, spec, settings, encoder, choose_depth(spec))
    return partial(
        export_checkpoint,
        checkpoint=checkpoint,
        spec=spec,
        dtype=TORCH_DTYPE_MAP[request.dtype],
        config=parts.config,
        generation_config=parts.generation_config,
        tokenizer=encoder,
        provenance=_describe(request, settings, checkpoint, parts.origin),
        source=parts.source,
        output=request.output,
        check=request.verify != "none",
        compare=compare,
    )


def load_encoder(settings: Settings) -> Encoder:
    """What encodes the training data. Raises ValueError for a tokenizer that cannot be used."""
    path = resolve_tokenizer_path(settings.values["tokenizer"]["path"])
    return Encoder(HuggingFaceTokenizer(tokenizer_path=path), settings.values["data"]["bos"])


def _describe(
    request: ExportRequest, settings: Settings, checkpoint: Checkpoint, origin: Origin | None
) -> Provenance:
    values = settings.values
    num_tokens = None
    if "dataloader.rows" in checkpoint:  # not in a checkpoint of the model alone
        num_tokens = int(checkpoint.load("dataloader.rows")) * values["training"]["seq_len"]
    return Provenance(
        model=f"{values['model']['name']} {values['model']['flavor']}",
        step=checkpoint.step,
        num_tokens=num_tokens,
        nitp=build_nitp(settings),
        origin=origin,
        config_sha256=hashlib.sha256((request.run / "config.toml").read_bytes()).hexdigest(),
        has_embedded_tokenizer=values["tokenizer"]["path"] == EMBEDDED_TOKENIZER,
    )


def choose_depth(spec: ModelSpec) -> int:
    """How many layers to compare: all, or of a large model up to the first of each kind.

    Raises ValueError if this machine has not the memory for it.
    """
    model = spec.model
    assert isinstance(model, Decoder.Config)
    sizes = {name: shape.numel() for name, shape in model_shapes(model).items()}
    depth = len(model.layers)
    if sum(sizes.values()) > _WHOLE_UP_TO:
        is_moe = [layer.moe is not None for layer in model.layers]
        depth = 1 + (is_moe.index(True) if any(is_moe) else 0)
        beyond = tuple(f"layers.{i}." for i in range(depth, len(model.layers)))
        sizes = {name: size for name, size in sizes.items() if not name.startswith(beyond)}
    needed_bytes, machine_bytes = 4 * _MEMORY_FACTOR * sum(sizes.values()), physical_memory_bytes()
    if needed_bytes > machine_bytes:
        raise ValueError(
            f'export.verify ("logits") takes {needed_bytes / 2**30:.0f} GiB of memory for this '
            f'model at depth {depth}; this machine has {machine_bytes / 2**30:.0f} GiB. Use "keys".'
        )
    return depth


def physical_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _compare(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    settings: Settings,
    encoder: Encoder,
    depth: int,
    folder: Path,
    entries: list[Entry],
) -> str:
    """Logits of the written folder's first `depth` layers against our model's, on real text."""
    model = spec.model
    assert isinstance(model, Decoder.Config)
    length = min(_ROW_LENGTH, settings.values["training"]["seq_len"])
    files = [path for _, path in find_corpus_files() if path.stat().st_size >= _MIN_BYTES]
    texts = [path.read_text(encoding="utf-8")[:_MIN_BYTES] for path in files[:_ROWS]]
    rows = [encoder.tokenize(text).tolist() for text in texts]
    check_tokenizer(folder, texts, rows, encoder.bos_id if encoder.adds_bos else None)
    build_ours = partial(Reference, build_float32_config(model), checkpoint, entries, depth)
    result = compare_logits(folder, build_ours, [row[:length] for row in rows], depth)
    return (
        f"logits: at most {result.max_difference:.2g} from our model's in float32 "
        f"(limit {MAX_LOGIT_DIFFERENCE:g}) over {result.num_positions} positions, "
        f"{result.num_generated} of them generated with the cache; {result.num_left_out} left out "
        f"after a router near-tie; depth {depth} of {len(model.layers)}"
    )
