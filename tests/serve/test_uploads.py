"""What is sent as an image: what is none ends in one line, whatever it is."""

import io

import pytest
import torch
from loopback import bomb, picture
from PIL import Image

from sparsight.serve.refusal import Refusal
from sparsight.serve.uploads import to_tensor


def as_tensor(image):
    return torch.tensor(image.size)


def long() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3000, 2)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "text": (b"no image at all", "not an image"),
    "empty png": (b"\x89PNG\r\n\x1a\n", "not an image"),
    "truncated png": (picture(0)[:-300], "truncated"),
    "truncated jpeg": (picture(0, "JPEG")[:500], "truncated"),
    "bomb": (bomb(), "exceeds limit"),
    "smaller bomb": (bomb(9000, 9000), "9000 x 9000 pixels: over 1000000 in all"),
    "long": (long(), "one side is over"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "not an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name):
    content, words = BAD[name]
    with pytest.raises(Refusal) as refusal:
        to_tensor(content, as_tensor, 1_000_000)
    assert refusal.value.status == 400
    assert refusal.value.text.startswith("the image cannot be read: ")
    assert words in refusal.value.text.lower()
    assert "\n" not in refusal.value.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_good(kind):
    assert to_tensor(picture(0, kind), as_tensor, 90 * 80).tolist() == [90, 80]
    with pytest.raises(Refusal, match="90 x 80 pixels: over 7199 in all"):
        to_tensor(picture(0, kind), as_tensor, 90 * 80 - 1)
