"""The shape of the code: import directions, no circles, and what importing the package loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "sparsight"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    ("errors",),
    ("plan",),
    ("ops",),
    ("recipe", "registry", "signals", "apply", "learned", "handle", "stack", "dense", "latest"),
    ("methods", "models"),
    ("vlms",),
    ("prune",),
    ("demo", "data", "load"),
    ("runs",),
    ("saving",),
    ("pages",),
    ("evaluation", "speed", "look", "train"),
    ("serve", "tune", "vllm_plugin"),
    ("app",),
    ("cli",),
]
"""Rooms from the ground up. A file imports from its own room and from lower floors; rooms of one floor know nothing of each other,
except the nouns, `data` and `load`, and `evaluation`, `speed`, `look` and `train`, which only must not go in circles."""

NEIGHBOURS = [3, 7, 11]
"""Floors whose rooms may know each other."""


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module(path) for path in FILES}


def type_only(tree: ast.AST) -> set[ast.AST]:
    """Imports under `if TYPE_CHECKING:`, which no interpreter follows."""
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for node in guarded for child in node.body for inner in ast.walk(child)}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, by their names below it."""
    here = ("sparsight", *path.relative_to(PACKAGE).parts)
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    skipped = type_only(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in skipped:
            continue
        base = here[: len(here) - node.level] if node.level else ()
        full = (*base, *(node.module or "").split(".")) if node.module else base
        if full[:1] != ("sparsight",):
            continue
        inside = ".".join(full[1:])
        submodules = {f"{inside}.{alias.name}".strip(".") for alias in node.names} & NAMES
        found |= submodules or ({inside} if inside else set())
    return found - {module(path)}


GRAPH = {module(path): imports(path) for path in FILES if module(path) not in ("", "__main__")}


def test_imports_go_down():
    wrong = []
    for name, others in GRAPH.items():
        for other in others:
            here, there = (module.split(".")[0] for module in (name, other))
            neighbours = floor(there) == floor(here) and floor(here) in NEIGHBOURS
            if here != there and floor(there) >= floor(here) and not neighbours:
                wrong.append(f"{name} must not import {other}")
    assert not wrong


def test_no_method_imports_another():
    wrong = {
        (name, other) for name, others in GRAPH.items() for other in others if name.startswith("methods.") and "methods." in other
    }
    assert not wrong


def test_no_circles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path[path.index(name) :], name))}"
        if name in done:
            return
        for other in sorted(GRAPH.get(name, ())):
            visit(other, (*path, name))
        done.add(name)

    for name in sorted(GRAPH):
        visit(name, ())


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
