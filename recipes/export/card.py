"""The model card: what a reader of the weights must know about where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from nitp.config import NITPConfig
from recipes.run.origin import Origin

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

    nitp: NITPConfig
    origin: Origin | None
    """What the run started from; None for random weights."""

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
    lines += [f"# {provenance.model}", "", *describe_training(provenance)]
    lines += ["", *_table("fact", "value", rows)]
    if provenance.has_embedded_tokenizer:
        lines += ["", *_LLAMA_CPP]
    if list_nitp_steps(provenance):
        lines += ["", "## NITP settings", "", *_table("option", "value", asdict(provenance.nitp))]
    lines += ["", "## Verification", "", *(f"* {line}" for line in verification or ["none"]), ""]
    return "\n".join(lines)


def list_nitp_steps(provenance: Provenance) -> range:
    """The steps of this run, up to the exported one, that NITP trained."""
    nitp, origin = provenance.nitp, provenance.origin
    first = max(origin.first_step if origin else 1, nitp.start_step)
    return range(first, provenance.step + 1) if nitp.is_active else range(0)


def describe_training(provenance: Provenance) -> list[str]:
    """What trained these weights, and what did not."""
    nitp, origin, steps = provenance.nitp, provenance.origin, list_nitp_steps(provenance)
    lines = []
    objective = "next-token prediction"
    if steps:
        objective += (
            " and Next Implicit Token Prediction "
            "([arXiv 2605.24956](https://arxiv.org/abs/2605.24956))"
        )
    if origin is None:
        lines.append(f"Base language model, trained by {objective}.")
    else:
        lines += [
            f"Language model, trained by {objective} from the weights of `{origin.source}`, of "
            "whose training nothing is recorded here.",
        ]
    if steps:
        target = f", target layer k = {nitp.target_layer}" if nitp.uses_target else ""
        lines.append(
            f"NITP trained steps {steps[0]:,} to {steps[-1]:,}: lambda = {nitp.weight:g}{target}."
        )
        if nitp.projector != "none":
            lines.append("The training-only projector is not part of these weights.")
    elif nitp.is_active:
        lines.append(
            f"NITP was to begin at step {nitp.start_step:,} and has trained none of these steps."
        )
    else:
        lines.append("NITP did not train it.")
    return lines


def _table(name: str, value: str, rows: Mapping[str, Any]) -> list[str]:
    return [f"| {name} | {value} |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
