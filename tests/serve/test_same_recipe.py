"""A recipe string means the same in Python, on the command line, in the server and in exported files: the same kept sets on real pictures."""

import io
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from loopback import Client, make_vit, picture, running
from PIL import Image

import sparsight
from sparsight.data.reading import decode
from sparsight.demo import demo_images
from sparsight.load import demo_vlm
from sparsight.load.models import load
from sparsight.speed.engines import open_exported
from sparsight.speed.export import export

RECIPES = ("col_ln:keep=0.7,layers=3/6/9", "evit:keep=0.5,layers=3/6/9")
OTHER_WORDS = {RECIPES[0]: " col_ln: layers=3/6/9 , keep=0.70", RECIPES[1]: "evit:layers=3/6/9,keep=.5"}
"""The same recipes as somebody else would write them."""
ENDINGS = {"onnx": "onnx", "openvino": "xml", "torch-export": "pt2"}


def kept_by_python(model, images, recipe):
    """The patches left of each image in the end, by `sparsight.prune`."""
    with torch.no_grad(), sparsight.prune(model, recipe) as handle:
        model(images)
        return [set(row) for row in handle.sources()[-1].keep.tolist()]


def kept_by_file(file, images):
    """The same by an exported file, a few images at a time."""
    session = open_exported(file, threads=1)
    return [set(row) for some in images.split(16) for row in session(some)[-1].tolist()]


def test_a_tiny_model_everywhere(tmp_path):
    recipe, vit = "col_ln:keep=0.5,layers=0/1", make_vit()
    files = [picture(number) for number in range(5)]
    images = torch.stack([vit.transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    wanted = kept_by_python(vit.model, images, recipe)
    assert wanted != kept_by_python(vit.model, images, "col_ln:keep=0.5,layers=1"), "another recipe keeps others"
    export(vit, " col_ln: layers=0/1 , keep=0.50", tmp_path / "m.xml", format="openvino", limit=2, kept=True)
    assert kept_by_file(tmp_path / "m.xml", images) == wanted
    with running(vit, (recipe,)) as client:
        assert [set(client.ask("/predict?recipe=col_ln:layers=0/1,keep=.5", file)[1]["tokens"]["kept"]) for file in files] == wanted


@pytest.fixture(scope="module")
def pictures():
    """All pictures of the package: twelve photographs and 48 scenes."""
    return [path.read_bytes() for folder in (demo_images(), demo_vlm.pictures()) for path in sorted(folder.rglob("*.jpg"))]


@pytest.fixture(scope="module")
def images(pictures):
    transform = load("demo").transform
    return torch.stack([transform(decode(io.BytesIO(file))) for file in pictures])


@pytest.fixture(scope="module")
def wanted(images):
    """What Python keeps, by recipe."""
    loaded = load("demo")
    assert len(images) >= 50
    return {recipe: kept_by_python(loaded.model, images, recipe) for recipe in RECIPES}


def program(*words):
    return [sys.executable, "-m", "sparsight", *map(str, words)], {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.product
@pytest.mark.timeout(900)
@pytest.mark.parametrize("format", ENDINGS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_exported_files(recipe, format, images, wanted, tmp_path):
    """Written by the command line."""
    file = tmp_path / f"demo.{ENDINGS[format]}"
    words, environment = program("export", "demo", "--recipe", OTHER_WORDS[recipe], "--format", format, "--kept", "--out", file)
    said = subprocess.run(words, env=environment, text=True, capture_output=True, check=True).stdout
    assert "the same tokens kept in 100.0%" in said.replace("\n", " ")
    assert kept_by_file(file, images) == wanted[recipe]
    assert open_exported(file).metadata["recipe"] == recipe


@contextmanager
def served(*words):
    """`sparsight serve` as a process of its own; a client of it."""
    command, environment = program("serve", "demo", "--port", 0, "--threads", 1, *words)
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        news = iter(server.stderr.readline, "")
        yield Client(next(int(found[1]) for line in news if (found := re.search(r"http://127\.0\.0\.1:(\d+) ", line))))
    finally:
        server.terminate()
        server.wait(60)
        server.stderr.close()


@pytest.mark.product
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "openvino"])
def test_the_server(engine, pictures, wanted):
    """Started and asked in other words for the same recipes."""
    with served("--engine", engine, *(word for recipe in RECIPES for word in ("--recipe", OTHER_WORDS[recipe]))) as client:
        for recipe in RECIPES:
            found = [client.ask(f"/predict?recipe={recipe}&top=1", file) for file in pictures]
            assert {status for status, _ in found} == {200}
            assert [set(answer["tokens"]["kept"]) for _, answer in found] == wanted[recipe]
            assert {answer["recipe"] for _, answer in found} == {recipe}
            some = client.ask(f"/predict?keep={0.7 if recipe == RECIPES[0] else 0.5}&top=1", pictures[0])[1]
            assert set(some["tokens"]["kept"]) == wanted[recipe][0]


@pytest.mark.product
@pytest.mark.timeout(900)
def test_the_page_runs_as_it_stands():
    """The first commands of docs/how-to/serve.md: one starts a server, each of the others gets an answer; with curl, as they are written."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    start, *asked = [
        line.partition("  ")[0].strip() for line in page.splitlines() if line.startswith(("sparsight serve ", "curl "))
    ]
    photo = sorted(demo_images().rglob("*.jpg"))[0]
    with served(*start.split()[3:]) as client:
        for line in asked:
            line = line.replace(":8000", f":{client.port}").replace("PHOTO.jpg", str(photo)).replace("curl ", "curl -sS --fail ", 1)
            done = subprocess.run(line, shell=True, text=True, capture_output=True)
            assert done.returncode == 0, (line, done.stderr)
            assert ("sparsight_requests_total" if line.endswith("/metrics") else '"recipe') in done.stdout, line
