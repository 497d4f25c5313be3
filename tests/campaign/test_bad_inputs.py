"""Every mistake is one line, with the right exit code, and leaves nothing half written."""

import gzip
import json
import re
import resource
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recipes.data.tokenizer import load_embedded_tokenizer_dir
from tests.launch import SMALL, run, start

pytestmark = pytest.mark.slow


@dataclass
class Case:
    name: str
    message: str
    """A regular expression that the one line must match."""
    arguments: Sequence[str] | Callable[[Path], Sequence[str]] = ()
    """After those of SMALL; or a function of an empty folder that also prepares it."""
    code: int = 2
    num_ranks: int = 1
    environment: Mapping[str, str | None] = field(default_factory=dict)


GRACE_S = 10.0
"""Ranks that have met end by themselves; the others are ended as torchrun does. Either is right."""


def case_id(case: Case) -> str:
    return case.name


def check(case: Case, folder: Path, arguments: Sequence[str], before=None) -> str:
    """Start the case; the error line."""
    ranks = start(
        [*SMALL, f"--job.dump_folder={folder / 'run'}", "--training.steps=3", *arguments],
        folder / "log", case.num_ranks, environment=case.environment, before=before,
    )  # fmt: skip
    code = ranks[0].wait()
    for rank in ranks[1:]:
        rank.process.join(GRACE_S)
        if rank.process.is_alive():
            rank.send(signal.SIGTERM)  # as torchrun does
    codes = [code, *(rank.wait() for rank in ranks[1:])]
    text = "\n".join(rank.text() for rank in ranks)
    assert code == case.code and set(codes) <= {case.code, -signal.SIGTERM}, (codes, text[-2000:])
    assert "Traceback" not in text
    errors = [line for rank in ranks for line in rank.errors()]
    assert len(errors) == 1, errors
    assert re.search(case.message, errors[0]), errors[0]
    return errors[0]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def config_file(content: str) -> Callable[[Path], list[str]]:
    return lambda folder: [f"--job.config_file={write(folder, 'bad.toml', content)}"]


def source(name: str, content: str | bytes, *more: str) -> Callable[[Path], list[str]]:
    """A run on one file of its own."""

    def arguments(folder: Path) -> list[str]:
        path = write(folder, name, content)
        return [
            f"--data.sources=[{{path='{path}'}}]", "--data.num_streams=1",
            "--data.validation_fraction=0", *more,
        ]  # fmt: skip

    return arguments


def tokenizer(files: Mapping[str, str]) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        for name, content in files.items():
            write(folder / "tokenizer", name, content)
        return [f"--tokenizer.path={folder / 'tokenizer'}"]

    return arguments


def own_tokenizer(**files: Mapping[str, object]) -> Callable[[Path], list[str]]:
    """The embedded tokenizer's files, each with more keys."""

    def arguments(folder: Path) -> list[str]:
        path = folder / "tokenizer"
        shutil.copytree(load_embedded_tokenizer_dir(), path)
        for name, more in files.items():
            file = path / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | dict(more)))
        return [f"--tokenizer.path={path}"]

    return arguments


def token_ids(tokens: Sequence[float]) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        path = write(folder, "ids.jsonl", json.dumps({"ids": tokens}))
        return [
            f"--data.sources=[{{path='{path}', tokens='ids'}}]", "--data.num_streams=1",
            "--data.validation_fraction=0",
        ]  # fmt: skip

    return arguments


def weights(config: str) -> Callable[[Path], list[str]]:
    """Start from a Hugging Face folder with this config.json."""
    return lambda folder: [
        "--checkpoint.initial_load_in_hf",
        f"--checkpoint.initial_load_path={write(folder, 'weights/config.json', config).parent}",
    ]


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


PROSE = "A sentence that fills the rows of a small run. " * 60
EOS = json.dumps({"eos_token": "x"})

