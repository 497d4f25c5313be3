"""Make the parts in processes of their own, as many at a time as asked for."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from recipes.data.encoder import BosRule, Encoder
from recipes.stop import survive_signals
from recipes.tokenize.parts import Part, Written, write_part

_encoder: Encoder | None = None
"""A worker's own."""


def load_encoder(tokenizer: str, bos: BosRule) -> Encoder:
    """The encoder that a training run loads from the folder. Raises ValueError, as it does.

    Imports torch with TorchTitan's tokenizer: what else would be sure to have the same tokens?
    """
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    return Encoder(HuggingFaceTokenizer(tokenizer_path=tokenizer), bos)


def write_parts(
    parts: Sequence[Part],
    *,
    tokenizer: str,
    bos: BosRule,
    num_workers: int,
    report: Callable[[Part, Written], None],
) -> None:
    """Make all parts; `report` is told of each as it is complete.

    Raises the first error of a worker (ValueError, OSError), or ValueError if one dies; those that
    are complete then stay.
    """
    # Not forked: this process may have threads, and the libraries within have their own.
    pool = ProcessPoolExecutor(
        min(num_workers, len(parts)),
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer, bos),
    )
    try:
        futures = {pool.submit(_write, part): part for part in parts}
        for future in as_completed(futures):
            report(futures[future], future.result())
    except BrokenProcessPool as error:
        raise ValueError(
            "--workers: a worker process died, perhaps of too little memory. The same command goes "
            "on where it ended; lower --workers if it does so again."
        ) from error
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.kill()  # a part may take minutes, and one that is not complete is made again
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(tokenizer: str, bos: BosRule) -> None:
    global _encoder
    survive_signals(worker=0)  # what is sent to all is for the parent to act on
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is one worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = load_encoder(tokenizer, bos)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next part for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write(part: Part) -> Written:
    assert _encoder is not None
    return write_part(part, _encoder)
