"""Turns any TorchTitan decoder into one that also returns the implicit tokens.

Owns the capture of E_k(x), the residual stream after k layers, detached where it is captured, and
the projector as a submodule. Holds no loss mathematics. The given class is subclassed, never
edited: parameter names, initial values and the forward pass are the decoder's own.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.protocols.module import ModuleDict

from nitp.config import NITPConfig
from nitp.projector import PROJECTOR_NAME, set_projector_sharding


class NITPOutput(NamedTuple):
    """What an NITP decoder returns in training, instead of logits, as a plain tuple in this order.

    Pipeline stages pass on nothing but plain tuples of tensors.
    """

    h_BLD: torch.Tensor
    """Hidden state after the final norm, the unembedding's input. Activation dtype."""

    source_BLD: torch.Tensor
    """What P reads: h_BLD, or the hidden state before the final norm (hidden = "pre_norm")."""

    z_BLD: torch.Tensor
    """E_k(x), not shifted; without gradient unless stop_gradient = false."""

    pair_weight_BL: torch.Tensor
    """The model input of that name, float32: weight of each position's pair in the loss."""

    positions_BL: torch.Tensor
    """The model input of that name: position of each token in its document."""


class TappedLayers(ModuleDict):
    """A decoder's `layers` that can show the residual stream between layers.

    Decoders run `for layer in self.layers.values(): h = layer(h, ...)`. Inside `tap()`, and once
    `watch()` was called, that loop meets stand-ins which note the stream around the real layer. The
    note is taken outside the layer's own call, so activation checkpointing does not repeat it and
    torch.compile and FSDP2, which wrap the layer, do not see it.

    Depth k is the stream after k layers: the output of layer k-1 and the input of layer k.
    """

    _stream: dict[int, torch.Tensor] | None = None
    _depths: frozenset[int] = frozenset()
    _watched: dict[int, torch.Tensor] | None = None
    _watched_depths: frozenset[int] = frozenset()

    @contextmanager
    def tap(self, depths: set[int]) -> Iterator[dict[int, torch.Tensor]]:
        """Collect {depth: h_BLD} for those `depths` that this module's layers reach."""
        self._stream, self._depths = {}, frozenset(depths)
        try:
            yield self._stream
        finally:
            self._stream = None

    def watch(self, depths: set[int]) -> dict[int, torch.Tensor]:
        """From now on collect the same of every forward pass. Whoever reads it empties it: what
        lies there is kept in memory."""
        self._watched, self._watched_depths = {}, frozenset(depths)
        return self._watched

    def values(self) -> Any:
        layers = super().values()
        if self._stream is None and self._watched is None:
            return layers
        return [
            functools.partial(self._run_and_note, int(name), layer)
            for name, layer in super().items()
        ]

    def _run_and_note(
        self, index: int, layer: nn.Module, h_BLD: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        self._note(index, h_BLD)
        h_BLD = layer(h_BLD, *args, **kwargs)
        self._note(index + 1, h_BLD)
        return h_BLD

    def _note(self, depth: int, h_BLD: torch.Tensor) -> None:
        if self._stream is not None and depth in self._depths:
            self._stream[depth] = h_BLD
        if self._watched is not None and depth in self._watched_depths:
            self._watched[depth] = h_BLD


class NITPDecoder:
    """What the classes that `nitp_decoder_class` makes have in common."""

    plain_class: ClassVar[type[Decoder]]
    """The class that NITP was added to."""


@functools.cache
def nitp_decoder_class(base: type[Decoder]) -> type[Decoder]:
    """The NITP subclass of `base`, one per class.

    Its Config adds `nitp` and `nitp_projector`. Its forward takes the arguments of `base`, in their
    order, and the keyword `pair_weight_BL`, with which it returns the tuple NITPOutput. Without
    pair weights it is `base`: logits, or hidden states.

    As a stage of a pipeline it takes and returns h until the stage that holds layer k (counted from
    0, so that its input is E_k(x)), and (h, z) from there on. z has no gradient on its way. Stages
    pass on by position: where there is no embedding, the second argument is z.
    """
    parameters = inspect.signature(base.forward)

    class Extended(base, NITPDecoder):
        plain_class = base

        @dataclass(kw_only=True, slots=True)
        class Config(base.Config):  # type: ignore[name-defined]
            nitp: NITPConfig | None = None
            """The options of the trainer's configuration, which brings them when it is built."""

            nitp_projector: FeedForward.Config | None

            def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
                # The trainer's call, after every converter: decoders set their sharding here.
                base.Config.update_from_config(self, config=config, **kwargs)
                self.nitp = config.nitp
                if self.nitp_projector is not None:
                    set_projector_sharding(self.nitp_projector)

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
            *args: Any,
            pair_weight_BL: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> torch.Tensor | tuple[torch.Tensor, ...]:
            z_BLD = None
            if self.tok_embeddings is None and args:
                z_BLD, args = args[0], args[1:]
            if pair_weight_BL is None:
                return base.forward(self, tokens, *args, **kwargs)
            nitp, num_layers = self.config.nitp, len(self.config.layers)
            k = nitp.target_layer if nitp.uses_target else 0  # else z is not looked at
            with self.layers.tap({k, num_layers}) as stream:
                h_BLD = base.forward(self, tokens, *args, **kwargs)
            is_last_stage = self.lm_head is not None
            if is_last_stage:
                stream.setdefault(num_layers, tokens)  # a stage of norm and lm_head alone
            if str(k) in self.layers or (is_last_stage and k == num_layers):
                # Eq. 2 stop-gradient: without it prediction and target can collapse together.
                z_BLD = stream[k].detach() if nitp.stop_gradient else stream[k]
            if not is_last_stage:
                return h_BLD if z_BLD is None else (h_BLD, z_BLD)
            source_BLD = stream[num_layers] if nitp.hidden == "pre_norm" else h_BLD
            positions = parameters.bind(self, tokens, *args, **kwargs).arguments.get("positions")
            assert z_BLD is not None and positions is not None
            return tuple(NITPOutput(h_BLD, source_BLD, z_BLD, pair_weight_BL, positions))

    Extended.__name__ = Extended.__qualname__ = f"NITP{base.__name__}"
    Extended.Config.__qualname__ = f"NITP{base.__name__}.Config"
    return Extended
