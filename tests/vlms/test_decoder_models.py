"""Methods inside the language models of whole vision-language models: placeholders are found, nobody has to say where they are."""

import copy

import pytest
import torch

import sparsight
from sparsight import PruneError

METHODS = ["fastv:layer=2,keep=0.5", "pyramiddrop:layers=2/4,keep=0.5/0.25", "sparsevlm:keep=0.4,layers=1/2/4"]
TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
IMAGE = 96


@pytest.fixture(scope="module")
def llava():
    import transformers as hf

    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE, image_seq_length=16)
    model = hf.LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module", params=["Qwen2VL", "Qwen2_5_VL"])
def qwen(request):
    import transformers as hf

    torch.manual_seed(0)
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    if request.param == "Qwen2VL":
        vision.update(embed_dim=32, mlp_ratio=2)
    else:
        vision.update(intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=[1], window_size=16)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    ids = {"image_token_id": IMAGE, "video_token_id": 95, "vision_start_token_id": 93, "vision_end_token_id": 94}
    config = getattr(hf, f"{request.param}Config")(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **ids)
    model = getattr(hf, f"{request.param}ForConditionalGeneration")(config).eval()
    model.generation_config.pad_token_id = 0
    return model


def batch():
    """Two prompts of different length with one image each, left-padded."""
    g = torch.Generator().manual_seed(1)
    rows = [
        torch.cat([torch.randint(2, 90, (a,), generator=g), torch.full((16,), IMAGE), torch.randint(2, 90, (b,), generator=g)])
        for a, b in ((4, 9), (3, 5))
    ]
    ids = torch.stack([rows[0], torch.nn.functional.pad(rows[1], (5, 0))])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": torch.randn(2, 3, 28, 28, generator=g)}


def generate(model, inputs, **kwargs):
    return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, **kwargs)


@pytest.mark.parametrize("recipe", METHODS)
def test_llava(llava, recipe):
    inputs = batch()
    before = generate(llava, inputs)
    with sparsight.prune(llava, recipe) as handle:
        got = generate(llava, inputs)
        assert handle.plans[0].total == 16
        assert handle.counts[-1] < 16
        assert torch.equal(got[:, :29], inputs["input_ids"])
        assert torch.equal(got, generate(llava, inputs, use_cache=False))
        assert torch.equal(generate(copy.deepcopy(llava), inputs), got)
        alone = {"input_ids": inputs["input_ids"][1:, 5:], "attention_mask": None, "pixel_values": inputs["pixel_values"][1:]}
        assert torch.equal(generate(llava, alone)[0, -5:], got[1, -5:])
        text = llava.generate(input_ids=inputs["input_ids"][:1, :4], max_new_tokens=3, do_sample=False)
    assert torch.equal(generate(llava, inputs), before)
    assert torch.equal(llava.generate(input_ids=inputs["input_ids"][:1, :4], max_new_tokens=3, do_sample=False), text)


def test_llava_given_embeddings(llava):
    """Without input_ids placeholders are found by their embedding."""
    inputs = batch()
    with sparsight.prune(llava, METHODS[0]) as handle, torch.no_grad():
        want = llava(**inputs).logits
        plan = handle.plans[0]
        embeds = llava.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(llava(inputs_embeds=embeds, **inputs).logits, want)
        assert torch.equal(handle.plans[0].keep, plan.keep)


def test_inner_model_alone_is_refused(llava):
    """Better an error than an unpruned run in silence."""
    with sparsight.prune(llava, METHODS[0]), pytest.raises(PruneError, match="without LlavaModel around it"):
        llava.model.language_model(input_ids=batch()["input_ids"])


@pytest.mark.parametrize("recipe", METHODS)
def test_llava_trains(llava, recipe):
    inputs = batch()
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100)
    with sparsight.prune(llava, recipe):
        out = llava(**inputs, labels=labels)
        assert out.logits.shape[1] == 29
        out.loss.backward()
    grads = [p.grad for p in llava.model.language_model.layers.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    llava.zero_grad()


@pytest.mark.parametrize("recipe", METHODS)
def test_qwen_keeps_its_grid_of_positions(qwen, recipe):
    ids = torch.tensor([[5, 6, 93, *[IMAGE] * 16, 94, 7, 8, 9, 10]])
    pixels = torch.randn(64, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(2))
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 8, 8]]), "mm_token_type_ids": (ids == IMAGE).long(),
    }  # fmt: skip
    with sparsight.prune(qwen, recipe) as handle:
        got = generate(qwen, inputs)
        assert handle.counts[-1] < 16
        assert torch.equal(got, generate(qwen, inputs, use_cache=False))
    whole = generate(qwen, inputs)
    with sparsight.prune(qwen, "fastv:layer=2,keep=1"):
        assert torch.equal(generate(qwen, inputs), whole)
