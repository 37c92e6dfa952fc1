"""compare() on a tiny model with random weights and a handful of generated images."""

import csv
import io
import json
import time

import pytest
import torch
from compare_data import COUNT, make_images, make_model

from sparsight.errors import PruneError
from sparsight.evaluation.compare import compare, spell
from sparsight.load.answers import Reader
from sparsight.prune import prune
from sparsight.runs.comparison import UNPRUNED, Comparison
from sparsight.runs.intervals import paired
from sparsight.speed.timing import Alive, peak_memory, race

pytest.importorskip("timm")

METHODS = ("random", "evit", "tome")


@pytest.fixture(scope="module")
def loaded():
    return make_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "new" / "folder"


def run(loaded, folder, out, **changes):
    arguments = {
        "methods": METHODS,
        "keep": (0.7, 0.5),
        "layers": ("1/3",),
        "batch_size": 4,
        "seconds": 0,
        "shown": 2,
        "beside": (),
    }
    return compare(loaded, folder, out=out, **{**arguments, **changes})


@pytest.fixture(scope="module")
def done(loaded, folder, out):
    return run(loaded, folder, out)


def test_there_is_a_complete_row_for_every_method_and_budget(done):
    assert [row.recipe for row in done.rows[:3]] == [UNPRUNED, "random:keep=0.7,layers=1/3", "evit:keep=0.7,layers=1/3"]
    assert len(done.rows) == 1 + 2 * len(METHODS)
    for row in done.rows:
        assert row.images == COUNT == len(row.outcomes.cosine) == len(row.outcomes.top1)
        assert row.top1 == sum(row.outcomes.top1) / COUNT
        assert row.top5 >= row.top1
        assert row.images_per_second > 0
        assert row.speedup.low <= row.speedup.median <= row.speedup.high
        assert row.speedup.runs >= 6
        assert row.peak_memory > 0
        assert "\n" not in str(row)
    assert done.row("random:keep=0.5,layers=1/3").tokens == [50, 25]
    assert "\n" not in str(done)


def test_the_unpruned_row_agrees_with_itself(done):
    first = done.rows[0]
    assert first.agreement.value == 1
    assert first.cosine == pytest.approx(1)
    assert first.top1_change is None
    assert 0.5 < first.speedup.median < 2


def test_fewer_tokens_cost_fewer_macs(done):
    half, most, whole = (done.row(name).macs for name in ("random:keep=0.5,layers=1/3", "random:keep=0.7,layers=1/3", UNPRUNED))
    assert half < most < whole


def test_outcomes_are_those_of_a_plain_forward(done, loaded, folder):
    from sparsight.data.images import load_image

    images = torch.stack([load_image(folder / name, loaded.transform) for name in done.images])
    plain = Reader(loaded.model)(images)
    with torch.no_grad(), prune(loaded.model, "evit:keep=0.5,layers=1/3"):
        logits, pooled = Reader(loaded.model)(images)
    row = done.row("evit:keep=0.5,layers=1/3")
    assert row.outcomes.predicted == logits.argmax(dim=1).tolist()
    assert row.outcomes.cosine == pytest.approx(torch.cosine_similarity(pooled, plain[1]).tolist(), abs=1e-5)
    assert torch.equal(plain[0], loaded.model(images))


def test_pooled_features_are_timms_pre_logits(loaded):
    images = torch.randn(2, 3, *loaded.image_size)
    features = loaded.model.forward_features(images)
    assert torch.allclose(Reader(loaded.model)(images)[1], loaded.model.forward_head(features, pre_logits=True))


def test_json_and_csv_say_the_same(done, out):
    saved = Comparison.load(out)
    assert saved == done
    lines = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert [line["recipe"] for line in lines] == [row.recipe for row in done.rows]
    for line, row in zip(lines, done.rows, strict=True):
        assert float(line["cosine"]) == row.cosine
        assert float(line["agreement_low"]) == row.agreement.low
        assert int(line["macs"]) == row.macs
    data = json.loads((out / "results.json").read_text())
    assert data["rows"][1]["definition"]["method"] == "random"
    assert data["versions"]["torch"] == torch.__version__


def test_differences_between_methods_are_paired(done):
    names = ("evit:keep=0.5,layers=1/3", "random:keep=0.5,layers=1/3")
    hits = [done.row(name).outcomes.top1 for name in names]
    assert done.difference(*names) == paired(*hits)
    assert done.difference(names[0]) == done.row(names[0]).top1_change
    with pytest.raises(PruneError, match="no row 'x'"):
        done.difference("x")


def test_again_with_the_same_arguments_nothing_is_measured(done, loaded, folder, copied):
    steps = []
    again = run(loaded, folder, copied, listen=steps.append)
    assert [step.restored for step in steps if step.row] == [True] * len(done.rows)
    assert again.rows == done.rows


