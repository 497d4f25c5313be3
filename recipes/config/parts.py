"""The parts of a configuration that need no torch: NITP's, the data's, the decoder's shape.

Building one is checking it: what a part refuses itself is refused here.
"""

from dataclasses import replace

from nitp.config import GeometryConfig, NITPConfig
from recipes.config.choices import check_choice
from recipes.config.fields import source_path
from recipes.config.settings import Settings
from recipes.data.config import (
    DataConfig,
    SourceConfig,
    ValidationSetConfig,
    check_validation_sets,
)
from recipes.models.shapes import FLAVORS, DecoderShape


def build_nitp(settings: Settings) -> NITPConfig:
    """The `[nitp]` table. Raises ValueError for a value out of range."""
    return NITPConfig(**settings.values["nitp"])


def build_geometry(settings: Settings) -> GeometryConfig:
    """The `[geometry]` table. Raises ValueError for a value out of range."""
    return GeometryConfig(**settings.values["geometry"])


def build_data(settings: Settings) -> DataConfig:
    """The `[data]` table with its `[[data.sources]]`. Raises ValueError, as DataConfig does."""
    values = dict(settings.values["data"])
    sources = [SourceConfig(**source) for source in values.pop("sources")]
    return DataConfig(**values, sources=sources)


def build_validation_sets(settings: Settings) -> list[ValidationSetConfig]:
    """The `[[validation.sets]]`. Raises ValueError, as check_validation_sets does."""
    sets = [ValidationSetConfig(**entry) for entry in settings.values["validation"]["sets"]]
    check_validation_sets(sets)
    return sets


def build_shape(settings: Settings) -> DecoderShape:
    """The flavour of this project's decoder with the overrides of `[model]`. Raises ValueError."""
    overrides = dict(settings.values["model"])
    name, flavor = overrides.pop("name"), overrides.pop("flavor")
    assert name == "nitp", f"{name} has no DecoderShape"
    check_choice("model.flavor", flavor, list(FLAVORS))
    return replace(FLAVORS[flavor], **overrides)


def torchtitan_models() -> list[str]:
    """TorchTitan's models: the packages that have a registry."""
    packages = sorted(source_path("torchtitan.models").parent.glob("*/__init__.py"))
    return [
        package.parent.name
        for package in packages
        if "def model_registry(" in package.read_text(encoding="utf-8")
    ]
