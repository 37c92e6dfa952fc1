"""The command line: verbs, errors in one line, interruption and going on. Real processes where signals matter."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from compare_data import ARCHITECTURE, CLASSES, make_images, make_model
from safetensors.torch import save_file

from sparsight import __version__
from sparsight.cli.words import split

pytest.importorskip("timm")

START = [sys.executable, "-c", "from sparsight.cli.main import run; run()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file(make_model().model.state_dict(), path)
    return f"{ARCHITECTURE}@{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), tuple(f"c{i}" for i in range(len(CLASSES))))


def test_help_and_version_are_light(sparsight):
    code = "import sys; from sparsight.cli import main; print([m for m in ('torch', 'rich', 'numpy', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert sparsight("--version") == (0, f"sparsight {__version__}\n", "")
    for verb in ("compare", "methods", "macs", "show"):
        assert verb in sparsight("--help")[1]
        assert sparsight(verb, "--help")[0] == 0
    assert sparsight() == sparsight("--help")


def test_methods(sparsight):
    code, text, _ = sparsight("methods")
    assert code == 0
    assert "evit(keep=0.7" in text
    found = {entry["name"]: entry for entry in json.loads(sparsight("methods", "--json")[1])}
    assert {"name": "keep", "default": 0.7, "choices": []} in found["evit"]["parameters"]


def test_macs(sparsight, model):
    code, text, _ = sparsight("macs", ARCHITECTURE, "evit:keep=0.5,layers=1/3", "--image-size", 160)
    assert code == 0
    assert "GMACs" in text


def test_show(sparsight, model, folder, tmp_path):
    image = next(folder.rglob("*.png"))
    code, text, _ = sparsight("show", image, "--model", model, "--recipe", "evit:keep=0.5,layers=1/3", "--out", tmp_path / "k.png")
    assert code == 0
    assert "block 1: 51, block 3: 27" in text
    assert (tmp_path / "k.png").stat().st_size > 1000


def test_compare_prints_the_table_and_the_skipped(sparsight, model, folder, tmp_path):
    broken = folder / "c0" / "broken.jpg"
    broken.write_bytes(b"no image")
    try:
        code, text, news = sparsight(
            "compare", "--model", model, "--data", folder, "--methods", "evit,col_ln:order=1,rows=all", "--keep", "0.5",
            "--layers", "1/3", "--out", tmp_path, "--seconds", 0, "--beside", "resize",
        )  # fmt: skip
    finally:
        broken.unlink()
    assert code == 0
    assert "col_ln:keep=0.5,layers=1/3,order=1,rows=all" in text
    assert "skipped c0/broken.jpg: not an image" in text
    assert "1 images could not be read" in text
    assert list(dict.fromkeys(line.partition(" ")[0] for line in news.splitlines() if "/4 " in line)) == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]
    assert "resize:tokens=" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "results.csv", "results.json", "rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "evitt"], "did you mean 'evit'"),
        (["--keep", "2"], "outside (0, 1]"),
        (["--keep", "half"], "keep=half"),
        (["--layers", "1/99"], "out of range"),
        (["--recipe", "evit:kep=0.5"], "did you mean 'keep'"),
        (["--data", "nowhere"], "does not exist"),
        (["--model", "no/such/folder"], "no model folder"),
        (["--model", "vit_smal"], "timm has no model"),
        (["--model", "weights.pth"], "pickle"),
        (["--device", "abacus"], "cannot be used"),
        (["--limit", "x"], "--limit"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(sparsight, model, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = {"--model": model, "--data": str(folder), "--methods": "evit", "--layers": "1/3", "--out": "out"}
    for name in arguments[::2]:
        given.pop(name, None)
    code, text, news = sparsight("compare", *arguments, *(word for pair in given.items() for word in pair))
    assert code == 2
    assert text == ""
    assert news.startswith("error: ")
    assert news.count("\n") == 1
    assert message in news
    assert not list(tmp_path.iterdir())


def test_unknown_verb(sparsight):
    assert sparsight("prun")[::2] == (2, "error: No such command 'prun'.\n")


def test_methods_with_parameters_are_told_apart():
    assert split("evit,col_ln:order=1,rows=all,tome") == ["evit", "col_ln:order=1,rows=all", "tome"]
    assert split("evit,keep=0.5") == ["evit:keep=0.5"]


@pytest.fixture
def long_job(model, folder, tmp_path):
    """Arguments of a comparison with four rows."""
    return [
        "compare", "--model", model, "--data", str(folder), "--methods", "random,evit,col_ln", "--keep", "0.5", "--layers", "1/3",
        "--out", str(tmp_path), "--seconds", "0.3", "--beside", "random",
    ]  # fmt: skip


def finished(out):
    """Finished rows with the times at which they were written."""
    return {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.json")}


def test_an_interrupted_run_says_how_to_go_on(sparsight, long_job, tmp_path, monkeypatch):
    from sparsight.evaluation.study import Study

    count, calls = Study.macs, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return count(*arguments, **options)

    monkeypatch.setattr(Study, "macs", interrupted)
    code, _, news = sparsight(*long_job)
    assert code == 130
    line = f"stopped: 1 of 4 rows are finished in {tmp_path}; give the same command again to go on from there"
    assert news.splitlines()[-1] == line
    assert len(finished(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_killed_run_goes_on_where_it_was(sparsight, long_job, tmp_path):
    # One thread, as here: the number of threads is part of what a row is kept under.
    program = subprocess.Popen([*START, *long_job], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while program.poll() is None and len(finished(tmp_path)) < 2:
        time.sleep(0.005)
    assert program.poll() is None, program.stderr.read()
    program.kill()
    program.communicate(timeout=60)
    before = finished(tmp_path)
    assert len(before) in (2, 3)
    assert not (tmp_path / "results.json").exists()

    code, _, news = sparsight(*long_job)
    assert code == 0
    assert news.count("(finished before)") == len(before)
    after = finished(tmp_path)
    assert len(after) == 4
    assert {file: after[file] for file in before} == before
    assert not list(tmp_path.rglob("*.part"))
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 4
