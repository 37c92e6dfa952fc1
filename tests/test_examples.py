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


@pytest.mark.product
@pytest.mark.parametrize(
    "file", [file for file in [*EXAMPLES, *NOTEBOOKS] if file.stem not in ELSEWHERE], ids=lambda file: file.stem
)
def test_runs_and_says(file, tmp_path):
    given = [str(tmp_path / "out.png")] if file.stem == "feature_maps" else []
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(file), *given], capture_output=True, text=True, cwd=tmp_path, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAY[file.stem] in done.stdout
    assert not given or (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
