"""The signal `text` before the language model: the question's words, as the language model embeds them and as a CLIP does."""

import generic_models
import pytest
import torch
from generic_models import KINDS
from lvlms import IMAGE, Size, answer, build, inputs

import sparsight
from sparsight import PruneError
from sparsight.load.vlms import find_source
from sparsight.methods import cdpruner
from sparsight.ops import reduce, schedule, select
from sparsight.prune import family_of
from sparsight.recipe import Recipe
from sparsight.vlms.request import VlmRequest
from sparsight.vlms.words import Words, load_clip

SAMPLES = [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6], [5, Size(16, 16, 3)]]


@pytest.fixture(scope="module")
def processor():
    return find_source("demo-vlm", None, None).processor


def listening():
    """A recipe that keeps the text it is given, by its images' first token, and where it keeps it."""
    seen = []

    def spy(x, text):
        seen.extend(zip(x[:, 0], text, strict=True))
        return x[..., 0]

    return Recipe(spy, select.topk, reduce.drop, schedule.once(keep=0.5), where="projector"), seen


@pytest.mark.parametrize("name", ["llava", "onevision", "qwen2.5"])
@torch.no_grad()
def test_text_is_what_stands_behind_the_last_image(name):
    """Also for the first image of a row; where nothing is behind it, all text is; images of a batch have their own."""
    model = build(name)
    given = inputs(name, model, SAMPLES)
    recipe, seen = listening()
    with sparsight.prune(model, recipe):
        model(**given)
    ids, mask, embed = given["input_ids"], given["attention_mask"].bool(), model.get_input_embeddings()
    config = model.config
    special = [IMAGE, config.text_config.bos_token_id, config.text_config.eos_token_id]
    words = [ids[0, -4:], ids[1, -6:], ids[2][mask[2] & (ids[2] != IMAGE)]]
    words = [embed(row[~torch.isin(row, torch.tensor([one for one in special if one is not None]))]) for row in words]
    found = [text for _, text in seen if text.shape[-1] == 32]
    for want, times in zip(words, (1, 2, 1), strict=True):
        assert sum(text.shape == want.shape and torch.allclose(text, want.to(text.dtype)) for text in found) >= times


@torch.no_grad()
def test_cdpruner_by_the_language_models_words():
    """Against `reduce` on the image's tokens and the words' embeddings, in a forward and in generate; another question, other tokens."""
    model, kept = build("llava"), []
    for words in (4, 9):
        given = inputs("llava", model, [[3, Size(), words]])
        tokens = model.model.get_image_features(given["pixel_values"]).pooler_output[0]
        ids = given["input_ids"][:, -words:]
        text = model.get_input_embeddings()(ids[~torch.isin(ids, torch.tensor([1, 2]))])
        want = sparsight.reduce("cdpruner:tokens=5,text=llm", x=tokens.unsqueeze(0), text=text)
        with sparsight.prune(model, "cdpruner", tokens=5, text="llm") as handle:
            model(**given)
            assert torch.equal(handle.plans[0].keep, want.plan.keep)
            answer(model, given)
            assert torch.equal(handle.plans[0].keep, want.plan.keep)
            kept.append(handle.plans[0].keep.tolist())
    assert kept[0] != kept[1]


@pytest.mark.product
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_every_family_offers_the_questions_words(name):
    model = generic_models.build(name)
    given = generic_models.inputs(name, [generic_models.prompt(name, 3, "image", 5), generic_models.prompt(name, "image", 9)])
    with sparsight.prune(model, "cdpruner:keep=0.5,text=llm") as handle:
        model(**given)
        assert all(2 * count == plan.total for count, plan in zip(handle.counts, handle.plans, strict=True))


def test_the_templates_words_are_left_out(processor):
    """Of the demo model's own prompt only the question is left; without a processor also what the template puts behind it."""
    family = family_of(find_source("demo-vlm", None, None).shell)
    said = [{"type": "image"}, {"type": "text", "text": "is there a llama ?"}]
    prompt = str(processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True))
    ids = processor.tokenizer(prompt, return_tensors="pt")["input_ids"]
    request = VlmRequest.read({"input_ids": ids}, generating=False)
    for given, want in ((processor, "is there a llama ?"), (None, "is there a llama ? assistant :")):
        left = Words(family, "llm", given).ids(request, 0)
        assert processor.tokenizer.decode(left.tolist()).split() == want.split()


@pytest.fixture(scope="module")
def tower(tmp_path_factory, processor):
    """A tiny CLIP whose vision width is that of the tiny LLaVA's encoder, in a folder with the demo model's tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 12, "eos_token_id": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 4}, projection_dim=12))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_clip_by_its_name(tower, processor):
    """The question goes through its text tower, patches through its projection; a long question makes several embeddings."""
    clip, model = load_clip(str(tower)), build("llava")
    question = "is there a llama ?"
    ids = processor.tokenizer(question, return_tensors="pt")["input_ids"]
    given = inputs("llava", model, [[3, Size(), ids.shape[1]]])
    given["input_ids"][0, -ids.shape[1] :] = ids[0]
    text = clip.read(question, torch.device("cpu"))
    assert text.shape == (1, 12)
    assert clip.read(question * 4, torch.device("cpu")).shape[0] > 1
    feats = model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    joint = clip.model.visual_projection(clip.model.vision_model.post_layernorm(feats.float()))
    tokens = model.model.get_image_features(given["pixel_values"]).pooler_output[0]
    want = cdpruner.by_text(tokens.unsqueeze(0).double(), joint.double(), text.double(), 5, "auto", False, "auto", 0.5)
    with sparsight.prune(model, f"cdpruner:tokens=5,tower={tower}", processor=processor) as handle:
        model(**given)
        assert torch.equal(handle.plans[0].keep, want.keep)
    with sparsight.prune(model, f"cdpruner:tokens=5,tower={tower}", text_embeds=text) as handle:
        model(**given)
        assert torch.equal(handle.plans[0].keep, want.keep)
    with sparsight.prune(model, ["cdpruner:tokens=5", "fastv:layer=1,keep=0.5"], text_embeds=torch.randn(2, 16)) as stack:
        model(**given)
        assert [handle.counts for handle in stack.handles] == [[5], [2]]


def test_what_cannot_be_compared_is_refused(tower):
    model = build("llava")
    cases = [
        ({}, "no text tower of CLIP"),
        ({"tower": str(tower)}, "takes the tokenizer"),
        ({"tower": "/nowhere/clip"}, "takes the tokenizer"),
        ({"tower": "/nowhere/clip", "text_embeds": torch.zeros(1, 4)}, "cannot be loaded"),
        ({"text_embeds": [1.0]}, "a tensor \\[M, D\\], got list"),
        ({"text": "llm", "text_embeds": torch.zeros(1, 4)}, "leave them out"),
        ({"text": "none", "text_embeds": torch.zeros(1, 4)}, "leave it out"),
    ]
    for options, words in cases:
        with pytest.raises(PruneError, match=words):
            sparsight.prune(model, "cdpruner:tokens=5", **options)
    with sparsight.prune(model, "cdpruner:tokens=5", text_embeds=torch.randn(1, 7)), pytest.raises(PruneError, match="7 channels"):
        model(**inputs("llava", model, [[3, Size(), 4]]))
