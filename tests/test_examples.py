"""Examples and notebooks: short, and they run as they stand."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
MOST = 30
ELSEWHERE = ("train_lvlm", "ask_server")
"""They need arguments or a server, and have tests of their own."""
SAY = {
    "classify": "emu (",
    "ask": "divprune:tokens=32: ",
    "own_score": "key_length ",
    "save_and_load": "col_ln:keep=0.5,layers=0/3/6 the same",
    "feature_maps": "",
    "my_vit": "True col_ln:keep=0.5,layers=0/3/6",
    "my_lvlm": "divprune:tokens=8",
    "my_own_model": "(2, 10)",
}


def test_examples_are_short():
    """Lines that are not empty, without the docstring in front."""
    lines = {}
    for file in EXAMPLES:
        text = file.read_text(encoding="utf-8")
        head = len((ast.get_docstring(ast.parse(text), clean=False) or "").splitlines())
        lines[file.name] = sum(bool(line.strip()) for line in text.splitlines()) - head
    assert {name: count for name, count in lines.items() if count > MOST} == {}


ALL = """
import runpy, sys
for file in sys.argv[1:]:
    name, *given = file.split("=")
    sys.argv = [name, *given]
    print("==", name, flush=True)
    runpy.run_path(name, run_name="__main__")
"""
"""Every file in one process: to start one takes longer than the file itself."""


def said(files, folder, **given):
    """Name of a file -> what it printed."""
    asked = [f"{file}={given[file.stem]}" if file.stem in given else str(file) for file in files]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALL, *asked], capture_output=True, text=True, cwd=folder, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [part.partition("\n") for part in done.stdout.split("== ")[1:]]
    return {Path(name).stem: text for name, _, text in parts}


def test_examples_run_and_say(tmp_path):
    found = said([file for file in EXAMPLES if file.stem not in ELSEWHERE], tmp_path, feature_maps=tmp_path / "out.png")
    assert {name for name in found if SAY[name] not in found[name]} == set()
    assert set(found) == {file.stem for file in EXAMPLES}.difference(ELSEWHERE)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.product
def test_notebooks_run_and_say(tmp_path):
    """`make site` runs them, too."""
    found = said(NOTEBOOKS, tmp_path)
    assert {name for name in found if SAY[name] not in found[name]} == set()
    assert set(found) == {file.stem for file in NOTEBOOKS}
