"""The serving benchmark runs from its command line, with settings so small that the numbers say nothing."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serving.py"


def test_serving(folder, tmp_path):
    out = tmp_path / "rows.json"
    command = [
        sys.executable,
        str(SCRIPT),
        str(folder("llava")),
        "--recipe",
        "divprune:tokens=4",
        "--concurrency",
        "1",
        "2",
        "--requests",
        "3",
    ]
    command += ["--side", "56", "--new", "4", "--no-warm", "--out", str(out), "--"]
    subprocess.run([*command, "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"], check=True)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["recipe"], row["concurrency"], row["requests"]) for row in rows] == [
        ("none", 1, 3), ("none", 2, 4), ("divprune:tokens=4", 1, 3), ("divprune:tokens=4", 2, 4),
    ]  # fmt: skip
    assert rows[0]["prompt"] - rows[2]["prompt"] == 16 - 4
