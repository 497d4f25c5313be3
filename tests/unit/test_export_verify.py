"""What verification must not let pass: in the files, in the logits, in generated text."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.export import verify
from recipes.export.verify import NEAR_TIE, Comparison, check_files, compare_logits
from recipes.export.writer import INDEX_NAME, write_weights
from recipes.models.hf.mapping import Entry

OURS_LV = torch.zeros(4, 3)
CLEAR_L = torch.full((4,), float("inf"))


def test_the_largest_difference_of_all_rows_is_kept():
    comparison = Comparison(depth=1)
    for difference in (1e-6, 3e-5, 2e-6):
        theirs_LV = OURS_LV.clone()
        theirs_LV[2, 1] = -difference
        assert comparison.add(OURS_LV, theirs_LV, CLEAR_L) == 4
    assert math.isclose(comparison.max_difference, 3e-5, rel_tol=1e-6)
    assert (comparison.num_positions, comparison.num_left_out) == (12, 0)


def test_not_a_number_is_no_agreement():
    comparison = Comparison(depth=1)
    comparison.add(OURS_LV, torch.full((4, 3), float("nan")), CLEAR_L)
    comparison.add(OURS_LV, OURS_LV, CLEAR_L)
    assert math.isnan(comparison.max_difference)


def test_a_near_tie_leaves_out_its_position_and_those_after_it():
    gap_L = torch.tensor([1.0, 2 * NEAR_TIE, NEAR_TIE / 2, 1.0])
    theirs_LV = OURS_LV.clone()
    theirs_LV[2:] = 7.0
    comparison = Comparison(depth=1)
    assert comparison.add(OURS_LV, theirs_LV, gap_L) == 2
    assert (comparison.max_difference, comparison.num_left_out) == (0.0, 2)
    assert comparison.add(OURS_LV, theirs_LV, torch.zeros(4)) == 0


FOLDER = Path("unread")
ROW = [5, 3, 2, 4]
# What the stock model gave: all of a row of four tokens, and the last three of a generated one.
GIVEN = [
    (torch.tensor(ROW), torch.zeros(4, 3)),
    (torch.tensor([5, 3, 2, 4, 1]), torch.zeros(3, 3)),
]


def compare_with(monkeypatch, difference: float, row: int, position: int, gap=None) -> Comparison:
    """Logits of our own that differ in one position of one of GIVEN."""
    monkeypatch.setattr(verify, "_run_stock_model", lambda *arguments: iter(GIVEN))

    def ours(tokens_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = 0 if tokens_BL.shape[1] == 4 else 1
        assert torch.equal(tokens_BL[0], GIVEN[index][0])
        logits_BLV = torch.zeros(1, tokens_BL.shape[1], 3)
        if index == row:
            logits_BLV[0, position, 1] = difference
        gap_BL = torch.full(tokens_BL.shape, float("inf"))
        if gap is not None and index == gap[0]:
            gap_BL[0, gap[1]] = NEAR_TIE / 2
        return logits_BLV, gap_BL

    return compare_logits(FOLDER, lambda: ours, [ROW], depth=1)


@pytest.mark.parametrize(("row", "position"), [(0, 0), (0, 3), (1, 2), (1, 4)])
def test_a_logit_that_is_off_by_more_than_1e_4_fails(monkeypatch, row, position):
    result = compare_with(monkeypatch, 0.9e-4, row, position)
    assert (result.num_positions, result.num_generated, result.num_left_out) == (7, 3, 0)
    for difference in (1.1e-4, -1.1e-4, 1e-2, float("nan")):
        with pytest.raises(ValueError, match="differ from our model's by"):
            compare_with(monkeypatch, difference, row, position)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_near_tie_in_the_prompt_leaves_out_all_that_it_generates(monkeypatch, position):
    result = compare_with(monkeypatch, 7.0, 1, 2, gap=(1, position))
    assert (result.num_positions, result.num_generated, result.num_left_out) == (4, 0, 3)


def test_near_ties_that_leave_less_than_half_to_compare_fail(monkeypatch):
    with pytest.raises(ValueError, match="near-ties left only 3 positions to compare, of 7"):
        compare_with(monkeypatch, 0.0, 0, 0, gap=(0, 0))


ENTRIES = [
    Entry(name=name, shape=(2, 3), dtype=torch.bfloat16, source=name) for name in ("a", "b", "c")
]
TWO_TO_A_FILE = 24
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


@pytest.fixture
def written(tmp_path) -> Path:
    write_weights(tmp_path, ENTRIES, lambda source: {source: torch.ones(2, 3)}, TWO_TO_A_FILE)
    return tmp_path


def test_files_as_planned_pass(written):
    assert check_files(written, ENTRIES, TWO_TO_A_FILE) == (
        "files: 3 tensors in 2 files, names, shapes and dtypes"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t | {"d": torch.ones(1)}, f"{FIRST} has other tensors than planned"),
        (lambda t: {"a": t["a"]}, f"{FIRST} has other tensors than planned"),
        (lambda t: {"a": t["a"], "x": t["b"]}, f"{FIRST} has other tensors than planned"),
        (lambda t: t | {"b": torch.ones(3, 2).bfloat16()}, f"{FIRST}: b is not as planned"),
        (lambda t: t | {"b": torch.ones(2, 3).half()}, f"{FIRST}: b is not as planned"),
        (lambda t: t | {"a": torch.ones(2, 3)}, f"{FIRST}: a is not as planned"),
    ],
    ids=["more", "fewer", "renamed", "shape", "half", "float"],
)
def test_a_file_that_is_not_as_planned_fails(written, edit, message):
    save_file(edit(load_file(written / FIRST)), written / FIRST)
    with pytest.raises(ValueError, match=message):
        check_files(written, ENTRIES, TWO_TO_A_FILE)


@pytest.mark.parametrize("edit", [{"c": FIRST}, {"d": SECOND}])
def test_an_index_that_is_not_as_planned_fails(written, edit):
    path = written / INDEX_NAME
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | edit}))
    with pytest.raises(ValueError, match="index.json differs from the plan"):
        check_files(written, ENTRIES, TWO_TO_A_FILE)
