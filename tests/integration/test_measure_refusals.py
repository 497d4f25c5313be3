"""What cannot be measured is refused in one line, whatever is wrong."""

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from recipes.config.parts import build_data
from recipes.config.settings import resolve_settings
from recipes.measure import request as measure_request
from recipes.measure.command import main
from tests.integration.export_runs import DENSE
from tests.integration.stock_models import FAMILIES, save_model, save_text


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "documents.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", FAMILIES["gpt2"][0])


@pytest.fixture
def refuse(folder, text, tmp_path, capsys):
    """Expect exit code 2 and one line on stderr that begins so; returns the line."""

    def check(arguments: list[str]) -> str:
        places = {"MODEL": str(folder), "TEXT": str(text), "TMP": str(tmp_path)}
        for place, path in places.items():
            arguments = [argument.replace(place, path) for argument in arguments]
        capsys.readouterr()  # what the test itself has printed
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return check


OK = ["--model", "MODEL", "--data", "TEXT"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "TEXT"], "one of the arguments --model --run is required"),
        ([*OK, "--run", "TMP"], "not allowed with argument"),
        ([*OK, "--layer", "x", "--rws", "3"], "unrecognized arguments"),
        (["--model", "MODEL"], "--data must be given with --model"),
        ([*OK, "--step", "3"], "--step (3) has no effect with --model"),
        (["--run", "TMP", "--step", "x"], '--step (x) must be "latest" or a number'),
        ([*OK, "--rows", "1"], "--rows (1) must be at least 2"),
        ([*OK, "--seq-len", "1"], "--seq-len (1) must be at least 2"),
        ([*OK, "--seq-len", "65"], "--seq-len (65) must be at most what "),
        ([*OK, "--layers", "0,"], '--layers (0,) must be "all" or numbers such as 0,4,8'),
        ([*OK, "--layers", "4"], "--layers (4) must be from 0 to the number of layers of "),
        ([*OK, "--target-layer", "-1"], "--target-layer (-1) must be from 0 to the number of"),
        (["--model", "TMP/none", "--data", "TEXT"], "none) must be a folder, and does not exist"),
        (["--model", "TMP", "--data", "TEXT"], "has no config.json: no Hugging Face model folder"),
        ([*OK[:3], "TMP/*.txt"], "--data: data.sources[0].path (TMP/*.txt) matches no file"),
        ([*OK[:3], "TMP"], "--data: data.sources[0].path (TMP) is a folder"),
        ([*OK, "TEXT"], "--data (TEXT TEXT ...) must be one path. Quote a glob"),
        ([*OK[:3], "TMP/none.toml"], "none.toml does not exist"),
        ([*OK[:3], "$NOWHERE_AT_ALL/x"], "names the environment variable NOWHERE_AT_ALL, which"),
        (["--run", "TMP"], "is not a run directory: it has no config.toml"),
    ],
)
def test_a_wrong_argument_is_one_line(refuse, text, tmp_path, arguments, message):
    message = message.replace("TEXT", str(text)).replace("TMP", str(tmp_path))
    assert message in refuse(arguments)


def test_too_little_text_is_one_line(refuse, tmp_path):
    (tmp_path / "short.txt").write_text("to be " * 20)
    line = refuse([*OK[:3], "TMP/short.txt"])
    assert "--data: data.sources give 0 rows of 64 tokens, where at least 2 are needed" in line


def test_a_table_that_exists_is_kept(refuse, tmp_path):
    (tmp_path / "geometry.json").touch()
    assert f"--output ({tmp_path}) has a geometry.json" in refuse([*OK, "--output", "TMP"])


def test_transformers_that_is_missing_is_one_line(refuse, monkeypatch):
    monkeypatch.setattr(measure_request.importlib.util, "find_spec", lambda name: None)
    assert 'needs the package transformers. Install "nitp-torchtitan[export]"' in refuse(OK)


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A model folder to break."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folder_that_transformers_cannot_load_is_one_line(refuse, broken):
    arguments = ["--model", "TMP", "--data", "TEXT"]
    (broken / "model.safetensors").write_bytes(b"cut off")
    assert "cannot be loaded by transformers: " in refuse(arguments)
    (broken / "config.json").write_text('{"model_type": "strange"}')
    assert "cannot be loaded by transformers: " in refuse(arguments)
    (broken / "tokenizer_config.json").write_text("{}")
    (broken / "special_tokens_map.json").unlink()
    assert "names an eos_token" in refuse(arguments)
    (broken / "tokenizer.json").unlink()
    assert "--model: tokenizer.path" in refuse(arguments)


def test_weights_that_transformers_would_make_up_are_one_line(refuse, broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"ln_f.weight", b"ln_g.weight"))
    line = refuse(["--model", "TMP", "--data", "TEXT"])
    assert "transformers reports missing_keys: transformer.ln_f.weight" in line


def test_a_tokenizer_of_another_model_is_one_line(refuse, broken):
    config = json.loads((broken / "config.json").read_text())
    small = GPT2LMHeadModel(GPT2Config(**{**config, "vocab_size": 64}))
    small.save_pretrained(broken)
    line = refuse(["--model", "TMP", "--data", "TEXT"])
    assert "the tokenizer gives the token id " in line and "has only 64 embeddings" in line


def test_a_configuration_gives_its_whole_data_table(folder):
    data = build_data(resolve_settings(DENSE, []))
    request = measure_request.MeasureRequest(model=folder, data=DENSE)
    assert request.load_inputs().data == data and data.validation_fraction == 0.05
