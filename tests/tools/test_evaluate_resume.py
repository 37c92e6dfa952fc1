"""Interrupted, killed, out of room, in several processes: evaluate() always ends with the rows of one quiet run."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from compare_data import ARCHITECTURE, make_images, make_model
from safetensors.torch import save_file

from sparsight.errors import PruneError
from sparsight.tools.evaluate import evaluate
from sparsight.tools.sweep import Sweep

pytest.importorskip("timm")

RECIPES = ["evit:keep=0.5,layers=1/3", "random:keep=0.7,layers=1/3"]
SMALL = {"batch_size": 2, "chunk": 2}
FILES = ("predictions.csv", "predictions.parquet")


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("images"))
    (images / "dog" / "broken.png").write_bytes(b"no image")
    return images


@pytest.fixture(scope="module")
def quiet(loaded, folder, tmp_path_factory):
    """The rows of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("quiet")
    evaluate(loaded, folder, RECIPES, out, **SMALL)
    return rows(out)


def rows(out):
    return {name: (out / name).read_bytes() for name in FILES if (out / name).exists()}


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in (out / "chunks").iterdir()}


def stop_after(monkeypatch, answers, error):
    """Let the run break off when it has asked so many batches."""
    ask, asked = Sweep.answer, []

    def stopping(self, recipe, group):
        asked.append(recipe)
        if len(asked) > answers:
            raise error
        return ask(self, recipe, group)

    monkeypatch.setattr(Sweep, "answer", stopping)


@pytest.mark.parametrize("answers", [1, 5, 11])
def test_an_interrupted_run_ends_with_the_same_rows(loaded, folder, quiet, tmp_path, answers):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, answers, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(loaded, folder, RECIPES, tmp_path, **SMALL)
    before = stamps(tmp_path)
    assert len(before) == answers // 3 * 3
    assert not list(tmp_path.glob("predictions*"))
    evaluate(loaded, folder, RECIPES, tmp_path, **SMALL)
    assert rows(tmp_path) == quiet
    after = stamps(tmp_path)
    assert {path: after[path] for path in before} == before
    assert len(after) == 12


def test_a_recipe_added_later_asks_nothing_twice(loaded, folder, quiet, tmp_path):
    evaluate(loaded, folder, RECIPES[:1], tmp_path, **SMALL)
    before = stamps(tmp_path)
    evaluate(loaded, folder, RECIPES, tmp_path, **SMALL)
    assert rows(tmp_path) == quiet
    assert {path: stamps(tmp_path)[path] for path in before} == before


def test_a_damaged_chunk_is_made_anew(loaded, folder, quiet, tmp_path):
    evaluate(loaded, folder, RECIPES, tmp_path, **SMALL)
    next((tmp_path / "chunks").iterdir()).write_bytes(b"half of a ch")
    evaluate(loaded, folder, RECIPES, tmp_path, **SMALL)
    assert rows(tmp_path) == quiet


def test_other_weights_or_images_are_not_mixed_in(folder, tmp_path):
    model = make_model()
    evaluate(model, folder, out=tmp_path, **SMALL)
    with torch.no_grad():
        model.model.head.bias.add_(1)
    evaluate(model, folder, out=tmp_path, **SMALL)
    assert len(stamps(tmp_path)) == 8


@contextlib.contextmanager
def tiny_disk(path):
    """A file system of 32 KiB, where the machine lets us mount one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk(loaded, folder, quiet, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with tiny_disk(out):
        (out / "chunks").mkdir()
        (out / "ballast").write_bytes(bytes(12 * 1024))
        with pytest.raises(PruneError, match="no room for .* make room and give the same command again"):
            evaluate(loaded, folder, RECIPES, out, **SMALL)
        assert stamps(out)
        assert not list(out.rglob("*.part"))
        assert not list(out.glob("predictions*"))
        (out / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=10m", out], check=True)
        evaluate(loaded, folder, RECIPES, out, **SMALL)
        assert rows(out) == quiet


def test_a_full_disk_at_every_write(loaded, folder, quiet, tmp_path, monkeypatch):
    """The same where nothing can be mounted: each write in turn finds no room."""
    write = Path.write_bytes
    for good in (0, 3, 7):
        written = []

        def full(self, data, good=good, written=written):
            written.append(self)
            if len(written) > good:
                write(self, data[:10])
                raise OSError(28, "No space left on device")
            return write(self, data)

        out = tmp_path / str(good)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(PruneError, match="No space left on device"):
                evaluate(loaded, folder, RECIPES, out, **SMALL)
        assert len(stamps(out)) == good
        assert not list(out.rglob("*.part"))
        evaluate(loaded, folder, RECIPES, out, **SMALL)
        assert rows(out) == quiet


def test_a_killed_loading_process(loaded, folder, quiet, tmp_path):
    here = os.getpid()

    def deadly(image):
        if os.getpid() != here and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loaded.transform(image)

    from dataclasses import replace

    model = replace(loaded, transform=deadly)
    with pytest.raises(PruneError, match=r"a process that loads images was killed .* fewer --workers"):
        evaluate(model, folder, RECIPES, tmp_path / "out", workers=1, **SMALL)
    assert not list((tmp_path / "out").rglob("*.part"))
    evaluate(model, folder, RECIPES, tmp_path / "out", workers=1, **SMALL)
    assert rows(tmp_path / "out") == quiet


PROGRAM = """
    import os, signal, sys
    import torch
    torch.set_num_threads(1)
    from sparsight.tools.evaluate import evaluate
    from sparsight.tools.sweep import Sweep

    model, data, out, kill, *recipes = sys.argv[1:]
    ask = Sweep.answer
    asked = []

    def answer(self, recipe, group):
        asked.append(recipe)
        if len(asked) > 4 and kill == "kill" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(self, recipe, group)

    Sweep.answer = answer
    done = evaluate(model, data, recipes, out, batch_size=2, chunk=2, device="cpu")
    print(done.processes, done.images, len(asked), flush=True)
"""


def launch(tmp_path, *arguments):
    """The program in two processes, as torchrun starts them."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", str(program)]
    return subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_two_processes_give_the_rows_of_one_even_after_a_kill(loaded, folder, quiet, tmp_path):
    pytest.importorskip("accelerate")
    save_file(loaded.model.state_dict(), tmp_path / "tiny.safetensors")
    model = f"{ARCHITECTURE}@{tmp_path / 'tiny.safetensors'}"
    images = make_images(tmp_path / "images", ("c0", "c1", "c2"))
    (images / "c1" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    broken = launch(tmp_path, model, images, out, "kill", *RECIPES)
    assert broken.returncode
    assert not list(out.glob("predictions*"))
    before = stamps(out)
    assert before
    whole = launch(tmp_path, model, images, out, "live", *RECIPES)
    assert whole.returncode == 0, whole.stderr
    answers = [line.split() for line in whole.stdout.splitlines()]
    assert [line[:2] for line in answers] == [["2", "6"], ["2", "6"]]
    assert sum(int(line[2]) for line in answers) == 12 - len(before)
    assert {path: stamps(out)[path] for path in before} == before
    assert not list(out.rglob("*.part"))
    names = {b"cat/": b"c0/", b"dog/": b"c1/", b"owl/": b"c2/"}
    expected = quiet["predictions.csv"]
    for old, new in names.items():
        expected = expected.replace(old, new)
    assert (out / "predictions.csv").read_bytes() == expected
