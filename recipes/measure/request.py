"""What to measure, and on which data. Free of torch: what is refused here costs a second."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes.config.parts import build_data, build_nitp
from recipes.config.settings import Settings, resolve_settings
from recipes.data.config import DataConfig, SourceConfig
from recipes.data.sources import check_sources
from recipes.data.tokenizer import check_tokenizer
from recipes.export.request import load_run_settings
from recipes.run.folder import check_is_writable

Layers = tuple[int, ...] | Literal["all"]

OUTPUT_FILES = ("geometry.md", "geometry.json")


@dataclass(kw_only=True, slots=True, frozen=True)
class Inputs:
    """What a request names, as far as it is known without torch."""

    data: DataConfig
    tokenizer: str
    """As `tokenizer.path`."""

    settings: Settings | None
    """Of the run."""

    target_layer: int | None
    """k of the implicit targets; None: they are not measured."""

    shift: int
    """Of the implicit targets, as `nitp.shift`."""


@dataclass(kw_only=True, slots=True, frozen=True)
class MeasureRequest:
    """The command's options. Either model or run is given."""

    model: Path | None = None
    run: Path | None = None

    step: str | None = None
    """A number, or "latest", which is the default."""

    data: str | None = None
    """A `data.sources.path`, or a configuration by its ending .toml."""

    layers: Layers = ()
    target_layer: int | None = None
    num_rows: int = 64
    seq_len: int | None = None
    output: Path | None = None

    def load_inputs(self) -> Inputs:
        """Raises ValueError, one line, for what can be refused without torch."""
        self._check()
        if self.run is not None:
            settings = load_run_settings(self.run)
            nitp = build_nitp(settings)
            own_layer = nitp.target_layer if nitp.is_active and nitp.uses_target else None
            inputs = Inputs(
                data=self._load_data(build_data(settings)),
                tokenizer=settings.values["tokenizer"]["path"],
                settings=settings,
                target_layer=own_layer if self.target_layer is None else self.target_layer,
                shift=nitp.shift,
            )
        else:
            assert self.model is not None
            _check_model(self.model)
            inputs = Inputs(
                data=self._load_data(DataConfig()),
                tokenizer=str(self.model),
                settings=None,
                target_layer=self.target_layer,
                shift=1,
            )
        with self.naming_data():
            check_sources(inputs.data)
        return inputs

    @property
    def checkpoint_step(self) -> int | None:
        """None: the latest."""
        return None if self.step is None or self.step == "latest" else int(self.step)

    @contextmanager
    def naming_data(self) -> Iterator[None]:
        """Errors about the data name the option that brought them, if one did."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"--data: {error}" if self.data else str(error)) from error

    def _check(self) -> None:
        if self.model is not None and self.step is not None:
            raise ValueError(f"--step ({self.step}) has no effect with --model. Leave it out.")
        if self.step not in (None, "latest") and not str(self.step).isdecimal():
            raise ValueError(f'--step ({self.step}) must be "latest" or a number.')
        if self.model is not None and self.data is None:
            raise ValueError("--data must be given with --model: a path, or a configuration.")
        if self.num_rows < 2:
            raise ValueError(
                f"--rows ({self.num_rows}) must be at least 2: the average cosine is that of pairs "
                "of different rows."
            )
        if self.seq_len is not None and self.seq_len < 2:
            raise ValueError(f"--seq-len ({self.seq_len}) must be at least 2.")
        if self.output is not None:
            check_is_writable(str(self.output), "--output")
        for name in OUTPUT_FILES:
            if self.output is not None and os.path.lexists(self.output / name):
                raise ValueError(f"--output ({self.output}) has a {name}. Name another folder.")

    def _load_data(self, own: DataConfig) -> DataConfig:
        """own: the run's, or the defaults."""
        if self.data is None:
            return own
        if self.data.endswith(".toml"):
            return build_data(resolve_settings(self.data, []))
        # One stream: with several, each would leave its last tokens, which fill no row.
        return DataConfig(sources=[SourceConfig(path=self.data)], num_streams=1, bos=own.bos)


def _check_model(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"--model ({folder}) is not a folder. Download the model, and name its folder."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model ({folder}) has no config.json: no Hugging Face model folder.")
    try:
        check_tokenizer(str(folder))
    except ValueError as error:
        raise ValueError(f"--model: {error}") from error
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f'--model ({folder}) needs the package transformers. Install "nitp-torchtitan[export]".'
        )
