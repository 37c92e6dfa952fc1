"""Weights in int8 or int4, by torchao and by bitsandbytes: pruning is what it is on the same model, and keeps nearly the tokens of float32."""

import copy

import pytest
import torch
from lvlms import IMAGE, answer, build, product

pytest.importorskip("torchao", reason="pip install torchao")

import sparsight
from sparsight.data.images import open_folder
from sparsight.load.models import demo_images
from sparsight.speed.export import read_images

METHODS = ("fastervlm:tokens=6", "visionzip:tokens=6,contextual=2", "prumerge:tokens=6", "col_ln:tokens=6", "divprune:tokens=6")
STACK = ["col_ln:keep=0.6,layers=0/1", "fastervlm:tokens=5", "fastv:layer=1,keep=0.5"]


def config(kind: str, group: int):
    import torchao.quantization as ao

    if kind == "int8":
        return ao.Int8WeightOnlyConfig()
    return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(group))


def quantised(model, kind: str, group: int = 32):
    from torchao.quantization import quantize_

    quantize_(model, config(kind, group))
    return model


def overlap(wanted, got) -> float:
    """Mean intersection over union of kept sets, one row an image."""
    pairs = [(set(a.tolist()), set(b.tolist())) for a, b in zip(wanted, got, strict=True)]
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)


def bits(model) -> dict[str, object]:
    return {name: value if type(value) is torch.Tensor else str(value) for name, value in model.state_dict().items()}


def untouched(model, before) -> bool:
    after = bits(model)
    same = (
        torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        for name, value in before.items()
    )
    return list(after) == list(before) and all(same)


@pytest.mark.parametrize("kind", product(["int8", "int4"], lambda kind: kind == "int8"))
@torch.no_grad()
def test_the_demo_model_keeps_nearly_the_same_tokens(kind):
    loaded = sparsight.load("demo")
    images = read_images(loaded, open_folder(demo_images()).paths[::5])
    model, recipe = loaded.model, "col_ln:keep=0.7,layers=3/6/9"
    small = quantised(copy.deepcopy(model), kind)
    with sparsight.prune(model, recipe) as handle:
        classes, kept = model(images).argmax(dim=1), handle.sources()[-1].keep
    handle = sparsight.prune(small, recipe)
    pruned = small(images)
    assert overlap(kept, handle.sources()[-1].keep) > (0.9 if kind == "int8" else 0.7)
    assert torch.equal(pruned.argmax(dim=1), classes)
    with sparsight.prune(model, recipe):  # the other way round: pruned, then quantised
        assert torch.equal(quantised(model, kind)(images), pruned)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.no_grad()
def test_vision_models(kind):
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5, "qk_norm": True}
    plain = timm.models.VisionTransformer(**sizes).eval()
    model, x = quantised(copy.deepcopy(plain), kind, group=8), torch.randn(2, 3, 32, 32)
    assert "Int" in type(model.blocks[0].attn.qkv.weight).__name__
    whole, before = model(x), bits(model)
    for recipe in (
        "col_ln:keep={},layers=0/1",
        "evit:keep={},layers=1",
        "similarity:keep={},layers=1",
        "tome:keep={}",
        "shannon:keep={},layers=1",
    ):
        with pytest.warns(UserWarning, match="removes none"), sparsight.prune(model, recipe.format(1)):
            torch.testing.assert_close(model(x), whole)
        with sparsight.prune(model, recipe.format(0.5)) as handle, sparsight.prune(plain, recipe.format(0.5)) as wanted:
            together = model(x)
            plain(x)
            assert handle.counts == wanted.counts
            assert overlap(wanted.sources()[0].keep, handle.sources()[0].keep) > 0.6
            torch.testing.assert_close(model(x[:1]), together[:1])
        assert torch.equal(model(x), whole)
    assert untouched(model, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("llava")
    copy.deepcopy(build("llava")).float().save_pretrained(place)
    return place


def loading(folder, kind: str):
    """A LLaVA by transformers, its weights quantised on the way."""
    import transformers as t

    made = {"int8": lambda: t.TorchAoConfig(config("int8", 8)), "int4": lambda: t.TorchAoConfig(config("int4", 8))}
    bits = {"bnb-int8": {"load_in_8bit": True}, "bnb-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    if kind in bits:
        pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
        made[kind] = lambda: t.BitsAndBytesConfig(**bits[kind])
    options = {"quantization_config": made[kind](), "device_map": "cpu"} if kind else {}
    model = t.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, **options).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("kind", product(["int8", "int4", "bnb-int8", "bnb-nf4"], lambda kind: kind in ("int8", "bnb-nf4")))
@torch.no_grad()
def test_vision_language_models_by_transformers(folder, kind):
    plain, model = loading(folder, ""), loading(folder, kind)
    kinds = {type(module.weight).__name__ for module in model.modules() if isinstance(module, torch.nn.Linear)}
    assert kinds & {"Int8Tensor", "IntxUnpackedToInt8Tensor", "Int8Params", "Params4bit"}
    ids = torch.tensor([[1, 2, *[IMAGE] * 16, 3, 4], [5, 6, *[IMAGE] * 16, 7, 8]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    whole, before = model(**given).logits, bits(model)
    with sparsight.prune(model, "fastervlm:keep=1"):
        assert torch.equal(model(**given).logits, whole)
    overlaps = []
    for recipe in METHODS:
        with sparsight.prune(plain, recipe) as wanted, sparsight.prune(model, recipe) as handle:
            plain(**given)
            model(**given)
            assert handle.counts == wanted.counts
            overlaps += [overlap(a.keep, b.keep) for a, b in zip(wanted.plans, handle.plans, strict=True)]
    assert sum(overlaps) / len(overlaps) > 0.75
    with sparsight.prune(model, STACK) as stack:
        if (
            kind != "bnb-int8"
        ):  # it takes out columns that are large in any row of a call, so that a cache changes the answer unpruned, too
            assert torch.equal(answer(model, given), answer(model, given, use_cache=False))
        model(**given)
        assert stack.counts[:2] == [[10, 6], [5, 5]]
    assert torch.equal(model(**given).logits, whole)
    assert untouched(model, before)
