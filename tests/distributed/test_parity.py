"""The parity matrix, and what it stands on. `python scripts/parity.py` prints its figures."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from recipes.parity.cells import select_cells
from recipes.parity.matrix import Outcome, compare_cells
from recipes.parity.world import Case, Failure, Result, run_cases
from tests.waiting import block

ENTRIES = {entry.id: entry for entry in select_cells("cpu", max_ranks=8) if not entry.not_run}
DEBUG = "train_configs/debug.toml"
TINY = [
    "--model.num_layers=1", "--model.dim=32", "--nitp.target_layer=1", "--training.seq_len=64",
    "--training.local_batch_size=1", "--training.global_batch_size=2",
    "--validation.enable=false",
]  # fmt: skip


def over_cells(*ids: str) -> pytest.MarkDecorator:
    """Parametrise a test over these cells, or all of them."""
    return pytest.mark.parametrize(
        "cell",
        [
            pytest.param(name, marks=[pytest.mark.slow] if ENTRIES[name].cell.slow else [])
            for name in ids or ENTRIES
        ],
    )


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """Of the cells that the selected tests ask for, by id."""
    items = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params.get("cell") for item in items if hasattr(item, "callspec")}
    selected = [entry for name, entry in ENTRIES.items() if name in wanted]
    return {outcome.selected.id: outcome for outcome in compare_cells(selected)}


@over_cells()
def test_a_technique_changes_nothing(outcomes, cell):
    assert outcomes[cell].has_passed, outcomes[cell].failure
    assert outcomes[cell].result.num_accumulated >= 2


@over_cells("dense-fsdp_2", "moe-hsdp_2x2", "dense-tp_2_sequence_parallel", "moe-cp_2_headtail")
def test_initial_values_do_not_depend_on_the_layout(outcomes, cell):
    drawn, whole = outcomes[cell].result.initial, outcomes[cell].reference.initial
    assert drawn.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(drawn[name], value), name


@over_cells("dense-fsdp_2", "moe-fsdp_2")
def test_the_logged_losses_and_cosine_fit_together(outcomes, cell):
    """1e-6: one float32 addition."""
    for metrics in outcomes[cell].result.metrics:
        ntp, nitp = metrics["loss_metrics/ntp_loss"], metrics["loss_metrics/nitp_loss"]
        total = ntp + metrics["nitp/weight"] * nitp
        assert metrics["loss_metrics/global_avg_loss"] == pytest.approx(total, rel=1e-6)
        assert metrics["nitp/cosine"] == pytest.approx(1 - nitp, abs=1e-6)


@contextmanager
def hang_on_rank_1(trainer) -> Iterator[None]:
    if torch.distributed.get_rank() == 1:
        block()
    yield


@contextmanager
def fail_on_rank_1(trainer) -> Iterator[None]:
    if torch.distributed.get_rank() == 1:
        raise ValueError("two\nlines")
    yield


def two_ranks(name: str, probe: str | None = None) -> Case:
    path = f"{__name__}:{probe}" if probe else None
    return Case(name, DEBUG, TINY, num_steps=1, legs=[(2, [])], probe=path)


def test_a_rank_that_fails_is_named_and_does_not_stop_the_next_case():
    cases = [two_ranks("fails", "fail_on_rank_1"), two_ranks("works")]
    (_, failure), (_, result) = run_cases(cases)
    assert isinstance(failure, Failure) and isinstance(result, Result)
    assert str(failure) == "rank 1 of 2: ValueError: two lines"
    assert "fail_on_rank_1" in failure.log


@pytest.mark.slow
def test_ranks_that_hang_are_ended():
    """Wherever they are by then: the slower they start, the earlier."""
    limit_s = 20.0
    ((_, failure),) = run_cases([two_ranks("hangs", "hang_on_rank_1")], timeout_s=limit_s)
    assert str(failure) == "rank 0 of 2: no end within 20 s"