def test_other_arguments_do_not_mix_with_finished_rows(done, loaded, folder, copied):
    for changes in ({"batch_size": 3}, {"precision": "bf16"}, {"limit": 4}, {"seed": 1}):
        steps = []
        run(loaded, folder, copied, methods=["random"], keep=[0.5], shown=0, listen=steps.append, **changes)
        assert [step.restored for step in steps if step.row] == [False, False], changes
    assert next(loaded.model.parameters()).dtype == torch.float32


def test_a_damaged_row_is_measured_again(loaded, folder, tmp_path):
    run(loaded, folder, tmp_path, methods=["random"], keep=[0.5])
    file = next((tmp_path / "rows").glob("random*.json"))
    file.write_text(file.read_text()[:40])
    (tmp_path / "rows" / "x.json.1.part").write_text("half")
    steps = []
    run(loaded, folder, tmp_path, methods=["random"], keep=[0.5], listen=steps.append)
    assert [step.restored for step in steps if step.row] == [True, False]
    assert not list(tmp_path.rglob("*.part"))


def test_unreadable_images_are_skipped_and_named(loaded, tmp_path):
    folder = make_images(tmp_path / "images")
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    done = run(loaded, folder, tmp_path / "out", methods=["random"], keep=[0.5])
    assert done.skipped == [("cat/broken.png", "not an image")]
    assert len(done.images) == done.rows[1].images == COUNT
    assert "cat/broken.png" in (tmp_path / "out" / "report.html").read_text()


def test_without_class_folders_there_is_agreement_only(loaded, tmp_path):
    folder = make_images(tmp_path / "images", classes=("",))
    done = run(loaded, folder, tmp_path / "out", methods=["random"], keep=[0.5])
    assert done.rows[1].top1 is None
    assert done.rows[1].agreement is not None
    assert "Top-1 %" not in (tmp_path / "out" / "report.html").read_text()


def test_a_model_without_classifier_has_cosine_only(tmp_path):
    folder = make_images(tmp_path / "images")
    done = run(make_model(classes=0), folder, tmp_path / "out", methods=["random"], keep=[0.5])
    assert done.rows[1].agreement is None
    assert 0 < done.rows[1].cosine < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["evitt"]}, "did you mean 'evit'"),
        ({"methods": ["tome:order=2"]}, "no parameter 'order'"),
        ({"keep": [1.5]}, "outside"),
        ({"layers": ["1/99"]}, "out of range"),
        ({"methods": []}, "nothing to compare"),
        ({"recipes": ["evit:keep=0.5,tokens=3"]}, "conflict"),
        ({"precision": "fp8"}, "fp32, bf16, fp16"),
        ({"device": "cuda:99"}, "cannot be used"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(loaded, folder, tmp_path, changes, message):
    with pytest.raises(PruneError, match=message):
        run(loaded, folder, tmp_path / "a" / "b", **changes)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_used(loaded, folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PruneError, match="cannot be written"):
        run(loaded, folder, tmp_path / "file" / "out")
    with pytest.raises(PruneError, match="does not exist"):
        run(loaded, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PruneError, match="empty"):
        run(loaded, tmp_path / "empty", tmp_path / "out")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no image")
    with pytest.raises(PruneError, match=r"none of the 1 images .* a\.png: not an image"):
        run(loaded, bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recipe_strings_keep_what_they_say():
    found = spell(["col_ln:order=1", "tome:remove=8", "evit:layers=0/2", "tome:remove=8"], (0.5,), ("1/3",), ["random:tokens=9"])
    assert list(map(str, found)) == [
        "col_ln:keep=0.5,layers=1/3,order=1",
        "tome:remove=8,layers=1/3",
        "evit:keep=0.5,layers=0/2",
        "random:tokens=9,layers=3/6/9",
    ]


def test_pairs_take_turns_and_find_the_slower_way():
    order = []

    def forward(name, pause):
        return lambda _images: (order.append(name), time.sleep(pause))

    times = race(forward("slow", 0.02), forward("fast", 0.01), torch.zeros(1), seconds=0)
    assert len(times.first) == len(times.second) == 6
    assert 1.5 < times.speedup.median < 2.5
    assert order[-12:-8] in (["slow", "fast", "fast", "slow"], ["fast", "slow", "slow", "fast"])


def test_peak_memory_counts_tensors_that_live_together():
    model = torch.nn.Sequential(torch.nn.Linear(100, 400), torch.nn.GELU(), torch.nn.Linear(400, 100)).eval()
    images = torch.randn(10, 100)
    weights = 4 * (100 * 400 + 400 + 400 * 100 + 100)
    with torch.inference_mode():
        assert peak_memory(model, images) == weights + 4 * 10 * 100 + 4 * 10 * 800
        alive = Alive()
        with alive:
            result = model(images)
    assert alive.now == result.nbytes
