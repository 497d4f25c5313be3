"""Names from a closed set: which, and how a wrong one reads."""

import pytest
import torch.utils.checkpoint as activation_checkpoint
from torch.distributed.pipelining.schedules import get_schedule_class
from torchtitan.components.checkpointer import base

from recipes.config.choices import CHOICES
from recipes.config.rules import check_settings
from recipes.config.settings import SettingsError, resolve_settings
from recipes.run.checkpoint_folder import RANDOM_STATE

FLAVOR = "--model.flavor=debug"
PP = "--parallelism.pipeline_parallel_degree=2"
CP = "--parallelism.context_parallel_degree=2"
LOAD = ["--checkpoint.enable", "--checkpoint.exclude_from_loading"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compile.enable", "--compile.components=modle"],
         'compile.components ("modle") does not exist. Did you mean model?'),
        (["--compile.enable", "--compile.components=model,model"],
         'compile.components: "model" is there twice'),
        (["--compile.enable", "--compile.components="], "compile.components ([]) must have"),
        ([*LOAD, "optimiser"],
         'checkpoint.exclude_from_loading ("optimiser") does not exist. Did you mean optimizer?'),
        ([*LOAD, "model"], 'checkpoint.exclude_from_loading ("model") does not exist'),
        ([PP, "--parallelism.pipeline_parallel_schedule=1f1b"], "Did you mean 1F1B?"),
        ([PP, "--parallelism.pipeline_parallel_schedule=zbvzerobubble"],
         "Did you mean ZBVZeroBubble?"),
        ([CP, "--parallelism.context_parallel_load_balancer=headtial"], "Did you mean headtail?"),
        (["--activation_checkpoint.mode=full", "--activation_checkpoint.determinism_check=x"],
         'activation_checkpoint.determinism_check ("x") does not exist. Use one of default, none.'),
        (["--float8.enable", "--float8.filter_fqns=lm_head,lm_head"], "is there twice"),
        (["--float8.enable", '--float8.filter_fqns=[""]'], 'float8.filter_fqns: "" is empty'),
        (["--override.imports=a.b,a.b"], 'override.imports: "a.b" is there twice'),
    ],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_refused_before_torch(arguments, message):
    with pytest.raises(SettingsError) as caught:
        check_settings(resolve_settings(None, [FLAVOR, *arguments]))
    assert str(caught.value).startswith("command line: ") and message in str(caught.value)


@pytest.mark.parametrize("option", CHOICES)
def test_every_name_that_exists_is_taken(option):
    given = ["--compile.enable", "--checkpoint.enable", PP, CP, "--activation_checkpoint.mode=full"]
    for name in CHOICES[option]:
        check_settings(resolve_settings(None, [FLAVOR, *given, f"--{option}={name}"]))


def test_the_names_are_those_of_pytorch_and_torchtitan():
    for schedule in CHOICES["parallelism.pipeline_parallel_schedule"]:
        assert get_schedule_class(schedule).__name__ == f"Schedule{schedule}"
    states = {base.OPTIMIZER, base.LR_SCHEDULER, base.DATALOADER, base.TRAIN_STATE, RANDOM_STATE}
    assert states == {*CHOICES["checkpoint.exclude_from_loading"]}
    checks = activation_checkpoint._allowed_determinism_checks_to_fns
    assert {*checks} == {*CHOICES["activation_checkpoint.determinism_check"]}