CONFIGURATION = [
    Case("unknown table", "trainning is not a table", ["--trainning.steps=3"]),
    Case("unknown key", r"training.step is not an option. Did you mean", ["--training.step=3"]),
    Case("not an integer", r'steps \("many"\) must be an integer', ["--training.steps=many"]),
    Case("no value", "--optimizer.lr needs a value", ["--optimizer.lr"]),
    Case("not an option at all", "is not --table.key", ["steps=3"]),
    Case("missing file", "nowhere.toml does not exist", ["--job.config_file=nowhere.toml"]),
    Case("not TOML", "is not valid TOML", config_file("[training\nsteps = 1")),
    Case("not text", "is not valid TOML", config_file("\x00\xff")),
    Case("extends itself", "job.extends is a cycle", config_file('job.extends = "bad.toml"')),
    Case("table expected", "training .* must be a table", config_file("training = 3")),
    Case("no flavor", "model.flavor is not set", config_file("[model]")),
    Case("flavor", "Did you mean debug", ["--model.flavor=debgu"]),
    Case("model", "model.name .* does not exist", ["--model.name=llama33"]),
    Case("target layer", r"nitp.target_layer \(30\)", ["--nitp.target_layer=30"]),
    Case("weight", r"nitp.weight", ["--nitp.weight=-1"]),
    Case("chunks", r"training.seq_len \(62\)", ["--training.seq_len=62"]),
    Case("batch", "training.global_batch_size", ["--training.global_batch_size=9"]),
    Case("batch of nothing", "training.local_batch_size", ["--training.local_batch_size=0"]),
    Case("no steps", "training.steps", ["--training.steps=0"]),
    Case("no length", "training.seq_len", ["--training.seq_len=0"]),
    Case("no log", "metrics.log_freq", ["--metrics.log_freq=0"]),
    Case("no validation", "validation.freq", ["--validation.enable", "--validation.freq=0"]),
    Case("vocabulary", "model.vocab_size", ["--model.vocab_size=100"]),
    Case("learning rate", "optimizer.lr", ["--optimizer.lr=-1"]),
    Case("betas", "optimizer.betas", ["--optimizer.betas=[0.9,1.5]"]),
    Case("decay", "lr_scheduler.decay_ratio", ["--lr_scheduler.decay_ratio=2"]),
    Case("skip without fused", "training.on_nonfinite",
         ["--training.on_nonfinite=skip", "--optimizer.implementation=for-loop"]),
    Case("keep one", "checkpoint.keep_latest_k", ["--checkpoint.keep_latest_k=1"]),
    Case("interval", "checkpoint.interval", ["--checkpoint.interval=0"]),
    Case("pinned on CPU", "checkpoint.async_mode",
         ["--checkpoint.async_mode=async_with_pinned_mem"]),
    Case("ranks", "parallelism", ["--parallelism.tensor_parallel_degree=3"], num_ranks=2),
    Case("pipeline", "training.disable_cuda_graphs|pipeline",
         ["--parallelism.pipeline_parallel_degree=2"], num_ranks=2),
    Case("streams and ranks", "data.num_streams", ["--data.num_streams=7"], 1, 2),
    Case("float8 without hardware", "float8.emulate", ["--float8.enable"]),
    Case("last save in HF", "last_save_in_hf", ["--checkpoint.last_save_in_hf"]),
    Case("infinite learning rate", r"optimizer.lr \(inf\) must be finite", ["--optimizer.lr=inf"]),
    Case("degree of nothing", r"tensor_parallel_degree \(0\) must be at least 1",
         ["--parallelism.tensor_parallel_degree=0"]),
    Case("negative RoPE base", r"model.rope_theta \(-1.0\)", ["--model.rope_theta=-1"]),
    Case("timeout beyond all", r"train_timeout_seconds \(\d+\) must be from 1",
         ["--comm.train_timeout_seconds=99999999999999999"]),
    Case("seed beyond 64 bits", r"debug.seed \(\d+\) must be from 0",
         ["--debug.seed=9223372036854775808"]),
    Case("profile of nothing", r"profiler.profile_freq \(2\) must be at least",
         ["--profiler.enable_profiling", "--profiler.profile_freq=2"]),
    Case("decay that is idle", "lr_scheduler.decay_type .* has no effect",
         ["--lr_scheduler.decay_ratio=0", "--lr_scheduler.decay_type=sqrt"]),
    Case("array of tables", r"training .* must be a table", config_file("[[training]]\nsteps = 1")),
    Case("extends a number", r"job.extends \(\[5\]\) must be", config_file("[job]\nextends = [5]")),
]  # fmt: skip

