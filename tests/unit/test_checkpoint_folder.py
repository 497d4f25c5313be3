"""What was cut off is told from what is complete, and never kept in its place."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp

from recipes.run.checkpoint_folder import find_fault, find_steps, find_superseded


@pytest.fixture
def checkpoint(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"weight": torch.arange(1000.0), "step": 3}
        dcp.save(state, checkpoint_id=tmp_path / "step-3", no_dist=True)
    return tmp_path / "step-3"


def test_a_complete_checkpoint_has_no_fault(checkpoint):
    assert find_fault(checkpoint) is None


def test_a_save_that_did_not_end_has_no_metadata(checkpoint):
    (checkpoint / ".metadata").rename(checkpoint / ".metadata.tmp")
    assert "no .metadata" in str(find_fault(checkpoint))


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", None])
def test_damaged_metadata_is_a_fault(checkpoint, content):
    file = checkpoint / ".metadata"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    assert ".metadata cannot be read" in str(find_fault(checkpoint))


def test_a_file_cut_short_or_missing_is_a_fault(checkpoint):
    file = checkpoint / "__0_0.distcp"
    length = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(length - 1)
    assert find_fault(checkpoint) == f"__0_0.distcp has {length - 1} of {length} bytes"
    file.unlink()
    assert find_fault(checkpoint) == f"__0_0.distcp has 0 of {length} bytes"


def test_only_folders_named_for_a_step_are_checkpoints(tmp_path):
    for name in ("step-20", "step-3", "step-3.old", "old-step-4", "step-x", "other"):
        (tmp_path / name).mkdir()
    assert list(find_steps(tmp_path)) == [3, 20]
    assert find_steps(tmp_path / "missing") == {}


@pytest.mark.parametrize(
    ("found", "complete", "keep", "superseded"),
    [
        ({1, 2, 3}, {1, 2, 3}, 2, [1]),
        ({1, 2, 3}, {1, 2, 3}, 0, []),
        ({1, 2, 3}, {1, 2}, 2, []),  # 3 is under way, or cut off: it is not counted
        ({1, 2, 3, 4}, {1, 3, 4}, 2, [1, 2]),  # 2 was cut off and is of no use
        ({1, 2, 3, 4}, {1, 2}, 2, []),  # nor do cut-off ones displace good ones
        ({2, 3, 4}, {2}, 2, []),
        ({1, 2}, set(), 2, []),
        ({5, 6, 7, 8}, {5, 6, 7, 8}, 3, [5]),
    ],
)
def test_retention_counts_complete_checkpoints_only(found, complete, keep, superseded):
    assert find_superseded(found, complete, keep) == superseded
