"""config.json and generation_config.json of an export, from a run's settings and what it started
from."""

from pathlib import Path
from typing import Any

import torch
from torchtitan.models.qwen3 import Qwen3Model
from torchtitan.protocols.model_spec import ModelSpec

from recipes.config.settings import Settings
from recipes.data.encoder import Encoder
from recipes.data.tokenizer import resolve_tokenizer_path
from recipes.models.hf.config import build_config, keep_original
from recipes.models.hf.weights import read_json_object
from recipes.run.origin import Origin


def build_hf_config(
    settings: Settings,
    spec: ModelSpec,
    encoder: Encoder,
    dtype: torch.dtype,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """The content of config.json. Raises ValueError for a model without a stock architecture.

    TorchTitan's own models bring theirs in the folder of `tokenizer.path`, as the assets that
    TorchTitan downloads for them do. origin: what training started from.
    """
    original = origin.config if origin else None
    facts: dict[str, Any] = {
        "max_position_embeddings": settings.values["training"]["seq_len"],
        "bos_token_id": encoder.bos_id,
        "eos_token_id": encoder.eos_id,
    }
    if settings.values["model"]["name"] == "nitp":
        assert isinstance(spec.model, Qwen3Model.Config)
        config = build_config(spec.model, dtype=dtype, **facts)
        return keep_original(config, original) if original else config
    path = encoder.folder / "config.json"
    if original is None:
        if not path.is_file():
            raise ValueError(
                f"tokenizer.path ({encoder.folder}) has no config.json. TorchTitan's {spec.name} "
                "exports with the config.json of its Hugging Face assets: put it beside the "
                "tokenizer."
            )
        original = read_json_object(path)
    config = facts | original
    if not config.get("architectures"):
        raise ValueError(f"{path} names no architecture (architectures).")
    # The weights are written as they are trained, not as the assets' were stored.
    config.pop("quantization_config", None)
    return config | {"torch_dtype": str(dtype).removeprefix("torch.")}


def find_generation_config(settings: Settings, origin: Origin | None) -> dict[str, Any] | None:
    """generation_config.json of what training started from, or of the assets of one of
    TorchTitan's models."""
    if origin is not None and origin.config is not None:
        return origin.generation_config
    if settings.values["model"]["name"] == "nitp":
        return None
    folder = Path(resolve_tokenizer_path(settings.values["tokenizer"]["path"]))
    path = folder / "generation_config.json"
    return read_json_object(path) if path.is_file() else None
