"""Folders of images: layouts, subsets, class order, broken files."""

import numpy as np
import pytest
import torch
from PIL import Image

from sparsight.data.images import Folder, align, batches, open_folder
from sparsight.errors import PruneError


def picture(path, seed=0, size=(40, 30), mode="RGB"):
    """Write a noisy picture, so that half of its file is not enough to read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def to_tensor(image):
    """A transform [3, 16, 16] that keeps the picture's first pixel values."""
    return torch.from_numpy(np.asarray(image.resize((16, 16))).copy()).permute(2, 0, 1).float()


@pytest.fixture
def folder(tmp_path):
    for kind, count in {"cat": 5, "dog": 3, "emu": 12}.items():
        for index in range(count):
            picture(tmp_path / kind / f"{index:02}.png", index)
    return tmp_path


def test_class_folders(folder):
    opened = open_folder(str(folder))
    assert opened.classes == ["cat", "dog", "emu"]
    assert opened.labels == [0] * 5 + [1] * 3 + [2] * 12
    assert opened.paths[5] == folder / "dog" / "00.png"
    assert str(opened) == f"{folder}: 20 images of 3 classes"


def test_flat_folder(tmp_path):
    for name in ("b.PNG", "a.jpg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.jpg").write_text("hello")
    opened = open_folder(tmp_path)
    assert [file.name for file in opened.paths] == ["a.jpg", "b.PNG"]
    assert opened.labels is None
    assert opened.classes is None


def test_deeper_images_and_empty_classes_and_strays(folder):
    picture(folder / "dog" / "deep" / "x.png")
    picture(folder / "stray.png")
    (folder / "void").mkdir()
    opened = open_folder(folder)
    assert opened.classes == ["cat", "dog", "emu"]
    assert opened.labels.count(1) == 4
    assert opened.note == "1 images beside the class folders are not used"


@pytest.mark.parametrize(("limit", "counts"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (12, [5, 3, 4]), (2, [1, 1, 0]), (99, [5, 3, 12])])
def test_limit_is_even(folder, limit, counts):
    opened = open_folder(folder, limit)
    assert [opened.labels.count(label) for label in range(3)] == counts
    assert opened == open_folder(folder, limit)
    assert len(set(opened.paths)) == len(opened) == sum(counts)


def test_limit_is_spread_over_a_flat_folder(tmp_path):
    for index in range(10):
        picture(tmp_path / f"{index}.png")
    assert [file.stem for file in open_folder(tmp_path, 5).paths] == ["0", "2", "4", "6", "8"]


def test_bad_folders(folder):
    (folder / "empty").mkdir()
    (folder / "texts" / "inner").mkdir(parents=True)
    (folder / "texts" / "a.txt").write_text("hello")
    split = folder / "split"
    picture(split / "train" / "cat" / "0.png")
    picture(split / "val" / "cat" / "0.png")
    cases = {
        folder / "none": r"none does not exist \(.* does\)",
        folder / "cat" / "00.png": "is a file; give the folder",
        folder / "empty": "is empty; expected one folder per class",
        folder / "texts": r"no images \(it holds 1 folders and 1 files: inner, a.txt\)",
        split: "holds the splits train, val; give one of them",
    }
    for path, message in cases.items():
        with pytest.raises(PruneError, match=message):
            open_folder(path)
    with pytest.raises(PruneError, match="limit=0 leaves no image"):
        open_folder(folder, 0)


def labelled(*names):
    """A folder with one image for each class."""
    return Folder("data", [f"{name}.png" for name in names], list(range(len(names))), list(names))


def test_align_to_the_order_of_the_checkpoint():
    done = align(labelled("cat", "dog", "Sea_Horse"), ["sea horse", "dog", "cat", "emu"])
    assert done.labels == [2, 1, 0]
    assert done.classes == ["sea horse", "dog", "cat", "emu"]
    assert not done.note


def test_align_synonyms_unless_ambiguous():
    done = align(labelled("kite", "crane", "tench"), ["tench, Tinca tinca", "crane, bird", "crane, machine", "kite"])
    assert done.labels == [3, 0]
    assert done.paths == ["kite.png", "tench.png"]
    assert "1 images of crane are left out" in done.note


def test_align_exact_name_goes_first():
    assert align(labelled("Faces", "faces"), ["faces", "Faces"]).labels == [1, 0]


def test_align_without_a_match():
    with pytest.raises(PruneError, match=r"folders a, b, classes cat, dog, emu, fox, \.\.\. \(5\)"):
        align(labelled("a", "b"), ["cat", "dog", "emu", "fox", "gnu"])


def test_align_without_names():
    assert align(labelled("a", "b"), None, 2).labels == [0, 1]
    assert "sorted folders" in align(labelled("a", "b"), None, 2).note
    for outputs, note in ((3, "3 classes without names, the folder 2"), (0, "no classifier")):
        done = align(labelled("a", "b"), None, outputs)
        assert done.labels is None
        assert note in done.note
    flat = Folder("data", ["a.png"])
    assert align(flat, None, 3) is flat


def test_align_a_subset_of_synset_folders():
    pytest.importorskip("timm")
    for classes in (None, [f"class {index}" for index in range(1000)]):
        done = align(labelled("n01443537", "n15075141", "n01440764"), classes, 1000)
        assert done.labels == [1, 999, 0]
        assert done.classes[1] == "n01443537"


@pytest.mark.parametrize("workers", [1, 3])
def test_batches(folder, workers):
    opened = open_folder(folder)
    read = batches(opened, to_tensor, 8, workers)
    seen = []
    for images, indices in read:
        assert images.shape == (len(indices), 3, 16, 16)
        seen += indices
        with Image.open(opened.paths[indices[0]]) as image:
            assert torch.equal(images[0], to_tensor(image))
    assert seen == list(range(20))
    assert [len(indices) for _, indices in read] == [8, 8, 4]
    assert not read.skipped


def test_unreadable_images_are_skipped_and_named(folder):
    cut, text, void = folder / "cat" / "05.jpg", folder / "dog" / "01.png", folder / "emu" / "03.png"
    picture(cut, size=(200, 200))
    cut.write_bytes(cut.read_bytes()[:4000])
    text.write_text("I am no image")
    void.write_bytes(b"")
    opened = open_folder(folder)
    read = batches(opened, to_tensor, 6)
    for _ in range(2):
        found = [index for _, indices in read for index in indices]
        assert len(found) == 18
        assert [skip.path for skip in read.skipped] == [cut, text, void]
    assert {opened.paths[index] for index in found} == set(opened.paths) - {cut, text, void}
    assert "truncated" in read.skipped[0].reason
    assert str(read.skipped[1]) == f"{text}: not an image"


def test_a_vanished_image_is_skipped(folder):
    opened = open_folder(folder)
    opened.paths[0].unlink()
    read = batches(opened, to_tensor)
    assert sum(len(indices) for _, indices in read) == 19
    assert str(read.skipped[0]).endswith("No such file or directory")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    picture(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), mode=mode)
    ((images, _),) = batches(open_folder(tmp_path), to_tensor)
    assert images.shape == (1, 3, 16, 16)


def test_an_error_of_the_transform_is_not_hidden(folder):
    def broken(image):
        raise RuntimeError("my own fault")

    with pytest.raises(RuntimeError, match="my own fault"):
        list(batches(open_folder(folder), broken))


def test_leaving_early_stops_the_threads(folder):
    for _, indices in batches(open_folder(folder), to_tensor, 4):
        assert indices == [0, 1, 2, 3]
        break
