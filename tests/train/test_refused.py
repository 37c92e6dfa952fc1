"""What cannot be trained: one clear PruneError, before anything heavy; what is finished is kept, nothing half-written stays."""

import subprocess

import pytest
import torch
from filelock import FileLock
from train_runs import RECIPE, SHORT, StopAt, draw, tiny

import sparsight
from sparsight import PruneError
from sparsight.train.loop import Loop

BAD = [
    ({"recipe": None}, "no recipe is given"),
    ({"preset": "deit"}, "choose plain, evit, renyi"),
    ({"batch_size": 16}, "batch_size=16 is more than an epoch"),
    ({"per_forward": 3}, "per_forward=3 does not divide"),
    ({"mixup": 0.8, "per_forward": 1}, "give an even number"),
    ({"recipe": "tome:remove=2,layers=1/2", "shrink_epochs": 1}, "it has no keep="),
    ({"recipe": "sit:keep=0.6,layers=1", "shrink_epochs": 1}, "its weights are made for its counts"),
    ({"recipe": "dynamicvit:keep=0.6,layers=1", "mode": "eval"}, "draws its tokens in training mode only"),
    ({"distill_tokens": 1.0}, "it is for dynamicvit"),
    ({"teacher": "demo"}, "teacher= is for distillation"),
    ({"new_head": True, "distill_logits": 1.0}, "needs a teacher of the same classes"),
    ({"frozen": True}, "this one has none"),
    ({"optimizer": "adamm"}, "optimizer='adamm' cannot be made"),
    ({"schedule": "plateau"}, "choose cosine"),
    ({"device": "tpu"}, "choose auto, cpu, cuda"),
    ({"workers": -1}, "workers=-1 must be at least 0"),
    ({"recipe": "evit:layers=9"}, "out of range"),
    ({"transform": lambda image: torch.zeros(3, 64, 64)}, "preprocessing of tiny cannot be written"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_what_cannot_be(images, tmp_path, changes, message):
    out = tmp_path / "deep" / "out"
    with pytest.raises(PruneError, match=message):
        sparsight.train(tiny(), images, out=out, **{"recipe": RECIPE, **SHORT, **changes})
    assert not (tmp_path / "deep").exists()


def test_weights_cannot_be_sharded_without_cards(images, tmp_path, monkeypatch):
    """Accelerate would train whole copies without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(PruneError, match=r"FSDP is asked for.*launch without --use_fsdp"):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_classes_that_do_not_match(tmp_path):
    both = draw(tmp_path / "both", ("cat", "dog", "emu"))
    other = draw(tmp_path / "other", ("ant", "bee"))
    for folder, message in ((both, "images of emu are left out"), (other, "no class folder of .* is a class of the checkpoint")):
        with pytest.raises(PruneError, match=f"classes do not match: .*{message}.*new_head=true"):
            sparsight.train(tiny(), folder, RECIPE, tmp_path / "out", **SHORT)
    with pytest.raises(PruneError, match=r"classes do not match: .*2"):
        sparsight.train(tiny(5, None), other, RECIPE, tmp_path / "out", **SHORT)


def test_no_labels_and_no_classifier(images, tmp_path):
    with pytest.raises(PruneError, match="has no labels"):
        sparsight.train(tiny(), images / "cat", RECIPE, tmp_path / "out", **SHORT)
    with pytest.raises(PruneError, match="has no classifier; give new_head=true"):
        sparsight.train(tiny(0, None), images, RECIPE, tmp_path / "out", **SHORT)
    with pytest.raises(PruneError, match="has no labels"):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", test=images / "cat", **SHORT)


def test_a_model_that_could_not_be_loaded_again(images, tmp_path):
    import timm

    model = timm.models.VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2, num_classes=3)
    with pytest.raises(PruneError, match="cannot be saved so that it loads again"):
        sparsight.train(model, images, RECIPE, tmp_path / "out", transform=tiny().transform, classes=["cat", "dog", "owl"], **SHORT)


def test_a_checkpoint_of_another_recipe(images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", listen=StopAt(4), **SHORT)
    for recipe, changes, message in (
        ("col_ln:keep=0.6,layers=1/2", {}, "recipe was evit:keep=0.6,layers=1/2, is col_ln:keep=0.6,layers=1/2"),
        (RECIPE, {"lr": 1e-4}, "lr was 0.001, is 0.0001"),
    ):
        with pytest.raises(PruneError, match=f"holds a run of something else .*{message}.*another --out"):
            sparsight.train(tiny(), images, recipe, tmp_path / "out", **{**SHORT, **changes})
    assert sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT).steps == 6


def test_a_folder_of_another_run(images, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "run.lock"), pytest.raises(PruneError, match="is being written by another run"):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT)
    assert not (tmp_path / "out" / "model").exists()
    assert sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT).steps == 6


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_not_a_number(images, tmp_path, monkeypatch, where):
    """The run stops, says the step, and keeps the last good checkpoint."""
    forward, seen = Loop.forward, []

    def broken(self, batch):
        parts = forward(self, batch)
        seen.append(parts)
        if where == "loss" and len(seen) == 5:
            parts["loss"] = parts["loss"] * float("nan")
        return parts

    monkeypatch.setattr(Loop, "forward", broken)
    if where == "weights":
        run_step = Loop.run_step

        def poisoned(self, epoch, batches):
            run_step(self, epoch, batches)
            if self.step == 6:
                next(self.learner.parameters()).data.fill_(float("inf"))

        monkeypatch.setattr(Loop, "run_step", poisoned)
    step = 5 if where == "loss" else 6
    with pytest.raises(
        PruneError, match=f"the {where} became NaN or infinite at step {step} .*checkpoint of step 3 is kept.*lower lr"
    ):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT)
    assert [one.name for one in (tmp_path / "out" / "checkpoints").iterdir()] == ["00000003"]
    assert not (tmp_path / "out" / "model").exists()


def test_a_full_disk(images, tmp_path):
    """The checkpoint that has no room leaves nothing behind; with room the run ends as a quiet one."""
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", out], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        filler = out / "filler"
        filler.write_bytes(bytes(3 * 2**20))
        with pytest.raises(PruneError, match=r"no room for .*checkpoint of step 3.*make room"):
            sparsight.train(tiny(), images, RECIPE, out, **SHORT)
        assert not [*out.rglob("*.half"), *out.rglob("weights.safetensors")]
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
        assert sparsight.train(tiny(), images, RECIPE, out, **SHORT).steps == 6
    finally:
        subprocess.run(["umount", out], check=True)


def test_unreadable_images_are_replaced_and_named(tmp_path):
    folder = draw(tmp_path / "images")
    (folder / "cat" / "0.png").write_bytes(b"no image")
    done = sparsight.train(tiny(), folder, RECIPE, tmp_path / "out", **SHORT)
    assert done.skipped == [("cat/0.png", "not an image")]
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(PruneError, match=r"15 images in a row of .* cannot be used"):
        sparsight.train(tiny(), folder, RECIPE, tmp_path / "other", **SHORT)
