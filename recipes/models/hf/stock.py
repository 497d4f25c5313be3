"""Loads a Hugging Face folder as transformers does, without its progress bars and warnings."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """What it warns of is in the report that it returns, or an error."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def load_float32(folder: Path, config: Any) -> tuple[Any, dict[str, Iterable[Any]]]:
    """The causal model of `folder` with transformers' `config`, in float32 on the CPU, for
    evaluation; and transformers' loading report: names by what is wrong with them."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,  # neither run nor asked for
            output_loading_info=True,
        )
    model, report = loaded
    return model.eval(), report
