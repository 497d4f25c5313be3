"""Turns any TorchTitan decoder into one that also returns the implicit tokens.

Owns the capture of E_k(x), the residual stream after k layers, detached where it is captured, and
the projector as a submodule. Holds no loss mathematics. The given class is subclassed, never
edited: parameter names, initial values and the forward pass are the decoder's own.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.protocols.module import ModuleDict

from nitp.config import NITPConfig
from nitp.projector import PROJECTOR_NAME


class NITPOutput(NamedTuple):
    """What an NITP decoder returns in training instead of logits. Activation dtype, on device."""

    h_BLD: torch.Tensor
    """Hidden state after the final norm, the unembedding's input."""

    z_BLD: torch.Tensor
    """E_k(x), not shifted; without gradient unless stop_gradient = false."""

    pair_weight_BL: torch.Tensor
    """The model input of that name, float32: weight of each position's pair in the loss."""

    h_pre_norm_BLD: torch.Tensor | None = None
    """Hidden state before the final norm, where P reads that (hidden = "pre_norm")."""

    positions_BL: torch.Tensor | None = None
    """Per-document positions, where the loss compares tokens of a document (token_cosine)."""

    @property
    def source_BLD(self) -> torch.Tensor:
        """What P reads."""
        return self.h_BLD if self.h_pre_norm_BLD is None else self.h_pre_norm_BLD


class TappedLayers(ModuleDict):
    """A decoder's `layers` that can show the residual stream between layers.

    Decoders run `for layer in self.layers.values(): h = layer(h, ...)`. Inside `tap()` that loop
    meets stand-ins which note the stream around the real layer. The note is taken outside the
    layer's own call, so activation checkpointing does not repeat it and torch.compile and FSDP2,
    which wrap the layer, do not see it.
    """

    _stream: dict[int, torch.Tensor] | None = None
    _depths: frozenset[int] = frozenset()

    @contextmanager
    def tap(self, depths: set[int]) -> Iterator[dict[int, torch.Tensor]]:
        """Collect {depth: h_BLD} for those `depths` that this module's layers reach.

        Depth k is the output of layer k-1; depth 0 is the input of layer 0.
        """
        self._stream, self._depths = {}, frozenset(depths)
        try:
            yield self._stream
        finally:
            self._stream = None

    def values(self) -> Any:
        layers = super().values()
        if self._stream is None:
            return layers
        return [
            functools.partial(self._run_and_note, int(name), layer)
            for name, layer in super().items()
        ]

    def _run_and_note(
        self, index: int, layer: nn.Module, h_BLD: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        assert self._stream is not None
        if index == 0 and 0 in self._depths:
            self._stream[0] = h_BLD
        h_BLD = layer(h_BLD, *args, **kwargs)
        if index + 1 in self._depths:
            self._stream[index + 1] = h_BLD
        return h_BLD


@functools.cache
def nitp_decoder_class(base: type[Decoder]) -> type[Decoder]:
    """The NITP subclass of `base`, one per class.

    Its Config adds `nitp` and `nitp_projector`; its forward takes `pair_weight_BL` and then returns
    NITPOutput. Without pair weights it is `base`: logits, or hidden states.
    """

    class NITPDecoder(base):
        @dataclass(kw_only=True, slots=True)
        class Config(base.Config):  # type: ignore[name-defined]
            nitp: NITPConfig
            nitp_projector: FeedForward.Config | None

        def __init__(self, config: Any) -> None:
            base.__init__(self, config)
            self.layers: TappedLayers = TappedLayers(self.layers)
            # Registered last: initialisation walks the children in order, so the backbone draws
            # the same random numbers as without NITP.
            projector = config.nitp_projector
            setattr(self, PROJECTOR_NAME, None if projector is None else projector.build())

        def forward(
            self,
            tokens: torch.Tensor,
            positions: torch.Tensor | None = None,
            pair_weight_BL: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> torch.Tensor | NITPOutput:
            if pair_weight_BL is None:
                return base.forward(self, tokens, positions=positions, **kwargs)
            nitp, num_layers = self.config.nitp, len(self.config.layers)
            with self.layers.tap({nitp.target_layer, num_layers}) as stream:
                h_BLD = base.forward(self, tokens, positions=positions, **kwargs)
            z_BLD = stream[nitp.target_layer]
            if nitp.stop_gradient:
                # Eq. 2 stop-gradient: without it prediction and target can collapse together.
                z_BLD = z_BLD.detach()
            h_pre_norm_BLD = stream[num_layers] if nitp.hidden == "pre_norm" else None
            positions_BL = None if nitp.uses_target else positions
            return NITPOutput(h_BLD, z_BLD, pair_weight_BL, h_pre_norm_BLD, positions_BL)

    NITPDecoder.__name__ = NITPDecoder.__qualname__ = f"NITP{base.__name__}"
    NITPDecoder.Config.__qualname__ = f"NITP{base.__name__}.Config"
    return NITPDecoder
