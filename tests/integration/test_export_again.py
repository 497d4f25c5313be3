"""Exporting to where an export is: the same says so, any other is refused and nothing is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from recipes.config.settings import Settings, resolve_settings
from recipes.data.tokenizer import EMBEDDED_TOKENIZER, resolve_tokenizer_path
from recipes.export.command import main
from recipes.export.final import check_model, export_final
from recipes.run.origin import Origin, save_origin
from tests.integration.export_runs import DENSE, SMALL, STEP, save_checkpoint, save_run


def export(run: Path, *arguments: str) -> int:
    options = ["--run", str(run), "--output", str(run.parent / "out")]
    if not any(argument.startswith("--verify") for argument in arguments):
        options += ["--verify", "keys"]
    return main([*options, *arguments])


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, dict]:
    """A run with a tokenizer of its own, and beside it `out`, its export."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(resolve_tokenizer_path(EMBEDDED_TOKENIZER), folder / "tokenizer")
    state = save_run(folder / "run", DENSE, [*SMALL, f"--tokenizer.path={folder / 'tokenizer'}"])
    assert export(folder / "run") == 0
    return folder, state


@pytest.fixture
def run(exported, tmp_path) -> Path:
    shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(exported[0]), str(tmp_path)))
    return tmp_path / "run"


def test_the_same_command_says_so_and_writes_nothing(run, capsys):
    """Wherever the run and its export have been moved to."""
    before = read_files(run.parent / "out")
    assert export(run) == 0
    assert capsys.readouterr().out == f"exported already: {run.parent / 'out'}\n"
    assert read_files(run.parent / "out") == before


def train_again(run: Path, state: dict) -> None:
    shutil.rmtree(run / "checkpoint")
    save_checkpoint(run, state)


def train_on(run: Path, state: dict) -> None:
    save_checkpoint(run, state, step=STEP + 1)


def change_tokenizer(run: Path, state: dict) -> None:
    path = run.parent / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"chat_template": "x", ', 1))


def lengthen(run: Path, state: dict) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("seq_len = 64", "seq_len = 32"))


@pytest.mark.parametrize(
    ("change", "arguments", "difference"),
    [
        (None, ["--dtype=float32"], "dtype (bfloat16 there, float32 asked for)"),
        (None, ["--dtype=float16"], "dtype (bfloat16 there, float16 asked for)"),
        (None, ["--verify=none"], "verify (keys there, none asked for)"),
        (train_again, [], "checkpoint differs"),
        (train_on, [], "step (3 there, 4 asked for), checkpoint differs"),
        (change_tokenizer, [], "tokenizer differs"),
        (lengthen, [], "config.json differs"),
    ],
)
def test_another_export_is_refused_and_the_old_one_kept(
    exported, run, capsys, change: Callable | None, arguments, difference
):
    if change is not None:
        change(run, exported[1])
    before = read_files(run.parent / "out")
    assert export(run, *arguments) == 2
    assert capsys.readouterr().err == (
        f"error: --output ({run.parent / 'out'}) has another export: {difference}. Remove it, or "
        "name another.\n"
    )
    assert read_files(run.parent / "out") == before


# ------------------------------------------------------------------------- at the end of training


def settings_of(run: Path, *options: str) -> Settings:
    own = ["--export.verify=keys", "--export.enable", f"--training.steps={STEP}"]
    folder = f"--job.dump_folder={run}"
    return resolve_settings(str(run / "config.toml"), [folder, *own, *options])


def test_the_end_of_a_training_exports_once(run):
    settings = settings_of(run)
    check_model(settings)
    assert export_final(settings) is not None
    check_model(settings)
    assert export_final(settings) is None


@pytest.mark.parametrize("option", ["--export.dtype=float32", "--export.verify=none"])
def test_other_options_are_refused_before_training_and_after_it(run, option):
    export_final(settings_of(run))
    before = read_files(run / "exported" / f"step-{STEP}")
    for judge in (check_model, export_final):
        with pytest.raises(ValueError, match=r"^export\.folder \(.*step-3\) has another export: "):
            judge(settings_of(run, option))
    assert read_files(run / "exported" / f"step-{STEP}") == before
    report = export_final(settings_of(run, option, "--export.folder=other"))
    assert report is not None and report.output == run / "other" / f"step-{STEP}"


def test_an_export_of_a_step_that_is_yet_to_be_trained_is_refused_before_training(exported, run):
    export_final(settings_of(run))
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(ValueError, match="an export of step 3, which this run has yet to train"):
        check_model(settings_of(run))
    save_checkpoint(run, exported[1])
    with pytest.raises(ValueError, match="another export: checkpoint differs"):
        export_final(settings_of(run))


def test_a_folder_of_the_users_where_the_export_goes_is_refused_before_training(run):
    (run / "exported" / f"step-{STEP}").mkdir(parents=True)
    for judge in (check_model, export_final):
        with pytest.raises(ValueError, match=r"^export\.folder .* is no complete export"):
            judge(settings_of(run))


# --------------------------------------------------------------------------- of a continued model

ORIGINAL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192,
    "pad_token_id": 5, "initializer_range": 0.013, "dtype": "float32",
}  # fmt: skip
GENERATION = {
    "do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3, "num_beams": 2,
    "pad_token_id": 5,
}  # fmt: skip


def test_stock_transformers_reads_what_the_original_said(run):
    """Logits are compared whatever that says of penalties and beams."""
    config = run / "config.toml"
    path = f'initial_load_path = "{run.parent / "Llama"}"'
    text = config.read_text().replace('initial_load_path = "none"', path)
    config.write_text(text.replace("initial_load_in_hf = false", "initial_load_in_hf = true"))
    save_origin(Origin(source="Llama", config=ORIGINAL, generation_config=GENERATION), run)
    assert export(run) == 2  # another than without the original
    shutil.rmtree(run.parent / "out")
    assert export(run, "--verify=logits") == 0
    found = AutoConfig.from_pretrained(run.parent / "out")
    assert (found.max_position_embeddings, found.pad_token_id) == (8192, 5)
    assert (found.initializer_range, found.dtype) == (0.013, torch.bfloat16)
    generation = GenerationConfig.from_pretrained(run.parent / "out")
    for key, value in GENERATION.items():
        assert getattr(generation, key) == value, key
    card = (run.parent / "out" / "README.md").read_text()
    assert "from the weights of `Llama`" in card and "| context | 8192 |" in card
