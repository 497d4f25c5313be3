"""The report: device, versions, what was run, tables and what failed; Markdown and JSON."""

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from recipes.gpu_check.section import Section
from recipes.machine import describe_machine
from recipes.parity.world import REPOSITORY, Device

PACKAGES = ("torch", "torchtitan", "triton", "torchao", "transformers", "tokenizers", "datasets")


def describe_platform(device: Device) -> dict[str, Any]:
    """Machine, devices, driver, versions and commit."""
    facts: dict[str, Any] = {"machine": describe_machine(), "system": platform.platform()}
    if device == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        facts["devices"] = _run(query).splitlines()
        facts["cuda"] = torch.version.cuda
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    facts["versions"] = {name: _version(name) for name in PACKAGES}
    facts["commit"] = _run(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"])
    return facts


def write_report(
    folder: Path,
    facts: dict[str, Any],
    command: str,
    sections: Sequence[Section],
    minutes: float,
) -> None:
    """report.md and report.json in `folder`, anew."""
    text = "\n".join(format_report(facts, command, sections, minutes))
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    content: dict[str, Any] = {
        "command": command,
        "minutes": minutes,
        "has_passed": all(s.has_passed for s in sections),
        "platform": facts,
        "sections": [asdict(s) | {"has_passed": s.has_passed} for s in sections],
    }
    for section in content["sections"]:
        del section["logs"], section["text"]
    (folder / "report.json").write_text(
        json.dumps(_as_json(content), indent=1, allow_nan=False), encoding="utf-8"
    )


def _as_json(value: Any) -> Any:
    """JSON has no number that is not finite: such a one is a string, "nan", "inf" or "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    return value


def format_report(
    facts: dict[str, Any], command: str, sections: Sequence[Section], minutes: float
) -> list[str]:
    lines = ["# Check on the devices that are here", "", f"    {command}", ""]
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        lines.append(f"* {name}: {', '.join(value) if isinstance(value, list) else value}")
    lines += ["", "| part | result |", "|---|---|"]
    lines += [f"| {s.title} | {describe_result(s)} |" for s in sections]
    lines.append(f"\n{minutes:.1f} minutes.")
    for section in sections:
        lines += ["", f"## {section.title}", ""]
        lines += [f"    {line}" for line in section.commands]
        lines += ["", *section.text]
        lines += [f"* **FAIL** {problem}" for problem in section.problems]
        lines += [f"* not run: {reason}" for reason in section.not_run]
    return lines


def describe_result(section: Section) -> str:
    if section.problems:
        return f"**FAIL**: {len(section.problems)} of what was tried"
    left_out = f"; {len(section.not_run)} not run" if section.not_run else ""
    return f"passed{left_out}" if section.figures else "not run"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _run(command: list[str]) -> str:
    """The command's output; why there is none, where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    return done.stdout.strip() or f"unknown ({done.stderr.strip() or done.returncode})"
