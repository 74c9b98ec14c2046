"""What the documentation shows runs as shown."""

import doctest
import os
import pathlib
import re
import subprocess
import sys

import diced

ROOT = pathlib.Path(__file__).parents[1]


def test_the_code_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "fly.diced" / "diced.json").exists()
    assert "[  0   0   0   0   0 255 255 255 255 255]" in done.stdout
    assert "slice(2560, 2880, None)" in done.stdout


def test_the_example_of_the_package_runs():
    assert doctest.testmod(diced) == (0, 6)


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
