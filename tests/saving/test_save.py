"""Folders of pruned models: what is in them, what is refused, what travels with them."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from saved_models import SIDE, answers, made

import sparsight
from sparsight import PruneError
from sparsight.load.checkpoint import read_shapes
from sparsight.load.models import Loaded, timm_transform
from sparsight.load.saved import FORMAT, sealed

timm = pytest.importorskip("timm")
RECIPE = "evit:keep=0.6,layers=1/3"
TABLE = [{"recipe": "unpruned", "top-1 %": 80.0}, {"recipe": "evit:layers=1/3,keep=0.60", "top-1 %": 79.25}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model, options = made("timm", tmp_path_factory.mktemp("x"))
    return sparsight.prune(model, RECIPE).save(tmp_path_factory.mktemp("saved") / "m", TABLE, **options)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def changed(folder: Path, **changes: object) -> str:
    """The folder with other facts, sealed as this version would."""
    facts = json.loads((folder / "sparsight.json").read_text())
    facts.pop("seal")
    (folder / "sparsight.json").write_text(sealed({**facts, **changes}))
    return str(folder)


def test_what_is_in_the_folder(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "sparsight.json"]
    facts = json.loads((folder / "sparsight.json").read_text())
    assert facts["format"] == FORMAT
    assert sparsight.Recipe.from_json(json.dumps(facts["recipes"][0])) == sparsight.parse(RECIPE)
    assert facts["versions"]["timm"] == timm.__version__
    assert facts["evidence"]["rows"][facts["evidence"]["row"]][1] == "79.25"
    card = (folder / "README.md").read_text()
    head = card.split("---\n")[1]
    assert "library_name: timm" in head
    assert "pipeline_tag: image-classification" in head
    assert "| **evit:layers=1/3,keep=0.60** | **79.25** |" in card
    assert "| unpruned | 80 |" in card


def test_loaded_with_classes_recipes_and_evidence_and_saved_again(folder, tmp_path):
    found = sparsight.load(str(folder))
    assert (found.classes, [str(one) for one in found.recipes]) == (list("abcde"), [RECIPE])
    assert sparsight.handle(found.model).recipe == found.recipes[0]
    again = sparsight.load(str(sparsight.save_pretrained(found, tmp_path / "again")))
    assert again.evidence == found.evidence
    assert torch.equal(answers("timm", again.model), answers("timm", found.model))
    assert "# m, pruned" in (tmp_path / "again" / "README.md").read_text(), "a card names no folder of this machine"


def test_the_frameworks_read_it_too(folder):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    whole = sparsight.load(str(folder)).model
    sparsight.unprune(whole)
    assert torch.equal(model(torch.ones(1, 3, SIDE, SIDE)), whole(torch.ones(1, 3, SIDE, SIDE)))


def test_two_recipes_and_learned_weights(tmp_path):
    model, options = made("timm", tmp_path)
    handle = sparsight.prune(model, "sit:keep=0.6,layers=1", weights="random")
    sparsight.prune(model, "tome:remove=1,layers=3")
    with torch.no_grad():
        handle.learned[0].get_parameter(next(name for name, _ in handle.learned[0].named_parameters())).add_(1)
    folder = handle.save(tmp_path / "m", **options)
    found = sparsight.load(str(folder))
    assert [one.name for one in found.recipes] == ["sit", "tome"]
    assert torch.equal(answers("timm", found.model), answers("timm", model))
    (folder / "learned.safetensors").unlink()
    with pytest.raises(PruneError, match=r"learned\.safetensors is missing: the learned weights of sit"):
        sparsight.load(str(folder))


def test_the_transform_travels(tmp_path):
    model, _ = made("timm", tmp_path)
    model.set_input_size(img_size=48)
    loaded = Loaded("mine", model, timm_transform(model, crop_pct=0.5, mean=(0.1, 0.2, 0.3)), None, (48, 48))
    sparsight.prune(model, RECIPE)
    found = sparsight.load(str(sparsight.save_pretrained(loaded, tmp_path / "m")))
    assert [type(part).__name__ for part in found.transform.transforms] == [
        type(part).__name__ for part in loaded.transform.transforms
    ]
    assert found.transform.transforms[0].size == loaded.transform.transforms[0].size
    assert found.image_size == (48, 48)


def test_what_is_loaded_can_be_refused_at_every_fault(copy):
    file = copy / "sparsight.json"
    text = file.read_text()
    faults = {
        text[:-40]: "cannot be read",
        "[]": "has no format number",
        text.replace('"0.6"', '"0.5"'): "was edited after it was written",
        text.replace(
            '"format": 1', '"format": 2'
        ): "has format 2, written by sparsight .*this version reads format 1: pip install -U",
        text.replace('"format": 1', '"format": 0'): "has format 0, which is older",
        text.replace('"format": 1', '"format": true'): "has no format number",
    }
    for fault, message in faults.items():
        file.write_text(fault)
        with pytest.raises(PruneError, match=message) as found:
            sparsight.load(str(copy))
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": [{"method": "later", "params": {}}]}, "saved by sparsight .* cannot be used here: no method 'later'"),
        ({"recipes": [{"method": "evit", "params": {"later": 1}}]}, "cannot be used here: evit has no parameter 'later'"),
        ({"recipes": [{"method": "divprune", "params": {"tokens": 8}}]}, "does not fit its model: divprune"),
        ({"recipes": [7]}, "cannot be used here: not a recipe"),
        ({"recipes": 7}, "has no usable recipes"),
        ({"recipes": [{"method": "later", "params": {}}], "versions": {"sparsight": "9", "methods": {"mine": "3.1"}}}, "sparsight 9 and mine 3.1"),
    ],
    ids=["method", "parameter", "model", "recipe", "recipes", "package"],
)  # fmt: skip
def test_recipes_that_cannot_be_used(copy, changes, message):
    with pytest.raises(PruneError, match=message):
        sparsight.load(changed(copy, **changes))


def test_missing_and_pickled_weights(copy):
    (copy / "model.safetensors").rename(copy / "away")
    with pytest.raises(PruneError, match=r"has no model\.safetensors"):
        sparsight.load(str(copy))
    (copy / "away").rename(copy / "pytorch_model.bin")
    with pytest.raises(PruneError, match="is a pickled checkpoint"):
        sparsight.load(str(copy))


def test_an_older_training(tmp_path):
    (tmp_path / "trained.json").write_text("{}")
    with pytest.raises(PruneError, match="is older than the files that this version reads"):
        sparsight.load(str(tmp_path))


def test_what_cannot_be_saved(folder, tmp_path):
    model, _ = made("timm", tmp_path)
    for given, message in (
        (model, "is not pruned"),
        ("demo", "must be a pruned model or"),
        (torch.nn.Linear(2, 2), "no known family"),
    ):
        with pytest.raises(PruneError, match=message):
            sparsight.save_pretrained(given, tmp_path / "m")
    handle = sparsight.prune(model, RECIPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for options, message in (
        ({"folder": tmp_path / "full"}, "holds something else"),
        ({"folder": "/proc/none/m"}, "cannot be written"),
        ({"folder": tmp_path / "m", "architecture": "ViT-B-32"}, "architecture= is for models of open_clip"),
        ({"folder": tmp_path / "m", "evidence": TABLE[:1]}, "no row of evit:keep=0.6,layers=1/3, but of unpruned"),
        ({"folder": tmp_path / "m", "evidence": 7}, "evidence must be a result of compare"),
        ({"folder": tmp_path / "m", "evidence": tmp_path}, "cannot be read"),
        ({"folder": tmp_path / "m", "transform": lambda picture: torch.ones(3, SIDE, SIDE)}, "preprocessing of .* cannot be written"),
    ):  # fmt: skip
        with pytest.raises(PruneError, match=message):
            handle.save(**options)
    assert not (tmp_path / "m").exists()
    assert (tmp_path / "full" / "mine.txt").is_file()


def test_a_model_that_its_framework_cannot_build_again(tmp_path):
    model, _ = made("timm", tmp_path)
    model.pretrained_cfg["architecture"] = "vit_tiny_patch16_224"
    with pytest.raises(PruneError):
        sparsight.prune(model, RECIPE).save(tmp_path / "m")
    assert not any(path.name.startswith(".saving") for path in tmp_path.iterdir())


def test_nothing_in_a_folder_runs(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, options = made("transformers", tmp_path)
    folder = sparsight.prune(model, RECIPE).save(tmp_path / "m", **options)
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import ViTConfig as C, ViTModel as M\n"
    )
    config = json.loads((folder / "config.json").read_text())
    for kind, works in (("vit", True), ("unheard_of", False)):
        code = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForImageClassification": "evil.M"}
        (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": code}))
        if works:
            assert type(sparsight.load(str(folder)).model) is transformers.ViTForImageClassification
        else:
            with pytest.raises(PruneError, match="transformers cannot load"):
                sparsight.load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_repository_in_the_cache(folder, tmp_path, monkeypatch):
    """As `push_to_hub` leaves it: found by name without a network, code beside it stays out."""
    from huggingface_hub import constants

    root = tmp_path / "models--me--mine"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, root / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = sparsight.load("hf_hub:me/mine")
    assert (found.name, [str(one) for one in found.recipes]) == ("hf_hub:me/mine", [RECIPE])


def test_a_copy_of_a_part_does_not_know_the_whole(tmp_path):
    model, options = made("transformers", tmp_path)
    handle = sparsight.prune(model, RECIPE)
    whole, part = deepcopy(model), deepcopy(model.vit)
    assert "classifier.weight" in read_shapes(sparsight.handle(whole).save(tmp_path / "w", **options) / "model.safetensors")
    with pytest.raises(PruneError, match="does not know the whole model"):
        sparsight.handle(part).save(tmp_path / "p", **options)
    assert handle.given.model is model


def test_push(folder, monkeypatch):
    """What would be uploaded, and what is said where nothing can be."""
    import huggingface_hub

    seen = {}

    class Recorder(huggingface_hub.HfApi):
        def create_repo(self, repo_id, **options):
            seen["made"] = (repo_id, options)

        def upload_folder(self, *, folder_path, allow_patterns, **options):
            seen["files"] = {file.name for file in Path(folder_path).iterdir()}
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    with pytest.raises(PruneError, match=r"cannot be pushed to me/mine \(OSError: no network\); log in with"):
        sparsight.push_to_hub(sparsight.load(str(folder)), "me/mine", private=True)
    assert seen["made"] == ("me/mine", {"private": True, "exist_ok": True})
    assert seen["files"] == {"README.md", "config.json", "model.safetensors", "sparsight.json"}
    with pytest.raises(PruneError, match="a repository is OWNER/NAME, got mine"):
        sparsight.push_to_hub(sparsight.load(str(folder)), "mine")


def test_a_stack_goes_back_to_its_places(tmp_path):
    model, options = made("lvlm", tmp_path)
    stack = sparsight.prune(model, ["class_attention:keep=0.5,layers=0", "divprune:tokens=4", "fastv:keep=0.5,layer=1"])
    found = sparsight.load_vlm(str(sparsight.save_pretrained(model, tmp_path / "m", **options)))
    assert " + ".join(map(str, found.recipes)) == str(stack)
    assert torch.equal(answers("lvlm", found.model), answers("lvlm", model))
    assert [handle.counts for handle in sparsight.handles(found.model)] != []
