"""transformers' image encoders: wrappers, pooling by size, checkpointing, masks, attention back ends, and what is refused."""

import copy

import pytest
import torch
import transformers as tf

import sparsight
from sparsight import PruneError
from sparsight.prune import family_of

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {k: v for k, v in SHAPE.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
TOME = "tome:remove=4,layers=0/1/2"


def text_and_image(config):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 11}
    return config(vision_config=SHAPE, text_config={**text, "max_position_embeddings": 8}, num_labels=5)


def build(name):
    torch.manual_seed(0)
    config = {
        "ViT": lambda: tf.ViTConfig(**SHAPE),
        "DeiT": lambda: tf.DeiTConfig(**SHAPE),
        "Dinov2With": lambda: tf.Dinov2WithRegistersConfig(num_register_tokens=3, **DINO),
        "Dinov2": lambda: tf.Dinov2Config(**DINO),
        "CLIPVision": lambda: tf.CLIPVisionConfig(**SHAPE),
        "SiglipVision": lambda: tf.SiglipVisionConfig(**SHAPE),
        "CLIP": lambda: text_and_image(tf.CLIPConfig),
        "Siglip": lambda: text_and_image(tf.SiglipConfig),
    }
    made = next(make for start, make in config.items() if name.startswith(start))()
    model = getattr(tf, name)(made).double().eval()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


AVERAGED = {
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "CLIPForImageClassification": "vision_model",
    "SiglipForImageClassification": "vision_model",
}


@torch.no_grad()
@pytest.mark.parametrize("through", ["wrapper", "encoder-then-wrapper", "wrapper-then-encoder"])
@pytest.mark.parametrize("name", AVERAGED)
def test_average_pooling_weighs_by_size(name, through, x):
    """The encoder itself gives its tokens as they are; only the wrapper's mean is weighted, and only while it is pruned."""
    model = build(name)
    encoder = getattr(model, AVERAGED[name])
    untouched = model(x).logits
    order = {"wrapper": [model], "encoder-then-wrapper": [encoder, model], "wrapper-then-encoder": [model, encoder]}[through]
    handles = [sparsight.prune(part, f"tome:remove=4,layers={i}") for i, part in enumerate(order)]
    logits, again = model(x).logits, model(pixel_values=x).logits
    tokens, size = encoder(x).last_hidden_state, handles[-1].outcomes[0].size
    prefix = family_of(model).prefix
    mean = (tokens[:, prefix:] * size).sum(1) / size.sum(1)
    assert size.max() > 1
    pooled = torch.cat([tokens[:, 0], mean], dim=1) if name.startswith("Dino") else mean
    torch.testing.assert_close(model.classifier(pooled), logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again, logits, rtol=1e-9, atol=1e-9)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(model(x).logits, untouched, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_failed_forward_does_not_leave_the_mean_switched_on(x):
    model = build("Dinov2ForImageClassification")
    with sparsight.prune(model, TOME):
        plain = model.dinov2(x).last_hidden_state
        broken = model.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        broken.remove()
        torch.testing.assert_close(model.dinov2(x).last_hidden_state, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("ViTForImageClassification", "vit"),
        ("DeiTForImageClassificationWithTeacher", "deit"),
        ("Dinov2ForImageClassification", "dinov2"),
        ("CLIPModel", "vision_model"),
        ("SiglipModel", "vision_model"),
        ("CLIPVisionModelWithProjection", "vision_model"),
    ],
)
def test_model_and_encoder_find_the_same_sites(name, inner):
    model = build(name)
    encoder = getattr(model, inner)
    for first, second in ((model, encoder), (encoder, model), (model, model)):
        with sparsight.prune(first, "col_ln:keep=0.5,layers=1") as handle:
            assert family_of(second) is handle.family
            with pytest.raises(PruneError, match="block 1 is pruned already"):
                sparsight.prune(second, "random:keep=0.5,layers=1")
            with sparsight.prune(second, "random:keep=0.5,layers=2") as other:
                assert other.family is handle.family
        assert not any("_sparsight" in vars(module) for module in model.modules())


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("recipe", ["evit:keep=0.5,layers=0/2", TOME])
@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification", "CLIPForImageClassification"])
def test_gradient_checkpointing(name, recipe, reentrant, x):
    model = build(name).train()
    with sparsight.prune(model, recipe):
        plain = gradients(model, x)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        calls = []
        hooks = [b.mlp.register_forward_pre_hook(lambda *_: calls.append(1)) for b in family_of(model).blocks]
        again = gradients(model, x)
        for hook in hooks:
            hook.remove()
    assert len(calls) == 6, "every layer runs once more in the backward pass"
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)


def gradients(model, x):
    model.zero_grad(set_to_none=True)
    model(x.clone().requires_grad_()).logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTModel", "Dinov2WithRegistersModel", "CLIPVisionModel"])
