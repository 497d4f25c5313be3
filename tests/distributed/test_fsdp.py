"""One process and several FSDP2 ranks train the same model on the same data to the same losses."""

import pytest

from tests.distributed.world import Case, relative_difference, run_world

DENSE, MOE = "train_configs/debug.toml", "train_configs/debug_moe.toml"
# Global batch 8 in batches of 2: 4 accumulation steps on one rank, 2 on two.
ACCUMULATE = ["--training.local_batch_size=2", "--training.global_batch_size=8"]
SHORT = [*ACCUMULATE, "--validation.steps=1", "--training.seq_len=64", "--model.num_layers=3"]
CASES = [
    Case("dense", DENSE, [*ACCUMULATE, "--validation.steps=1"], num_steps=5, validate=True),
    Case("moe", MOE, [*ACCUMULATE, "--validation.steps=1"], num_steps=5, validate=True),
    Case("no_stop_gradient", DENSE, [*SHORT, "--nitp.stop_gradient=false"]),
    Case("token_cosine", DENSE, [*SHORT, "--nitp.loss=token_cosine"], validate=True),
    Case("pre_norm", DENSE, [*SHORT, "--nitp.hidden=pre_norm"]),
]
LOSSES = ("global_avg_loss", "ntp_loss", "nitp_loss")


@pytest.fixture(scope="module")
def worlds():
    return run_world(CASES, (1, 2))


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_two_ranks_give_the_losses_of_one_process(worlds, name):
    """1e-5: float32 sums in another order, over a few optimizer steps."""
    one, two = worlds[name, 1].metrics, worlds[name, 2].metrics
    assert len(one) == len(two) >= 3
    for step, (a, b) in enumerate(zip(one, two, strict=True), start=1):
        for loss in LOSSES:
            key = f"loss_metrics/{loss}"
            assert b[key] == pytest.approx(a[key], rel=1e-5), f"{loss} at step {step}"


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_two_ranks_give_every_gradient_of_one_process(worlds, name):
    """1e-5: float32 sums in another order."""
    one, two = worlds[name, 1].grads, worlds[name, 2].grads
    assert one.keys() == two.keys()
    for parameter, grad in one.items():
        assert relative_difference(two[parameter], grad) < 1e-5, parameter


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_metrics_are_global_means_on_any_number_of_ranks(worlds, name):
    for a, b in zip(worlds[name, 1].metrics, worlds[name, 2].metrics, strict=True):
        for key in (
            "nitp/cosine",
            "nitp/valid_fraction",
            "nitp/weight",
            "nitp/grad_ratio",
            "nitp/projector_grad_norm",
            "grad_norm",
            "n_tokens_seen",
        ):
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-5), key
        assert a["loss_metrics/global_avg_loss"] == pytest.approx(
            a["loss_metrics/ntp_loss"] + a["nitp/weight"] * a["loss_metrics/nitp_loss"], rel=1e-6
        )
        assert a["nitp/cosine"] == pytest.approx(1 - a["loss_metrics/nitp_loss"], abs=1e-6)


@pytest.mark.parametrize("name", ["dense", "moe", "token_cosine"])
def test_validation_is_the_same_on_any_number_of_ranks(worlds, name):
    one, two = worlds[name, 1].validation, worlds[name, 2].validation
    for key in ("validation_metrics/loss", "validation_metrics/nitp_loss"):
        assert two[key] == pytest.approx(one[key], rel=1e-5), key
