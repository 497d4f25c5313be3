"""What this project adds to TorchTitan's options: its own keys, and its own defaults.

The classes are read as source, as TorchTitan's are (schema.py); each is (part of) one table.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from recipes.data.config import ValidationSetConfig

DEFAULTS: dict[str, Any] = {
    # A run that ends must be resumable with more steps: a model-only save has no optimizer state.
    "checkpoint.last_save_model_only": False,
    # The curves are the result of a run; TorchTitan writes none unless told.
    "metrics.enable_tensorboard": True,
    # An NITP run and its baseline must start from equal weights; TorchTitan draws a seed per run.
    "debug.seed": 0,
}
"""Defaults that differ from TorchTitan's, by table.key."""

ExportDtype = Literal["bfloat16", "float16", "float32"]
ExportVerify = Literal["logits", "keys", "none"]


@dataclass(kw_only=True, slots=True, frozen=True)
class JobOptions:
    """The run as a whole, the `[job]` table."""

    config_file: str | None = None
    """The TOML file to load. Command line only."""

    extends: str | list[str] | None = None
    """Files that this file builds on, relative to it; a later one wins. Tables merge key by key,
    arrays of tables replace. File only."""

    description: str = ""
    """What the run is for, in one line."""

    dump_folder: str = "./outputs"
    """Run directory: resolved configuration, checkpoints, TensorBoard."""

    dry_run: bool = False
    """Load, validate, build the model without memory, print the summary and exit. Without
    torchrun, for the fewest ranks that the parallel degrees allow."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ModelOptions:
    """Which model, the `[model]` table."""

    name: str = "nitp"
    """nitp: this project's decoder. Or one of TorchTitan's models, such as llama3."""

    flavor: str
    """Size of the model, by the name it has in the model's registry."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ValidationOptions:
    """What this project adds to the `[validation]` table."""

    sets: list[ValidationSetConfig] = field(default_factory=list)
    """Held-out sets that each validation reads whole, beside the documents that
    data.validation_fraction holds out. If that is 0, the figures without a set's name are the first
    set's. validation.steps bounds the documents held out, not the sets."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TokenizerOptions:
    """The `[tokenizer]` table."""

    path: str = "embedded://python-bpe-8k"
    """A folder with Hugging Face tokenizer files, or `embedded://python-bpe-8k`."""


OnNonfinite = Literal["stop", "skip"]


@dataclass(kw_only=True, slots=True, frozen=True)
class TrainingOptions:
    """What this project adds to the `[training]` table."""

    on_nonfinite: OnNonfinite = "stop"
    """A step whose loss or gradient is not finite: stop, saying where, or skip its update, up to 10
    times in succession, and count it. Checked every step; skip needs a fused optimizer."""


@dataclass(kw_only=True, slots=True, frozen=True)
class OptimizerOptions:
    """The numbers that TorchTitan keeps inside `param_groups`, for all parameters."""

    name: Literal["AdamW", "Adam"] = "AdamW"
    """Which optimizer."""

    lr: float = 8e-4
    """Peak learning rate."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""

    eps: float = 1e-8
    """Term added to the denominator."""

    weight_decay: float = 0.1
    """Weight decay of all parameters, but for decay_norms_and_embeddings."""

    decay_norms_and_embeddings: bool = True
    """Whether norms and the embedding decay as other parameters do. False: they are a group of
    their own, without decay, and the learning rate is logged twice, as lr/AdamW/0 (theirs) and
    lr/AdamW/1. Tied to the embedding, the unembedding does not decay either; its own matrix does,
    and so does NITP's projector. No pipeline stage may then be the embedding or the unembedding
    alone."""


@dataclass(kw_only=True, slots=True, frozen=True)
class CheckpointOptions:
    """What this project adds to the `[checkpoint]` table."""

    allow_pickle: bool = False
    """Whether initial_load_path may name a DCP checkpoint. The format has pickles in it, which run
    code of whoever wrote them when they are opened. Hugging Face weights (initial_load_in_hf) are
    safetensors, and have none; the run's own checkpoints are trusted."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ActivationCheckpointOptions:
    """The choice between TorchTitan's activation checkpointing classes."""

    mode: Literal["none", "selective", "full", "memory_budget"] = "none"
    """Which activations the backward pass recomputes. The table's other options belong to some of
    the modes only."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Float8Options:
    """What the `[float8]` table has besides TorchTitan's float8 converter."""

    enable: bool = False
    """Whether linear layers compute in float8. Needs torchao (the extra `float8`)."""

    projector: bool = False
    """Whether NITP's projector does too. False keeps it in the precision of the mixed-precision
    setting, whatever filter_fqns says. True scales each chunk of the loss (loss.num_chunks) and
    each micro-batch by itself, so that these then matter to the last bits of float8."""


@dataclass(kw_only=True, frozen=True)
class ExportOptions:
    """The `[export]` table: inference-only Hugging Face weights at the end of training."""

    enable: bool = False
    """Whether rank 0 exports the final checkpoint after it is saved."""

    folder: str = "exported"
    """Where to, inside the run directory: the export of step N is `<folder>/step-N`. One that is
    there with other options or of another training is refused, not replaced."""

    dtype: ExportDtype = "bfloat16"
    """Type of the exported weights; the router's selection bias stays float32."""

    verify: ExportVerify = "logits"
    """logits: read the files back and compare float32 logits of stock transformers with our model;
    keys: read the files back; none."""
