"""The README's file tree names every module, and its examples name files and flags that exist."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from ladi.train.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_module_of_the_package():
    tree = set(re.findall(r"\w+", README.split("## The tree")[1].split("```")[1]))
    for path in (ROOT / "src" / "ladi").rglob("*.py"):
        folder = path.parent.name
        if path.stem == "__init__" or folder in ("report", "metrics"):
            continue
        assert path.stem in tree, path


def test_presets_named_in_docs_exist():
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.sh")]:
        words = path.read_text(encoding="utf-8").split()
        for before, name in pairwise(words):
            if before == "--preset":
                assert name.strip("`\"'") in PRESETS, (path, name)


@pytest.mark.parametrize("path", ["README.md", "docs/tour.md"])
def test_python_examples_run_as_they_stand(path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, path, "exec"), names)
