"""The paper's runs, scaled down, and its ablations on the debug model, as a user starts them."""

import math
from pathlib import Path

import pytest

from tests.launch import read_curves, run

MODELS = ("1.9b", "3b", "9b", "45b", "dense_0.5b", "dense_2b", "dense_3b")
RUNS = [f"{kind}_{name}" for name in MODELS for kind in ("ntp", "nitp")]
# Layers, target layer, widths, experts, sequences and steps are cut, and the data are here; heads,
# recomputation, expert parallelism, validation, schedule and checkpoints stay.
SCALED_DOWN = [
    "--model.vocab_size=8192", "--model.num_layers=5", "--model.dim=64", "--model.head_dim=8",
    "--model.ffn_dim=128", "--tokenizer.path=embedded://python-bpe-8k",
    "--data.sources=[{path = 'embedded://python'}]", "--data.num_streams=8",
    "--data.num_workers=1", "--data.validation_fraction=0.05", "--training.seq_len=128",
    "--training.local_batch_size=2", "--training.global_batch_size=8", "--training.steps=3",
    "--lr_scheduler.warmup_steps=1", "--lr_scheduler.decay_ratio=0.7", "--metrics.log_freq=1",
    "--debug.enable_structured_logging=false",
]  # fmt: skip
WITH_EXPERTS = [
    "--model.num_experts=8", "--model.top_k=2", "--model.expert_dim=32",
    "--parallelism.expert_parallel_degree=2",
]  # fmt: skip
NUM_ABLATION_STEPS = 20
# Of every row of the paper's ablations; layers and steps are the debug model's.
ABLATIONS = {
    "baseline": "nitp.enable=false",
    **{f"layer_{k}": f"nitp.target_layer={k}" for k in range(9)},
    "no_shift": "nitp.shift=0",
    "mse": "nitp.loss=mse",
    "smooth_l1": "nitp.loss=smooth_l1",
    "kl": "nitp.loss=kl",
    "token_cosine": "nitp.loss=token_cosine",
    "no_stop_gradient": "nitp.stop_gradient=false",
    "start_step": "nitp.start_step=11",
    "no_projector": "nitp.projector=none",
    "weight": "nitp.weight=0.5",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_scaled_down_copy_trains_three_steps(tmp_path: Path, name: str) -> None:
    is_nitp, is_dense = name.startswith("nitp"), "dense" in name
    arguments = [
        f"--job.config_file=train_configs/{name}.toml", f"--job.dump_folder={tmp_path}",
        *SCALED_DOWN, *([] if is_dense else WITH_EXPERTS),
        *(["--nitp.target_layer=1"] if is_nitp else []),
    ]  # fmt: skip
    run(arguments, tmp_path / "logs", num_ranks=1 if is_dense else 2)
    curves = read_curves(tmp_path)
    for tag in ("loss_metrics/global_avg_loss", "grad_norm", "lr/AdamW"):
        assert sorted(curves[tag]) == [1, 2, 3] and all(map(math.isfinite, curves[tag].values()))
    assert ("loss_metrics/nitp_loss" in curves) == is_nitp
    assert curves["validation_metrics/loss"].keys() == {1}
    # Of two steps of decay the run has one; the other is TorchTitan's virtual last step.
    half = 10**-0.5 if "45b" in name else 0.5
    assert curves["lr/AdamW"][3] == pytest.approx(half * curves["lr/AdamW"][1], rel=1e-6)
    assert (tmp_path / "checkpoint/step-3/.metadata").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_twenty_steps_on_the_debug_model(tmp_path: Path, name: str) -> None:
    arguments = [
        "--job.config_file=train_configs/debug.toml", f"--{ABLATIONS[name]}",
        f"--job.dump_folder={tmp_path}", f"--training.steps={NUM_ABLATION_STEPS}",
        "--training.seq_len=128", "--training.global_batch_size=4", "--lr_scheduler.warmup_steps=5",
        "--validation.enable=false", "--metrics.log_freq=1",
        "--debug.enable_structured_logging=false",
    ]  # fmt: skip
    run(arguments, tmp_path / "logs")
    curves = read_curves(tmp_path)
    kind = "global_avg" if name == "baseline" else "ntp"
    ntp_loss = curves[f"loss_metrics/{kind}_loss"]
    assert len(ntp_loss) == NUM_ABLATION_STEPS and ntp_loss[NUM_ABLATION_STEPS] < ntp_loss[1] - 1
    assert ("loss_metrics/nitp_loss" in curves) == (name != "baseline")
    if name != "baseline":
        nitp_loss = curves["loss_metrics/nitp_loss"]
        first = 11 if name == "start_step" else 1
        assert sorted(nitp_loss) == list(range(first, NUM_ABLATION_STEPS + 1))
        assert all(map(math.isfinite, nitp_loss.values()))
