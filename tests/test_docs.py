"""The README's file tree names every module, and examples name presets and flags that exist, or run as they stand."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ladi import bench, bench_rl, cli, doctor, quickstart
from ladi.train.presets import PRESETS, preset_named

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


def commands(path: str) -> Iterator[str]:
    """Every `ladi ...` of a document, in blocks of code with what their lines of NAME="..." say, and within lines."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        values = dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
        for line in re.findall(r"^ladi .*", block.replace("\\\n", ""), re.MULTILINE):
            yield re.sub(r"\$(\w+)", lambda name, values=values: values[name[1]], line)
    for line in re.findall(r"`(ladi \w+ [^`]+)`", text):
        yield line


class ParsedError(Exception):
    """All arguments were understood."""


def parse(monkeypatch, command: str) -> None:
    """Hand a command to the CLI, whose parts do nothing but say that its arguments were understood."""

    def understood(*_, **__):
        raise ParsedError

    for stage in cli.STAGES:
        monkeypatch.setitem(cli.STAGES, stage, understood)
    for module, name in (
        *((cli, name) for name in ("evaluate", "load_model", "build_report")),
        *((module, "main") for module in (bench, bench_rl, doctor, quickstart)),
    ):
        monkeypatch.setattr(module, name, understood)
    monkeypatch.setattr(cli, "resolve", lambda path: path)
    words = shlex.split(command, comments=True)
    with pytest.raises(ParsedError):
        cli.COMMANDS[words[1]](words[2:])


@pytest.mark.parametrize("command", dict.fromkeys([*commands("README.md"), *commands("docs/tour.md")]))
def test_examples_of_the_command_line_name_flags_that_exist(monkeypatch, command):
    if command.endswith("--help"):
        command = command.removesuffix("--help")
    parse(monkeypatch, command)


def test_a_flag_that_does_not_exist_would_have_been_noticed(monkeypatch):
    with pytest.raises(SystemExit):
        parse(monkeypatch, "ladi train rl --preset cd3_tiny --allow-unsafe-exec")


def flags(config: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of a configuration."""
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        yield name
        if is_dataclass(value):
            yield from flags(value, f"{name}.")


@pytest.mark.parametrize("path", ["README.md", "docs/tour.md"])
def test_flags_named_alone_exist_in_some_stage_of_some_preset(path):
    pipelines = [preset_named(preset)() for preset in PRESETS]
    known = {flag for pipe in pipelines for stage in fields(pipe) for flag in flags(getattr(pipe, stage.name))}
    text = (ROOT / path).read_text(encoding="utf-8")
    named = [flag for code in re.findall(r"`(--[^`]*)`", text) for flag in re.findall(r"--[\w.-]+", code)]
    assert set(named) <= known


@pytest.mark.parametrize("path", ["README.md", "docs/tour.md"])
def test_python_examples_run_as_they_stand(path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, path, "exec"), names)
