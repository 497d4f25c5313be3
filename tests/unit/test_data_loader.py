"""Rows over ranks and workers, and resuming, against rows packed stream by stream."""

import json
import multiprocessing
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import load_documents
from recipes.data.encoder import Encoder
from recipes.data.loader import PackedDataLoader
from recipes.data.mixture import PackedData
from recipes.data.packing import START, Row, SourceStream
from recipes.data.tokenizer import save_bpe_tokenizer
from tests import reference_rows
from tests.waiting import wait_until

SEQ_LEN, GLOBAL_BATCH, NUM_STREAMS = 16, 8, 16

Rows = list[list[list[int]]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    save_bpe_tokenizer(folder, ["the row of a stream"], vocab_size=270)
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    texts = [f"the row {i} " * (i * 7 % 5) for i in range(60)]  # a fifth of them empty
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataConfig(
        sources=[SourceConfig(path=str(path))], num_streams=NUM_STREAMS, validation_fraction=0.2,
        seed=11, shuffle_buffer=20,
    )  # fmt: skip


def build(
    data: DataConfig,
    tokenizer: HuggingFaceTokenizer,
    rank: int = 0,
    num_ranks: int = 1,
    batch_size: int | None = None,
    **options: Any,
) -> PackedDataLoader:
    return PackedDataLoader.Config(data=data, **options).build(
        dp_world_size=num_ranks,
        dp_rank=rank,
        tokenizer=tokenizer,
        seq_len=SEQ_LEN,
        local_batch_size=batch_size or GLOBAL_BATCH // num_ranks,
        snapshot_every_n_steps=10,
    )


def build_ranks(
    data: DataConfig, tokenizer: HuggingFaceTokenizer, num_ranks: int, **options: Any
) -> list[PackedDataLoader]:
    return [build(data, tokenizer, rank, num_ranks, **options) for rank in range(num_ranks)]


def draw(loaders: list[PackedDataLoader], count: int | None = None) -> list[Rows]:
    """Global batches, each the rows of all ranks in the order of their numbers."""
    batches = []
    for parts in zip(*(islice(loader, count) for loader in loaders), strict=True):
        rows_BR3L = torch.stack(
            [torch.stack([d["input"], d["positions"], labels], 1) for d, labels in parts], 1
        )
        assert rows_BR3L.dtype == torch.int64
        batches.append(rows_BR3L.flatten(0, 1).tolist())
    return batches


def merged_state(loaders: list[PackedDataLoader]) -> dict[str, Any]:
    """What a checkpoint of all ranks holds."""
    return {key: value for loader in loaders for key, value in loader.state_dict().items()}


def load_part(loaders: list[PackedDataLoader], state: dict[str, Any]) -> None:
    """Each rank loads the keys that it has when fresh, as torch.distributed.checkpoint does."""
    for loader in loaders:
        loader.load_state_dict({key: state[key] for key in loader.state_dict()})


def pack(data: DataConfig, tokenizer: HuggingFaceTokenizer, num_epochs: int = -1) -> PackedData:
    return PackedData(
        data,
        load_documents(data, "train"),
        Encoder(tokenizer),
        seq_len=SEQ_LEN,
        num_epochs=num_epochs,
    )


def read_split(
    data: DataConfig, tokenizer: HuggingFaceTokenizer, *, is_training: bool
) -> list[list[int]]:
    """Tokens of each document of the split, in the order of the file: of one block."""
    (path,), offset, documents = [Path(source.path) for source in data.sources], 0, []
    for line in path.read_bytes().splitlines(keepends=True):
        name = f"{path.name}@{offset}"
        if reference_rows.is_held_out(name, data.validation_fraction) != is_training:
            documents.append([*tokenizer.encode(json.loads(line)["text"]), tokenizer.eos_id])
        offset += len(line)
    return documents


def expected_rows(data: DataConfig, tokenizer: HuggingFaceTokenizer, count: int) -> Rows:
    """Dealt and packed by hand."""
    rows = reference_rows.training_rows(
        [[read_split(data, tokenizer, is_training=True)]],
        num_streams=data.num_streams, seq_len=SEQ_LEN, seed=data.seed, buffer=data.shuffle_buffer,
    )  # fmt: skip
    return [row for _, row, _ in islice(rows, count)]


@pytest.mark.parametrize(
    ("num_ranks", "num_workers"), [(1, 0), (2, 0), (4, 0), (1, 2), (2, 2), (4, 2), (8, 3)]
)
def test_row_i_does_not_depend_on_ranks_or_workers(
    num_ranks: int, num_workers: int, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    loaders = build_ranks(replace(data, num_workers=num_workers), tokenizer, num_ranks)
    rows = [row for batch in draw(loaders, 7) for row in batch]
    assert rows == expected_rows(data, tokenizer, 7 * GLOBAL_BATCH)


def test_accumulated_small_batches_are_the_same_global_batch(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    rows = [
        row for batch in draw(build_ranks(data, tokenizer, 2, batch_size=2), 6) for row in batch
    ]
    assert rows == expected_rows(data, tokenizer, 24)


def test_workers_need_not_be_forked(data, tokenizer):
    """Where they are not, the default from Python 3.14 on, they get a pickle of the data."""
    packed = build(data, tokenizer)._packed
    rows = [p.open_stream(0, 0, [START]) for p in (packed, pickle.loads(pickle.dumps(packed)))]
    for _ in range(5):
        (_, ours), (_, theirs) = (stream.next_row() for stream in rows)
        assert ours is not None and theirs is not None
        assert (ours.row_3L == theirs.row_3L).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_twice_continues_exactly(
    num_workers: int, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    # Three sessions cross the end of the first epoch (about 7 global batches).
    data = replace(data, num_workers=num_workers)
    rows, state = [], {}
    for count in (3, 5, 9):
        loader = build(data, tokenizer)
        loader.load_state_dict(state)
        rows += [row for batch in draw([loader], count) for row in batch]
        state = loader.state_dict()
    assert rows == expected_rows(data, tokenizer, 17 * GLOBAL_BATCH)
    assert int(state["stream_0"][0, 0]) > 0, "the test must cross an epoch"


@pytest.mark.parametrize(("before", "after"), [(2, 4), (2, 1), (1, 8), (4, 4)])
def test_resuming_on_another_number_of_ranks_continues_exactly(
    before: int, after: int, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    first = build_ranks(data, tokenizer, before)
    rows = [row for batch in draw(first, 3) for row in batch]
    second = build_ranks(replace(data, num_workers=1), tokenizer, after)
    load_part(second, merged_state(first))
    rows += [row for batch in draw(second, 3) for row in batch]
    assert rows == expected_rows(data, tokenizer, 6 * GLOBAL_BATCH)


def test_state_counts_batches_handed_out_not_those_read_ahead(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    plain, ahead = build(data, tokenizer), build(replace(data, num_workers=2), tokenizer)
    iterators = [iter(plain), iter(ahead)]
    for step in range(1, 4):
        for iterator in iterators:
            next(iterator)
        states = [plain.state_dict(), ahead.state_dict()]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert int(states[0]["rows"]) == step * GLOBAL_BATCH


def test_state_survives_a_distributed_checkpoint(
    data: DataConfig, tokenizer: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    first = build_ranks(data, tokenizer, 2)
    draw(first, 3)
    saved = merged_state(first)
    dcp.save({"dataloader": saved}, checkpoint_id=tmp_path, no_dist=True)
    second = build_ranks(data, tokenizer, 4)
    assert all(int(value.sum()) == 0 for key, value in second[0].state_dict().items() if "_" in key)
    for loader in second:
        dcp.load({"dataloader": loader}, checkpoint_id=tmp_path, no_dist=True)
    loaded = merged_state(second)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    rows = [row for batch in draw(second, 2) for row in batch]
    assert rows == expected_rows(data, tokenizer, 5 * GLOBAL_BATCH)[3 * GLOBAL_BATCH :]


def test_a_saved_state_does_not_change_while_training_goes_on(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    loader = build(data, tokenizer)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    copy = {key: value.clone() for key, value in state.items()}
    next(iterator)
    loader.state_dict()
    assert all(torch.equal(state[key], copy[key]) for key in state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_finite_epochs_all_ranks_stop_after_the_last_complete_global_batch(
    num_workers: int, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    data = replace(data, num_streams=4, num_epochs=2, num_workers=num_workers)
    num_rows = pack(data, tokenizer, num_epochs=2).count_rows()
    count = num_rows // GLOBAL_BATCH
    assert num_rows % GLOBAL_BATCH and count > 2
    for num_ranks in (1, 2, 4):
        loaders = build_ranks(data, tokenizer, num_ranks)
        batches = draw(loaders)  # zip is strict: the ranks stop together
        assert len(batches) == count
        assert sum(batches, []) == expected_rows(data, tokenizer, count * GLOBAL_BATCH)
        assert draw(loaders) == [], "at the end there is nothing more"


def test_resuming_near_the_end_stops_at_the_same_place(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    data = replace(data, num_streams=4, num_epochs=2)
    whole = draw(build_ranks(data, tokenizer, 2))
    first, second = build_ranks(data, tokenizer, 2), build_ranks(data, tokenizer, 4)
    head = draw(first, 2)
    load_part(second, merged_state(first))
    tail = draw(second)
    assert head + tail == whole
    assert len(tail) > 1


def test_a_resumed_run_with_another_batch_size_still_ends_with_a_complete_batch(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    data = replace(data, num_streams=4, num_epochs=2)
    num_rows = pack(data, tokenizer, num_epochs=2).count_rows()
    first, second = build(data, tokenizer, batch_size=3), build(data, tokenizer, batch_size=7)
    draw([first], 1)
    second.load_state_dict(first.state_dict())
    assert len(draw([second])) == (num_rows - 3) // 7
    assert (num_rows - 3) // 7 * 7 != num_rows // 7 * 7 - 3


def test_validation_reads_its_split_once_and_from_the_start_each_time(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    documents = read_split(data, tokenizer, is_training=False)
    reference = [row for row, _ in reference_rows.pack(iter(documents), SEQ_LEN)]
    for num_ranks in (1, 2):
        loaders = build_ranks(
            data, tokenizer, num_ranks, split="validation", infinite=False, batch_size=2
        )
        read = [row for batch in draw(loaders) for row in batch]
        global_batch = 2 * num_ranks
        assert read == reference[: len(reference) // global_batch * global_batch] != []
        assert [row for batch in draw(loaders) for row in batch] == read
        assert loaders[0].state_dict() == {}


def test_infinite_validation_goes_round(data: DataConfig, tokenizer: HuggingFaceTokenizer) -> None:
    once = build(data, tokenizer, split="validation", infinite=False, batch_size=1)
    config = replace(PackedDataLoader.Config(data=data, split="validation"), infinite=True)
    assert config.infinite
    count = 3 * len(draw([once]))
    endless = build(data, tokenizer, split="validation", infinite=True, batch_size=1)
    assert len(draw([endless], count)) == count


def test_token_counts_are_those_of_all_ranks_and_sessions(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    first = build_ranks(data, tokenizer, 2)
    draw(first, 3)
    second = build_ranks(replace(data, num_workers=2), tokenizer, 4)
    load_part(second, merged_state(first))
    draw(second, 2)
    assert [loader.num_tokens for loader in second] == [{"0": 5 * GLOBAL_BATCH * SEQ_LEN}] * 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_remembers_the_documents_of_each_batch_handed_out(
    num_workers: int, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    loaders = build_ranks(replace(data, num_workers=num_workers), tokenizer, 2)
    draw(loaders, 3)
    packed = pack(data, tokenizer)
    streams = [packed.open_stream(j, j, [START]) for j in range(NUM_STREAMS)]
    rows = [streams[i % NUM_STREAMS].next_row()[1].documents for i in range(3 * GLOBAL_BATCH)]
    for rank, loader in enumerate(loaders):
        own = rows[rank::2]
        batches = [sum(own[first : first + 4], []) for first in range(0, len(own), 4)]
        assert loader.recent_documents(3) == batches
        assert loader.recent_documents(1) == batches[-1:]
        assert loader.recent_documents(9) == batches
    assert all(name.startswith("a.jsonl@") for name in rows[0])


def test_iterating_does_not_advance_the_global_random_numbers(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    before = torch.get_rng_state()
    draw([build(data, tokenizer)], 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_prepare_two_batches_while_a_step_runs(
    data: DataConfig, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_packed, pack_row = multiprocessing.Value("i"), SourceStream.next_row

    def next_row(stream: SourceStream) -> Row | None:
        row = pack_row(stream)
        with num_packed.get_lock():
            num_packed.value += 1
        return row

    monkeypatch.setattr(SourceStream, "next_row", next_row)
    batches = iter(build(data, tokenizer))
    next(batches)
    assert num_packed.value == GLOBAL_BATCH, "without workers a step waits for its rows"
    num_packed.value = 0
    batches = iter(build(replace(data, num_workers=2), tokenizer))
    next(batches)
    wait_until(lambda: num_packed.value >= 3 * GLOBAL_BATCH)


def test_ranks_that_do_not_divide_the_streams_are_an_error(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.num_streams \(16\) must be a multiple .* \(3\)\. "
    ):
        build(data, tokenizer, 0, 3)


def test_too_little_data_for_a_batch_is_an_error(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    loader = build(data, tokenizer, split="validation", infinite=False, batch_size=1000)
    with pytest.raises(ValueError, match=r"^data\.sources .* less than one global batch \(1000\)"):
        draw([loader])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_streams": 4}, r"data\.num_streams \(4\)"),
        ({"seed": 5}, r"data\.seed \(5\)"),
        ({"shuffle": False}, r"data\.shuffle \(0\)"),
        ({"shuffle_buffer": 1}, r"data\.shuffle_buffer \(1\)"),
        ({"validation_fraction": 0.1}, r"data\.validation_fraction \(0\.1\)"),
        ({"bos": "never"}, r"data\.bos \(never\)"),
        ({"long_documents": "truncate"}, r"data\.long_documents \(truncate\)"),
    ],
)
def test_a_state_of_another_document_order_is_an_error(
    change: dict[str, Any], name: str, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    state = build(data, tokenizer).state_dict()
    with pytest.raises(
        ValueError, match=rf"^{name} differs from the checkpoint's.*, so .* Restore it"
    ):
        build(replace(data, **change), tokenizer).load_state_dict(state)


def test_rows_that_the_ranks_cannot_share_are_an_error(
    data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    loader = build(data, tokenizer, batch_size=3)
    draw([loader], 1)
    with pytest.raises(ValueError, match=r"3 rows are no multiple of the data-parallel degree \(2"):
        load_part(build_ranks(data, tokenizer, 2), loader.state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_document_is_one_line_also_from_a_worker(
    num_workers: int, tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 10 + "{bad\n")
    data = DataConfig(
        sources=[SourceConfig(path=str(path))], num_streams=2, num_workers=num_workers
    )
    with pytest.raises(ValueError) as error:
        draw([build(data, tokenizer)], 50)
    assert str(error.value).startswith(f"data.sources[0].path: {path}:11 is not valid JSON")
    assert "\n" not in str(error.value)
