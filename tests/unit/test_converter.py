"""with_nitp changes what it must, refuses the rest, and leaves its argument alone."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pytest
from torchtitan.components.checkpointer import BaseCheckpointManager, CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss, MSELoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.validate import BaseValidator, Validator
from torchtitan.config import TrainingConfig
from torchtitan.models.llama3 import model_registry
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.trainer import Trainer

from nitp import NITPConfig, with_nitp
from nitp._torchtitan import built_class
from nitp.compose import check_composition
from nitp.config import GeometryConfig
from nitp.decoder import nitp_decoder_class
from nitp.loss import NITPLoss
from nitp.metrics import NITPMetricsProcessor
from nitp.parts import COMPONENTS, fit_parts
from nitp.trainer import NITPTrainer


@pytest.fixture
def config() -> Trainer.Config:
    return Trainer.Config(
        model_spec=model_registry("debugmodel"),
        loss=ChunkedLossWrapper.Config(num_chunks=2, loss_fn=CrossEntropyLoss.Config()),
    )


def test_model_loss_and_trainer_become_nitp_and_the_argument_stays(config):
    before = config.to_dict()
    result = with_nitp(config, NITPConfig(target_layer=2))
    assert config.to_dict() == before
    assert type(result) is NITPTrainer.Config
    assert type(result.model_spec.model) is nitp_decoder_class(Llama3Model).Config
    assert isinstance(result.loss, NITPLoss.Config)
    assert result.loss.num_chunks == 2 and result.nitp.target_layer == 2
    assert result.training == config.training and result.optimizer == config.optimizer


@pytest.mark.parametrize("options", [{"enable": False}, {"weight": 0.0}])
def test_an_inactive_nitp_leaves_every_part_untouched(config, options):
    result = with_nitp(config, NITPConfig(**options))
    for field in fields(config):
        assert getattr(result, field.name) is getattr(config, field.name), field.name


def test_one_subclass_per_decoder_class():
    assert nitp_decoder_class(Llama3Model) is nitp_decoder_class(Llama3Model)


def test_a_target_beyond_the_last_layer_is_refused(config):
    depth = len(config.model_spec.model.layers)
    with pytest.raises(ValueError, match=rf"nitp.target_layer \({depth + 1}\) must be at most"):
        with_nitp(config, NITPConfig(target_layer=depth + 1))


class MyCrossEntropy(CrossEntropyLoss):
    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        pass


class MyChunks(ChunkedLossWrapper):
    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass


@pytest.mark.parametrize(
    "loss",
    [
        MSELoss.Config(),
        MyCrossEntropy.Config(),
        ChunkedLossWrapper.Config(loss_fn=MSELoss.Config()),
        ChunkedLossWrapper.Config(loss_fn=MyCrossEntropy.Config()),
    ],
)
def test_another_loss_than_cross_entropy_is_refused(config, loss):
    with pytest.raises(ValueError, match=r"loss \(My\w+|MSE.* must be CrossEntropyLoss, by itself"):
        with_nitp(replace(config, loss=loss), NITPConfig(target_layer=2))


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss.Config(global_vocab_size=77),
        MyChunks.Config(num_chunks=4, loss_fn=CrossEntropyLoss.Config(global_vocab_size=77)),
    ],
)
def test_cross_entropy_whole_or_in_a_users_chunks_is_joined_and_given_back(config, loss):
    result = with_nitp(replace(config, loss=loss), NITPConfig(target_layer=2))
    assert issubclass(built_class(result.loss), NITPLoss)
    assert result.loss.loss_fn.global_vocab_size == 77
    # TorchTitan's default number of chunks for a loss that has none.
    assert result.loss.num_chunks == (4 if isinstance(loss, MyChunks.Config) else 8)
    plain = fit(result, enable=False).loss
    assert type(plain) is type(loss) and plain == loss


@pytest.mark.parametrize("projector_ratio", [4.0, 2.0])
def test_a_second_application_replaces_the_options(config, projector_ratio):
    nitp = NITPConfig(target_layer=3, weight=0.4, projector_ratio=projector_ratio)
    again = with_nitp(with_nitp(config, NITPConfig(target_layer=2)), nitp)
    expected = with_nitp(config, nitp)
    assert again.nitp == nitp and again.to_dict() == expected.to_dict()
    assert [type(getattr(again, f.name)) for f in fields(again)] == [
        type(getattr(expected, f.name)) for f in fields(expected)
    ]
    # The functions around the model are put on once.
    assert again.model_spec.parallelize_fn is expected.model_spec.parallelize_fn
    off = with_nitp(again, NITPConfig(enable=False))
    assert off.loss == config.loss and off.model_spec.model == config.model_spec.model


# ------------------------------------------------------------------------ a user's own classes


class MyMetrics(MetricsProcessor):
    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        channel: str = "#runs"


class MyValidator(Validator):
    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        per_domain: bool = True


class MyCheckpoints(CheckpointManager):
    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        bucket: str = "s3"


class MyNITPMetrics(NITPMetricsProcessor):
    @dataclass(kw_only=True, slots=True)
    class Config(NITPMetricsProcessor.Config):
        channel: str = "#runs"


OWN = {
    "metrics": MyMetrics.Config(),
    "validator": MyValidator.Config(),
    "checkpoint": MyCheckpoints.Config(),
}


@pytest.mark.parametrize("name", OWN)
def test_a_users_own_class_is_extended_with_its_fields(config, name):
    own = OWN[name]
    (field,) = {f.name for f in fields(own)} - {f.name for f in fields(type(own).__mro__[1])}
    extended = getattr(with_nitp(replace(config, **{name: own}), NITPConfig(target_layer=2)), name)
    assert isinstance(extended, type(own)) and getattr(extended, field) == getattr(own, field)
    assert issubclass(built_class(extended), COMPONENTS[name][1])


class OtherCheckpoints(BaseCheckpointManager):
    """As TorchTitan's TorchCheckpointingManager: beside DCP's, not derived from it."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseCheckpointManager.Config):
        pass


