"""bench-vlm: stages, counts that can be known beforehand, going on after an interruption, and everything that is refused."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from PIL import Image
from tiny_vlm import IMAGE, make_model, save_tiny

import sparsight
from sparsight import PruneError
from sparsight.load import shapes
from sparsight.pages.stage_report import stage_report
from sparsight.prune import family_of
from sparsight.speed.bench_vlm import bench_vlm
from sparsight.speed.stage_result import StageBench
from sparsight.speed.stages import Meter, Times, count_macs, generate, metered, peak_memory, prefill_macs, time_stages

LAYERS, WIDTH, INNER, TEXT = 8, 64, 172, 64
QUICK = {"new_tokens": 2, "rounds": 2}
RECIPES = ["random:tokens=64", "divprune:tokens=64", "fastv:layer=3,keep=0.5"]


def layer_macs(n: int) -> int:
    """A Llama layer of the tiny config on n tokens."""
    return n * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + 2 * n * n * WIDTH


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def done(out):
    return bench_vlm(config="tiny", recipes=RECIPES, out=out, **QUICK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    where = tmp_path / "photos"
    where.mkdir()
    for i, name in enumerate(("b.png", "c.png")):
        Image.new("RGB", (40, 30 + i), (90 * i, 20, 200)).save(where / name)
    (where / "a.png").write_bytes(b"no image")
    return where


def test_counts_are_those_of_the_shape(done):
    plain, drawn, diverse, inside = done.rows
    short = [layer_macs(64 + TEXT)] * LAYERS
    assert (plain.macs.prefill, plain.macs.selection) == (LAYERS * layer_macs(576 + TEXT), 0)
    assert (drawn.macs.prefill, drawn.macs.selection) == (sum(short), 0)
    assert diverse.macs.prefill == sum(short)
    assert diverse.macs.selection >= 576 * 576 * WIDTH  # a Gram matrix
    assert inside.macs.prefill == 3 * layer_macs(576 + TEXT) + 5 * layer_macs(288 + TEXT)
    assert inside.macs.selection > 0
    assert len({row.macs.vision for row in done.rows}) == 1
    assert done.mac_ratio(drawn) == plain.macs.prefill / drawn.macs.prefill


def test_the_cache_is_measured_layer_by_layer(done):
    expected = [[640] * 8, [128] * 8, [128] * 8, [640] * 3 + [352] * 5]
    assert [row.footprint.lengths for row in done.rows] == expected
    assert [row.footprint.cache for row in done.rows] == [2 * 4 * WIDTH * sum(lengths) for lengths in expected]
    assert [row.tokens for row in done.rows] == ["576", "576 → 64", "576 → 64", "576 → 288"]
    assert done.rows[3].lengths == "640 x 3, 352 x 5"
    assert done.rows[1].footprint.peak < done.rows[0].footprint.peak


def test_every_run_has_its_stages(done):
    for row in done.rows:
        assert len(row.runs) == len(row.beside) == 2
        for times in row.runs:
            assert min(times.vision, times.prefill, times.other, times.decoding) > 0
            assert (times.selection > 0) == (row.recipe != "unpruned")
        assert all(times.selection == 0 for times in row.beside)
    assert done.rows[1].gain("prefill").runs == 2


def test_times_by_hand():
    times = Times(vision=1, selection=0.5, prefill=2, other=0.25, decoding=6, tokens=4)
    assert (times.total, times.first_token, times.per_token, times.reading) == (9.75, 3.75, 2, 2.5)


def test_a_meter_charges_the_innermost_stage_until_the_first_token():
    now = [0.0]
    meter = Meter(lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    wait(1)
    meter.enter("selection")
    wait(2)
    meter.enter("vision")
    wait(4)
    meter.leave()
    wait(8)
    meter.leave()
    wait(16)
    meter.first_token()
    wait(32)
    meter.enter("prefill")
    wait(64)
    meter.leave()
    meter.charge()
    assert meter.spent == {"vision": 4, "selection": 10, "prefill": 0, "other": 17, "decoding": 96}


def test_files_can_be_read_again(done, out):
    again = StageBench.load(out)
    assert again == done
    data = json.loads((out / "results.json").read_text())
    row = data["rows"][1]
    assert row["summary"]["speedup"]["prefill"]["median"] == done.rows[1].gain("prefill").median
    assert row["share"] == pytest.approx(done.rows[1].gain("prefill").median / row["mac_ratio"])
    page = (out / "report.html").read_text()
    assert page == stage_report(done)
    for text in (*RECIPES[:2], "640 \u00d7 3, 352 \u00d7 5", "random weights", "<rect", "1 prompt of 640 tokens"):
        assert text in page
    with pytest.raises(PruneError, match="no result of bench-vlm"):
        StageBench.load(out / "rows")


def test_finished_rows_are_not_measured_again(copied, done):
    steps = []
    again = bench_vlm(config="tiny", recipes=RECIPES[:2], out=copied, listen=steps.append, **QUICK)
    assert again.rows == done.rows[:3]
    assert [step.restored for step in steps] == [True] * 3
    other = bench_vlm(config="tiny", recipes=RECIPES[:1], out=copied, new_tokens=3, rounds=2)
    assert other.rows != done.rows[:2]


def test_an_interrupted_run_goes_on(tmp_path):
    def stop(step):
        if step.row is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_vlm(config="tiny", recipes=RECIPES[:1], out=tmp_path, listen=stop, **QUICK)
    assert len(list((tmp_path / "rows").glob("*.json"))) == 1
    assert not list(tmp_path.rglob("*.part"))
    steps = []
    bench_vlm(config="tiny", recipes=RECIPES[:1], out=tmp_path, listen=steps.append, **QUICK)
    assert [step.restored for step in steps if step.row is not None] == [True, False]


def test_a_folder_with_its_processor(folder, photos, tmp_path):
    done = bench_vlm(
        str(folder), ["fastervlm:tokens=4", "fastv:layer=1,keep=0.5"], tmp_path / "out", images=photos, prompt="is there a dog",
        batch_size=3, layers=2, **QUICK,
    )  # fmt: skip
    assert done.images == ["b.png", "c.png"]
    assert done.notes == ["a.png was skipped: not an image", "2 images are repeated to fill a batch of 3"]
    assert (done.weights, done.layers, done.prompts) == ("checkpoint", 2, 3)
    plain, before, inside = done.rows
    assert (plain.visual, before.left, inside.left) == (48, [12], [24])
    assert [row.footprint.lengths for row in done.rows] == [[22, 22], [10, 10], [22, 14]]
    assert before.tokens == "16 → 4"


def test_metering_changes_nothing_and_leaves_nothing():
    model = make_model()
    ids = torch.tensor([[2, 3, *[IMAGE] * 16, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 16, 16)}
    family, before = family_of(model), set(model.model.__dict__)
    answers = []
    for recipe in ("fastervlm:tokens=4", "fastv:layer=1,keep=0.5"):
        with sparsight.prune(model, recipe) as handle:
            plain = generate(model, inputs, 4).sequences
            with metered(model, family, handle, lambda: 0.0):
                answers.append(torch.equal(generate(model, inputs, 4).sequences, plain))
            assert time_stages(model, family, handle, inputs, 4).total > 0
            macs, lengths, size = count_macs(model, family, handle, inputs)
            assert macs.prefill > 0
            assert size == 2 * 4 * 16 * sum(lengths)
        assert set(model.model.__dict__) == before
    assert answers == [True, True]
    plain, short = prefill_macs(model, inputs), prefill_macs(model, inputs, "fastervlm:tokens=4")
    layer = 4 * 16 * 16 + 3 * 16 * 24  # width 16, inner width 24, three layers
    assert [m.prefill for m in (plain, short)] == [3 * (n * layer + 2 * n * n * 16) for n in (20, 8)]
    with pytest.raises(PruneError, match="no vision-language model"):
        prefill_macs(model.model.vision_tower, inputs)
    assert not model._forward_hooks
    assert not model.model.language_model._forward_hooks
    assert peak_memory(model, inputs, 2) > sum(p.nbytes for p in model.parameters())


def test_too_little_memory_names_the_layers_that_fit(monkeypatch):
    config = shapes.shape_config("llava-7b-shape")
    monkeypatch.setattr(shapes, "free_memory", lambda device: 8 * 2**30)
    with pytest.raises(
        PruneError, match=r"32 layers in float32 at batch 1 need 2\d\.\d GiB.*8\.0 are free.*--layers (\d+) fits"
    ) as found:
        shapes.check_memory(shapes.skeleton(config), config, "cpu", torch.float32, 1, 656)
    fits = int(str(found.value).split("--layers ")[1].split()[0])
    for layers, possible in ((fits, True), (fits + 1, False)):
        config = shapes.shape_config("llava-7b-shape")
        shapes.cut(config, layers)
        model = shapes.skeleton(config)
        if possible:
            shapes.check_memory(model, config, "cpu", torch.float32, 1, 656)
        else:
            with pytest.raises(PruneError, match=f"--layers {fits} fits"):
                shapes.check_memory(model, config, "cpu", torch.float32, 1, 656)
    monkeypatch.setattr(shapes, "free_memory", lambda device: 2**30)
    with pytest.raises(PruneError, match="not one layer fits"):
        shapes.check_memory(model, config, "cpu", torch.float32, 1, 656)


def test_free_memory_is_a_number_of_bytes():
    assert 2**20 < shapes.free_memory("cpu") < 2**50


def test_random_weights_depend_on_the_seed_alone():
    first, same, other = (shapes.random_model(shapes.shape_config("tiny"), "cpu", torch.float32, seed) for seed in (0, 0, 1))
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    weight = first.get_parameter(name)
    assert torch.equal(weight, same.get_parameter(name))
    assert not torch.equal(weight, other.get_parameter(name))
    assert not torch.equal(weight, first.get_parameter(name.replace("q_proj", "k_proj")))
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)


BAD = {
    "unknown config": ({"config": "llama"}, "config 'llama' is not known; choose tiny or llava-7b-shape"),
    "model and config": ({"model": "x", "config": "tiny"}, "either a model"),
    "neither": ({"config": None}, "either a model"),
    "no folder": ({"config": None, "model": "./nowhere"}, "no model folder"),
    "no recipe": ({"recipes": []}, "at least one recipe"),
    "unknown recipe": ({"recipes": ["divprun:tokens=64"]}, "did you mean"),
    "recipe of vision models": ({"recipes": ["tome:keep=0.5,layers=1/2"]}, "layers"),
    "recipe too deep": ({"recipes": ["fastv:layer=8"]}, "layer 8"),
    "too many tokens": ({"recipes": ["divprune:tokens=600"]}, "576"),
    "layers": ({"layers": 9}, "layers=9 is not possible: .* 1 to 8"),
    "one round": ({"rounds": 1}, "at least 2"),
    "one token": ({"new_tokens": 1}, "at least 2"),
    "no batch": ({"batch_size": 0}, "batch_size=0"),
    "precision": ({"precision": "fp8"}, "fp8"),
    "device": ({"device": "abacus"}, "abacus"),
    "prompt without tokenizer": ({"prompt": "what is this"}, "needs a tokenizer"),
    "no images": ({"images": "nowhere"}, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_before_any_work(name, tmp_path):
    more, message = BAD[name]
    with pytest.raises(PruneError, match=message):
        bench_vlm(**{"config": "tiny", "recipes": RECIPES[:1], "out": tmp_path / "new" / "out", **QUICK, **more})
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_serve(folder, photos, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(PruneError, match="cannot be written"):
            bench_vlm(config="tiny", recipes=RECIPES[:1], out=out, **QUICK)
    (photos / "b.png").unlink()
    (photos / "c.png").unlink()
    with pytest.raises(PruneError, match="none of the 1 images"):
        bench_vlm(config="tiny", recipes=RECIPES[:1], out=tmp_path / "out", images=photos, **QUICK)
    bare = tmp_path / "bare"
    make_model().save_pretrained(bare)
    with pytest.raises(PruneError, match="processor"):
        bench_vlm(str(bare), RECIPES[:1], tmp_path / "out", **QUICK)
    (bare / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    with pytest.raises(PruneError, match="ViTForImageClassification, which is no vision-language model"):
        bench_vlm(str(bare), RECIPES[:1], tmp_path / "out", **QUICK)
    (bare / "config.json").write_text("{")
    with pytest.raises(PruneError, match="cannot be read"):
        bench_vlm(str(bare), RECIPES[:1], tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_images_for_random_weights(photos, tmp_path):
    done = bench_vlm(config="tiny", recipes=RECIPES[:1], out=tmp_path / "out", images=photos, layers=1, **QUICK)
    assert done.images == ["b.png"]
    assert done.rows[0].footprint.lengths == [640]