def test_sdpa_and_eager_agree_on_proportional_attention(name, x):
    model = build(name)
    assert model.config._attn_implementation == "sdpa"
    with sparsight.prune(model, TOME):
        fast = model(x).last_hidden_state
        assert model.config._attn_implementation == "sdpa"
        model.set_attn_implementation("eager")
        slow = model(x, output_attentions=True)
    torch.testing.assert_close(slow.last_hidden_state, fast, rtol=1e-6, atol=1e-6)
    assert slow.attentions[-1].shape[-1] == fast.shape[1] + 4


def test_attention_that_takes_no_bias_is_refused():
    model = build("ViTModel")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(PruneError, match=r"flash_attention_2 takes no bias.*set_attn_implementation\('sdpa'\)"):
        sparsight.prune(model, TOME)
    sparsight.prune(model, TOME, proportional=False).remove()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(PruneError, match="flex_attention"):
        sparsight.prune(model, "col_ln:keep=0.5,layers=1")
    assert not any("_sparsight" in vars(module) for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTModel", "DeiTModel", "Dinov2Model"])
def test_masks_are_refused(name, x):
    model = build(name)
    tokens = model(x).last_hidden_state.shape[1]
    mask = torch.ones(2, tokens, dtype=torch.long)
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1"):
        model(x, attention_mask=mask)
        mask[0, 5] = 0
        with pytest.raises(PruneError, match="attention mask"):
            model(x, attention_mask=mask)


@torch.no_grad()
def test_hidden_states_tell_the_shrinking(x):
    model = build("CLIPVisionModel")
    with sparsight.prune(model, "col_ln:keep=0.5,layers=0/2"):
        states = model(x, output_hidden_states=True).hidden_states
    assert [s.shape[1] for s in states] == [17, 9, 9, 5]


@torch.no_grad()
def test_configurations_are_not_touched(x):
    """Two models that share one configuration object do not see each other's handles."""
    config = tf.ViTConfig(**SHAPE)
    one, two = tf.ViTModel(config).double().eval(), tf.ViTModel(config).double().eval()
    before, whole = copy.deepcopy(config.to_dict()), two(x).last_hidden_state
    with sparsight.prune(one, TOME):
        one(x)
        assert config.to_dict() == before
        torch.testing.assert_close(two(x).last_hidden_state, whole, rtol=0, atol=1e-12)
    assert config.to_dict() == before


@torch.no_grad()
def test_text_tower_is_not_touched(x):
    model = build("CLIPModel")
    words = torch.tensor([[1, 2, 10], [3, 4, 10]])
    text = model.get_text_features(input_ids=words).pooler_output
    with sparsight.prune(model, TOME) as handle:
        out = model(input_ids=words, pixel_values=x)
        assert handle.counts == [12, 8, 4]
        images = model.get_image_features(pixel_values=x).pooler_output
        torch.testing.assert_close(model.get_text_features(input_ids=words).pooler_output, text, rtol=0, atol=1e-12)
    embeds = images / images.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(out.image_embeds, embeds, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "CLIPVisionModel", "SiglipVisionModel"])
def test_grid_follows_the_image(name):
    model = build(name)
    call = {} if name.startswith("Dino") else {"interpolate_pos_encoding": True}
    with sparsight.prune(model, "similarity:keep=0.5,diversity=1") as handle:
        assert handle.grid == (4, 4)
        model(torch.randn(1, 3, 48, 24, dtype=torch.float64), **call)
        assert handle.grid == (6, 3)
        assert handle.counts == [9]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Dinov2Backbone", tf.Dinov2Config(**DINO)),
        ("Dinov2WithRegistersBackbone", tf.Dinov2WithRegistersConfig(**DINO)),
        ("ViTForMaskedImageModeling", tf.ViTConfig(**SHAPE)),
        ("DeiTForMaskedImageModeling", tf.DeiTConfig(**SHAPE)),
    ],
)
def test_models_that_fill_a_grid_are_refused(name, config):
    with pytest.raises(PruneError, match=rf"{name} is no known family[;,] (supported: .*transformers Dinov2|but it holds a)"):
        sparsight.prune(getattr(tf, name)(config), "col_ln:keep=0.5,layers=1")


def test_no_class_token_is_said():
    with pytest.raises(PruneError, match=r"evit scores by class attention, but SiglipVisionModel has no class token.*tome"):
        sparsight.prune(build("SiglipModel"), "evit:layers=1")


def test_older_layers_are_refused():
    model = build("ViTModel")
    for layer in model.layers:
        layer.attention.query = layer.attention.q_proj
        del layer.attention.q_proj
    with pytest.raises(PruneError, match="not built like those of transformers ViT"):
        sparsight.prune(model, "col_ln:keep=0.5,layers=1")
    del model.layers
    with pytest.raises(PruneError, match=r"ViTModel of transformers.* is not built like transformers ViT"):
        sparsight.prune(model, "col_ln:keep=0.5,layers=1")
