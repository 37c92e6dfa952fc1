"""Interrupted, killed, out of room, in several processes: evaluate() always ends with the rows of one quiet run."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from compare_data import make_images, make_model

from sparsight.errors import PruneError
from sparsight.evaluation.evaluate import evaluate
from sparsight.runs import sweep

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
    return {path: path.stat().st_mtime_ns for path in (out / "rows").glob("*")}


def stop_after(monkeypatch, answers, error):
    """Let the run break off when it has asked so many batches."""
    ask, asked = sweep.answer, []

    def stopping(model, question, recipe, *rest):
        asked.append(recipe)
        if len(asked) > answers:
            raise error
        return ask(model, question, recipe, *rest)

    monkeypatch.setattr(sweep, "answer", stopping)


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
    next((tmp_path / "rows").iterdir()).write_bytes(b"half of a ch")
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
        (out / "rows").mkdir()
        (out / "ballast").write_bytes(bytes(12 * 1024))
        with pytest.raises(PruneError, match=r"no room for .* make room and give the same command again"):
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


def member(rank, port, kill, report, arguments):
    """One of two processes, told by accelerate and torchrun who it is; reports how many processes there were and what it asked."""
    place = {
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": rank,
        "LOCAL_RANK": rank,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    ask, asked = sweep.answer, []

    def answer(model, question, recipe, *rest):
        asked.append(recipe)
        if kill and rank == 1 and len(asked) > 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(model, question, recipe, *rest)

    sweep.answer = answer
    try:
        model, data, recipes, outs = arguments
        done = evaluate(model, data, recipes, outs[rank], device="cpu", **SMALL)
        report.put((done.processes, done.images, len(asked)))
    except PruneError as error:
        report.put(str(error))


def launch(kill, *arguments):
    """evaluate() in two processes: what each reports, and their exit codes. Forked, as importing timm once more takes its time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    report = context.Queue()
    crew = [context.Process(target=member, args=(rank, port, kill, report, arguments)) for rank in range(2)]
    for process in crew:
        process.start()
    said = [report.get(timeout=200) for _ in range(1 if kill else 2)]
    for process in crew:
        process.join(60)
    return said, [process.exitcode for process in crew]


def test_two_processes_give_the_rows_of_one_even_after_a_kill(loaded, folder, quiet, tmp_path):
    pytest.importorskip("accelerate")
    (message,), codes = launch(True, loaded, folder, RECIPES, (tmp_path, tmp_path))
    assert message.startswith("another process of this run has ended")
    assert codes[1] == -signal.SIGKILL
    assert not list(tmp_path.glob("predictions*"))
    before = stamps(tmp_path)
    assert len(before) >= 6 + 3
    said, codes = launch(False, loaded, folder, RECIPES, (tmp_path, tmp_path))
    assert codes == [0, 0]
    assert [line[:2] for line in said] == [(2, 6), (2, 6)]
    assert sum(line[2] for line in said) == 12 - len(before)
    assert {path: stamps(tmp_path)[path] for path in before} == before
    assert not list(tmp_path.rglob("*.part"))
    assert rows(tmp_path) == quiet


def test_machines_that_share_no_disk(loaded, folder, quiet, tmp_path):
    pytest.importorskip("accelerate")
    said, codes = launch(False, loaded, folder, RECIPES, (tmp_path / "first", tmp_path / "second"))
    assert codes == [0, 0]
    assert sum(line[2] for line in said) == 12
    assert len(stamps(tmp_path / "first")) == 12
    assert len(stamps(tmp_path / "second")) == 6
    assert rows(tmp_path / "first") == quiet
    assert not (tmp_path / "second" / "predictions.csv").exists()
