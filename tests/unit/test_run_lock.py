"""A run directory belongs to one job."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children, get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from recipes.config.settings import SettingsError
from recipes.run import lock
from recipes.run.lock import LOCK_FILE, RunLock, check_owner
from recipes.run.owner import parse_owner
from tests.waiting import DEADLINE_S, wait_for_state, wait_until

BEAT_S = 0.1


@pytest.fixture(autouse=True)
def setting(monkeypatch):
    """An owner writes often, so that no test waits for long, and is waited for until it does."""
    monkeypatch.setattr(lock, "BEAT_S", BEAT_S)
    monkeypatch.setattr(lock, "SAME_JOB_PATIENCE_S", DEADLINE_S)
    monkeypatch.setattr(lock, "PATIENCE_S", DEADLINE_S)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    yield
    for process in active_children():
        process.kill()
        process.join()


@pytest.fixture
def hurry(monkeypatch):
    """Seconds stand for minutes. For owners that are dead: how soon one that lives comes to write
    depends on the machine."""
    monkeypatch.setattr(lock, "SAME_JOB_PATIENCE_S", 0.5)
    monkeypatch.setattr(lock, "PATIENCE_S", 1.0)


class Job:
    """A process that takes the lock of a folder, and keeps it until it is told to end or killed."""

    def __init__(
        self, folder: Path, *, host: str | None = None, start: Barrier | None = None,
        **variables: str,
    ) -> None:  # fmt: skip
        """start: where it waits for other jobs before it takes the lock."""
        context = get_context("fork")
        self.answers, self.orders = context.SimpleQueue(), context.SimpleQueue()
        self.process = context.Process(target=self._run, args=(folder, host, start, variables))
        self.process.start()

    def _run(
        self, folder: Path, host: str | None, start: Barrier | None, variables: dict[str, str]
    ) -> None:
        os.environ.update(variables)
        if host is not None:
            lock.socket.gethostname = lambda: host  # type: ignore[assignment]
        said: list[str] = []
        lock._say = said.append
        if start is not None:
            start.wait(DEADLINE_S)
        try:
            with RunLock(str(folder)):
                self.answers.put((None, said))
                self.orders.get()
        except SettingsError as error:
            self.answers.put((str(error), said))

    def answer(self) -> tuple[str | None, list[str]]:
        """Why it was refused, None if it was not; what it said."""
        return self.answers.get()

    def end(self) -> None:
        self.orders.put("end")
        self.process.join(DEADLINE_S)
        assert self.process.exitcode == 0

    def kill(self, *, reap: bool = True) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        if reap:
            self.process.join(DEADLINE_S)
        else:  # it stays as a zombie, as below a container's first process
            wait_for_state(self.process.pid, "Z")


def owned(folder: Path, **variables) -> Job:
    job = Job(folder, **variables)
    assert job.answer()[0] is None
    return job


def dead(folder: Path, **variables) -> dict:
    """Leave the lock of a job that was killed; what it says."""
    job = owned(folder, **variables)
    job.kill()
    return json.loads((folder / LOCK_FILE).read_text().splitlines()[0])


def write(folder: Path, owner: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / LOCK_FILE).write_text(f"{json.dumps(owner)}\n{0:012d}\n")


def test_a_second_job_is_refused_by_the_name_of_the_first(tmp_path):
    first = owned(tmp_path / "run", host="node7", SLURM_JOB_ID="42")
    refusal, said = Job(tmp_path / "run", host="node7").answer()
    assert refusal is not None and said == []
    assert refusal.startswith(
        f"job.dump_folder ({tmp_path / 'run'}) belongs to another job: host node7, process "
        f"{first.process.pid}, SLURM job 42, since 20"
    )
    assert refusal.endswith(" UTC. Wait for its end, or name another job.dump_folder.")
    assert Job(tmp_path / "other").answer() == (None, [])
    first.end()
    assert Job(tmp_path / "run").answer() == (None, [])


@pytest.mark.parametrize("num_jobs", [2, 3, 10])
@pytest.mark.parametrize("is_left", [False, True], ids=["free", "left by a dead owner"])
def test_of_jobs_that_start_at_once_exactly_one_gets_the_directory(tmp_path, num_jobs, is_left):
    for round_ in range(3):
        folder = tmp_path / f"run{round_}"
        if is_left:
            dead(folder)
        start = get_context("fork").Barrier(num_jobs)
        jobs = [Job(folder, start=start) for _ in range(num_jobs)]
        answers = [job.answer() for job in jobs]
        (owner,) = (job for job, (refusal, _) in zip(jobs, answers, strict=True) if not refusal)
        refusals = [refusal for refusal, _ in answers if refusal]
        assert all(f"process {owner.process.pid}, since" in refusal for refusal in refusals)
        assert sum(len(said) for _, said in answers) >= is_left
        assert os.listdir(folder) == [LOCK_FILE]
        owner.end()
        assert not (folder / LOCK_FILE).exists()


@pytest.mark.parametrize("reap", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_said(tmp_path, reap):
    job = owned(tmp_path / "run")
    job.kill(reap=reap)
    refusal, (said,) = Job(tmp_path / "run").answer()
    assert refusal is None
    assert said.startswith(f"Taking over {tmp_path / 'run' / LOCK_FILE}, of host ")
    assert f"process {job.process.pid}, since " in said and "that process has ended" in said


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    owner = dead(tmp_path / "run")
    write(tmp_path / "run", owner | {"pid": os.getpid()})
    assert Job(tmp_path / "run").answer()[0] is None
    write(tmp_path / "again", owner | {"pid": os.getpid(), "start_ticks": start_of(os.getpid())})
    refusal, _ = Job(tmp_path / "again").answer()
    assert refusal is not None and f"process {os.getpid()}" in refusal


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def take(folder: Path, **variables) -> tuple[str, float]:
    """Why a job took the folder that another has left, and after how many seconds."""
    began = time.monotonic()
    refusal, said = Job(folder, **variables).answer()
    assert refusal is None, refusal
    assert said[-1].startswith("Taking over ")
    return said[-1].rpartition(": ")[2], time.monotonic() - began


def assert_taken_for_silence(folder: Path, patience_s: float, **variables) -> None:
    reason, waited_s = take(folder, **variables)
    assert reason == f"it has not written for {patience_s:g} s."
    assert waited_s >= patience_s


def test_an_owner_on_another_host_is_refused_while_it_writes_and_taken_from_when_it_does_not(
    tmp_path, monkeypatch
):
    job = owned(tmp_path / "run", host="node1")
    for _ in range(2):
        refusal, said = Job(tmp_path / "run", host="node2").answer()
        assert refusal is not None and "host node1" in refusal
        assert len(said) == 1 and said[0].endswith(f"Waiting {DEADLINE_S:g} s for a sign of it.")
    job.kill()
    monkeypatch.setattr(lock, "PATIENCE_S", 1.0)
    assert_taken_for_silence(tmp_path / "run", 1.0, host="node2")


def test_ten_jobs_of_other_hosts_that_wait_for_a_dead_owner_do_not_both_win(tmp_path, monkeypatch):
    judge = lock._judge

    def judge_soon_of_the_dead(owner):
        verdict = judge(owner)
        is_dead = owner is not None and owner.host == "node1"
        return verdict._replace(patience_s=1.0) if is_dead else verdict

    monkeypatch.setattr(lock, "_judge", judge_soon_of_the_dead)
    dead(tmp_path / "run", host="node1")
    jobs = [Job(tmp_path / "run", host=f"node{i}") for i in range(2, 12)]
    answers = [job.answer()[0] for job in jobs]
    assert answers.count(None) == 1


@pytest.mark.parametrize("machine", ["other boot pid:[1]", None])
def test_a_host_of_the_same_name_is_not_taken_for_the_same(tmp_path, hurry, machine):
    """Containers share names. A process id says nothing there."""
    owner = dead(tmp_path / "run")
    write(tmp_path / "run", owner | {"machine": machine})
    assert_taken_for_silence(tmp_path / "run", 1.0)


@pytest.mark.parametrize(
    ("theirs", "ours", "patience_s"),
    [
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, 0.0),
        # Two steps of one allocation, or torchrun's rank 0 on another node of it.
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, 0.5),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, 1.0),
        ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none"}, 1.0),
    ],
)
def test_how_long_an_owner_on_another_host_is_waited_for(tmp_path, hurry, theirs, ours, patience_s):
    dead(tmp_path / "run", host="node1", **theirs)
    if patience_s:
        assert_taken_for_silence(tmp_path / "run", patience_s, host="node2", **ours)
    else:
        reason, _ = take(tmp_path / "run", host="node2", **ours)
        assert reason == "SLURM has queued that job again since."


def test_two_steps_of_one_slurm_allocation_do_not_take_from_each_other(tmp_path):
    owned(tmp_path / "run", host="node1", SLURM_JOB_ID="7")
    refusal, _ = Job(tmp_path / "run", host="node2", SLURM_JOB_ID="7").answer()
    assert refusal is not None and "SLURM job 7" in refusal


@pytest.mark.parametrize("offset_s", [-1e9, 1e9])
def test_no_clock_of_another_host_is_trusted(tmp_path, monkeypatch, offset_s):
    """Neither in the lock nor in its file's times."""
    owner = dead(tmp_path / "silent", host="node1") | {"since": "2199-01-01 00:00:00 UTC"}
    write(tmp_path / "silent", owner)
    owned(tmp_path / "writes", host="node1")
    for name in ("silent", "writes"):
        then = time.time() + offset_s
        os.utime(tmp_path / name / LOCK_FILE, (then, then))
    assert Job(tmp_path / "writes", host="node2").answer()[0] is not None
    monkeypatch.setattr(lock, "PATIENCE_S", 1.0)
    assert_taken_for_silence(tmp_path / "silent", 1.0, host="node2")


