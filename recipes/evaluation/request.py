"""What to evaluate and how. Free of torch: what is refused here costs a second."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.evaluation.suite import EMBEDDING, LANGUAGE, Suite, load_suite
from recipes.export.request import load_run_settings
from recipes.run.folder import check_is_writable

_PACKAGES = {
    LANGUAGE: ("lm_eval", "accelerate", "transformers"),
    EMBEDDING: ("mteb", "transformers"),
}
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "*.spm", "spiece.model", "vocab.*", "*.tiktoken",
)  # fmt: skip
"""Files of which transformers needs one."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Subject:
    """A model, as the user named it."""

    folder: Path
    is_run: bool
    """A run directory; else a Hugging Face folder."""


@dataclass(kw_only=True, slots=True, frozen=True)
class EvaluateRequest:
    """The command's options."""

    subjects: Sequence[Subject]
    """In the order of the table; the first is what the others are compared with."""

    suite: str
    """Of this package by its name, or a file."""

    output: Path
    """The folder for results and table."""

    step: int | None = None
    """Of every run; None: the latest complete checkpoint."""

    batch_size: int = 8
    """Sequences that the model gets at once."""

    device: str | None = None
    """None: CUDA if there is one, else the CPU."""

    def load_suite(self) -> Suite:
        """Raises ValueError, one line, for what can be refused without torch."""
        if not self.subjects:
            raise ValueError("--run or --model must be given: what to evaluate.")
        if self.step is not None and not any(subject.is_run for subject in self.subjects):
            raise ValueError(f"--step ({self.step}) has no effect with --model. Leave it out.")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size ({self.batch_size}) must be at least 1.")
        suite = load_suite(self.suite)
        for package in _PACKAGES[suite.harness]:
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"--suite ({self.suite}) needs the package {package}. Install "
                    '"nitp-torchtitan[eval]".'
                )
        for subject in self.subjects:
            if subject.is_run:
                load_run_settings(subject.folder)
            else:
                _check_model(subject.folder)
        check_is_writable(str(self.output), "--output")
        return suite


def _check_model(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"--model ({folder}) is not a folder. Download the model, and name its folder."
        )
    if not (folder / "config.json").is_file():
        hint = " Give a run directory with --run." if (folder / "config.toml").is_file() else ""
        raise ValueError(
            f"--model ({folder}) has no config.json: no Hugging Face model folder.{hint}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"--model ({folder}) has no weights (*.safetensors).")
    if not any(any(folder.glob(name)) for name in _TOKENIZERS):
        raise ValueError(
            f"--model ({folder}) has no tokenizer ({', '.join(_TOKENIZERS)}). Download it with the "
            "model, or copy it there."
        )
