"""No test depends on how fast the machine is: it waits for events, in one place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
WAITING = TESTS / "waiting.py"
LIMITS = {"timeout", "timeout_s"}
"""Arguments that say how long a wait may take."""


def find_waits(source: str) -> Iterator[str]:
    """Lines that call `sleep`, also in the text of a program, and those where a number limits a
    wait."""
    lines = source.splitlines()
    yield from (line.strip() for line in lines if re.search(r"\bsleep(\(| [\d$])", line))
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        limits = [keyword.value for keyword in node.keywords if keyword.arg in LIMITS]
        if name in ("wait", "join"):  # of processes; str.join and os.path.join take no number
            limits += node.args
        if any(is_number(limit) for limit in limits):
            yield lines[node.lineno - 1].strip()


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


@pytest.mark.parametrize(
    ("source", "num_waits"),
    [
        ("time.sleep(1)", 1), ("sleep(x)", 1), ("text = 'sleep 0.3; echo'", 1),
        ("process.wait(30)", 1), ("job.join(10.0)", 1),
        ("process.communicate(timeout=5)", 1), ("run(cases, timeout_s=20)", 1),
        ("process.wait()", 0), ("process.join(DEADLINE_S)", 0), ("' '.join(words)", 0),
        ("process.communicate(timeout=DEADLINE_S)", 0), ("let_pass(0.1)", 0),
    ],
)  # fmt: skip
def test_a_wait_for_seconds_is_found(source, num_waits):
    assert len(list(find_waits(source))) == num_waits


def test_tests_wait_for_events_and_not_for_seconds():
    found = [
        f"{path.relative_to(TESTS)}: {line}"
        for path in TESTS.rglob("*.py")
        if path not in (WAITING, Path(__file__))
        for line in find_waits(path.read_text())
    ]
    assert not found, "wait for an event, with tests/waiting.py"
