"""A short training, from the call to the loaded result."""

import json

import pytest
import torch
from train_runs import CLASSES, RECIPE, SHORT, SIDE, tiny

import sparsight
from sparsight.train.result import Training
from sparsight.train.train import plan_training


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def done(model, images, others, out):
    return sparsight.train(model, images, RECIPE, out, test=others, **{**SHORT, "epochs": 6})


def pictures():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_it_learns_and_says_so(done):
    assert done.steps == 6 * 3
    assert done.loss < done.log[0].loss
    assert (done.images, done.test_images, done.classes) == (15, 9, 3)
    assert done.after.value >= done.before.value
    assert done.change.low <= done.change.value <= done.change.high
    assert str(done).startswith(f"tiny under {RECIPE}: 18 steps, loss ")
    assert "% before" in str(done)
    assert done.macs < done.unpruned_macs
    assert len(done.hits) == 9
    assert [line.step for line in done.log] == list(range(1, 19))
    assert [line.top1 is not None for line in done.log] == [step % 3 == 0 and step < 18 for step in range(1, 19)]


def test_files(done, out):
    assert Training.from_json((out / "results.json").read_text()) == done
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line.loss for line in done.log]
    page = (out / "report.html").read_text()
    assert "Training loss" in page
    assert "Top-1 accuracy" in page
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(step.name for step in (out / "checkpoints").iterdir()) == ["00000015", "00000018"]


def test_load_gives_back_model_recipe_transform_and_classes(done, out, model):
    found = sparsight.load(str(out))
    assert found.classes == list(CLASSES)
    assert [str(recipe) for recipe in found.recipes] == [RECIPE]
    assert found.image_size == (SIDE, SIDE)
    assert (sparsight.handle(found.model).recipe,) == found.recipes
    with torch.no_grad():
        logits = found.model(pictures())
        assert sparsight.handle(found.model).counts == [11, 8]
        whole = sparsight.load(str(out / "model"))
        assert sparsight.handles(whole.model) == []
        with sparsight.prune(whole.model, RECIPE):
            assert torch.equal(whole.model(pictures()), logits)
        assert not torch.allclose(model.model(pictures()), whole.model(pictures()))


def test_the_caller_s_model_and_random_numbers_stay(done, images, tmp_path):
    given = tiny()
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sparsight.train(given, images, RECIPE, tmp_path / "x", **{**SHORT, "epochs": 1})
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.model.state_dict().items())
    assert sparsight.handles(given.model) == []


def test_a_finished_run_is_read(done, model, images, others, out):
    stamp = (out / "results.json").stat().st_mtime_ns
    assert sparsight.train(model, images, RECIPE, out, test=others, **{**SHORT, "epochs": 6}) == done
    assert (out / "results.json").stat().st_mtime_ns == stamp


def test_other_tools_take_the_folder(done, out, others, tmp_path):
    from sparsight.evaluation.evaluate import evaluate

    found = evaluate(str(out), others, out=tmp_path / "e")
    assert found.scores[0].top1.value == pytest.approx(done.after.value)
    assert found.scores[0].macs == done.macs
    assert f"the model is pruned in every row, as it was saved: {RECIPE}" in found.notes


def test_training_goes_on_from_a_trained_model(done, out, images, tmp_path):
    again = sparsight.train(str(out), images, out=tmp_path / "again", **{**SHORT, "epochs": 1, "lr": 1e-6})
    assert again.recipe == RECIPE
    assert again.log[0].loss < done.log[0].loss


def test_a_dry_run_says_what_would_be_done(model, images, others, tmp_path):
    plan = plan_training(
        model, images, RECIPE, tmp_path / "none", test=others, **{k: v for k, v in SHORT.items() if k != "log_every"}, ema=0.9
    )
    assert not (tmp_path / "none").exists()
    assert (plan.steps, plan.counts, plan.accumulated, plan.micro) == (6, [11, 8], 1, 4)
    assert plan.macs == sparsight.macs(model.model, RECIPE, SIDE)
    weights = 4 * sum(p.numel() for p in model.model.parameters())
    assert plan.memory.weights == 5 * weights
    assert plan.memory.activations > 0
    assert "steps: 6 = 2 epochs x 3, of 4 images" in str(plan)


@pytest.mark.product
def test_the_unpruned_baseline(images, tmp_path):
    done = sparsight.train(tiny(), images, "unpruned", tmp_path / "x", **{**SHORT, "epochs": 1})
    assert done.macs == done.unpruned_macs
    found = sparsight.load(str(tmp_path / "x"))
    assert found.recipes == ()
    assert sparsight.handles(found.model) == []


def test_a_new_head_for_other_classes(images, tmp_path):
    done = sparsight.train(tiny(7, None), images, RECIPE, tmp_path / "x", new_head=True, **{**SHORT, "epochs": 1})
    assert done.classes == 3
    found = sparsight.load(str(tmp_path / "x"))
    assert found.classes == list(CLASSES)
    assert found.model.num_classes == 3


@pytest.mark.product
def test_tensorboard(images, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = sparsight.train(tiny(), images, RECIPE, tmp_path / "x", tensorboard=True, **{**SHORT, "epochs": 1})
    found = events.EventAccumulator(str(tmp_path / "x" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]
    assert found.Scalars("loss")[0].value == pytest.approx(done.log[0].loss)


@pytest.mark.product
def test_a_data_set_of_hugging_face_and_a_model_of_transformers(images, tmp_path):
    datasets, t = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    rows = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
    rows.save_to_disk(str(tmp_path / "rows"))
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    }
    config = t.ViTConfig(**sizes, id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)})
    t.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    done = sparsight.train(str(tmp_path / "vit"), tmp_path / "rows", "col_ln:keep=0.5,layers=1", tmp_path / "x", **SHORT)
    assert done.images == 15
    found = sparsight.load(str(tmp_path / "x"))
    assert found.classes == list(CLASSES)
    with torch.no_grad():
        found.model(torch.zeros(1, 3, 32, 32))
    assert sparsight.handle(found.model).counts == [8]
