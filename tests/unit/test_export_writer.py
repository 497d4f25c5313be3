"""The written folder: real safetensors, complete or not there."""

import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from recipes.export.writer import INDEX_NAME, plan_shards, staged_folder, write_weights
from recipes.models.hf.mapping import Entry

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(6),
    "bias": torch.randn(3),
    "c": torch.randn(2, 3, 2),
}
ENTRIES = [
    Entry(
        name=name,
        shape=tuple(value.shape),
        dtype=torch.float32 if name == "bias" else torch.bfloat16,
        source=name,
    )
    for name, value in TENSORS.items()
]


def write(folder, max_shard_bytes, tensors=TENSORS):
    folder.mkdir(exist_ok=True)
    write_weights(folder, ENTRIES, lambda source: {source: tensors[source]}, max_shard_bytes)


@pytest.mark.parametrize(("max_shard_bytes", "num_files"), [(10**6, 1), (40, 3), (1, 4)])
def test_the_library_reads_back_what_was_given(tmp_path, max_shard_bytes, num_files):
    write(tmp_path, max_shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == num_files
    assert files[-1].name == f"model-{num_files:05d}-of-{num_files:05d}.safetensors"
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    found = {}
    for file in files:
        weights = load_file(file)
        assert {index["weight_map"][name] for name in weights} == {file.name}
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        found |= weights
    assert found.keys() == TENSORS.keys()
    for entry in ENTRIES:
        assert found[entry.name].dtype == entry.dtype
        assert torch.equal(found[entry.name], TENSORS[entry.name].to(entry.dtype))
    # 15 + 6 + 12 numbers of two bytes and 3 of four.
    assert index["metadata"] == {"total_parameters": 36, "total_size": 78}


def test_shards_hold_at_most_the_limit_and_keep_the_order():
    shards = list(plan_shards(ENTRIES, 45).values())
    assert [[entry.name for entry in shard] for shard in shards] == [["a", "b"], ["bias", "c"]]
    assert all(sum(entry.num_bytes for entry in shard) <= 45 for shard in shards)


def test_every_tensor_begins_at_a_multiple_of_its_own_element_size(tmp_path):
    write(tmp_path, 10**6)
    content = (tmp_path / "model-00001-of-00001.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for entry in ENTRIES:
        start = 8 + length + header[entry.name]["data_offsets"][0]
        assert start % entry.dtype.itemsize == 0, entry.name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])
def test_a_value_that_is_not_finite_in_the_dtype_is_an_error(tmp_path, value):
    """3.4e38 is finite in float32; bfloat16 rounds it to infinity."""
    broken = {**TENSORS, "c": torch.full((2, 3, 2), value)}
    with pytest.raises(ValueError, match="c has values that are not finite as torch.bfloat16"):
        write(tmp_path, 10**6, broken)


def test_a_folder_appears_under_its_name_only_when_complete(tmp_path):
    output = tmp_path / "deep" / "out"
    with staged_folder(output) as folder:
        (folder / "file").write_text("x")
        assert not output.exists()
    assert [path.name for path in output.iterdir()] == ["file"]
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert stat.S_IMODE(output.stat().st_mode) & 0o555 == 0o555


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space"), staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared(tmp_path):
    leftover = tmp_path / ".out.partial"
    leftover.mkdir()
    (leftover / "model-00001-of-00009.safetensors").write_text("half")
    with staged_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_existing_output_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists"), staged_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_exports_to_one_output_exclude_each_other(tmp_path):
    with staged_folder(tmp_path / "out") as first:
        (first / "file").write_text("the first's")
        with pytest.raises(ValueError, match="another export"), staged_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out" / "file").read_text() == "the first's"
