"""A folder is the export that is asked for by what it was made from, and by nothing else."""

import json
from pathlib import Path

import pytest

from recipes.export.record import (
    RECORD_NAME,
    check_same,
    digest_files,
    digest_json,
    read_source,
    write_record,
)
from recipes.export.request import ExportRequest

SOURCE = {"step": 3, "checkpoint": "a" * 64, "dtype": "bfloat16", "verify": "logits"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    write_record(tmp_path, SOURCE)
    return tmp_path


def test_the_same_source_is_the_same_export(folder):
    assert read_source(folder) == SOURCE
    check_same(folder, dict(reversed(SOURCE.items())), "--output")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, r"another export: dtype \(bfloat16 there, float32 asked for\)\."),
        ({"step": 4}, r"step \(3 there, 4 asked for\)"),
        ({"verify": "none"}, r"verify \(logits there, none asked for\)"),
        ({"checkpoint": "b" * 64}, "another export: checkpoint differs. Remove it, or name anoth"),
        ({"tokenizer": "b" * 64}, "tokenizer differs"),
    ],
)
def test_another_source_is_refused_by_name_with_the_remedy(folder, change, message):
    with pytest.raises(ValueError, match=message) as raised:
        check_same(folder, SOURCE | change, "export.folder")
    assert str(raised.value).startswith(f"export.folder ({folder}) has another export: ")


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / RECORD_NAME).unlink(),
        lambda folder: (folder / RECORD_NAME).write_text("{}"),
        lambda folder: (folder / RECORD_NAME).write_text("[1]"),
        lambda folder: (folder / RECORD_NAME).write_bytes(b"\xff"),
        lambda folder: (folder / "model-00001-of-00001.safetensors").unlink(),
        lambda folder: (folder / "model-00001-of-00001.safetensors").write_bytes(b"weight"),
        lambda folder: (folder / "README.md").unlink(),
    ],
)
def test_a_folder_that_is_no_whole_export_is_refused(folder, harm):
    harm(folder)
    with pytest.raises(ValueError, match="exists and is no complete export. Remove it, or"):
        check_same(folder, SOURCE, "--output")


def test_a_card_that_was_written_on_is_the_same_export(folder):
    (folder / "README.md").write_text("card, and what we found")
    check_same(folder, SOURCE, "--output")


def test_an_output_that_is_no_export_is_refused_without_torch(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out.* exists and is no complete export"):
        ExportRequest(run=tmp_path, output=tmp_path / "out").load_settings()


def test_files_are_told_apart_by_name_and_content(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    digests = set()
    for contents in (["x", "y"], ["xy", ""], ["", "xy"], ["y", "x"]):
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content)
        digests.add(digest_files(paths))
    assert len(digests) == 4 and digest_files(paths) == digest_files(paths)
    assert digest_json(json.loads('{"a": 1, "b": 2}')) == digest_json(json.loads('{"b":2,"a":1}'))
