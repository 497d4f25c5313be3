"""NITP's part on top of a user's class: both are there, once, in order."""

import copy
import pickle
from dataclasses import dataclass, fields

import pytest
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.trainer import Trainer

from nitp._torchtitan import built_class
from nitp.checkpoint import NITPCheckpointManager
from nitp.config import NITPConfig
from nitp.extend import extended_config, plain_config
from nitp.metrics import NITPMetricsProcessor
from nitp.trainer import NITPTrainer


class MyCheckpoints(CheckpointManager):
    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        bucket: str = "s3"


class TheirCheckpoints(MyCheckpoints):
    @dataclass(kw_only=True, slots=True)
    class Config(MyCheckpoints.Config):
        region: str = "north"


class MyTrainer(Trainer):
    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        nickname: str


@dataclass(kw_only=True, slots=True)
class LoneConfig(Trainer.Config):
    """Of no class of its own."""

    budget: int = 3


CASES = [
    (NITPCheckpointManager, TheirCheckpoints.Config, {"region": "south", "interval": 7}),
    (NITPTrainer, MyTrainer.Config, {"nickname": "x", "nitp": NITPConfig(weight=0.3)}),
    (NITPTrainer, LoneConfig, {"budget": 5}),
]


@pytest.mark.parametrize(("part", "config_class", "values"), CASES)
def test_both_parts_fields_and_methods_are_there_and_nitps_come_first(part, config_class, values):
    extended = extended_config(part, config_class)
    names = {field.name for config in (part.Config, config_class) for field in fields(config)}
    assert {field.name for field in fields(extended)} == names
    order = built_class(extended).__mro__
    assert order.index(part) < order.index(built_class(config_class))
    assert issubclass(extended, config_class)
    config = extended(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert plain_config(part, config) is config_class


def test_one_class_for_each_class():
    mine, theirs = MyCheckpoints.Config, TheirCheckpoints.Config
    once = extended_config(NITPCheckpointManager, mine)
    assert extended_config(NITPCheckpointManager, mine) is once
    assert extended_config(NITPCheckpointManager, theirs) is not once
    assert extended_config(NITPCheckpointManager, once) is once


@pytest.mark.parametrize("part", [NITPMetricsProcessor, NITPCheckpointManager, NITPTrainer])
def test_torchtitans_own_class_becomes_nitps_public_one(part):
    assert extended_config(part, part.__mro__[1].Config) is part.Config
    assert extended_config(part, part.Config) is part.Config


@pytest.mark.parametrize(("part", "config_class", "values"), CASES)
@pytest.mark.parametrize("clone", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_configuration_survives_pickling_and_copying(part, config_class, values, clone):
    config = extended_config(part, config_class)(**values)
    other = clone(config)
    assert type(other) is type(config) and other == config and other is not config


def test_a_class_builds_its_own_configuration():
    config = extended_config(NITPMetricsProcessor, MetricsProcessor.Config)
    assert built_class(config) is NITPMetricsProcessor
    extended = extended_config(NITPCheckpointManager, MyCheckpoints.Config)
    assert built_class(extended).Config is extended
