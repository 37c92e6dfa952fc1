"""Families beside plain ViTs: what follows the tokens, towers inside other models, feature maps, and what is refused."""

import copy

import open_clip
import pytest
import timm
import torch
import transformers as tf
from open_clip.model import CLIP, CustomTextCLIP
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos

import sparsight
from sparsight import PruneError
from sparsight.models.class_cache import lengthened
from sparsight.models.state import ForwardState
from sparsight.prune import family_of

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"context_length": 3, "vocab_size": 11, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4, "mlp_ratio": 2.0}
ROPE = {"use_rot_pos_emb": True}


def busy(model):
    """Every parameter off its starting value, in double precision."""
    generator = torch.Generator().manual_seed(3)
    model = model.double().eval()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


MASKED = {
    "eva02": lambda: Eva(**SIZES, **ROPE, qkv_fused=False, swiglu_mlp=True, global_pool="token"),
    "eva02-post-norm": lambda: Eva(**SIZES, **ROPE, use_post_norm=True, global_pool="token"),
    "dinov3": lambda: Eva(
        **SIZES, **ROPE, rope_type="dinov3", rope_rotate_half=True, num_reg_tokens=2, no_embed_class=True, global_pool="token"
    ),
    "rope-mixed": lambda: Eva(**SIZES, **ROPE, attn_type="rope", rope_type="mixed", global_pool="token"),
    "beit": lambda: Beit(**SIZES, use_rel_pos_bias=True, global_pool="token"),
    "beit-shared": lambda: Beit(**SIZES, use_shared_rel_pos_bias=True, global_pool="token"),
    "relpos": lambda: VisionTransformerRelPos(**SIZES, class_token=True, global_pool="token", block_fn=ResPostRelPosBlock),
    "openclip": lambda: CLIP(16, VISION, TEXT),
    "transformers-dinov3": lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(num_register_tokens=2, **SHAPE)),
    "transformers-beit": lambda: tf.BeitModel(tf.BeitConfig(use_relative_position_bias=True, **SHAPE)),
    "transformers-beit-shared": lambda: tf.BeitModel(tf.BeitConfig(use_shared_relative_position_bias=True, **SHAPE)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MASKED)
