"""The steps in order: rows, model, states, figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import recipes.platform  # noqa: F401  first: torchtitan resolves its device once

# isort: split

from torchtitan.tools.utils import device_type

from recipes.data.config import DataConfig
from recipes.export.checkpoint import find_checkpoint
from recipes.measure.own import build_decoder_config, load_run
from recipes.measure.parts import Subject
from recipes.measure.report import Report
from recipes.measure.request import Inputs, Layers, MeasureRequest
from recipes.measure.rows import load_encoder, read_rows, split_of
from recipes.measure.states import Target, measure_states
from recipes.measure.stock import load_stock, load_stock_config

MAX_SEQ_LEN = 2048
"""Of a Hugging Face model by default: many name a context that takes minutes a row."""


def prepare_measurement(request: MeasureRequest, inputs: Inputs) -> Callable[[], Report]:
    """Everything short of measuring. Raises ValueError for a user's mistake, OSError for a
    checkpoint that cannot be read."""
    device = torch.device(device_type)
    load: Callable[[], Subject]
    if inputs.settings is not None:
        assert request.run is not None
        folder = request.run / inputs.settings.values["checkpoint"]["folder"]
        checkpoint = find_checkpoint(folder, request.checkpoint_step)
        decoder = build_decoder_config(inputs.settings)
        name, longest = str(checkpoint.folder), decoder.max_seq_len
        seq_len = request.seq_len or inputs.settings.values["training"]["seq_len"]
        load = partial(load_run, decoder, checkpoint, device)
    else:
        assert request.model is not None
        config = load_stock_config(request.model)
        # Recurrent models name none.
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        name = str(request.model)
        seq_len = request.seq_len or min(longest or MAX_SEQ_LEN, MAX_SEQ_LEN)
        load = partial(load_stock, request.model, config, device)
    if longest is not None and seq_len > longest:
        raise ValueError(
            f"--seq-len ({seq_len}) must be at most what {name} is made for ({longest}). Lower it."
        )
    encoder = load_encoder(inputs.tokenizer, inputs.data.bos)
    with request.naming_data():
        rows_N3L = read_rows(inputs.data, encoder, seq_len=seq_len, num_rows=request.num_rows)
    subject = load()
    _check_vocabulary(name, subject, rows_N3L)
    layers = _choose_layers(name, subject, request.layers, inputs.target_layer)
    notes = list(subject.notes)
    if len(rows_N3L) < request.num_rows:
        notes.append(f"the documents give no more than these of {request.num_rows} rows")
    target = None
    if inputs.target_layer is not None:
        target = Target(layer=inputs.target_layer, shift=inputs.shift)
    report = Report(
        model=name,
        num_layers=None if subject.parts.layers is None else len(subject.parts.layers),
        data=_describe_data(inputs.data),
        num_rows=len(rows_N3L),
        seq_len=seq_len,
        attention=subject.attention,
        target=target,
        notes=notes,
    )
    return partial(_measure, report, subject, rows_N3L, layers, device)


def _measure(
    report: Report,
    subject: Subject,
    rows_N3L: np.ndarray,
    layers: Sequence[int],
    device: torch.device,
) -> Report:
    """The report with its figures."""
    figures = measure_states(
        subject,
        subject.batches(rows_N3L),
        num_rows=len(rows_N3L),
        layers=layers,
        target=report.target,
        device=device,
    )
    return replace(report, figures=figures)


def _describe_data(data: DataConfig) -> str:
    paths = ", ".join(source.path for source in data.sources)
    return f"{'held-out' if split_of(data) == 'validation' else 'all'} documents of {paths}"


def _check_vocabulary(name: str, subject: Subject, rows_N3L: np.ndarray) -> None:
    largest = int(rows_N3L[:, 0].max())
    if largest >= subject.vocab_size:
        raise ValueError(
            f"the tokenizer gives the token id {largest}, but {name} has only "
            f"{subject.vocab_size} embeddings. Name a model with its own tokenizer."
        )


def _choose_layers(
    name: str, subject: Subject, layers: Layers, target_layer: int | None
) -> Sequence[int]:
    """The depths to measure. Raises ValueError for those that the model has not."""
    wanted = {"--layers": layers, "--target-layer": () if target_layer is None else (target_layer,)}
    for option, depths in wanted.items():
        if not depths:
            continue
        if subject.parts.layers is None:
            raise ValueError(
                f"{option} needs layers that pass on the residual stream, and those of {name} "
                "cannot be told. Leave it out."
            )
        depth = len(subject.parts.layers)
        for k in () if depths == "all" else depths:
            if not 0 <= k <= depth:
                raise ValueError(
                    f"{option} ({k}) must be from 0 to the number of layers of {name} ({depth})."
                )
    if layers == "all":
        return range(len(subject.parts.layers or []) + 1)
    return layers
