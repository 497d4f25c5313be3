"""What a run remembers of what it started from."""

import json
from pathlib import Path

import pytest
import tomli_w

from recipes.config.paths import ORIGIN_FILE
from recipes.run.origin import Origin, load_origin, read_origin, save_origin

CONFIG = {"max_position_embeddings": 8192, "pad_token_id": 5}
GENERATION = {"temperature": 0.6}


def write_hf(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def write_run(folder: Path, initial: Path | None) -> Path:
    """A run directory, and one of its checkpoints, which is returned."""
    checkpoint = folder / "checkpoint" / "step-4"
    checkpoint.mkdir(parents=True)
    values = {"checkpoint": {"initial_load_path": str(initial or "none")}}
    (folder / "config.toml").write_text(tomli_w.dumps(values))
    return checkpoint


def test_the_files_of_hugging_face_weights_are_kept_when_the_folder_is_gone(tmp_path):
    hf = write_hf(tmp_path / "Llama")
    write_run(tmp_path / "run", hf)
    save_origin(read_origin(hf, is_hf=True), tmp_path / "run")
    for path in hf.iterdir():
        path.unlink()
    expected = Origin(source="Llama", config=CONFIG, generation_config=GENERATION)
    assert load_origin(tmp_path / "run") == expected


def test_a_checkpoint_of_another_run_hands_on_what_that_started_from(tmp_path):
    hf = write_hf(tmp_path / "Llama")
    checkpoint = write_run(tmp_path / "first", hf)
    save_origin(read_origin(hf, is_hf=True), tmp_path / "first")
    second = write_run(tmp_path / "second", checkpoint)
    save_origin(read_origin(checkpoint, is_hf=False), tmp_path / "second")
    origin = read_origin(second, is_hf=False)
    assert origin.source == "second/step-4"
    assert (origin.config, origin.generation_config) == (CONFIG, GENERATION)


def test_weights_from_scratch_have_no_origin(tmp_path):
    checkpoint = write_run(tmp_path / "run", None)
    # Of a run that the directory held before.
    save_origin(Origin(source="other", config=CONFIG), tmp_path / "run")
    assert load_origin(tmp_path / "run") is None
    assert read_origin(checkpoint, is_hf=False) == Origin(source="run/step-4")


def test_of_a_checkpoint_beside_no_run_only_the_name_is_known(tmp_path):
    (tmp_path / "step-7").mkdir()
    assert read_origin(tmp_path / "step-7", is_hf=False) == Origin(source="step-7")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_file_of_the_weights_that_is_no_object_is_named(tmp_path, name, content):
    hf = write_hf(tmp_path / "Llama")
    (hf / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"{name} (cannot be read as JSON|is not a JSON object)"):
        read_origin(hf, is_hf=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_record_is_named(tmp_path, content):
    write_run(tmp_path / "run", tmp_path / "Llama")
    (tmp_path / "run" / ORIGIN_FILE).write_text(content)
    with pytest.raises(ValueError, match=ORIGIN_FILE):
        load_origin(tmp_path / "run")


def test_a_run_without_a_record_knows_the_name(tmp_path):
    write_run(tmp_path / "run", tmp_path / "Llama")
    assert load_origin(tmp_path / "run") == Origin(source="Llama")
