"""Methods inside the language model on every kind of decoder: tiny random models, against references made by hand."""

import pytest
import torch
from generic_models import IMAGE, build, inputs, prompt
from lvlms import product

import sparsight
from sparsight import PruneError

DECODERS = ["gemma3", "gemma4", "gemma4_shared", "glm4v", "glm46v", "glm_ocr", "glm4v_moe", "aya_vision", "cohere2_vision", "paligemma", "paligemma2",
            "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "minicpm", "ernie", "exaone", "lfm2_vl", "molmo2", "llama4", "kimi"]  # fmt: skip
USUAL = {
    ("gemma3", "pyramiddrop"), ("gemma4_shared", "fastv"), ("gemma4", "dart"), ("glm4v", "pyramiddrop"), ("cohere2_vision", "sparsevlm"),
    ("paligemma", "fastv"), ("qwen3_5", "fastv"), ("ernie", "dart"), ("lfm2_vl", "sparsevlm"), ("molmo2", "pyramiddrop"), ("llama4", "fastv"),
    ("kimi", "pyramiddrop"),
}  # fmt: skip
STATE = ("qwen3_5", "qwen3_5_moe", "minicpm", "lfm2_vl")
"""Decoders of which the middle layer alone has keys: tokens can leave before the last one, and nothing can run ahead there."""

RECIPES = {
    "fastv": "fastv:layer={0},keep={1}",
    "pyramiddrop": "pyramiddrop:layers={0},keep={1}",
    "sparsevlm": "sparsevlm:layers={2},count=rank,scale=0.5,recycle=false",
    "dart": "dart:layer={0},keep={1}",
}
OWN_BEAMS = ("glm4v", "glm46v", "glm_ocr", "glm4v_moe", "llama4", "ernie")
"""Beams of the untouched model differ with and without a cache, or fail."""

NO_TYPES = ("ernie",)
"""Without a cache the untouched `generate` gives the new tokens no types, and fails."""


def site_of(name, method):
    return 2 if name in STATE or (name == "gemma4_shared" and method != "pyramiddrop") else 1


def recipe_of(name, method, keep="0.5"):
    site = site_of(name, method)
    return RECIPES[method].format(site, keep, site - 1)


def answer(model, given, **kwargs):
    out = model.generate(**given, max_new_tokens=3, min_new_tokens=3, do_sample=False, **kwargs)
    return out[:, given["input_ids"].shape[1] :]


def grown(given, said):
    """A prompt with what has been said behind it."""
    along = {name: value for name, value in given.items() if value.shape == given["input_ids"].shape}
    longer = {name: torch.nn.functional.pad(value, (0, len(said))) for name, value in along.items()}
    longer["input_ids"] = torch.cat([given["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
    return {**given, **longer, "attention_mask": torch.ones_like(longer["input_ids"])}


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


# ---- a reference made by hand -----------------------------------------------------------------------------------------


def seen(name, kind, ids):
    """Tokens that see each other, besides those before, in a layer of a kind: bool [L, L]."""
    image = ids == IMAGE
    run = (image & ~torch.nn.functional.pad(image[:-1], (1, 0))).long().cumsum(0) * image
    if name == "gemma3" or (name == "gemma4" and kind == "sliding_attention"):
        return (run.unsqueeze(0) == run.unsqueeze(1)) & image & image.unsqueeze(1)
    if name == "molmo2":
        return image & image.unsqueeze(1)
    return torch.full((len(ids), len(ids)), name.startswith("paligemma"))


def mask_by_hand(name, config, index, ids, stay, dtype):
    """The mask of a layer for the tokens that stay; windows and chunks count those."""
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds else "full_attention"
    if kind in ("linear_attention", "conv"):
        return None
    place = torch.arange(len(stay))
    back = place.unsqueeze(1) - place
    allowed = back >= 0
    if kind == "sliding_attention":
        allowed &= back < config.sliding_window
    if kind == "chunked_attention":
        allowed &= place // config.attention_chunk_size == place.unsqueeze(1) // config.attention_chunk_size
    allowed |= seen(name, kind, ids)[stay][:, stay]
    return torch.zeros(1, 1, len(stay), len(stay), dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def by_hand(name, model, given, site, stay, renumber):
    """Logits of one prompt of which the tokens outside `stay` leave before layer `site`; renumber: with positions as if it had never had them."""
    decoder, ids, handles = model.model.get_decoder() if hasattr(model, "model") else model.get_decoder(), given["input_ids"][0], []
    decoder = getattr(decoder, "model", decoder)

    def shorter(value, key=""):
        if isinstance(value, tuple):
            return tuple(shorter(part, key) for part in value)
        places = torch.arange(len(stay)) if renumber and key == "position_embeddings" else stay
        return value[:, places] if isinstance(value, torch.Tensor) and value.shape[1:2] == ids.shape else value

    def hook(index):
        def before(_module, args, kwargs):
            hidden = args[0][:, stay] if index == site else args[0]
            kwargs = {key: shorter(value, key) for key, value in kwargs.items() if key != "position_ids"}
            mask = mask_by_hand(name, decoder.config, index, ids, stay, hidden.dtype)
            return (hidden, *map(shorter, args[1:])), {**kwargs, "attention_mask": mask}

        return before

    def deepstack(hidden, marked, features):
        full = hidden.new_zeros(1, len(ids), hidden.shape[2])
        full[marked] = features
        return hidden + (full if hidden.shape[1] == len(ids) else full[:, stay])

    if hasattr(decoder, "_deepstack_process"):
        decoder._deepstack_process = deepstack
    for index in range(site, len(decoder.layers)):
        handles.append(decoder.layers[index].register_forward_pre_hook(hook(index), with_kwargs=True))
    logits = model(**given, use_cache=False).logits
    for handle in handles:
        handle.remove()
    vars(decoder).pop("_deepstack_process", None)
    return logits


def chosen_by_hand(name, given, layer, count):
    """The visual tokens that the last token attends to most in a layer, of a model that gives its attention away."""
    model = build(name)
    model.set_attn_implementation("eager")
    shares = model(**given, output_attentions=True).attentions[0 if name in STATE else layer][0].mean(dim=0)[-1]
    visual = (given["input_ids"][0] == IMAGE).nonzero().squeeze(1)
    return shares[visual].argsort(descending=True, stable=True)[:count].sort().values


# ---- the matrix -------------------------------------------------------------------------------------------------------

PAIRS = [(name, method) for name in DECODERS for method in RECIPES]


@pytest.mark.filterwarnings("ignore:.*attends within a window")
@pytest.mark.parametrize(("name", "method"), product(PAIRS, lambda *pair: pair in USUAL))
@torch.no_grad()
def test_every_decoder(name, method):
    if name in STATE and method == "pyramiddrop":
        with pytest.raises(PruneError, match="the first with keys, which has to see all tokens"):
            sparsight.prune(build(name), recipe_of(name, method))
        return
    model, site, recipe = build(name), site_of(name, method), recipe_of(name, method)
    samples = [prompt(name, 3, "image", 4), prompt(name, 2, "image", 2, "image", 3)]
    given, single = inputs(name, samples), inputs(name, samples[1:])
    plain, hooks = model(**given).logits, hooks_of(model)
    if method != "sparsevlm":
        with sparsight.prune(model, recipe_of(name, method, "1")):
            assert torch.equal(model(**given).logits, plain)
    with sparsight.prune(model, recipe) as handle:
        short = model(**single).logits
        plan, stay = handle.plans[0], handle.left[0][0]
        assert 0 < plan.slots < plan.total == (single["input_ids"] == IMAGE).sum()
        said = answer(model, given)
        assert name in NO_TYPES or torch.equal(answer(model, given, use_cache=False), said)
        alone = [answer(model, inputs(name, samples[i : i + 1]))[0] for i in range(2)]
        for i in range(2):
            # keys with absolute positions score in DART, and Exaone counts padding among them
            assert torch.equal(alone[i], said[i]) or (name, method) == ("exaone", "dart")
        if name not in OWN_BEAMS:
            assert torch.equal(answer(model, given, num_beams=2), answer(model, given, num_beams=2, use_cache=False))
        renumber = handle.sites[0].renumber
    torch.testing.assert_close(short, by_hand(name, model, single, site, stay, renumber), atol=2e-4, rtol=1e-4)
    more = grown(single, alone[1][:2].tolist())
    longer = torch.cat([stay, torch.arange(2) + single["input_ids"].shape[1]])
    steps = by_hand(name, model, more, site, longer, renumber)[0, -3:]
    assert steps.argmax(dim=-1).tolist() == alone[1].tolist()
    if method in ("fastv", "pyramiddrop"):
        layer = site if method == "pyramiddrop" else site - 1
        assert torch.equal(plan.keep[0], chosen_by_hand(name, single, layer, plan.slots))
    assert torch.equal(model(**given).logits, plain)
    assert hooks_of(model) == hooks
    assert not any({"forward", "_sparsight_config"} & set(vars(module)) for module in model.modules())
