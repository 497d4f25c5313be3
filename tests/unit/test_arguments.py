"""Command lines: what is given twice, help, paths, and errors on one line whatever they quote."""

import os
import sys
from pathlib import Path

import pytest

from recipes import train
from recipes.command import ArgumentParser, folder, path, print_error
from recipes.config.arguments import format_overrides, parse_overrides
from recipes.data.records import PLACE, BadDocumentError
from recipes.evaluation.command import parse_request as parse_evaluation
from recipes.export.command import main as export
from recipes.measure.command import main as measure
from recipes.report.command import main as compare
from recipes.tokenize.command import main as tokenize

DEBUG = "--job.config_file=train_configs/debug.toml"


def refused(main, arguments: list[str], capsys) -> str:
    """The one line that the command says, without what each begins with."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    return captured.err.removeprefix("error: ").rstrip()


# ------------------------------------------------------------------------------- given twice


@pytest.mark.parametrize(
    "twice",
    [
        ["--job.config_file", "x.toml"],
        ["--nitp.weight=1", "--nitp.weight", "2"],
        ["--job.dry_run", "--job.dry_run=false"],
    ],
)
def test_an_option_given_twice_is_refused(twice, capsys):
    name = twice[0].partition("=")[0]
    message = refused(train.main, [DEBUG, *twice], capsys)
    assert message == f"command line: {name} is given twice. Give it once."


def test_scripts_refuse_an_option_given_twice_or_in_part(tmp_path, capsys):
    runs = [f"--run={tmp_path}", f"--run={tmp_path}"]
    assert "--run is given twice" in refused(export, [*runs, "--output=x"], capsys)
    assert "--outp" in refused(export, [runs[0], "--outp=x"], capsys)
    given = parse_evaluation([*runs, "--suite=paper"])  # which lists them, in their order
    assert [subject.folder for subject in given.subjects] == [tmp_path, tmp_path]


def test_overrides_are_read_as_they_are_written():
    texts = {"job.description": "a=b --c", "job.dry_run": "true", "data.sources": ""}
    assert parse_overrides(format_overrides(texts)) == texts
    assert parse_overrides(["--job.dry_run", "--nitp.shift", "0"]) == {
        "job.dry_run": "true", "nitp.shift": "0",
    }  # fmt: skip


# -------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help", "nitp.weight"], ["--help=nitp.weight"], ["-h", "nitp.weight"],
        ["--help", "--nitp.weight"], [DEBUG, "--help", "nitp.weight"],
    ],
)  # fmt: skip
def test_help_shows_one_option(arguments, capsys):
    assert train.main(arguments) == 0
    assert "nitp.weight: a number; default 0.8" in capsys.readouterr().out


def test_help_shows_an_array_of_tables_and_its_options(capsys):
    assert train.main(["--help", "data.sources.path"]) == 0
    assert "data.sources.path: a string; required" in capsys.readouterr().out
    assert train.main(["--help", "validation.sets"]) == 0
    assert "[[validation.sets]]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help", "nope"], "--help: nope is not a table or option."),
        (["--help", "nitp.weigth"], "Did you mean nitp.weight?"),
        (["--help", "NITP"], "Did you mean nitp?"),
        (["--help", ""], "is not a table or option. Tables: job, model, nitp,"),
        (["--help", "nitp."], "Did you mean nitp?"),
        (["--help", "nitp", "data"], "--help takes one table or option, not nitp data."),
    ],
)
def test_help_on_what_does_not_exist_is_one_line(arguments, message, capsys):
    assert message in refused(train.main, arguments, capsys)


# ------------------------------------------------------------------------------------- paths


def test_every_path_argument_is_expanded_as_a_shell_would(monkeypatch, tmp_path, capsys):
    """Those of every command; a path is never the folder `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for main, arguments, option in (
        (export, ["--run=~/gone", "--output=x"], "--run"),
        (measure, ["--model=~/gone", "--data=x"], "--model"),
        (compare, ["--output=x", "~/gone"], "RUN"),
    ):
        message = refused(main, arguments, capsys)
        gone = tmp_path / "gone"
        assert message == f"{option} ({gone}) must be a folder, and does not exist. Name another."
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    for main, arguments in (
        (export, ["--run=run", "--output=~/file/x"]),
        (measure, ["--run=run", "--output=~/file"]),
        (compare, ["--output=~/file", "run"]),
        (tokenize, ["--output=~/file"]),
    ):
        message = refused(main, arguments, capsys)
        assert message.startswith(f"--output ({tmp_path}/file") and "is a file" in message
    assert not Path("~").exists()


@pytest.mark.parametrize("text", ["", "~nobody-of-that-name/x", "$NOT_SET_AT_ALL/x", "a\nb"])
def test_a_path_that_leads_nowhere_names_its_argument(text):
    parser = ArgumentParser()
    parser.add_argument("--output", type=path)
    with pytest.raises(ValueError, match=r"^(--output \(|command line: --output=a\\nb has a)"):
        parser.parse_args([f"--output={text}"])


def test_a_file_is_no_folder(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--run", type=folder)
    (tmp_path / "f").touch()
    with pytest.raises(ValueError, match=r"^--run \(.*/f\) must be a folder, and is a file"):
        parser.parse_args([f"--run={tmp_path / 'f'}"])


# ------------------------------------------------------------------------------------- errors


def test_an_error_is_one_line_without_escape_codes(capsys):
    print_error(ValueError("bad \x1b[31mred\x1b[0m\nname\u2028\u202e\udcff"))
    assert capsys.readouterr().err == ("error: bad \\x1b[31mred\\x1b[0m name \\u202e\\udcff\n")


def test_what_a_document_has_in_it_is_no_escape_code_of_the_log():
    error = BadDocumentError(f"{PLACE} has: a\x1b[31m\nb")
    assert error.at("x.jsonl:1") == "x.jsonl:1 has: a\\x1b[31m b"


def test_an_error_of_the_system_names_the_file_first(tmp_path, capsys):
    try:
        os.rmdir(tmp_path / "gone")
    except OSError as error:
        print_error(error)
    assert capsys.readouterr().err == f"error: {tmp_path}/gone: No such file or directory.\n"


def test_a_bug_has_its_traceback_without_escape_codes(capsys):
    try:
        raise KeyError("\x1b[31m")
    except KeyError as error:
        print_error(error)
    text = capsys.readouterr().err
    assert text.startswith("Traceback") and "\x1b" not in text and text.endswith("\n")


def test_the_arguments_of_the_process_are_checked_too(monkeypatch):
    parser = ArgumentParser()
    parser.add_argument("--a")
    monkeypatch.setattr(sys, "argv", ["x", "--a=1", "--a=2"])
    with pytest.raises(ValueError, match="--a is given twice"):
        parser.parse_args()
