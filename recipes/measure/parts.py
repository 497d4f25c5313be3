"""Where the states of a model pass: its layers, its final norm, its unembedding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from recipes.measure.rows import Batch


@dataclass(kw_only=True, slots=True, frozen=True)
class Parts:
    """Modules that are called once in a forward pass."""

    head: nn.Module
    """The unembedding. What it is given are the last hidden states."""

    norm: nn.Module | None
    """The final norm, whose output the unembedding is given; None where there is none."""

    layers: list[nn.Module] | None
    """In order. Each is given the residual stream, [B, L, D], and returns it, alone or first of a
    tuple. None where they cannot be told."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Subject:
    """A model whose states can be measured, in float32, for evaluation."""

    model: nn.Module
    parts: Parts
    vocab_size: int

    batches: Callable[[np.ndarray], Iterator[Batch]]
    """Of packed rows, [N, 3, L]."""

    forward: Callable[[Batch], Any]

    attention: str
    """How it stays within a document."""

    notes: list[str] = field(default_factory=list)
    """What the reader of the figures must know."""


def stream_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer, norm or unembedding is given."""
    return args[0] if args else kwargs.get("hidden_states")


def stream_out(output: Any) -> Any:
    """What a layer returns of the residual stream."""
    return output[0] if isinstance(output, tuple) else output


def is_stream(x: Any, tokens_BL: torch.Tensor) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() == 3 and x.shape[:2] == tokens_BL.shape
