"""The benchmarks of servers run from their command lines, with settings so small that the numbers say nothing."""

import json
import os
import subprocess
import sys

import pytest
from conftest import OPTIONS, ROOT

pytestmark = pytest.mark.product


def run(script, model, out, *words, **environment):
    """What the benchmark wrote."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), str(model), "--out", str(out), *words, "--", *OPTIONS]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    assert "| --- " in out.with_suffix(".md").read_text()
    return json.loads(out.read_text())["rows"]


def test_serving(folder, tmp_path):
    words = ["--recipe", "divprune:tokens=4", "--concurrency", "1", "2", "--requests", "3", "--side", "56", "--new", "4"]
    rows = run("serving.py", folder("llava"), tmp_path / "rows.json", *words, "--no-warm", "--together")
    assert [(row["recipe"], row["concurrency"], row["requests"]) for row in rows] == [
        ("none", 1, 3), ("divprune:tokens=4", 1, 3), ("none", 2, 4), ("divprune:tokens=4", 2, 4),
    ]  # fmt: skip
    assert rows[0]["prompt"] - rows[1]["prompt"] == 16 - 4
    assert all(row["cpu"] > 0 for row in rows)


def test_serving_faults(folder, tmp_path):
    words = ["--recipe", "fastervlm:tokens=5,score=col_ln", "--clients", "4", "--side", "56", "--new", "8"]
    rows = run("serving_faults.py", folder("qwen2.5"), tmp_path / "rows.json", *words, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert {row["right"] for row in rows} == {True, None}
    came = {row["what"]: row["came"] for row in rows}
    assert [text[:9] for text in came.values()].count("HTTP 400:") >= 5
    killed, ended = came["kill -9 of the worker"], came["SIGTERM to the server"]
    assert "0 processes left" in killed
    assert "0 processes left" in ended
