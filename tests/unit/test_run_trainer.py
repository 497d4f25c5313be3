"""What a run's trainer takes over from a checkpoint, and when it looks at a step's numbers."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from nitp.trainer import NITPTrainer
from recipes.run.trainer import RunTrainer


def build(*, dp_replicate: int = 1, dp_shard: int, cp: int = 1, num_accumulated: int = 1) -> Any:
    """A trainer of batches of 3 rows, with nothing but its counts and degrees."""
    trainer: Any = object.__new__(RunTrainer)
    batch = SimpleNamespace(size=lambda: dp_replicate * dp_shard)
    trainer.parallel_dims = SimpleNamespace(
        dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, dp_enabled=True,
        get_mesh=lambda name: {"batch": batch}[name],
    )  # fmt: skip
    trainer.config = SimpleNamespace(training=SimpleNamespace(local_batch_size=3, steps=20))
    trainer.gradient_accumulation_steps = num_accumulated
    trainer.step = trainer.ntokens_seen = trainer.num_skipped_steps = 0
    return trainer


def test_counts_resume_on_another_layout():
    """Tokens are counted by rank: 1000 on each of 8, so 2000 on each of 4."""
    saved = build(dp_replicate=2, dp_shard=2, cp=2)
    saved.step, saved.ntokens_seen, saved.num_skipped_steps = 7, 1000, 3
    resumed = build(dp_shard=4)
    resumed.load_state_dict(saved.state_dict())
    assert (resumed.step, resumed.ntokens_seen, resumed.num_skipped_steps) == (7, 2000, 3)


def test_another_global_batch_than_the_checkpoints_is_refused():
    """3 rows on each of 4 ranks are 12, as are 3 rows twice on 2; once on 2 they are 6."""
    saved = build(dp_replicate=2, dp_shard=2).state_dict()
    build(dp_shard=2, num_accumulated=2).load_state_dict(saved)
    message = "training.global_batch_size is 6 with this number of ranks and was 12 in the check"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(dp_shard=2).load_state_dict(saved)


@pytest.mark.parametrize(
    ("saves", "validates", "looks"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_a_steps_numbers_are_known_before_it_is_saved_or_validated(
    monkeypatch, saves, validates, looks
):
    """At other steps the host does not wait for them."""
    trainer, judged = build(dp_shard=1), []
    trainer.num_steps_run, trainer.is_stopping = 1, False
    trainer.dataloader = SimpleNamespace(num_rows=0, has_end=False)
    trainer.checkpointer = SimpleNamespace(will_save=lambda step, last_step: saves)
    trainer.metrics_processor = SimpleNamespace(flush=lambda: None)
    trainer.config.validator = SimpleNamespace(enable=True)
    trainer.validator = SimpleNamespace(should_validate=lambda step: validates)
    trainer._health = SimpleNamespace(read=lambda: "verdict")
    trainer._judge = judged.append
    monkeypatch.setattr(NITPTrainer, "train_step", lambda self, batches: None)
    trainer.train_step(iter(()))
    assert judged == ["verdict"] * looks
