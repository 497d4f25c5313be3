"""with_nitp changes what it must, refuses the rest, and leaves its argument alone."""

from dataclasses import replace

import pytest
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss, MSELoss
from torchtitan.models.llama3 import model_registry
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.trainer import Trainer

from nitp import NITPConfig, with_nitp
from nitp.decoder import nitp_decoder_class
from nitp.loss import NITPLoss
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
    assert result.loss.num_chunks == 2 and result.loss.nitp.target_layer == 2
    assert result.training == config.training and result.optimizer == config.optimizer


@pytest.mark.parametrize("options", [{"enable": False}, {"weight": 0.0}])
def test_an_inactive_nitp_leaves_model_and_loss_untouched(config, options):
    result = with_nitp(config, NITPConfig(**options))
    assert result.model_spec is config.model_spec and result.loss is config.loss


def test_one_subclass_per_decoder_class():
    assert nitp_decoder_class(Llama3Model) is nitp_decoder_class(Llama3Model)


def test_a_target_beyond_the_last_layer_is_refused(config):
    depth = len(config.model_spec.model.layers)
    with pytest.raises(ValueError, match=rf"nitp.target_layer \({depth + 1}\) must be at most"):
        with_nitp(config, NITPConfig(target_layer=depth + 1))


@pytest.mark.parametrize(
    "loss", [CrossEntropyLoss.Config(), ChunkedLossWrapper.Config(loss_fn=MSELoss.Config())]
)
def test_another_loss_is_refused(config, loss):
    with pytest.raises(ValueError, match="must be ChunkedLossWrapper over CrossEntropyLoss"):
        with_nitp(replace(config, loss=loss), NITPConfig(target_layer=2))


def test_a_second_application_is_refused(config):
    once = with_nitp(config, NITPConfig(target_layer=2))
    with pytest.raises(ValueError, match="Apply it once"):
        with_nitp(once, NITPConfig(target_layer=2))


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
