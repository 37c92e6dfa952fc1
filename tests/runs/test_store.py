"""Finished work: written whole, found under its key, measured once."""

from dataclasses import asdict, dataclass

import pytest
import torch

from sparsight.errors import PruneError
from sparsight.runs.store import Chunk, ResultStore, claim, read_result, release, write
from sparsight.runs.sweep import RowJob, Step, run_rows


@dataclass(frozen=True)
class Row:
    value: int

    def to_dict(self):
        return asdict(self)

    @staticmethod
    def from_dict(data):
        return Row(**data)


def jobs(measured, *names):
    def measure(name):
        def run(progress):
            progress(0.5)
            measured.append(name)
            if name == "stop":
                raise KeyboardInterrupt
            return Row(len(name))

        return run

    return [RowJob(name, measure(name)) for name in names]


def test_rows_are_measured_once_and_survive_an_interruption(tmp_path):
    store, measured, news = ResultStore(tmp_path, "key"), [], []
    with pytest.raises(KeyboardInterrupt):
        run_rows(jobs(measured, "a", "bb", "stop", "dddd"), 4, store, Row.from_dict)
    assert measured == ["a", "bb", "stop"]
    rows = run_rows(jobs(measured, "a", "bb", "ccc"), 3, store, Row.from_dict, news.append)
    assert rows == [Row(1), Row(2), Row(3)]
    assert measured == ["a", "bb", "stop", "ccc"]
    assert [(step.done, step.restored) for step in news if step.row is not None] == [(1, True), (2, True), (3, False)]
    assert Step(2.5, 3, "ccc") in news


def test_another_key_or_a_damaged_row_is_measured_anew(tmp_path):
    store = ResultStore(tmp_path, "key")
    store.keep("a/b: c", {"value": 1})
    assert store.find("a/b: c", Row.from_dict) == Row(1)
    assert ResultStore(tmp_path, "other").find("a/b: c", Row.from_dict) is None
    store.file("a/b: c").write_text('{"value')
    assert store.find("a/b: c", Row.from_dict) is None


def test_chunks_of_different_widths_are_one_again(tmp_path):
    store = ResultStore(tmp_path, "key")
    one, two = Chunk(), Chunk()
    one.extend([0, 1], ["a", "b"], [0, None], {"keep": torch.tensor([[1, 2], [3, 4]]), "rank": torch.tensor([0.5, 1.5])})
    two.extend([2], ["c"], [1], {"keep": torch.tensor([[5, 6, 7]]), "rank": torch.tensor([2.5])})
    two.skipped.append((3, "d", "not an image"))
    for number, chunk in enumerate((one, two)):
        store.keep_chunk("recipe", number, chunk)
    whole = store.collect("recipe", 2)
    assert whole.columns["keep"].tolist() == [[1, 2, -1], [3, 4, -1], [5, 6, 7]]
    assert (whole.names, whole.labels, whole.skipped) == (["a", "b", "c"], [0, None, 1], [(3, "d", "not an image")])
    assert whole.part([2, 0]).columns["rank"].tolist() == [2.5, 0.5]
    store.chunk_file("recipe", 1).write_bytes(b"half")
    assert store.has_chunk("recipe", 0)
    assert not store.has_chunk("recipe", 1)
    with pytest.raises(PruneError, match="1 of 2 chunks of recipe are not in"):
        store.collect("recipe", 2)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def half(part):
        part.write_text("half")
        raise RuntimeError("my own fault")

    with pytest.raises(RuntimeError, match="my own fault"):
        write(tmp_path / "file", half)
    assert not list(tmp_path.iterdir())


def test_folders_are_taken_back_as_far_as_they_are_empty(tmp_path):
    made = claim(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "rows").is_dir()
    (tmp_path / "a" / "kept").touch()
    release(made)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_what_is_no_result_is_said(tmp_path):
    with pytest.raises(PruneError, match="is no result of evaluate"):
        read_result(tmp_path, str, "evaluate")
