"""evaluate() on a tiny model: the same numbers as plain code, results that add up, broken images, bad input."""

import csv
import json

import pytest
import torch
from compare_data import CLASSES, COUNT, make_images, make_model
from PIL import Image

from sparsight.errors import PruneError
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.result import Evaluation
from sparsight.prune import prune
from sparsight.runs.comparison import UNPRUNED
from sparsight.speed.macs import macs

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

RECIPES = ["evit:keep=0.5,layers=1/3", "random:keep=0.7,layers=1/3"]


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "new" / "folder"


@pytest.fixture(scope="module")
def done(loaded, folder, out):
    return evaluate(loaded, folder, RECIPES, out, batch_size=4, chunk=4)


def predictions(out):
    """Lines of predictions.csv by recipe."""
    found = {}
    for line in csv.DictReader((out / "predictions.csv").open(encoding="utf-8")):
        found.setdefault(line["recipe"], []).append(line)
    return found


def plain(model, transform, folder, size):
    """What torchvision's ImageFolder and timm's usual loop give: (path, label, logits) of every image."""
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder), transform)
    loader = torch.utils.data.DataLoader(data, batch_size=size)
    with torch.inference_mode():
        logits = torch.cat([model(images) for images, _ in loader])
    return [path for path, _ in data.samples], torch.tensor(data.targets), logits


def test_unpruned_is_plain_timm_evaluation_to_the_last_digit(done, out, loaded, folder):
    paths, labels, logits = plain(loaded.model, loaded.transform, folder, 4)
    lines = predictions(out)[UNPRUNED]
    assert [str(folder / line["image"]) for line in lines] == paths
    assert [int(line["label"]) for line in lines] == labels.tolist()
    assert [int(line["predicted"]) for line in lines] == logits.argmax(dim=1).tolist()
    assert done.score().top1.value == (logits.argmax(dim=1) == labels).double().mean().item()
    chances = torch.tensor([float(line["probability"]) for line in lines])
    assert torch.allclose(chances, logits.softmax(dim=1).amax(dim=1), atol=1e-6)


def test_the_demo_model_on_its_images(tmp_path):
    """The embedded checkpoint with timm's own transform for its configuration, built by hand."""
    from sparsight.demo import ARCHITECTURE, demo_images, demo_weights

    done = evaluate(out=tmp_path, batch_size=6)
    state, classes = demo_weights()
    model = timm.create_model(ARCHITECTURE, img_size=224, num_classes=101, dynamic_img_size=True).eval()
    model.load_state_dict(state)
    config = timm.data.resolve_data_config({"input_size": (3, 224, 224), "crop_pct": 0.875}, model=model)
    paths, _, logits = plain(model, timm.data.create_transform(**config), demo_images(), 6)
    truth = torch.tensor([classes.index(path.split("/")[-2]) for path in paths])
    lines = predictions(tmp_path)[UNPRUNED]
    assert [int(line["predicted"]) for line in lines] == logits.argmax(dim=1).tolist()
    assert done.score().top1.value == (logits.argmax(dim=1) == truth).double().mean().item()
    assert done.data == "the demo images"


def test_pruned_rows_are_those_of_a_pruned_forward(done, out, loaded, folder):
    with prune(loaded.model, RECIPES[0]):
        _, labels, logits = plain(loaded.model, loaded.transform, folder, 4)
    lines = predictions(out)[RECIPES[0]]
    assert [list(map(int, line["top5"].split())) for line in lines] == logits.topk(3).indices.tolist()
    assert done.score(RECIPES[0]).top1.value == (logits.argmax(dim=1) == labels).double().mean().item()
    assert done.score(RECIPES[0]).tokens == [51, 27]


def test_scores_add_up(done, out):
    lines = predictions(out)
    first = [line["predicted"] for line in lines[UNPRUNED]]
    for score in done.scores:
        mine = lines[score.recipe]
        assert score.images == score.labelled == COUNT == len(mine)
        assert score.top1.value == sum(int(line["correct"]) for line in mine) / COUNT
        assert score.top5.value == 1  # three classes
        assert score.agreement.value == sum(a == line["predicted"] for a, line in zip(first, mine)) / COUNT
    assert done.score().top1_change is None
    change = done.score(RECIPES[0]).top1_change
    assert change.value == pytest.approx(done.score(RECIPES[0]).top1.value - done.score().top1.value)
    assert change.low < change.value < change.high


def test_macs_are_those_of_the_counter(done, loaded):
    assert done.score().macs == macs(loaded.model, None, loaded.image_size)
    assert done.score(RECIPES[1]).macs == macs(loaded.model, RECIPES[1], loaded.image_size)