def test_another_checkpoint_manager_than_dcps_is_kept(config):
    own = OtherCheckpoints.Config(interval=7)
    assert with_nitp(replace(config, checkpoint=own), NITPConfig(target_layer=2)).checkpoint is own


def test_a_validator_that_is_none_is_refused_by_name(config):
    own: Any = BaseValidator.Config()
    message = r"validator \(BaseValidator.Config\) must be .* Derive BaseValidator from it"
    with pytest.raises(ValueError, match=message):
        with_nitp(replace(config, validator=own), NITPConfig(target_layer=2))


@pytest.mark.parametrize("name", OWN)
def test_a_users_own_class_is_kept_without_nitp(config, name):
    result = with_nitp(replace(config, **{name: OWN[name]}), NITPConfig(enable=False))
    assert getattr(result, name) is OWN[name]


def test_a_users_own_subclass_of_nitps_is_kept(config):
    own = MyNITPMetrics.Config(channel="#nitp")
    assert with_nitp(replace(config, metrics=own), NITPConfig(target_layer=2)).metrics is own


# ------------------------------------------------------------------------ options changed later


def fit(config: NITPTrainer.Config, **options) -> NITPTrainer.Config:
    """As the trainer does it, after the command line has changed these options."""
    config = replace(config, nitp=replace(config.nitp, **options))
    return replace(config, **fit_parts(config, config.nitp))


@pytest.mark.parametrize("options", [{"enable": False}, {"weight": 0.0}])
def test_nitp_turned_off_later_gives_the_plain_model_and_loss_back(config, options):
    result = fit(with_nitp(config, NITPConfig(target_layer=2)), **options)
    assert type(result.model_spec.model) is Llama3Model.Config
    assert result.model_spec.model == config.model_spec.model
    assert result.loss == config.loss and type(result.loss) is ChunkedLossWrapper.Config


def test_nitp_turned_on_later_is_nitp(config):
    result = fit(with_nitp(config, NITPConfig(enable=False, target_layer=2)), enable=True)
    expected = with_nitp(config, NITPConfig(target_layer=2))
    assert result.to_dict() == expected.to_dict()
    for field in fields(result):
        assert type(getattr(result, field.name)) is type(getattr(expected, field.name)), field.name


def test_a_fitted_configuration_fits(config):
    once = with_nitp(config, NITPConfig(target_layer=2))
    again = fit(once)
    for name in ("model_spec", "loss", "metrics", "validator", "checkpoint"):
        assert getattr(again, name) is getattr(once, name), name


@pytest.mark.parametrize(
    ("options", "width"),
    [({"projector_ratio": 2.0}, 512), ({"projector": "none"}, 0), ({"loss": "token_cosine"}, 0)],
)
def test_another_projector_than_was_built_is_refused(config, options, width):
    config = with_nitp(config, NITPConfig(target_layer=2))
    message = rf"nitp.projector .* of width {width}, but with_nitp has built one of width 1024"
    with pytest.raises(ValueError, match=message):
        fit(config, **options)


def test_a_class_put_in_later_is_extended_too(config):
    config = with_nitp(config, NITPConfig(target_layer=2))
    later = fit(replace(config, metrics=OWN["metrics"])).metrics
    assert later.channel == "#runs" and issubclass(built_class(later), NITPMetricsProcessor)


@pytest.mark.parametrize(("start_step", "is_error"), [(10, False), (11, True)])
def test_a_start_after_the_last_step_is_refused(config, start_step, is_error):
    config = replace(config, training=TrainingConfig(steps=10))
    nitp = NITPConfig(target_layer=2, start_step=start_step)
    message = r"nitp.start_step \(11\) must be at most training.steps \(10\).* Lower it"
    with pytest.raises(ValueError, match=message) if is_error else nullcontext():
        check_composition(with_nitp(config, nitp), nitp, GeometryConfig())


def test_the_options_defaults_are_the_papers_for_9b():
    """Method section 2, Table 4: k 5 of 24, lambda 0.8; section 1 for the rest."""
    assert asdict(NITPConfig()) == {
        "enable": True, "target_layer": 5, "weight": 0.8, "start_step": 0, "loss": "cosine",
        "shift": 1, "stop_gradient": True, "hidden": "post_norm", "projector": "swiglu",
        "projector_ratio": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_layer": -1}, r"nitp.target_layer \(-1\) must not be negative"),
        ({"weight": -0.1}, r"nitp.weight \(-0.1\) must be finite"),
        ({"weight": float("nan")}, r"nitp.weight \(nan\) must be finite"),
        ({"start_step": -1}, r"nitp.start_step \(-1\) must be at least 0"),
        ({"projector_ratio": 0.0}, r"nitp.projector_ratio \(0.0\) must be finite"),
        ({"loss": "cos"}, r"nitp.loss \('cos'\) is not a valid choice"),
        ({"shift": 2}, r"nitp.shift \(2\) is not a valid choice"),
    ],
)
def test_each_option_out_of_range_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        NITPConfig(**options)
