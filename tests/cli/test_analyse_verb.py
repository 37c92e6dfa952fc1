"""sparsight analyse: options arrive, lines are printed, errors are one line, Ctrl-C leaves nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from compare_data import ARCHITECTURE, make_images, make_model
from safetensors.torch import save_file

from sparsight.look.analysis import Analysis

pytest.importorskip("timm")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options of a tiny model and its images."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file(make_model().model.state_dict(), path)
    images = make_images(tmp_path_factory.mktemp("images"), ("c0", "c1", "c2"))
    return ["--model", f"{ARCHITECTURE}@{path}", "--data", str(images), "--limit", "2", "--layers", "1"]


def test_analyse(sparsight, given, tmp_path):
    recipes = ["--recipe", "col_ln:keep=0.5,layers=0", "--recipe", "random:keep=0.5"]
    code, text, news = sparsight("analyse", *given, *recipes, "--orders", "1, inf", "--images", 1, "--out", tmp_path)
    assert code == 0
    assert "looking into blocks: 2 of 2 images" in news
    assert "2 images, block 1, 10 x 10 patches" in text
    assert "kept by both col_ln:keep=0.5 and random:keep=0.5" in text
    assert text.splitlines()[-1] == f"wrote {tmp_path / 'report.html'} with its figures and tables"
    done = Analysis.load(tmp_path)
    assert done.orders == [1, float("inf")]
    assert done.layers == [1]
    assert len(done.maps) == 1


def test_a_full_disk_leaves_no_half_file(sparsight, given, tmp_path, monkeypatch):
    from pathlib import Path

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, news = sparsight("analyse", *given, "--recipe", "random:keep=0.5", "--orders", "2", "--out", tmp_path / "out")
    assert code == 2
    assert "no room for scores0.png" in news
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--orders", "two"], "no list of numbers"),
        (["--orders", "-1"], "must be above 0"),
        (["--layers", "99"], "out of range"),
        (["--data", "nowhere"], "does not exist"),
        (["--recipe", "divprune"], "no language model"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(sparsight, given, tmp_path, arguments, message):
    code, text, news = sparsight("analyse", *given, *arguments, "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert message in news
    assert news.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_says_how_to_go_on(sparsight, given, tmp_path, monkeypatch):
    from sparsight.look import analyse

    with monkeypatch.context() as patch:
        patch.setattr(analyse, "sum_up", lambda *_: signal.raise_signal(signal.SIGINT))
        code, _, news = sparsight("analyse", *given, "--out", tmp_path)
    assert code == 130
    assert news.splitlines()[-1] == f"stopped: what is finished is in {tmp_path}; give the same command again to go on from there"
    assert [file.name for file in tmp_path.iterdir()] == ["rows"]
    assert sparsight("analyse", *given, "--out", tmp_path)[0] == 0


def test_a_killed_run_goes_on_where_it_was(sparsight, given, tmp_path):
    """kill -9 in the middle: what was kept is taken up, and the result is that of a run in one go."""
    words = ["analyse", *given, "--limit", "6", "--batch-size", "1", "--recipe", "random:keep=0.5", "--orders", "2"]
    slow = (
        "import time; from sparsight.look import analyse; analyse.KEEP_EVERY = 0; run = analyse.Probe.run;"
        "analyse.Probe.run = lambda *a: (time.sleep(0.4), run(*a));"
        "from sparsight.cli.main import run as start; start()"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", slow, *words, "--out", str(tmp_path / "killed")],
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while program.poll() is None and not list((tmp_path / "killed" / "rows").glob("analysis-*.json")):
        time.sleep(0.02)
    assert program.poll() is None
    program.kill()
    program.wait()
    kept = json.loads(next((tmp_path / "killed" / "rows").glob("analysis-*.json")).read_text())
    assert 0 < kept["done"] < 6
    assert not (tmp_path / "killed" / "report.html").exists()
    for name in ("killed", "whole"):
        assert sparsight(*words, "--out", tmp_path / name)[0] == 0
    first, second = (Analysis.load(tmp_path / name) for name in ("killed", "whole"))
    assert replace(first, date="", maps=second.maps) == replace(second, date="")
    assert not list(tmp_path.rglob("*.part"))
