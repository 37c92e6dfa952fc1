"""The shape of the code: import directions, sizes, and what importing the package loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "sparsight"
FILES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN = {
    "ops": {"methods", "models", "prune", "apply", "recipe", "registry", "tools", "cli"},
    "methods": {"methods", "models", "prune", "apply", "tools", "cli"},
    "models": {"methods", "recipe", "registry", "prune", "apply", "tools", "cli"},
    "tools": {"methods", "models", "cli"},
    "plan.py": {"ops", "methods", "models", "prune", "apply", "recipe", "registry", "tools", "cli"},
    "recipe.py": {"methods", "models", "prune", "apply", "tools", "cli"},
    "prune.py": {"methods", "tools", "cli"},
}


def imported(path: Path) -> set[str]:
    """First parts, below the package, of what a file imports from the package."""
    here = ("sparsight", *path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            full = (*base, *(node.module or "").split(".")) if node.module else base
            names = [full] if len(full) > 1 else [(*full, alias.name) for alias in node.names]
            found |= {name[1] for name in names if name and name[0] == "sparsight" and len(name) > 1}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sparsight.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_direction(path):
    part = path.relative_to(PACKAGE).parts[0]
    wrong = imported(path) & FORBIDDEN.get(part, set())
    if part == "methods":
        assert not any(line.startswith("from .") and not line.startswith("from ..") for line in path.read_text().splitlines())
    assert not wrong, f"{path.name} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path):
    """Files under 300 lines, functions under 40."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 40, f"{path.name}: {node.name}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    code = "import sparsight, sys; sparsight.parse('evit'); sparsight.prune; print(*sys.modules)"
    loaded = set(run(code).split())
    assert "torch" in loaded
    assert not loaded & {"timm", "transformers", "torchvision", "matplotlib", "pandas"}


def test_public_names_survive_submodule_imports():
    """`prune` and `methods` are functions although submodules have the same names."""
    code = (
        "import sparsight.prune, sparsight.methods.evit, sparsight; print(sparsight.prune.__name__, len(sparsight.methods()) > 8)"
    )
    assert run(code).split() == ["prune", "True"]


def test_public_names_are_all_there():
    import sparsight

    assert all(callable(getattr(sparsight, name)) for name in sparsight.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        sparsight.no_such  # noqa: B018
