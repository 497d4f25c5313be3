"""What a person sees of a run, against its curves."""

from tests.launch import PIPELINE, SMALL, read_curves, run


def test_the_first_pipeline_stage_prints_the_loss_that_only_the_last_one_has(tmp_path):
    """And one learning rate, which both groups of parameters have."""
    folder = tmp_path / "run"
    first, last = run(
        [*SMALL, *PIPELINE, f"--job.dump_folder={folder}", "--training.steps=2",
         "--nitp.weight=0.7", "--validation.enable", "--validation.freq=2", "--validation.steps=1",
         "--checkpoint.enable=false", "--optimizer.decay_norms_and_embeddings=false"],
        tmp_path / "log", 2,
    )  # fmt: skip
    curves, text = read_curves(folder), first.text()
    for step in (1, 2):
        total, ntp, nitp, cosine, grad_norm = (
            curves[tag][step]
            for tag in ("loss_metrics/global_avg_loss", "loss_metrics/ntp_loss",
                        "loss_metrics/nitp_loss", "nitp/cosine", "grad_norm")
        )  # fmt: skip
        assert ntp < total < 2 * ntp
        assert (
            f"step      {step}  loss {total:8.4f}  ntp {ntp:8.4f}  nitp {nitp:.4f}  "
            f"cosine {cosine:6.4f}  valid 0."
        ) in text
        rate = curves["lr/AdamW/0"][step]
        assert rate == curves["lr/AdamW/1"][step]
        assert f"  grad_norm {grad_norm:7.3f}  lr {rate:.2e}  tokens/s " in text
        ntp, nitp = (curves[f"validation_metrics/{tag}"][step] for tag in ("loss", "nitp_loss"))
        assert f"validation  step      {step}  ntp {ntp:7.4f}  nitp {nitp:.4f}\n" in text
    assert "  loss " not in last.text(), "the line is rank 0's"
