"""Images from folders, ImageNet's layouts and Hugging Face data sets: the same refs from all of them."""

import io

import numpy as np
import pytest
from compare_data import CLASSES, COUNT, make_images, make_model
from PIL import Image

from sparsight.data.sources import open_source
from sparsight.errors import PruneError
from sparsight.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def everything(source):
    return [(ref.label, np.asarray(ref.read()).tobytes()) for ref in source.refs(lambda place: True)]


def rows(folder, names=CLASSES):
    """The folder's images as rows of a Hugging Face data set, with one that is broken."""
    datasets = pytest.importorskip("datasets")
    files = [(path, names.index(path.parent.name)) for path in sorted(folder.rglob("*.png"))]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in files] + [{"bytes": b"no image", "path": "broken.png"}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"image": cells, "label": [label for _, label in files] + [0]}, features=features)


def test_folder_and_its_limit(folder):
    source = open_source(folder)
    assert source.total == COUNT
    assert [label for label, _ in everything(source)] == [0, 0, 1, 1, 2, 2]
    assert [ref.place for ref in source.refs(lambda place: place in (1, 4))] == [1, 4]
    assert [label for label, _ in everything(open_source(folder, limit=3))] == [0, 1, 2]


def test_nested_classes_and_classes_to_ignore(tmp_path):
    for name in ("a/abbey", "a/house/outdoor", "b/beach"):
        make_images(tmp_path, (name,))
    assert open_source(tmp_path, nested=True).classes == ["a/abbey", "a/house/outdoor", "b/beach"]
    assert open_source(tmp_path, ignore=("a",)).classes == ["b"]
    with pytest.raises(PruneError, match="no class folders"):
        open_source(tmp_path, ignore=("a", "b"))


@pytest.mark.parametrize("kind", ["kaggle", "devkit"])
def test_imagenets_flat_validation_folder(tmp_path, kind):
    val = tmp_path / "val"
    val.mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(val / f"ILSVRC2012_val_{number:08d}.JPEG")
    assert open_source(val).classes is None
    if kind == "kaggle":
        lines = [
            "ImageId,PredictionString",
            *(f"ILSVRC2012_val_{n:08d},{s} 1 2 3 4" for n, s in ((1, "n02"), (2, "n01"), (3, "n02"))),
        ]
        (tmp_path / "LOC_val_solution.csv").write_text("\n".join(lines))
    else:
        scipy = pytest.importorskip("scipy.io")
        kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("7\n5\n7\n")
        synsets = np.array([(5, "n01"), (7, "n02")], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "U9")])
        scipy.savemat(kit / "meta.mat", {"synsets": synsets})
    source = open_source(val)
    assert source.classes == ["n01", "n02"]
    assert [ref.label for ref in source.refs(lambda place: True)] == [1, 0, 1]
    Image.new("RGB", (8, 8)).save(val / "ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(PruneError, match="no label for ILSVRC2012_val_00000009"):
        open_source(val)


@pytest.mark.parametrize("kind", ["disk", "splits", "parquet", "stream"])
def test_every_form_of_a_data_set_gives_the_folders_images(folder, tmp_path, kind):
    table = rows(folder)
    if kind == "disk":
        table.save_to_disk(tmp_path / "set")
        source = open_source(tmp_path / "set")
    elif kind == "splits":
        import datasets

        datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(tmp_path / "set")
        source = open_source(tmp_path / "set")
        assert open_source(tmp_path / "set", "train").total == 1
        with pytest.raises(PruneError, match="no split 'val'; it has train, test"):
            open_source(tmp_path / "set", "val")
    elif kind == "parquet":
        table.to_parquet(tmp_path / "set.parquet")
        source = open_source(tmp_path / "set.parquet")
    else:
        import datasets

        from sparsight.data.hub import Stream, find_columns

        stream = table.to_iterable_dataset().cast_column("image", datasets.Image(decode=False))
        columns = find_columns(table.features, "stream")
        source = Stream(stream, columns, "stream", columns.classes)
    refs = list(source.refs(lambda place: place < COUNT))
    expected = everything(open_source(folder))
    assert [(ref.label, np.asarray(ref.read()).tobytes()) for ref in refs] == expected
    turned = source.aligned(["owl", "cat"], 2)
    assert [ref.label for ref in turned.refs(lambda place: True)] == [1, 1, 0, 0, 1]
    assert "1 labels that are no classes" in turned.note


def test_a_data_set_is_evaluated_like_the_folder(folder, tmp_path):
    pytest.importorskip("timm")
    model = make_model()
    rows(folder).save_to_disk(tmp_path / "set")
    one = evaluate(model, folder, ["evit:keep=0.5,layers=1/3"], tmp_path / "a", batch_size=2)
    two = evaluate(model, tmp_path / "set", ["evit:keep=0.5,layers=1/3"], tmp_path / "b", batch_size=2)
    assert [score.top1 for score in two.scores] == [score.top1 for score in one.scores]
    assert two.skipped == [("00000006-broken.png", "not an image")]


def test_limit_of_a_data_set_is_spread(folder, tmp_path):
    rows(folder).save_to_disk(tmp_path / "set")
    assert [ref.label for ref in open_source(tmp_path / "set", limit=3).refs(lambda place: True)] == [0, 1, 2]


def test_data_sets_that_cannot_be_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        PruneError, match=r"data set some/flowers cannot be streamed .*load_dataset\('some/flowers', split='val'\)\.save"
    ):
        open_source("hf:some/flowers:val")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(PruneError, match="no column of images; its columns are text"):
        open_source(tmp_path / "texts")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(PruneError, match="cannot be read"):
        open_source(tmp_path / "bad.parquet")


def test_a_stream_that_breaks_off():
    from sparsight.data.hub import Columns, Stream

    def broken():
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        yield {"image": {"bytes": buffer.getvalue(), "path": None}}
        raise ConnectionError("the other side has gone")

    source = Stream(broken(), Columns("image", None, None), "hf:some/stream")
    with pytest.raises(PruneError, match=r"stream hf:some/stream broke off .* give the same command again"):
        list(source.refs(lambda place: True))
