"""A checkpoint that cannot be saved is one line that names the disk."""

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from recipes.run.failed_save import describe_failed_save

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/__0_0.distcp")
TORN = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598\nframe")
GONE = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/x/.metadata.tmp")
DISK = r"\(the file system at /\S* has [0-9.e+]+ GiB of [0-9.e+]+ GiB free\)"


def failed(*causes: BaseException) -> CheckpointException:
    return CheckpointException("save", {rank: (cause, None) for rank, cause in enumerate(causes)})


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (failed(FULL), "No space left on device", "Free space there"),
        (failed(OSError(errno.EDQUOT, "Quota exceeded")), "Quota exceeded", "Free space there"),
        (failed(TORN), "a file could not be written to its end", "Free space there"),
        (failed(TORN, GONE, FULL), "No space left on device", "Free space there"),
        (failed(GONE), "No such file or directory: /x/.metadata.tmp", "Mend that"),
        (FULL, "No space left on device", "Free space there"),
        (RuntimeError("The process is dead.\nx"), "The process is dead.", "Mend that"),
        (failed(KeyError()), "KeyError", "Mend that"),
    ],
)  # fmt: skip
def test_the_line_says_what_where_how_full_and_what_to_do(tmp_path, error, what, remedy):
    path = tmp_path / "run" / "checkpoint" / "step-4"  # gone by now, as its parents
    line = describe_failed_save(error, path)
    assert line.startswith(f"{path} cannot be saved: {what}") and "\n" not in line
    assert re.search(DISK, line) and "inline_container" not in line
    assert f"{remedy}" in line and line.endswith(", and start the same command again.")


def test_a_device_without_space_is_named_as_it_fails(tmp_path):
    """DCP's own error, of a file that is one of /dev/full."""
    (tmp_path / "__0_0.distcp").symlink_to("/dev/full")
    with pytest.raises(CheckpointException) as raised:
        writer = dcp.FileSystemWriter(tmp_path, sync_files=False)
        dcp.save({"w": torch.zeros(99999)}, storage_writer=writer, no_dist=True)
    line = describe_failed_save(raised.value, tmp_path)
    assert "No space left on device" in line or "could not be written to its end" in line
    assert "Free space there" in line


def test_the_disk_is_the_one_that_the_checkpoint_was_to_lie_on(tmp_path):
    for folder in (tmp_path, Path("/dev")):
        table = subprocess.check_output(["df", "--output=target", folder], text=True)
        mount = table.splitlines()[1]
        line = describe_failed_save(FULL, folder / "a" / "b")
        assert f"(the file system at {mount} has " in line
