"""The process behind `world.run_cases`: imports once, starts the ranks of every case.

Ranks are forked. Where the import has touched CUDA a forked process cannot use it; there each rank
is a fresh process, which imports again.
"""

import json
import math
import os
import pkgutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from recipes.platform import ON_CPU

LOG_LINES = 400
GATHERED = ("initial", "grads", "state")
"""Entries of a result that ranks hold parts of, by name."""


StartMethod = Literal["fork", "spawn"]


def run_case(
    case: dict[str, Any], folder: Path, start_method: StartMethod, timeout_s: float
) -> dict[str, Any] | None:
    """Run the case's legs and save its result; None, or what failed (world.Failure)."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for leg, (num_ranks, _) in enumerate(case["legs"]):
            failure = run_ranks(case, leg, folder, Path(scratch), start_method, timeout_s)
            if failure is not None:
                return {"case": case["name"], "num_ranks": num_ranks, **failure}
            part = merge([torch.load(path) for path in sorted(Path(scratch).glob("rank*.pt"))])
            torch.save(part["state"], Path(scratch, "state.pt"))
            if leg > 0:
                part = {
                    **result,
                    "metrics": result["metrics"] + part["metrics"],
                    "probes": result["probes"] + part["probes"],
                    "state": part["state"],
                    "validation": part["validation"],
                }
            result = part
    torch.save(result, folder / f"{case['name']}.pt")
    return None


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of what the ranks wrote, rank 0 first; pipeline stages hold different names."""
    result = parts[0]
    for key in GATHERED:
        result[key] = {name: value for part in parts for name, value in part[key].items()}
    with_loss = next(part for part in parts if part["has_loss"])
    result |= {key: with_loss[key] for key in ("metrics", "validation")}
    del result["has_loss"]
    return result


def run_ranks(
    case: dict[str, Any],
    leg: int,
    folder: Path,
    scratch: Path,
    start_method: StartMethod,
    timeout_s: float,
) -> dict[str, Any] | None:
    """One world. None, or the first rank that failed or hung, its error and the end of its log."""
    for path in scratch.glob("rank*"):
        path.unlink()
    num_ranks = case["legs"][leg][0]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    context: Any = torch.multiprocessing.get_context(start_method)
    ranks = [
        context.Process(target=run_rank, args=(case, leg, folder, scratch, rank, port))
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            break
        time.sleep(0.02)
    exit_codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    # The first to fail explains more than those that waited for it.
    errors = sorted(scratch.glob("rank*.error"), key=lambda path: path.stat().st_mtime_ns)
    ended = [rank for rank, code in enumerate(exit_codes) if code]
    if errors:
        rank, error = int(errors[0].stem[4:]), errors[0].read_text()
    elif ended:
        rank, error = ended[0], f"exit code {exit_codes[ended[0]]}"
    elif None in exit_codes:
        rank, error = exit_codes.index(None), f"no end within {timeout_s:.3g} s"
    else:
        return None
    log = Path(scratch, f"rank{rank}.log")
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return {"rank": rank, "error": error, "log": "\n".join(lines[-LOG_LINES:])}


def run_rank(
    case: dict[str, Any], leg: int, folder: Path, scratch: Path, rank: int, port: int
) -> None:
    """One rank, in a process of its own; what it prints goes to a log, its error to a file."""
    log = os.open(scratch / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.environ |= rank_environment(rank, case["legs"][leg][0], port)
    try:
        if ON_CPU:
            torch.set_num_threads(1)
        part = pkgutil.resolve_name(case["runner"])(case, leg, folder, scratch)
    except BaseException as error:
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        (scratch / f"rank{rank}.error").write_text(text)
        sys.stderr.flush()
        os._exit(1)  # not through the process group, whose other ranks wait for this one
    if part is not None:
        torch.save(part, scratch / f"rank{rank:03}.pt")
    torch.distributed.destroy_process_group()


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set on one machine, and the rank's device where ranks share one."""
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if not ON_CPU and num_ranks > torch.cuda.device_count():
        environment |= share_devices(rank, torch.cuda.device_count(), os.environ)
    return environment


def share_devices(rank: int, num_devices: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What gives the rank a device that others have too: the only one it sees.

    NCCL, from 2.30 on, takes several ranks of one device if it is told so.
    """
    every = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_devices)))
    return {
        "CUDA_VISIBLE_DEVICES": every.split(",")[rank % num_devices],
        "NCCL_MULTI_RANK_GPU_ENABLE": "1",
    }


def choose_start_method() -> StartMethod:
    """fork, if a forked process can use the device."""
    if ON_CPU:
        return "fork"
    probe = torch.multiprocessing.get_context("fork").Process(target=_touch_device)
    probe.start()
    probe.join()
    return "spawn" if probe.exitcode else "fork"


def _touch_device() -> None:
    torch.zeros(1, device="cuda").item()


def main() -> None:
    path, folder = sys.argv[1:]
    report = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed
    run_all(json.loads(Path(path).read_text()), Path(folder), report)


def run_all(spec: dict[str, Any], folder: Path, report: TextIO) -> None:
    """Every case in order, and for each a line of JSON: what `run_case` returned."""
    for runner in {case["runner"] for case in spec["cases"]}:
        pkgutil.resolve_name(runner)  # imported here, once, and not in each rank
    start_method = choose_start_method()
    deadline_s = math.inf if spec["deadline_s"] is None else spec["deadline_s"]
    for case in spec["cases"]:
        limit_s = min(spec["timeout_s"], deadline_s - time.time())
        if limit_s > 0:
            outcome = run_case(case, folder, start_method, limit_s)
        else:
            outcome = {"case": case["name"], "num_ranks": case["legs"][0][0], "rank": 0}
            outcome |= {"error": "not begun", "log": ""}
        if outcome is not None:
            outcome["is_out_of_time"] = time.time() >= deadline_s
        print(json.dumps(outcome), file=report, flush=True)


if __name__ == "__main__":
    main()
