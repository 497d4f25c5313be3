"""The commands of the guides, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["bring_your_own_data.md"])
def test_the_commands_of_a_guide_run_one_after_another(guide: str, tmp_path: Path) -> None:
    for name in ("recipes", "nitp", "scripts", "train_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / guide).read_text(), re.DOTALL)
    assert len(blocks) > 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
