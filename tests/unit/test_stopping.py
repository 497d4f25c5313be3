"""A validation ends where the ranks have agreed to stop."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nitp.validate import NITPValidator
from recipes.run import stopping
from recipes.run.stopping import StopAgreement, UntilStopLoader
from recipes.run.validate import LossReader, RunValidator


@pytest.fixture
def others(monkeypatch) -> list[float]:
    """What the other ranks answer to the questions to come."""
    answers: list[float] = []

    def add_others(flag: torch.Tensor) -> None:
        flag += answers.pop(0) if answers else 0.0

    monkeypatch.setattr(stopping.dist, "all_reduce", add_others)
    return answers


def build(asked: list[bool]) -> StopAgreement:
    return StopAgreement(torch.device("cpu"), lambda: bool(asked))


def test_what_one_rank_was_asked_all_know_one_question_later(others):
    agreement = build([])
    others += [0.0, 3.0]
    assert [agreement.ask() for _ in range(4)] == [False, False, True, True]
    own = [True]
    agreement = build(own)
    assert not agreement.ask() and agreement.read() and agreement.is_reached


@pytest.mark.parametrize(("batches_per_step", "num_read"), [(1, 2), (3, 6)])
def test_a_loader_ends_where_a_step_would_begin(others, batches_per_step, num_read):
    config = SimpleNamespace(build=lambda **options: range(100))
    loader = UntilStopLoader(config, build([]), batches_per_step)
    others += [0.0, 1.0]
    assert list(loader.build()) == list(range(num_read))
    assert loader.was_cut


def test_a_loader_that_nobody_stops_gives_all(others):
    loader = UntilStopLoader(SimpleNamespace(build=lambda **options: range(5)), build([]), 2)
    assert list(loader.build()) == [0, 1, 2, 3, 4] and not loader.was_cut


def validator(num_sets: int, agreement: StopAgreement, logged: list) -> Any:
    """One that has its own documents and `num_sets` sets, of three batches each, all of loss 1."""

    def reader(kind: type) -> Any:
        made: Any = object.__new__(kind)
        made._catcher = SimpleNamespace(loss=1.0)
        made._stop = agreement
        config = SimpleNamespace(build=lambda **options: range(3))
        made.dl_config = UntilStopLoader(config, agreement, 1)
        return made

    made = reader(RunValidator)
    made._readers = [reader(LossReader) for _ in range(num_sets)]
    made._sets = [f"set {i}" for i in range(num_sets)]
    made._metrics = SimpleNamespace(
        log_validation=lambda loss, step, set_losses: logged.append((loss, step, set_losses))
    )
    return made


@pytest.mark.parametrize("stops_at", range(10))
def test_figures_are_logged_if_and_only_if_all_batches_of_all_sets_were_read(
    others, monkeypatch, stops_at
):
    """Nine questions in two sets and the documents held out, of three batches each."""
    num_read: list[int] = []

    def read(self: NITPValidator, model_parts: list, step: int) -> None:
        num_read.append(len([*self.dl_config.build()]))

    monkeypatch.setattr(NITPValidator, "validate", read)
    logged: list[Any] = []
    others += [0.0] * stops_at + [1.0]
    agreement = build([])
    validator(2, agreement, logged).validate([], 7)
    is_whole = sum(num_read) == 9
    assert is_whole == (stops_at >= 8), "the answer to the last question comes after all batches"
    assert logged == ([(1.0, 7, [("set 0", 1.0), ("set 1", 1.0)])] if is_whole else [])
    assert agreement.is_reached == (stops_at < 9)
    assert all(num_read), "a validator that has read nothing would fail"
