"""Runs that are stopped or killed: one line, what is finished is kept, and the same command ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from compare_data import ARCHITECTURE, make_images, make_model
from safetensors.torch import save_file

START = [sys.executable, "-m", "sparsight"]
PARTS = "contrast,fog,jpeg_compression,pixelate,brightness,snow"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file(make_model().model.state_dict(), path)
    return ["--model", f"{ARCHITECTURE}@{path}", "--data", str(make_images(tmp_path_factory.mktemp("images")))]


def kept(out):
    """Finished chunks with the times at which they were written."""
    return {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.safetensors")}


def stop(arguments, out, number):
    """Start, send the signal as soon as two chunks are there: exit code and what was said."""
    program = subprocess.Popen([*START, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while program.poll() is None and len(kept(out)) < 2:
        time.sleep(0.002)
    assert program.poll() is None, program.stderr.read()
    program.send_signal(number)
    _, news = program.communicate(timeout=60)
    return program.returncode, news


def results(out):
    found = json.loads((out / "results.json").read_text())
    return {name: value for name, value in found.items() if name != "date"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_robustness(sparsight, given, tmp_path, number):
    pytest.importorskip("imagecorruptions")
    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments = ["robustness", *given, "--corruptions", PARTS, "--severity", "1", "--recipe", "evit:keep=0.5,layers=1/3"]
    code, news = stop([*arguments, "--out", str(out)], out, number)
    assert not (out / "results.json").exists()
    before = kept(out)
    if number == signal.SIGTERM:
        assert code == 143
        assert news.splitlines()[-1] == f"stopped: what is finished is in {out}; give the same command again to go on from there"
        assert not list(out.rglob("*.part"))
    assert sparsight(*arguments, "--out", out)[0] == 0
    assert {file: stamp for file, stamp in kept(out).items() if file in before} == before
    assert sparsight(*arguments, "--out", whole)[0] == 0
    assert results(out) == results(whole)
