"""with_nitp around someone else's trainer: NITP trains as with TorchTitan's, and their overrides
are called as without NITP."""

from pathlib import Path

import pytest

from tests.launch import assert_equal_states
from tests.torchtitan_user import User

REGISTRY = Path(__file__).parents[1] / "stand_ins" / "own_classes.py"


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> User:
    return User(tmp_path_factory.mktemp("user"), REGISTRY.read_text())


@pytest.fixture(scope="module")
def reference(user):
    return user.train("reference", config="reference")


def calls(user: User, name: str) -> dict[str, int]:
    lines = (user.folder / name / "calls.txt").read_text().splitlines()
    return {key: int(count) for key, _, count in (line.partition("=") for line in lines)}


def test_ones_own_classes_train_nitp_as_torchtitans_do_and_are_called(user, reference):
    assert user.train("mine", config="mine_nitp") == reference
    assert_equal_states(user.state("mine", 3), user.state("reference", 3))
    # 3 steps of 4 batches of 2 rows, validated at steps 1 and 2 on 3 batches.
    assert calls(user, "mine") == {
        "trainer bert": 1, "train_step": 3, "forward_backward_step": 12,
        "post_dataloading_process": 12, "log #mine": 3, "validate": 2, "validation batch": 6,
        "log_validation": 2, "save": 3,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--nitp.no-enable", "--nitp.weight=0"])
def test_without_nitp_ones_own_classes_train_as_they_do_alone(user, option):
    name = option.strip("-")
    alone = user.train(f"alone{name}", config="mine")
    curves = user.train(name, option, config="mine_nitp")
    ntp_loss = {"loss_metrics/ntp_loss": alone["loss_metrics/global_avg_loss"]}
    assert curves == alone | ntp_loss
    assert_equal_states(user.state(name, 3), user.state(f"alone{name}", 3))
    assert calls(user, name) == calls(user, f"alone{name}")


@pytest.mark.slow
def test_a_loss_without_chunks_is_the_same_to_rounding(user, reference):
    curves = user.train("whole", config="whole_loss")
    for tag in ("loss_metrics/ntp_loss", "loss_metrics/nitp_loss", "validation_metrics/loss"):
        # 1e-6: sums of float32 in chunks of another size.
        assert curves[tag] == pytest.approx(reference[tag], rel=1e-6), tag


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_ranks"), [("fault_tolerant", 1), ("graph", 1), ("graph", 2)]
)
def test_torchtitans_other_trainers_train_nitp_to_the_same_losses(
    user, reference, config, num_ranks
):
    if num_ranks > 1:  # TorchTitan's loader gives other rows to two ranks
        reference = user.train(f"reference{num_ranks}", config="reference", num_ranks=num_ranks)
    curves = user.train(f"{config}{num_ranks}", config=config, num_ranks=num_ranks)
    for tag in (
        "loss_metrics/ntp_loss", "loss_metrics/nitp_loss", "nitp/cosine", "nitp/valid_fraction",
        "grad_norm", "nitp/projector_grad_norm", "validation_metrics/loss",
        "validation_metrics/nitp_loss",
    ):  # fmt: skip
        # 1e-5: float32 sums of another order, after up to two updates.
        assert curves[tag] == pytest.approx(reference[tag], rel=1e-5), tag


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("forgetful", "ValueError: NITPForgetfulTrainer calls its model without pair_weight_BL"),
        ("hasty", "ValueError: NITPHastyTrainer updates weights without a call of its loss_fn"),
        ("traced_graph", 'ValueError: compile.mode ("aot_fx_trace") must be None'),
        ("no_decoder", "ValueError: with_nitp needs a decoder-only language model; model_spec has"),
    ],
)
def test_a_trainer_that_goes_past_nitp_is_refused_in_its_first_step(user, config, message):
    assert user.refusal(config=config).startswith(message)
    assert not (user.folder / "bad" / "checkpoint").exists()