def test_json_table_and_parquet(done, out):
    assert Evaluation.load(out) == done
    data = json.loads((out / "results.json").read_text())
    assert data["seed"] == 0
    assert set(data["versions"]) == {"python", "sparsight", "torch", "timm"}
    assert data["scores"][1]["definition"] == {"method": "evit", "params": {**data["scores"][1]["definition"]["params"]}}
    for recipe in (UNPRUNED, *RECIPES):
        assert f"\n{recipe}  " in str(done)
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(out / "predictions.parquet").to_pylist()
    lines = [line for found in predictions(out).values() for line in found]
    assert [(row["recipe"], row["image"], row["label"], row["predicted"]) for row in rows] == [
        (line["recipe"], line["image"], int(line["label"]), int(line["predicted"])) for line in lines
    ]
    assert [row["top5"] for row in rows] == [list(map(int, line["top5"].split())) for line in lines]
    with pytest.raises(PruneError, match="no result of evaluate"):
        Evaluation.load(out / "predictions.csv")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_counted_and_named(loaded, folder, tmp_path, workers):
    copy = make_images(tmp_path / "images")
    (copy / "cat" / "aaa.png").write_bytes(b"no image")
    (copy / "owl" / "cut.png").write_bytes(next((copy / "owl").glob("*.png")).read_bytes()[:60])
    done = evaluate(loaded, copy, RECIPES[:1], tmp_path / "out", batch_size=2, chunk=2, workers=workers)
    assert [name for name, _ in done.skipped] == ["cat/aaa.png", "owl/cut.png"]
    assert done.skipped[0][1] == "not an image"
    assert done.images == COUNT
    assert "2 images could not be read and were skipped" in str(done)
    assert {line["image"] for line in predictions(tmp_path / "out")[UNPRUNED]} == {
        str(path.relative_to(folder)) for path in folder.rglob("*.png")
    }


def test_no_image_can_be_read(loaded, tmp_path):
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(PruneError, match=r"none of the 1 images .* cat/a\.png: not an image"):
        evaluate(loaded, tmp_path / "bad", out=tmp_path / "out")


def test_images_without_labels_get_predictions(loaded, folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.open(path).save(flat / f"{index}.png")
    done = evaluate(loaded, flat, RECIPES[:1], tmp_path / "out")
    assert done.score().top1 is None
    assert done.score().labelled == 0
    assert done.score(RECIPES[0]).agreement is not None
    assert predictions(tmp_path / "out")[UNPRUNED][0]["label"] == ""


def test_limit_and_split(loaded, tmp_path):
    make_images(tmp_path / "data" / "val")
    done = evaluate(loaded, tmp_path / "data", out=tmp_path / "out", split="val", limit=3)
    assert done.images == 3
    assert {line["image"].split("/")[0] for line in predictions(tmp_path / "out")[UNPRUNED]} == set(CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "nowhere"}, "does not exist"),
        ({"mode": "guess"}, "choose classify, zero-shot, knn, probe"),
        ({"recipes": ["evitt"]}, "did you mean 'evit'"),
        ({"recipes": ["evit:keep=0.5,layers=99"]}, "out of range"),
        ({"recipes": ["vispruner:tokens=8"]}, "no language model"),
        ({"preset": "imagenet-z"}, "choose one of imagenet"),
        ({"data": None, "preset": "imagenet"}, "needs --data: one folder per synset"),
        ({"split": "validation"}, "has no split 'validation'"),
        ({"workers": -1}, "workers must not be negative"),
        ({"precision": "fp8"}, "choose fp32"),
        ({"templates": ["a {}"]}, "templates are for mode zero-shot"),
        ({"mode": "knn"}, "need training images"),
        ({"mode": "zero-shot"}, "needs a model of images and texts"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_bad_input_leaves_nothing(loaded, folder, tmp_path, arguments, message):
    with pytest.raises(PruneError, match=message):
        evaluate(loaded, **{"data": folder, "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_classes_that_do_not_match_the_checkpoint(loaded, tmp_path):
    make_images(tmp_path / "images", ("x", "y", "z"))
    with pytest.raises(PruneError, match="folders x, y, z, classes cat, dog, owl"):
        evaluate(loaded, tmp_path / "images", out=tmp_path / "out")


def test_a_backbone_without_classifier(folder, tmp_path):
    with pytest.raises(PruneError, match="try mode knn or probe"):
        evaluate(make_model(0), folder, out=tmp_path / "out")
