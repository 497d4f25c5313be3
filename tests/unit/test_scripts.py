"""The figures of scripts/benchmark_data.py."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import load_documents
from recipes.data.loader import PackedDataLoader
from tests.unit.data_samples import EOS, WordTokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark_data = load("benchmark_data")


def test_the_speed_of_a_rank_is_its_rows_over_the_time_they_took(tmp_path, monkeypatch, capsys):
    """Drawing a row takes half a second of this clock, 0.25 s where it is one of four ranks."""
    now_s, drawn = [0.0], []
    draw = PackedDataLoader.__iter__

    def draw_slowly(self: PackedDataLoader):
        for batch in draw(self):
            now_s[0] += 0.5 / (1 if self._num_ranks == 1 else 2)
            drawn.append((self._num_ranks, self._rank))
            yield batch

    monkeypatch.setattr(PackedDataLoader, "__iter__", draw_slowly)
    monkeypatch.setattr(benchmark_data.time, "perf_counter", lambda: now_s[0])
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"row {i} " * 40}) + "\n" for i in range(64)))
    monkeypatch.setattr("sys.argv", [
        "benchmark", "--job.config_file", "train_configs/debug.toml", "--seconds", "3",
        "--ranks", "1,3,4", f"--data.sources=[{{path='{corpus}'}}]", "--data.num_streams=8",
        "--training.seq_len=64",
    ])  # fmt: skip
    monkeypatch.chdir(SCRIPTS.parent)
    assert benchmark_data.main(sys.argv[1:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "| as configured | 1 | 2 | 128 | 128 | 128 | 128 |",
        "| as configured | 4 | 4 | 256 | 256 | 256 | 256 |",
    ]
    assert "rows of 64 tokens, 8 streams, 0 workers" in lines
    # After one row of each of its streams: 3 seconds of rows. 3 ranks cannot share 8 streams.
    assert drawn == [(1, 0)] * (8 + 6) + [(4, 0)] * (2 + 12)


def test_speeds_of_text_and_of_token_ids_are_medians_beside_the_least_and_the_most(
    tmp_path, monkeypatch, capsys
):
    """A row takes 1/2, 1/4 and 1 s of text, 1/8, 1/2 and 1/4 s of ids: 2, 4, 1 and 8, 2, 4 rows/s
    of 64 tokens."""
    now_s, loaders, durations_s = [0.0], [], [0.5, 0.25, 1.0, 0.125, 0.5, 0.25]
    draw = PackedDataLoader.__iter__

    def draw_slowly(self: PackedDataLoader):
        loaders.append(self)
        for batch in draw(self):
            now_s[0] += durations_s[len(loaders) - 1]
            yield batch

    monkeypatch.setattr(PackedDataLoader, "__iter__", draw_slowly)
    monkeypatch.setattr(benchmark_data.time, "perf_counter", lambda: now_s[0])
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"row {i} " * 40}) + "\n" for i in range(64)))
    monkeypatch.setattr("sys.argv", [
        "benchmark", "--job.config_file", "train_configs/debug.toml", "--seconds", "2",
        "--ranks", "1", "--repeats", "3", "--tokenized", f"--data.sources=[{{path='{corpus}'}}]",
        "--data.num_streams=8", "--training.seq_len=64",
    ])  # fmt: skip
    monkeypatch.chdir(SCRIPTS.parent)
    assert benchmark_data.main(sys.argv[1:]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "| documents | ranks | rows/s of a rank | tokens/s of a rank | tokens/s per process: least "
        "| median | most |",
        "|---|---|---|---|---|---|---|",
        "| as configured | 1 | 2 | 128 | 64 | 128 | 256 |",
        "| tokenized | 1 | 4 | 256 | 128 | 256 | 512 |",
    ]
    fields = [loader._data.sources[0].tokens for loader in loaders]
    assert fields == [None] * 3 + ["input_ids"] * 3


def test_what_is_measured_as_tokenized_are_the_same_documents(tmp_path):
    corpus, tokenizer = tmp_path / "a.jsonl", WordTokenizer()
    texts = ["ab", "", "c" * 300]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = DataConfig(sources=[SourceConfig(path=str(corpus), name="a")], num_streams=1)
    tokenized = benchmark_data.tokenize_sources(data, tokenizer, tmp_path / "ids")
    assert [source.tokens for source in tokenized.sources] == ["input_ids"]
    (documents,) = load_documents(tokenized, "train")
    found = [
        documents.parse(block, raw).tolist()
        for block in range(len(documents))
        for _, raw in documents.read(block)
    ]
    assert found == [[*map(ord, text), EOS] for text in texts]


def test_the_share_of_measuring_is_that_of_the_steps_between_two_measurements():
    """Medians: 100 ms a step, of which 8 and 2 are measuring; read every 4 steps."""
    seconds = {
        "step": [0.1, 0.1, 9.0], "sums": [0.008] * 3, "reading": [0.002] * 3,
        "eigenvalues": [0.05] * 3,
    }  # fmt: skip
    text = load("benchmark_geometry").describe(seconds, 4)
    assert "| the step without what follows | 90.0 |" in text
    assert "| sums over the states | 8.00 |\n| reading them | 2.00 |" in text
    assert "| eigenvalues, in another thread | 50.00 |" in text
    assert "Measured every 4 steps: 2.70% of the time." in text  # 10 of 4 * 90 + 10