def test_dropping_is_masking(name, x, monkeypatch):
    """The model's own full forward, with the dropped tokens masked out as keys from the next block on, gives the same class token:
    positions of the others are where they were."""
    model = busy(MASKED[name]())
    family = family_of(model)
    with sparsight.prune(model, "random:keep=0.4,layers=0/2,where=block") as handle:
        pruned = class_token(model, x)
        gone = [torch.ones(2, family.prefix + 16).bool().scatter(1, plan.keep + family.prefix, False) for plan in handle.sources()]
    for mask in gone:
        mask[:, : family.prefix] = False
    attention, calls = torch.nn.functional.scaled_dot_product_attention, []

    def masked(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        block = len(calls)
        calls.append(block)
        if block >= 1 and q.shape[2] == family.prefix + 16:
            hidden = gone[0 if block < 3 else 1][:, None, None].expand(-1, 1, q.shape[2], -1)
            hidden = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, float("-inf"))
            attn_mask = hidden if attn_mask is None else attn_mask + hidden
        return attention(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = class_token(model, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert calls[:4] == [0, 1, 2, 3]
    torch.testing.assert_close(pruned, expected, rtol=1e-6, atol=1e-6)  # transformers' rotary tables are in float32
    monkeypatch.undo()
    assert not torch.allclose(class_token(model, x), pruned, atol=1e-3)


def class_token(model, x):
    if isinstance(model, CLIP):
        return model.encode_image(x)
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.last_hidden_state[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_open_clip_zero_shot(custom, x):
    """The whole model, its tower or nothing but the text: one set of sites, and text features as they were."""
    model = busy((CustomTextCLIP if custom else CLIP)(16, VISION, TEXT))
    words = torch.tensor([[1, 2, 10], [3, 4, 10]])
    images, text, _ = model(x, words)
    with sparsight.prune(model, "class_attention:keep=1,layers=0/2"):
        torch.testing.assert_close(model.encode_image(x, normalize=True), images, rtol=1e-9, atol=1e-9)
    with sparsight.prune(model, "evit:keep=0.5,layers=0/2") as handle:
        pruned, same, _ = model(x, words)
        assert handle.counts == [9, 6]
        assert torch.equal(same, text)
        assert torch.equal(model.encode_text(words, normalize=True), text)
        assert not torch.allclose(pruned, images)
        torch.testing.assert_close(model.get_logits(x, words)[0], model.logit_scale.exp() * pruned @ text.T)
        torch.testing.assert_close(torch.nn.functional.normalize(model.visual(x), dim=-1), pruned)
        with pytest.raises(PruneError, match="block 2 is pruned already"):
            sparsight.prune(model.visual, "tome:remove=2,layers=2")
        maps = model.forward_intermediates(image=x, image_indices=2)["image_intermediates"]
        assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 2
    torch.testing.assert_close(model(x, words)[0], images, rtol=0, atol=1e-12)
    assert not any("_sparsight" in key for module in model.modules() for key in vars(module))


@torch.no_grad()
def test_open_clip_with_a_tower_from_timm(x):
    tower = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    model = busy(CustomTextCLIP(16, tower, TEXT))
    images = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1") as handle:
        features = model.encode_image(images)
        assert handle.counts == [50]
        assert handle.family.model is model.visual.trunk
    assert not torch.allclose(features, model.encode_image(images))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_transformers_zero_shot(kind, x):
    """Both towers in one model: image features and logits come from the pruned tower, text features do not change."""
    text = {k: v for k, v in SHAPE.items() if "size" not in k or k in ("hidden_size", "intermediate_size")}
    config = getattr(tf, f"{kind}Config")(vision_config=SHAPE, text_config={**text, "vocab_size": 11, "max_position_embeddings": 8})
    model = busy(getattr(tf, f"{kind}Model")(config))
    words = torch.tensor([[1, 2, 10], [3, 4, 10]])
    whole = model(input_ids=words, pixel_values=x)
    with sparsight.prune(model, "col_ln:keep=1,layers=0/2"):
        torch.testing.assert_close(model(input_ids=words, pixel_values=x).logits_per_image, whole.logits_per_image)
    with sparsight.prune(model, "col_ln:keep=0.5,layers=0/2") as handle:
        out = model(input_ids=words, pixel_values=x)
        features = model.get_image_features(pixel_values=x).pooler_output
        assert handle.counts == [8, 4]
    assert torch.equal(out.text_embeds, whole.text_embeds)
    assert not torch.allclose(out.logits_per_image, whole.logits_per_image)
    torch.testing.assert_close(out.image_embeds, features / features.norm(dim=-1, keepdim=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos"])
def test_features_only(name):
    """timm's feature extractor: full maps, although tokens leave inside."""
    model = timm.create_model(name, features_only=True, out_indices=(1, -1)).eval()
    images = torch.randn(1, 3, *model.model.patch_embed.img_size)
    whole = model(images)
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1") as handle:
        maps = model(images)
        assert handle.counts[0] < maps[0].shape[-1] * maps[0].shape[-2]
    assert [m.shape for m in maps] == [m.shape for m in whole]
    again = model(images)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["eva02", "rope-mixed", "beit-shared", "relpos", "openclip", "transformers-beit"])
def test_copies_of_a_pruned_model(name, x):
    """Tables and biases are not carried along: a copy in the middle of training is possible."""
    model = busy(MASKED[name]())
    with sparsight.prune(model, "evit:keep=0.5,layers=0/2"), torch.enable_grad():
        out = class_token(model, x)
        twin = copy.deepcopy(model)
        assert torch.equal(class_token(twin, x), out)
        out.square().sum().backward()


def tiny_hiera():
    return timm.models.hiera.Hiera(img_size=(32, 32), embed_dim=12, num_heads=1, stages=(1, 1), mask_unit_size=(4, 4), q_pool=1)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: timm.models.swin_transformer.SwinTransformer(embed_dim=12, depths=(1, 1), num_heads=(1, 1)), "2 x 2 neighbours"),
        (tiny_hiera, "only whole units"),
        (lambda: tf.SwinForImageClassification(tf.SwinConfig(embed_dim=12, depths=[1], num_heads=[1])), "saves no computation"),
        (
            lambda: tf.HieraModel(tf.HieraConfig(embed_dim=12, depths=[1, 1], num_heads=[1, 1], num_query_pool=1)),
            "only whole units",
        ),
        (lambda: CLIP(16, {**VISION, "layers": (1, 1, 1, 1)}, TEXT), "ModifiedResNet is no known family"),
    ],
    ids=["timm-swin", "timm-hiera", "swin", "hiera", "openclip-resnet"],
)
def test_grids_that_need_every_place(build, said):
    model = build()
    with pytest.raises(PruneError, match=said) as error:
        sparsight.prune(model, "similarity:keep=0.7")
    assert "ModifiedResNet" in str(error.value) or "prune a plain Vision Transformer" in str(error.value)


def test_other_blocks_are_refused():
    model = CLIP(16, VISION, TEXT)
    model.visual.transformer.resblocks[1].attn.batch_first = False
    with pytest.raises(PruneError, match=r"block 1 of open_clip.*create_model"):
        sparsight.prune(model, "col_ln:keep=0.5,layers=1")
    with pytest.raises(PruneError, match=r"patch_dropout=0\.3"):
        sparsight.prune(CLIP(16, {**VISION, "patch_dropout": 0.3}, TEXT), "col_ln:keep=0.5,layers=1")
    eva = Eva(**SIZES)
    eva.blocks[3].attn = torch.nn.Identity()
    with pytest.raises(PruneError, match="block 3 of Eva is a EvaBlock with Identity"):
        sparsight.prune(eva, "col_ln:keep=0.5,layers=1")
    assert open_clip.__version__ >= "3"


@torch.no_grad()
def test_masks_are_refused_where_biases_are_masks(x):
    model = busy(MASKED["transformers-beit"]())
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, 5] = 0
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1"), pytest.raises(PruneError, match="attention mask"):
        model(x, attention_mask=mask)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["eva02", "eva02-post-norm", "dinov3", "beit", "openclip", "transformers-dinov3", "transformers-beit"]
)
def test_a_remembered_class_token_fits_the_positions(name, x):
    """TCA's cache puts one more token in front of the attention. Where it is the image's own class token, every other token sees that
    one twice: the model itself does with log 2 on the class token's logits."""
    model = busy(MASKED[name]())
    family = family_of(model)
    block, seen = family.blocks[0], []
    with sparsight.prune(model, "random:keep=0.9,layers=0"):
        hook = block.register_forward_pre_hook(lambda _m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
        class_token(model, x)
        hook.remove()
        args, kwargs = seen[0][0], {**seen[0][1]}
        tokens = args[0] if args else kwargs.pop("hidden_states")
        kwargs = family.follow(0, kwargs, None, ForwardState())
        twice = family.attend(block, torch.cat([tokens[:, :1], tokens], dim=1), None, lengthened(kwargs))[:, 1:]
        double = torch.zeros(1, 1, 1, tokens.shape[1], dtype=tokens.dtype)
        double[..., 0] = 2
        expected = family.attend(block, tokens, double.clamp(min=1).log(), kwargs)
    torch.testing.assert_close(twice, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_mean_inside_transformers_beit_weighs_by_size(x):
    model = busy(MASKED["transformers-beit"]())
    with sparsight.prune(model, "tome:remove=4,layers=0/1") as handle:
        out, size = model(x), handle.outcomes[-1].size
        mean = (out.last_hidden_state[:, 1:] * size).sum(1) / size.sum(1)
    assert size.max() > 1
    torch.testing.assert_close(model.pooler.layernorm(mean), out.pooler_output, rtol=1e-9, atol=1e-9)
