"""What README and docs name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FOLDERS = ("nitp", "recipes", "scripts", "tests", "train_configs", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_pages_that_are_named_exist(page):
    text = page.read_text()
    named = set(
        re.findall(rf"(?:{'|'.join(FOLDERS)})/[\w/.-]*\.(?:py|toml|md|sbatch|yaml)\b", text)
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing
    if page.name == "README.md":
        assert len(named) > 20 and len(links) > 5
