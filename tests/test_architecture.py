"""The floors of the package: a module imports only from floors below, or from its own package."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = [
    {"arrays", "devices", "draws", "rundir", "bundled", "progress"},
    {"tasks", "flow", "losses", "rl", "metrics"},
    {"models"},
    {"inference"},
    {"train"},
    {"footprint"},
    {"report", "bench", "bench_rl", "doctor", "demo"},
    {"quickstart"},
    {"cli"},
]
OPTIONAL = {"demo", "rl"}
"""Modules that have a floor but need not exist."""

ONLY_IN = {
    "transformers": ("ladi.models.backbone", "ladi.bench_rl"),
    "matplotlib": ("ladi.report",),
    "math_verify": ("ladi.tasks.math_worker",),
    "reasoning_gym": ("ladi.tasks.gym",),
}
"""Third-party package -> the modules (or packages) that may import it."""

SOURCE = Path(__file__).parents[1] / "src"
ROOT = SOURCE / "ladi"
FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name of a source file; a package for its `__init__.py`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    """The floor of `ladi.<name>...`."""
    name = module.split(".")[1]
    found = [number for number, names in enumerate(FLOORS) if name in names]
    assert found, f"ladi.{name} has no floor: add it to FLOORS"
    return found[0]


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, also inside functions, where cycles hide."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "ladi" and not node.level:
            yield from (f"ladi.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def inside(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path):
    own = module_name(path)
    for name in imports(path):
        assert not name.startswith("."), f"{own}: write absolute imports"
        if name == "ladi" or name.startswith("ladi."):
            assert own != "ladi", f"ladi/__init__.py imports {name}: every module would depend on it"
            assert name != "ladi", f"{own}: import the module, not the package"
            same_package = name.split(".")[1] == own.split(".")[1]
            assert same_package or floor(name) < floor(own), f"{own} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_third_party_packages_stay_in_their_file(path):
    own = module_name(path)
    for name in imports(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or inside(own, allowed), f"{own} imports {name}; only {allowed} may"


@pytest.mark.parametrize("package", ["tasks", "report"])
def test_package_imports_no_torch(package):
    modules = [name for name in map(module_name, FILES) if inside(name, (f"ladi.{package}",))]
    assert modules, f"ladi.{package} is missing"
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_expected_module_exists_and_has_a_floor():
    present = {module_name(path).split(".")[1] for path in FILES if module_name(path) != "ladi"}
    expected = set().union(*FLOORS)
    assert present <= expected, f"add to FLOORS: {sorted(present - expected)}"
    assert expected - OPTIONAL <= present, f"missing: {sorted(expected - OPTIONAL - present)}"
