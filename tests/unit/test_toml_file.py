"""TOML files as editors, and mistakes, leave them."""

from typing import get_args

import pytest

from recipes.config import toml_file
from recipes.config.rules import check_settings
from recipes.config.schema import load_schema
from recipes.config.settings import SettingsError, resolve_settings

TEXT = '[model]\nflavor = "debug"\n[training]\nsteps = 7\n'


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()]
)
def test_a_byte_order_mark_and_dos_line_ends_are_read(tmp_path, content):
    (tmp_path / "x.toml").write_bytes(content)
    assert resolve_settings(str(tmp_path / "x.toml"), []).values["training"]["steps"] == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "is UTF-16, or no text. TOML is UTF-8"),
        (TEXT.encode("utf-16-le"), "is UTF-16, or no text"),
        (b"a\0b", "is UTF-16, or no text"),
        (TEXT.encode() + b"# caf\xe9", "is not UTF-8: "),
        (b"", "model.flavor is not set"),
        (b'{"training": {"steps": 7}}', "is not valid TOML: "),
        (b"training:\n  steps: 7\n", "is not valid TOML: "),
        (b"[a]\nb = " + b"[" * 5000 + b"]" * 5000, "is nested too deeply"),
        (b"[training]\nsteps." + b"x." * 3000 + b"x = 1", "is nested too deeply"),
        (b"[training]\nsteps." + b"x." * 300 + b"x = 1", 'training.steps ({"x": {"x": '),
        (b"[training]\nsteps = " + b"9" * 5000, "is not valid TOML: Exceeds the limit"),
        (b"[training]\nsteps = 0x" + b"f" * 9000, "training.steps has a number that takes more"),
        (b"[training]\nsteps = 9223372036854775808", "training.steps has a number that takes more"),
        (b"[training]\nsteps = 2020-01-01", 'training.steps ("2020-01-01") must be an integer'),
        (b'[job]\ndescription = "a\\u001b[31mb"', 'has a control character'),
        (b'[override]\nimports = [["a.b", {"k\\n" = 1}]]', "override.imports (\"k\\n\") has a con"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_one_line(tmp_path, content, message):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        resolve_settings(str(tmp_path / "x.toml"), [])
    assert str(caught.value).startswith(f"{tmp_path}/x.toml") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["[" * 5000, '{"a":' * 5000, "9" * 5000, "1e999999", "nan"])
def test_what_is_no_value_is_one_line_on_the_command_line_too(argument):
    for option in ("training.steps", "data.sources", "nitp.weight"):
        with pytest.raises(SettingsError, match=rf"^command line: {option} \("):
            check_settings(
                resolve_settings(None, ["--model.flavor=debug", f"--{option}={argument}"])
            )


def test_a_file_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(toml_file, "MAX_BYTES", 2**20)
    with open(tmp_path / "x.toml", "wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(SettingsError, match="x.toml has more than 1 MiB: it is no TOML file"):
        resolve_settings(str(tmp_path / "x.toml"), [])


def test_braces_in_a_folders_name_are_letters(tmp_path):
    folder = tmp_path / "{x} {}"
    folder.mkdir()
    (folder / "debug.toml").write_text(TEXT)
    with pytest.raises(SettingsError) as caught:
        resolve_settings(str(folder / "debg.toml"), [])
    assert str(caught.value).endswith(f"Did you mean {folder}/debug.toml?")


FLOATS = [
    f"{table}.{key}"
    for table, options in load_schema().items()
    for key, option in options.items()
    if "." not in table and float in (option.type, *get_args(option.type))
]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", FLOATS)
def test_no_number_but_the_clipping_norm_is_infinite(name, value):
    more = ["--model.flavor=debug_moe"]
    if name.startswith("activation_checkpoint."):
        more.append("--activation_checkpoint.mode=memory_budget")
    settings = [None, [*more, f"--{name}={value},0.9" if "betas" in name else f"--{name}={value}"]]
    if (name, value) == ("training.max_norm", "inf"):
        check_settings(resolve_settings(*settings))
        return
    with pytest.raises(SettingsError, match=rf"^command line: {name} \("):
        check_settings(resolve_settings(*settings))


def test_a_negative_zero_is_zero(tmp_path):
    (tmp_path / "x.toml").write_text(
        '[model]\nflavor = "debug"\n[optimizer]\nweight_decay = -0.0\n'
    )
    value = resolve_settings(str(tmp_path / "x.toml"), []).values["optimizer"]["weight_decay"]
    assert str(value) == "0.0"
