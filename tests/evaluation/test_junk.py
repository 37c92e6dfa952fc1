"""Names, files and junk from outside: every verb reads what can be read, and skips, counts and names the rest alike."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from compare_data import CLASSES, make_images, make_model
from PIL import Image

from sparsight.data.images import open_folder
from sparsight.data.reading import attempt, decode
from sparsight.errors import PruneError
from sparsight.evaluation.compare import compare
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.robustness import robustness
from sparsight.look.analyse import analyse
from sparsight.look.calibrate import calibration
from sparsight.look.rank import rank

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
BAD = {
    "cat/dangling.jpg": "No such file or directory",
    "cat/fifo.jpg": "not a regular file",
    "cat/loop.jpg": "Too many levels of symbolic links",
    "cat/program.png": "not an image",
    "dog/float.tiff": "32-bit pixels, whose range is not known",
    "dog/line.png": "1 x 60000 pixels: one side is over 200 times the other",
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def tall_png(width: int, height: int) -> bytes:
    """A grey PNG of a few hundred bytes."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    body = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def junk(tmp_path_factory) -> Path:
    """Six good images, one with a name that is no UTF-8, and everything of BAD."""
    folder = make_images(tmp_path_factory.mktemp("junk") / "images")
    os.rename(folder / "cat" / "0.png", os.fsencode(folder) + b"/cat/caf\xe9.png")
    (folder / "cat" / "dangling.jpg").symlink_to("nothing.jpg")
    (folder / "cat" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "cat" / "fifo.jpg")
    (folder / "cat" / "program.png").write_bytes(EPS)
    (folder / "dog" / "line.png").write_bytes(tall_png(1, 60000))
    Image.fromarray(np.ones((40, 40), np.float32)).save(folder / "dog" / "float.tiff")
    (folder / "again").symlink_to(".")
    return folder


@pytest.fixture(scope="module")
def loaded():
    return make_model()


def run(verb, loaded, folder, out):
    if verb == "compare":
        done = compare(loaded, folder, ["evit"], [0.5], ["1/3"], out, seconds=0, device="cpu", shown=1)
        return done.skipped, done.images
    if verb == "evaluate":
        done = evaluate(loaded, folder, (), out, device="cpu")
        names = [line.split(",")[1] for line in (out / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:]]
        return done.skipped, names
    if verb == "robustness":
        pytest.importorskip("imagecorruptions")
        return robustness(loaded, folder, (), out, corruptions=["contrast"], severities=[1], device="cpu").skipped, None
    if verb == "analyse":
        done = analyse(loaded, folder, ["col_ln:keep=0.5"], out, layers="0", shown=1, device="cpu")
        return done.skipped, None
    if verb == "calibrate":
        done = calibration(loaded, open_folder(folder).paths, "agile")
        prefix = f"{folder}/"
        return [(name.removeprefix(prefix), why) for name, why in done.skipped], None
    done = rank(loaded, folder, out)
    return done.skipped, [row.image for row in done.rows]


@pytest.mark.parametrize("verb", ["compare", "evaluate", "robustness", "analyse", "calibrate", "rank"])
def test_every_verb_skips_and_names_the_same(verb, loaded, junk, tmp_path):
    skipped, names = run(verb, loaded, junk, tmp_path)
    assert dict(skipped) == BAD
    assert len(skipped) == len(BAD)
    if names is not None:
        assert r"cat/caf\xe9.png" in names


def test_a_link_back_is_no_class(junk):
    folder = open_folder(junk)
    assert folder.classes == list(CLASSES)
    assert "again: a link back" in folder.note


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, mode):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    file = tmp_path / "deep.tiff"
    Image.frombytes(mode, (16, 16), values.astype("<u2" if mode == "I;16" else ">u2").tobytes()).save(file)
    found = np.asarray(decode(file))
    assert (found[..., 0] == np.round(values / 257)).all()
    assert (found[..., 0] == found[..., 2]).all()


def test_a_transform_that_makes_several_sizes_is_told(loaded, junk, tmp_path):
    import torch

    def uneven(image):
        return torch.zeros(3, 32, 32 if image.getpixel((0, 0))[0] > 128 else 64)

    with pytest.raises(PruneError, match=r"transform makes \[3, 32, 32\] of one image and \[3, 32, 64\]"):
        compare(loaded.model, junk, ["evit"], [0.5], ["1/3"], tmp_path / "out", transform=uneven, seconds=0, device="cpu")


def test_the_kind_of_a_file_is_told_by_its_content(tmp_path):
    (tmp_path / "a.png").write_bytes(EPS)
    assert attempt(lambda: decode(tmp_path / "a.png"), lambda image: image) == "not an image"


def test_seconds_must_be_a_number(loaded, junk, tmp_path):
    with pytest.raises(PruneError, match="seconds=nan must be at least 0 and a finite number"):
        compare(loaded, junk, ["evit"], [0.5], ["1/3"], tmp_path / "out", seconds=float("nan"))
    assert not (tmp_path / "out").exists()


def test_names_of_thousands_of_letters(loaded, junk, tmp_path):
    name = "x" * 5000
    for ask in (
        lambda: evaluate(name, junk, (), tmp_path / "out", device="cpu"),
        lambda: evaluate(loaded, name, (), tmp_path / "out", device="cpu"),
        lambda: evaluate(loaded, junk, (), tmp_path / name, device="cpu"),
        lambda: rank(f"{name}/{name}", junk),
    ):
        with pytest.raises(PruneError) as fault:
            ask()
        assert len(str(fault.value)) < 600
