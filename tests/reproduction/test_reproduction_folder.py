"""The folder beside the package: found in a checkout or in the current folder, else said to be missing; no circles in it."""

import ast
import sys
from pathlib import Path

import pytest

import reproduction
from sparsight import PruneError
from sparsight.cli import reproduce as verb

FOLDER = Path(reproduction.__file__).parent


@pytest.fixture
def forgotten(monkeypatch):
    """As if nothing of the folder had been imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "reproduction"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def installed(forgotten, monkeypatch, tmp_path):
    """The package in site-packages, with nothing beside it."""
    monkeypatch.setattr(verb, "__file__", str(tmp_path / "lib" / "site-packages" / "sparsight" / "cli" / "reproduce.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_found_in_a_checkout(forgotten, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert Path(verb.part("published").__file__).parent == FOLDER
    assert sys.path == path


def test_found_in_the_current_folder(installed):
    (installed / "reproduction").symlink_to(FOLDER)
    assert len(verb.part("published").names()) > 50


def test_an_installed_package_alone_says_what_to_do(installed):
    with pytest.raises(PruneError, match="in a checkout of the repository, or copy its folder reproduction/"):
        verb.part("published")


def test_no_circles():
    graph = {path.stem: set() for path in FOLDER.glob("*.py")}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                graph[path.stem] |= {node.module} if node.module else {alias.name for alias in node.names}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert not graph
