"""A Hugging Face folder as stock transformers runs it, whatever its architecture.

Its parts are told by what a forward pass does, not by their names: the final norm is the module
whose output the unembedding is given.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from recipes.measure.parts import Parts, Subject, is_stream, stream_in, stream_out
from recipes.measure.rows import Batch, batch_documents
from recipes.models.hf.stock import load_float32, quiet_transformers


def load_stock_config(folder: Path) -> Any:
    """transformers' configuration. Raises ValueError."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of a folder that is not what it should be, transformers raises any
        raise _cannot_load(folder, error) from error


def load_stock(folder: Path, config: Any, device: torch.device) -> Subject:
    """Raises ValueError for weights that transformers cannot load or misses, and for a model
    without an unembedding."""
    config.use_cache = False
    try:
        model, report = load_float32(folder, config)
    except Exception as error:  # as above
        raise _cannot_load(folder, error) from error
    notes = []
    for what, names in report.items():
        listed = sorted(map(str, names))
        # Of a missing weight transformers makes up the value; one too many it leaves out.
        if listed and what != "unexpected_keys":
            raise ValueError(
                f"--model ({folder}): transformers reports {what}: {', '.join(listed[:3])}. "
                "Complete the folder."
            )
        if listed:
            notes.append(f"transformers has no use for {len(listed)} tensors: {listed[0]}, ...")
    parts = find_parts(model)
    if parts is None:
        raise ValueError(
            f"--model ({folder}): {type(model).__name__} gives its hidden states to no unembedding "
            "module. Name a causal language model."
        )
    if parts.norm is None:
        notes.append(
            f"no final norm is found in {type(model).__name__}: the states before it are left out"
        )
    model.to(device)
    return Subject(
        model=model,
        parts=parts,
        vocab_size=model.get_input_embeddings().num_embeddings,
        batches=batch_documents,
        forward=lambda batch: _forward(model, batch),
        attention="each document's part of a packed row alone, positions from 0, as in training",
        notes=notes,
    )


def _forward(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch.tokens_BL, attention_mask=batch.is_token_BL.long())


def _cannot_load(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"--model ({folder}) cannot be loaded by transformers: {error}")


class _Call(NamedTuple):
    """A module's call in a forward pass."""

    module: nn.Module
    given: Any
    returned: Any


@torch.no_grad()
def find_parts(model: Any) -> Parts | None:
    """The parts of a transformers model, by a forward pass of two tokens; None without an
    unembedding that is given hidden states."""
    head = model.get_output_embeddings()
    calls: list[_Call] = []
    hooks = [
        module.register_forward_hook(
            lambda module, args, kwargs, output: calls.append(
                _Call(module, stream_in(args, kwargs), output)
            ),
            with_kwargs=True,
        )
        for module in model.modules()
    ]
    tokens_BL = torch.zeros(1, 2, dtype=torch.int64)
    model(input_ids=tokens_BL)
    for hook in hooks:
        hook.remove()
    heads = [call for call in calls if call.module is head]
    if len(heads) != 1 or not is_stream(heads[0].given, tokens_BL):
        return None
    layers = _find_layers(model, calls, tokens_BL)
    return Parts(head=head, norm=_find_norm(calls, heads[0].given, layers), layers=layers)


def _find_norm(
    calls: list[_Call], h_BLD: torch.Tensor, layers: list[nn.Module] | None
) -> nn.Module | None:
    """The first to return what the unembedding is given, if it is a norm behind the layers."""
    makers = [
        call.module
        for call in calls
        # Not `is`: the unembedding may be given a slice that holds all of it.
        if isinstance(call.returned, torch.Tensor)
        and call.returned.data_ptr() == h_BLD.data_ptr()
        and call.returned.shape == h_BLD.shape
    ]
    if not makers or "norm" not in type(makers[0]).__name__.lower():
        return None
    is_within = any(makers[0] is inner for layer in layers or [] for inner in layer.modules())
    return None if is_within else makers[0]


def _find_layers(model: Any, calls: list[_Call], tokens_BL: torch.Tensor) -> list[nn.Module] | None:
    """The outermost list of as many modules as the configuration has layers, if they pass on the
    residual stream one after the other."""
    num_layers = model.config.get_text_config().num_hidden_layers
    found = [
        [*module]
        for _, module in sorted(model.named_modules(), key=lambda item: item[0].count("."))
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not found:
        return None
    layers = found[0]
    members = Counter(map(id, layers))
    passed = [call for call in calls if id(call.module) in members]
    are_passed = [call.module for call in passed] == layers and all(
        is_stream(call.given, tokens_BL) and is_stream(stream_out(call.returned), tokens_BL)
        for call in passed
    )
    return layers if are_passed else None