PATHS = [
    Case("export among the checkpoints", r"export.folder \(checkpoint\) must not be",
         ["--export.enable", "--export.verify=keys", "--export.folder=checkpoint"]),
    Case("checkpoints in the open", r"checkpoint.folder \(.\) must be a name below",
         ["--checkpoint.folder=."]),
    Case("traces elsewhere", r"comm.save_traces_folder \(/tmp/shared\) must be inside",
         ["--comm.save_traces_folder=/tmp/shared"]),
    Case("configuration over the configuration", r"debug.save_config_file \(config.toml\)",
         ["--debug.save_config_file=config.toml"]),
    Case("no run directory", r'job.dump_folder \(""\) is no path', ["--job.dump_folder="]),
    Case("run directory of an empty variable", "NITP_NOTHING, which is empty",
         ["--job.dump_folder=$NITP_NOTHING/run"], environment={"NITP_NOTHING": ""}),
    Case("run directory of a command", r"job.dump_folder .* has a \$ that begins no variable",
         lambda folder: [f"--job.dump_folder={folder}/$(date)/run"]),
    Case("name too long", "job.dump_folder .* has a name of more than 255 bytes",
         lambda folder: [f"--job.dump_folder={folder / ('a' * 256)}"]),
    Case("bytes in an argument", r"'--job.description=\\udce9' is not UTF-8",
         ["--job.description=\udce9"]),
    Case("nobody's home", "tokenizer.path .* is no home directory",
         ["--tokenizer.path=~nobody-of-that-name/tokenizer"]),
]  # fmt: skip