def test_a_lock_without_a_name_is_that_of_a_process_killed_in_the_middle(tmp_path, hurry):
    (tmp_path / LOCK_FILE).touch()
    assert_taken_for_silence(tmp_path, 0.5)


@pytest.mark.parametrize(
    "damage",
    [
        *({"pid": pid} for pid in ("x", None, 1.5, 1e30, True, [], 0, -1, 2**31, 10**400)),
        {"slurm_restart": "a"}, {"slurm_restart": None}, {"start_ticks": "x"}, {"start_ticks": 0.0},
        {"start_ticks": float("nan")}, {"host": 5}, {"machine": 0}, {"slurm_job": []},
        {"since": None}, {"host": "a\nb"}, {"host": "\x1b[2J"}, {"writes": 5}, {"writes": [None]},
        {"more": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_a_lock_with_values_of_another_kind_names_nobody(tmp_path, damage):
    owner = dead(tmp_path / "run")
    assert parse_owner(json.dumps(owner).encode()) is not None
    assert parse_owner(json.dumps(owner | damage).encode()) is None


@pytest.mark.parametrize(
    "content",
    [b"5", b"[]", b"null", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000,
     b"9" * 5000, b"{}", b"{", bytes(range(256)) * 100],
    ids=lambda content: repr(content[:8]),
)  # fmt: skip
def test_a_lock_that_is_damaged_is_waited_for_and_taken(tmp_path, hurry, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert_taken_for_silence(tmp_path, 0.5)


def test_a_damaged_lock_whose_owner_writes_is_another_jobs(tmp_path):
    path, count = tmp_path / LOCK_FILE, 0
    path.write_bytes(b'{"pid": "x"}\n%012d' % count)
    job = Job(tmp_path)
    while job.answers.empty():
        count += 1
        with path.open("rb+") as file:
            file.seek(13)
            file.write(b"%012d" % count)
    refusal, _ = job.answer()
    assert refusal is not None and "belongs to another job: a process that cannot be" in refusal


def test_a_lock_appears_with_its_owners_name_in_it(tmp_path, monkeypatch):
    """However long the owner takes to write it: nobody finds one that is empty."""
    write, found = os.write, []

    def look_and_write(handle, data):
        found.append((tmp_path / LOCK_FILE).exists())
        return write(handle, data)

    monkeypatch.setattr(os, "write", look_and_write)
    with RunLock(str(tmp_path)):
        assert found == [False]
        assert os.listdir(tmp_path) == [LOCK_FILE], "and under no other name any more"
        assert parse_owner((tmp_path / LOCK_FILE).read_bytes()).pid == os.getpid()


def test_without_hard_links_the_lock_is_created_by_its_name(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with RunLock(str(tmp_path)):
        assert os.listdir(tmp_path) == [LOCK_FILE]
        refusal, _ = Job(tmp_path).answer()
        assert refusal is not None and f"process {os.getpid()}" in refusal
    assert os.listdir(tmp_path) == []


def test_a_link_that_was_made_though_its_answer_was_lost_is_the_lock(tmp_path, monkeypatch):
    link = os.link

    def link_twice(*arguments):
        link(*arguments)
        link(*arguments)

    monkeypatch.setattr(os, "link", link_twice)
    with RunLock(str(tmp_path)):
        assert os.listdir(tmp_path) == [LOCK_FILE]


def test_a_process_killed_while_it_removed_a_lock_is_no_obstacle(tmp_path):
    owner = dead(tmp_path / "run")
    for name in (f"{LOCK_FILE}.removal", f"{LOCK_FILE}.removal.removal"):
        (tmp_path / "run" / name).write_text(f"{json.dumps(owner)}\n{0:012d}\n")
    job = Job(tmp_path / "run")
    assert job.answer()[0] is None
    assert os.listdir(tmp_path / "run") == [LOCK_FILE]
    job.end()


def test_an_owner_that_another_took_from_neither_goes_on_nor_gives_up_the_others_lock(tmp_path):
    with RunLock(str(tmp_path)):
        check_owner(str(tmp_path))
        owner = json.loads((tmp_path / LOCK_FILE).read_text().splitlines()[0])
        write(tmp_path, owner | {"host": "node9", "pid": 5})
        with pytest.raises(OSError, match="no longer this job's: it is of host node9, process 5"):
            check_owner(str(tmp_path))
    assert "node9" in (tmp_path / LOCK_FILE).read_text()
    with pytest.raises(OSError, match="no longer this job's"):  # a program that asked for no lock
        check_owner(str(tmp_path))
    (tmp_path / LOCK_FILE).unlink()
    check_owner(str(tmp_path))


def test_a_lock_that_was_deleted_is_lost(tmp_path):
    with RunLock(str(tmp_path)):
        (tmp_path / LOCK_FILE).unlink()
        with pytest.raises(OSError, match="its run.lock is gone"):
            check_owner(str(tmp_path))


def test_only_an_empty_folder_that_the_lock_made_goes_with_it(tmp_path):
    for name, existed, content in (("new", False, False), ("old", True, False), ("b", False, True)):
        folder = tmp_path / name
        if existed:
            folder.mkdir()
        with RunLock(str(folder)):
            if content:
                (folder / "config.toml").touch()
        assert folder.exists() == (existed or content), name
        assert not (folder / LOCK_FILE).exists()


def test_writing_can_fail_and_the_run_goes_on(tmp_path, monkeypatch):
    failures = []

    def fail(*arguments):
        failures.append(arguments)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with RunLock(str(tmp_path)):
        wait_until(lambda: len(failures) >= 2)  # it goes on trying
        check_owner(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_the_thread_that_writes_does_not_keep_a_process_alive(tmp_path):
    text = f"from recipes.run.lock import RunLock; RunLock({str(tmp_path)!r}).__enter__()"
    subprocess.run([sys.executable, "-c", text], check=True, timeout=DEADLINE_S)
    assert Job(tmp_path).answer()[0] is None


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"), RunLock(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == []


def test_what_is_in_the_way_of_the_lock_is_named(tmp_path):
    """A link to nowhere can be neither read nor created: no wait helps."""
    (tmp_path / LOCK_FILE).symlink_to("gone")
    with pytest.raises(SettingsError, match=r"run.lock is a link that leads nowhere"):
        RunLock(str(tmp_path)).__enter__()
    (tmp_path / LOCK_FILE).unlink()
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(OSError, match=r"^job.dump_folder \(.*\) cannot be owned: .*Is a directory"):
        RunLock(str(tmp_path)).__enter__()


def test_a_folder_is_called_by_the_option_that_named_it(tmp_path):
    first = owned(tmp_path / "run")
    with pytest.raises(SettingsError) as error, RunLock(str(tmp_path / "run"), "--output"):
        pass
    assert str(error.value).startswith(f"--output ({tmp_path / 'run'}) belongs to another job: ")
    assert str(error.value).endswith(" Wait for its end, or name another --output.")
    first.end()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"^--output \(.*\) cannot be owned: .* another --output\.$"):
        RunLock(str(tmp_path / "file" / "run"), "--output").__enter__()
    (tmp_path / LOCK_FILE).symlink_to("gone")
    with pytest.raises(SettingsError, match=r"^--output \(.*\) cannot be owned: .* Remove it\.$"):
        RunLock(str(tmp_path), "--output").__enter__()


def test_an_empty_restart_count_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "")
    with RunLock(str(tmp_path)):
        owner = json.loads((tmp_path / LOCK_FILE).read_text().splitlines()[0])
        assert owner["slurm_restart"] == 0
