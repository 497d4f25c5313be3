"""The machine that a figure was measured on, in a few words."""

import platform
from pathlib import Path


def describe_machine() -> str:
    """Such as `2 x Intel(R) Xeon(R) Processor @ 2.50GHz, Python 3.11.7`."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = f"{len(names)} x {names[0].partition(': ')[2]}" if names else model
    return f"{model}, Python {platform.python_version()}"