DATA = [
    Case("no match", "matches no file", ["--data.sources=[{path='nowhere/*.txt'}]"]),
    Case("scheme", "is not a known source|://", ["--data.sources=[{path='ftp://x/y'}]"]),
    Case("no sources", "data.sources is empty", ["--data.sources=[]"]),
    Case("empty file", "no documents", source("empty.jsonl", ""), 1),
    Case("first line", "bad.jsonl:1 is not valid JSON", source("bad.jsonl", "{"), 1),
    Case("later line", "bad.jsonl:2 is not valid JSON",
         source("bad.jsonl", lines("short") + "{\n" + lines(PROSE), "--data.shuffle=false"), 1),
    Case("not an object", "is not a JSON object", source("bad.jsonl", "[1]\n"), 1),
    Case("no such field", r"\(text\) is not a field of .*bad.jsonl:1",
         source("bad.jsonl", '{"txt": "a"}\n'), 1),
    Case("field of numbers", "must be a field with strings", source("n.jsonl", '{"text": 3}\n'), 1),
    Case("not UTF-8", "is not UTF-8", source("latin.txt", b"caf\xe9 " * 2000), 1),
    Case("not Parquet", "fake.parquet is damaged", source("fake.parquet", "PAR1"), 1),
    Case("too few documents", r"data.num_streams \(64\)",
         source("few.jsonl", lines(PROSE), "--data.num_streams=64"), 1),
    Case("empty documents", "no document with tokens", source("e.jsonl", lines("", "")), 1),
    Case("too little data", "less than one global batch",
         source("little.jsonl", lines("a few words"), "--data.num_epochs=1"), 1),
    Case("all for validation", "data.validation_fraction", ["--data.validation_fraction=1"]),
    Case("negative workers", "data.num_workers", ["--data.num_workers=-1"]),
    Case("UTF-16", "wide.jsonl is UTF-16 text by its content",
         source("wide.jsonl", '{"text": "a"}\n'.encode("utf-16")), 1),
    Case("gzip by another name", "a.jsonl is gzip-compressed by its content",
         source("a.jsonl", gzip.compress(lines(PROSE).encode())), 1),
    Case("text that is called gzip", "a.jsonl.gz is plain text by its content",
         source("a.jsonl.gz", lines(PROSE)), 1),
    Case("a window beyond the limit", "packed with a window of 2,048 MiB.*Pack it anew",
         source("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(20)), 1),
    Case("an array", "An array of objects is not read",
         source("a.json", '[\n{"text": "a"}\n]'), 1),
    Case("a field twice", "has the field text more than once",
         source("a.jsonl", '{"text": "a", "text": "b"}'), 1),
    Case("TSV that is quoted", "has a field in quotes as CSV writes it",
         source("a.tsv", 'text\n"say ""so"""\n'), 1),
    Case("a quote that never closes", "open.csv:2 and what follows is not readable",
         source("open.csv", 'text\n"abc\n'), 1),
    Case("two columns of one name", "is the name of 2 fields",
         source("two.csv", "text,text\na,b\n"), 1),
    Case("a backup", "has .jsonl in its name but another ending", source("a.jsonl~", lines(PROSE))),
    Case("bytes in a file's name", r"a\\udce9.jsonl', whose name is not UTF-8",
         lambda folder: [write(folder, "a\udce9.jsonl", lines(PROSE)),
                         f"--data.sources=[{{path='{folder}/*.jsonl'}}]"][1:]),
    Case("a link to itself", "loop.jsonl, which leads nowhere",
         lambda folder: [(folder / "loop.jsonl").symlink_to("loop.jsonl"),
                         f"--data.sources=[{{path='{folder}/*.jsonl'}}]"][1:]),
    Case("compressed and not", r"data.sources\[1\].path .* which data.sources\[0\] has",
         lambda folder: [
             f"--data.sources=[{{path='{write(folder, 'a.jsonl', lines(PROSE))}'}}, "
             f"{{path='{write(folder, 'a.jsonl.gz', gzip.compress(lines(PROSE).encode()))}'}}]"
         ]),
    Case("slices that overlap", r"matches the split train\[25%:\]",
         ["--data.sources=[{path='hf://o/n', split='train[:50%]'}, "
          "{path='hf://o/n', split='train[25%:]'}]"]),
    Case("rows twice in a split", r"data.sources\[0\].split \(train\+train\) names rows twice",
         ["--data.sources=[{path='hf://o/n', split='train+train'}]"]),
    Case("a hub folder that is not there", r"\(hf://./nowhere\) names no folder",
         ["--data.sources=[{path='hf://./nowhere'}]"]),
    Case("a hub folder and its file", r"data.sources\[0\].path \(hf://.* matches .*a.jsonl",
         lambda folder: [
             f"--data.sources=[{{path='hf://{folder}'}}, "
             f"{{path='{write(folder, 'a.jsonl', lines(PROSE))}'}}]"
         ]),
    Case("negative token", "has the token id -1", token_ids([-1]), 1),
    Case("tokens that are numbers", "a list with float", token_ids([1.5]), 1),
    Case("token beyond all", r"a number beyond 2\*\*63 \(18446744073709551615\)",
         token_ids([2**64 - 1]), 1),
]  # fmt: skip

TOKENIZER = [
    Case("no folder", "is not a folder", ["--tokenizer.path=nowhere"]),
    Case("no files", "has no tokenizer.json", tokenizer({"readme": ""})),
    Case("no EOS", "names an eos_token", tokenizer({"tokenizer.json": "{}"})),
    Case("damaged config", "tokenizer_config.json",
         tokenizer({"tokenizer.json": "{}", "tokenizer_config.json": "{"})),
    Case("damaged tokenizer", "tokenizer.path .* cannot be loaded",
         tokenizer({"tokenizer.json": "{}", "tokenizer_config.json": EOS})),
    Case("a token beside", "adds the token <x>, which tokenizer.json has not",
         own_tokenizer(tokenizer_config={"additional_special_tokens": ["<x>"]})),
    Case("special tokens cut", "split_special_tokens",
         own_tokenizer(tokenizer_config={"split_special_tokens": True})),
    Case("two prefix spaces", "add_prefix_space is true in tokenizer_config.json and false",
         own_tokenizer(tokenizer_config={"add_prefix_space": True})),
    Case("saved truncation", "cuts texts at its own length",
         own_tokenizer(tokenizer={"truncation": {"direction": "Left", "max_length": 5,
                                                 "strategy": "OnlyFirst", "stride": 1}})),
    Case("further tokens that are none", "as additional_special_tokens, which is no list of tokens",
         own_tokenizer(tokenizer_config={"additional_special_tokens": 5})),
    Case("EOS of the map is no token", "as eos_token, which is no token",
         own_tokenizer(special_tokens_map={"eos_token": 5})),
]  # fmt: skip

WEIGHTS = [
    Case("weights of two kinds", r"weights/config.json has \w+ = ",
         weights('{"model_type": ["llama", "qwen3"]}')),
    Case("configuration in a list", "weights/config.json is not a JSON object", weights("[]")),
    Case("configuration cut off", "weights/config.json cannot be read as JSON", weights("{")),
]  # fmt: skip

ENVIRONMENT = [
    Case("rank without world", "WORLD_SIZE .not set.", environment={"WORLD_SIZE": None}),
    Case("rank of letters", r"RANK \(abc\)", environment={"RANK": "abc"}),
    Case("rank too large", r"RANK \(4\) must be less", environment={"RANK": "4"}),
    Case("port of letters", r"MASTER_PORT \(http\)", environment={"MASTER_PORT": "http"}),
    Case("remote directory", "must be a path of this", ["--job.dump_folder=s3://bucket/run"]),
    Case("file in the way", "is no folder",
         lambda folder: [f"--job.dump_folder={write(folder, 'file', '') / 'run'}"]),
    Case("local rank beyond", r"LOCAL_RANK \(5\) must be less", environment={"LOCAL_RANK": "5"}),
    Case("port beyond", r"MASTER_PORT \(65536\) must be", environment={"MASTER_PORT": "65536"}),
    Case("restarts in words", r"SLURM_RESTART_COUNT \(once\) must be a number",
         environment={"SLURM_RESTART_COUNT": "once"}),
    Case("ranks to log with spaces", r"LOG_RANK \(0, 1\) must be",
         environment={"LOG_RANK": "0, 1"}),
    Case("no cache", r"cannot be kept in /dev/null/nitp: .* Set XDG_CACHE_HOME",
         environment={"XDG_CACHE_HOME": "/dev/null"}),
    Case("a rank that does not come", r"the 2 ranks did not meet at .*init_timeout_seconds \(3\)",
         ["--comm.init_timeout_seconds=3"], 1,
         environment={"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}),
]  # fmt: skip

CASES = [*CONFIGURATION, *PATHS, *DATA, *TOKENIZER, *WEIGHTS, *ENVIRONMENT]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_bad_input_is_one_line_and_leaves_nothing(case, tmp_path):
    prepare = case.arguments
    arguments = prepare(tmp_path) if callable(prepare) else prepare
    check(case, tmp_path, arguments)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ a run directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `run`: 4 steps, checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = [f"--job.dump_folder={folder / 'run'}", "--training.steps=4"]
    run([*SMALL, *arguments, "--checkpoint.interval=2"], folder / "log")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def resume(*more: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["--training.steps=6", "--checkpoint.interval=2", *more]


def after(change: Callable[[Path], object], *more: str) -> Callable[[Path], list[str]]:
    """Resume in the directory after `change(run)`."""

    def arguments(folder: Path) -> list[str]:
        change(folder / "run")
        return resume(*more)(folder)

    return arguments


def elsewhere(*more: str) -> Callable[[Path], list[str]]:
    """A new run that starts from step 4 of the finished one."""
    return lambda folder: [
        f"--job.dump_folder={folder / 'new'}",
        f"--checkpoint.initial_load_path={folder / 'run/checkpoint/step-4'}", *more,
    ]  # fmt: skip


def cut(run: Path, name: str, step: int = 4) -> None:
    file = run / "checkpoint" / f"step-{step}" / name
    file.write_bytes(file.read_bytes()[:-1000])


def replace_text(run: Path, name: str, old: str, new: str) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new))


FULL = ["--checkpoint.initial_load_model_only=false", "--checkpoint.allow_pickle"]
DIRECTORY = [
    Case("other configuration", r"optimizer.lr \(0.001 -> 0.5\)", resume("--optimizer.lr=0.5")),
    Case("unreadable configuration", "this version cannot read",
         after(lambda run: replace_text(run, "config.toml", "[nitp]", "[nitpp]"))),
    Case("damaged configuration", "this version cannot read",
         after(lambda run: write(run, "config.toml", "[[["))),
    Case("step that is not there", r"load_step \(3\).*2, 4", resume("--checkpoint.load_step=3"), 1),
    Case("step that is not the last", r"load_step \(2\) must be the last",
         resume("--checkpoint.load_step=2"), 1),
    Case("step that was cut off", r"load_step \(4\).*which has 2",
         after(lambda run: cut(run, "__0_0.distcp"), "--checkpoint.load_step=4"), 1),
    Case("batch that follows the ranks", "training.global_batch_size",
         after(lambda run: replace_text(run, "config.toml", "global_batch_size = 8",
                                        "global_batch_size = -1"),
               "--training.global_batch_size=-1"), 1),
    Case("pickles without permission", "checkpoint.allow_pickle", elsewhere()),
    Case("weights of another shape", "size mismatch|mismatch",
         elsewhere(*FULL, "--model.ffn_dim=128"), 1),
    Case("weights of another depth", "Missing key",
         elsewhere(*FULL, "--model.num_layers=3"), 1),
    Case("weights without projector", "has no projector|has a projector",
         elsewhere(*FULL, "--nitp.enable=false"), 1),
    Case("weights from nowhere", "initial_load_path",
         elsewhere("--checkpoint.allow_pickle", "--checkpoint.initial_load_path=/nowhere")),
    Case("weights cut off", "__0_0.distcp has .* of .* bytes",
         lambda folder: (cut(folder / "run", "__0_0.distcp"), elsewhere(*FULL)(folder))[1], 1),
    Case("weights that are no checkpoint", "initial_load_path .* no complete DCP checkpoint",
         lambda folder: [
             *elsewhere(*FULL)(folder), f"--checkpoint.initial_load_path={folder / 'log'}"
         ]),
    Case("not Hugging Face weights", "is a DCP checkpoint, and checkpoint.initial_load_in_hf",
         elsewhere("--checkpoint.initial_load_in_hf")),
    Case("a lock that is a link", "run.lock is a link that leads nowhere",
         after(lambda run: (run / "run.lock").symlink_to("gone"))),
    Case("a lock that is a folder", r"job.dump_folder .* cannot be owned: .*Is a directory",
         after(lambda run: (run / "run.lock").mkdir()), 1),
    Case("checkpoints by a link out", r"checkpoint.folder .* leads out of job.dump_folder",
         after(lambda run: ((run / "checkpoint").rename(run.parent / "shared"),
                            (run / "checkpoint").symlink_to(run.parent / "shared")))),
    Case("a file for the exports", r"export.folder \(.*exported\) is no folder",
         after(lambda run: write(run, "exported", ""), "--export.enable", "--export.verify=keys")),
    Case("ranks that cannot share the rows", "training.global_batch_size",
         resume("--training.local_batch_size=8"), 2, 2),
]  # fmt: skip


@pytest.mark.parametrize("case", DIRECTORY, ids=case_id)
def test_a_bad_resumption_is_one_line_and_leaves_the_run_as_it_was(case, tmp_path, finished):
    shutil.copytree(finished / "run", tmp_path / "run")
    replace_text(tmp_path / "run", "config.toml", str(finished), str(tmp_path))
    (tmp_path / "log").mkdir()
    assert callable(case.arguments)
    arguments = case.arguments(tmp_path)
    before = contents(tmp_path / "run")
    check(case, tmp_path, arguments)
    after = contents(tmp_path / "run")
    logs = ("tb/", "comm_traces/")  # begun before the checkpoint was looked at
    assert before == {name: after[name] for name in after if not name.startswith(logs)} | {
        name: content for name, content in before.items() if name.startswith(logs)
    }
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------- full disk


def limit_file_size(rank: int) -> None:
    """The disk takes 3 MB of a checkpoint's 7."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))


@pytest.mark.parametrize("mode", ["disabled", "async"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(
    tmp_path, finished, mode, num_ranks
):
    shutil.copytree(finished / "run", tmp_path / "run")
    replace_text(tmp_path / "run", "config.toml", str(finished), str(tmp_path))
    case = Case("full disk", r"step-6 cannot be saved: .*The last complete checkpoint is .*step-4",
                code=1, num_ranks=num_ranks)  # fmt: skip
    arguments = [*resume(f"--checkpoint.async_mode={mode}")(tmp_path), "--training.steps=9"]
    check(case, tmp_path, arguments, before=limit_file_size)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert names == ["step-2", "step-4"]
