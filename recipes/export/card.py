"""The model card: what a reader of the weights must know about where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

LIBRARIES = ("nitp-torchtitan", "torchtitan", "torch")

_LLAMA_CPP = (
    "llama.cpp's convert_hf_to_gguf.py does not convert this folder as it is: it knows a",
    "byte-level BPE by a checksum of what it makes of a fixed text, and does not know this one.",
    "The pre-tokenizer is GPT-2's: add the checksum that the converter prints to its",
    "get_vocab_base_pre, with the name gpt-2.",
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Provenance:
    """Facts of the training run."""

    model: str
    step: int

    num_tokens: int | None
    """Tokens that all ranks have read from the training data; None where the checkpoint does not
    say."""

    nitp: Mapping[str, Any]
    """The `[nitp]` options."""

    config_sha256: str
    """Of the run's config.toml."""

    has_embedded_tokenizer: bool
    """Whether the tokenizer is the one trained on the embedded corpus."""


def format_card(
    provenance: Provenance,
    config: Mapping[str, Any],
    *,
    num_params: int,
    verification: Sequence[str],
) -> str:
    """README.md of the exported folder, Markdown."""
    nitp = provenance.nitp
    objective = (
        "next-token prediction and Next Implicit Token Prediction "
        "([arXiv 2605.24956](https://arxiv.org/abs/2605.24956))"
        if nitp["enable"]
        else "next-token prediction"
    )
    tokens = "not recorded" if provenance.num_tokens is None else f"{provenance.num_tokens:,}"
    rows = {
        "architecture": ", ".join(config["architectures"]),
        "trained as": provenance.model,
        "parameters": f"{num_params:,}",
        "dtype": config["torch_dtype"],
        "context": config["max_position_embeddings"],
        "step": provenance.step,
        "global tokens seen": tokens,
        "SHA-256 of the run's config.toml": f"`{provenance.config_sha256}`",
        **{f"{name} version": version(name) for name in LIBRARIES},
    }
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", ""]
    lines += [f"# {provenance.model}", "", f"Base language model, trained by {objective}."]
    if nitp["enable"]:
        lines.append("The training-only projector is not part of these weights.")
    lines += ["", *_table("fact", "value", rows)]
    if provenance.has_embedded_tokenizer:
        lines += ["", *_LLAMA_CPP]
    lines += ["", "## NITP settings", "", *_table("option", "value", nitp)]
    lines += ["", "## Verification", "", *(f"* {line}" for line in verification or ["none"]), ""]
    return "\n".join(lines)


def _table(name: str, value: str, rows: Mapping[str, Any]) -> list[str]:
    return [f"| {name} | {value} |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
