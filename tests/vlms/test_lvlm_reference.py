"""Pruned models against what is done by hand: features, kept sets, shortened embeddings, positions."""

import pytest
import torch
from lvlms import BUILD, CLASS_TOKEN, IMAGE, VIDEO, Size, answer, build, inputs, product

import sparsight

SAMPLE = [3, Size(32, 16), 4, Size(16, 32, 1), 5]
VIDEO_SAMPLE = [3, Size(16, 32, 5, frames=3), 4]


def by_hand(name, model, given, keeps):
    """Logits of the language model on embeddings from which columns were taken out; keeps: kept tokens of each image."""
    core, ids = model.model, given["input_ids"]
    kind = "video" if "pixel_values_videos" in given else "image"
    takes = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    output = getattr(core, f"get_{kind}_features")(**takes)
    marked = (ids[0] == (VIDEO if kind == "video" else IMAGE)).nonzero().squeeze(1)
    embeds = core.get_input_embeddings()(ids)
    embeds[0, marked] = torch.cat(list(output.pooler_output))
    stays, first = ids[0] != ids[0, marked[0]], 0
    for features, keep in zip(output.pooler_output, keeps, strict=True):
        stays[marked[first : first + len(features)][keep]] = True
        first += len(features)
    more = {}
    if name.startswith("qwen"):
        grids = {k: v for k, v in given.items() if k.endswith("grid_thw")}
        positions = core.get_rope_index(ids, mm_token_type_ids=given["mm_token_type_ids"], **grids)[0]
        more["position_ids"] = positions[..., stays]
    if name == "qwen3":
        visual = stays[marked]
        more["visual_pos_masks"] = torch.isin(ids[:, stays], torch.tensor([IMAGE, VIDEO]))
        more["deepstack_visual_embeds"] = [torch.cat(list(layer))[visual] for layer in output.deepstack_features]
    hidden = core.language_model(inputs_embeds=embeds[:, stays], **more).last_hidden_state
    return model.lm_head(hidden)


@pytest.mark.parametrize("name", product(list(BUILD), lambda name: name in ("llava", "onevision", "qwen2.5", "qwen3")))
@torch.no_grad()
def test_dropping_is_the_model_on_shortened_embeddings(name):
    model = build(name)
    given = inputs(name, model, [SAMPLE])
    for recipe in ("col_ln:tokens=3", "divprune:tokens=2", "random:keep=0.6"):
        with sparsight.prune(model, recipe) as handle:
            got, plans = model(**given).logits, handle.plans
        expected = by_hand(name, model, given, [plan.keep[0] for plan in plans])
        assert torch.allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "qwen3"])
@torch.no_grad()
def test_video_frames(name):
    model = build(name)
    given = inputs(name, model, [VIDEO_SAMPLE])
    with sparsight.prune(model, "col_ln:tokens=7") as handle:
        got, plans = model(**given).logits, handle.plans
        assert handle.counts == [7]
        # an equal share of every frame, the rest to the first
        assert torch.bincount(plans[0].keep[0] // 8).tolist() == [3, 2, 2]
    assert torch.allclose(got, by_hand(name, model, given, [plans[0].keep[0]]), atol=1e-10)
    given = inputs(name, model, [VIDEO_SAMPLE])
    with sparsight.prune(model, "divprune:tokens=7") as handle:
        assert torch.equal(answer(model, given), no_cache(model, given))


@torch.no_grad()
def test_methods_for_video_know_the_frames():
    """EVS and VidCom2 on a video of three frames as `reduce` on its tokens; a picture is one frame; LLaVA has none."""
    model = build("qwen2.5")
    given = inputs("qwen2.5", model, [VIDEO_SAMPLE])
    tokens = model.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"]).pooler_output[0]
    for recipe in ("evs:keep=0.6", "vidcom2:keep=0.5"):
        want = sparsight.reduce(recipe, x=tokens.unsqueeze(0), frames=3).plan
        with sparsight.prune(model, recipe) as handle:
            got = model(**given).logits
            assert torch.equal(handle.plans[0].keep, want.keep)
            model(**inputs("qwen2.5", model, [SAMPLE]))
            assert handle.counts == ([8, 8] if "evs" in recipe else [4, 4])
        assert torch.allclose(got, by_hand("qwen2.5", model, given, [want.keep[0]]), atol=1e-10)
    with pytest.raises(sparsight.PruneError, match="evs needs frames"):
        sparsight.prune(build("llava"), "evs")


def no_cache(model, given, new: int = 6):
    """Greedy answer, each token from a forward over everything before it."""
    given = {**given}
    for _ in range(new):
        token = model(**given).logits[:, -1].argmax(dim=-1, keepdim=True)
        for key, value in (
            ("input_ids", token),
            ("attention_mask", torch.ones_like(token)),
            ("mm_token_type_ids", torch.zeros_like(token)),
        ):
            if key in given:
                given[key] = torch.cat([given[key], value.to(given[key])], dim=1)
    return given["input_ids"][:, -new:]


CACHED = ["col_ln:tokens=3", "divprune:tokens=2", "prumerge:score=column_mean", "visionzip:tokens=12,contextual=1,score=col_ln"]


@pytest.mark.parametrize(
    ("name", "recipe"),
    product(
        [(name, recipe) for name in BUILD for recipe in CACHED],
        lambda name, recipe: (
            name in ("llava", "qwen2.5") or (name, recipe) in (("onevision", CACHED[3]), ("llava-next", CACHED[1]))
        ),
    ),
)
@torch.no_grad()
def test_generation_with_cache_equals_without(name, recipe):
    model = build(name)
    given = inputs(name, model, [[3, Size(32, 32), 4]])
    with sparsight.prune(model, recipe):
        expected = no_cache(model, given)
        assert torch.equal(answer(model, given), expected)
        assert torch.equal(answer(model, given, use_cache=False), expected)


@pytest.mark.parametrize("name", CLASS_TOKEN)
@torch.no_grad()
def test_class_attention_is_that_of_the_layer_that_makes_the_features(name):
    model, eager = build(name), build(name, "eager")
    given = inputs(name, model, [[3, Size(16, 16), 4]])
    pixels = given["pixel_values"][0] if given["pixel_values"].dim() == 5 else given["pixel_values"]
    tower = eager.model.vision_tower(pixels, output_attentions=True)
    with sparsight.prune(model, "fastervlm:tokens=8") as handle:
        model(**given)
    if name != "llava-next":
        row = tower.attentions[-2][0, :, 0, 1:].mean(dim=0)
        assert torch.equal(handle_keep(model, given, "fastervlm:tokens=8"), row.topk(8).indices.sort().values)
        assert torch.allclose(handle_score(model, given, "fastervlm:tokens=8")[0], row, atol=1e-6)
    else:
        rows = tower.attentions[-2][:, :, 0, 1:].mean(dim=1)
        assert torch.equal(handle_keep(model, given, "fastervlm:keep=0.5")[:8], rows[0].topk(8).indices.sort().values)
    assert handle.counts == []


def handle_keep(model, given, recipe):
    with sparsight.prune(model, recipe) as handle:
        model(**given)
        return handle.plans[0].keep[0]


def handle_score(model, given, recipe):
    with sparsight.prune(model, recipe) as handle:
        model(**given)
        return handle.scores[0]


@torch.no_grad()
def test_prumerge_reads_the_layer_that_consumes_the_features():
    model = build("llava")
    given = inputs("llava", model, [[3, Size(), 4]])
    states = model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2]
    layer = model.model.vision_tower.encoder.layers[-1]
    normed = layer.layer_norm1(states)
    q, k = (projection(normed) for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    expected = sparsight.reduce("prumerge", x=states[:, 1:], q=q, k=k, prefix=1)
    with sparsight.prune(model, "prumerge") as handle:
        out = model(**given)
        assert handle.counts == expected.plan.counts
    assert torch.allclose(out.image_hidden_states, model.model.multi_modal_projector(expected.x)[0], atol=1e-9)


def listening(shallow: int):
    """A recipe that keeps what it is given of two blocks, and the dictionary that it keeps it in."""
    from sparsight.ops import reduce, schedule, select
    from sparsight.recipe import Recipe

    seen = {}

    def spy(token_weight, shallow_token_weight):
        seen.setdefault("late", []).append(token_weight)
        seen.setdefault("early", []).append(shallow_token_weight)
        return token_weight

    return Recipe(spy, select.topk, reduce.drop, schedule.once(keep=0.5), where="projector", shallow=(shallow, 0)), seen


@torch.no_grad()
def test_attention_of_an_earlier_block_is_the_towers_own():
    """Column sums of eager attention, in the block that makes the features and in block 1; DINOv2's registers are prefix."""
    for name in ("llava", "llava-dinov2"):
        model = build(name)
        given = inputs(name, model, [[3, Size(), 4]])
        tower = build(name, "eager").model.vision_tower(given["pixel_values"], output_attentions=True)
        recipe, seen = listening(1)
        with sparsight.prune(model, recipe):
            model(**given)
        for block, found in ((2, seen["late"][-1]), (1, seen["early"][-1])):
            columns = tower.attentions[block].sum(dim=(1, 2))[:, -16:]
            assert torch.allclose(found, columns.to(found.dtype), atol=1e-5), (name, block)


@torch.no_grad()
def test_visionzip_puts_the_class_token_first():
    model = build("llava")
    given = inputs("llava", model, [[3, Size(), 4]])
    tower = build("llava", "eager").model.vision_tower(given["pixel_values"], output_attentions=True, output_hidden_states=True)
    states, attention = tower.hidden_states[-2], tower.attentions[-2]
    layer = model.model.vision_tower.encoder.layers[-2]
    k = layer.self_attn.k_proj(layer.layer_norm1(tower.hidden_states[-3])).unflatten(-1, (2, -1)).transpose(1, 2)
    recipe = "visionzip:tokens=7,contextual=2"
    expected = sparsight.reduce(recipe, x=states[:, 1:], k=k, class_attn=attention[:, :, 0, 1:], class_token=states[:, :1])
    with sparsight.prune(model, recipe):
        out = model(**given)
    assert torch.allclose(out.image_hidden_states, model.model.multi_modal_projector(expected.x)[0], atol=1e-6)


SCORED = ["col_ln:tokens=5", "fastervlm:tokens=5,score=column_mean", "shannon:tokens=4"]


@pytest.mark.parametrize(
    ("name", "recipe"),
    product([(name, recipe) for name in BUILD for recipe in SCORED], lambda name, _recipe: name in ("llava", "qwen2.5")),
)
@torch.no_grad()
def test_attention_implementation_does_not_matter(name, recipe):
    kept = []
    for attention in ("sdpa", "eager"):
        model = build(name, attention)
        assert model.config._attn_implementation == attention
        with sparsight.prune(model, recipe) as handle:
            model(**inputs(name, model, [SAMPLE]))
            kept.append([plan.keep[0].tolist() for plan in handle.plans])
            assert model.config._attn_implementation == attention
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "qwen3"])
@torch.no_grad()
def test_qwen_scores_are_column_sums_of_the_last_full_attention_block(name, monkeypatch):
    """Attention matrices are caught in the eager function, put back from window order and summed over the 2x2 patches; so are those of an
    earlier block with full attention, where there is one."""
    import sys

    model = build(name, "eager")
    visual = model.model.visual
    module, caught, earlier = sys.modules[type(visual).__module__], [], []
    eager = module.eager_attention_forward
    scored, early = visual.blocks[1 if name == "qwen2.5" else -1].attn, visual.blocks[1 if name == "qwen2.5" else 0].attn

    def catch(attention, *args, **kwargs):
        out, weights = eager(attention, *args, **kwargs)
        if attention is scored:
            caught.append(weights)
        if attention is early:
            earlier.append(weights)
        return out, weights

    monkeypatch.setattr(module, "eager_attention_forward", catch)
    given = inputs(name, model, [SAMPLE])
    with sparsight.prune(model, "fastervlm:tokens=3,score=column_mean") as handle:
        model(**given)
        scores = handle.scores
    assert len(caught) == 2
    order = torch.arange(16)
    if name == "qwen2.5":
        order = module.get_vision_window_index(given["image_grid_thw"], spatial_merge_size=2, window_size=16, patch_size=4)[0]

    def columns(caught, reduction):
        found = [reduction(weights[0], dim=(0, 1)).view(-1, 4).sum(dim=1) for weights in caught[-2:]]
        return torch.cat(found)[order.argsort()].to(scores[0].dtype)

    assert torch.allclose(torch.cat([score[0] for score in scores]), columns(caught, torch.mean), atol=1e-6)
    recipe, seen = listening(0)
    with sparsight.prune(model, recipe):
        model(**given)
    for key, found in (("late", caught), ("early", earlier)):
        assert torch.allclose(torch.cat([one.flatten() for one in seen[key][1:]]), columns(found, torch.sum), atol=1e-5), key


@torch.no_grad()
def test_next_tiles_are_scored_by_themselves_and_share_the_budget():
    model = build("llava-next")
    given = inputs("llava-next", model, [[3, Size(32, 32), 4]])
    tower = build("llava-next", "eager").model.vision_tower(given["pixel_values"][0], output_attentions=True)
    rows = tower.attentions[-2][:, :, 0, 1:].mean(dim=1)
    with sparsight.prune(model, "fastervlm:tokens=16") as handle:
        model(**given)
        keep = handle.plans[0].keep[0]
    assert torch.equal(keep[:4], rows[0].topk(4).indices.sort().values)
    # the tiles form an 8 x 8 grid whose rows end in a newline vector
    inner = keep[4:] - 16
    row, column = inner // 9, inner % 9
    assert column.max() < 8
    for tile in range(4):
        mine = (row // 4 == tile // 2) & (column // 4 == tile % 2)
        patches = (row[mine] % 4) * 4 + column[mine] % 4
        assert torch.equal(patches, rows[1 + tile].topk(3).indices.sort().values)


@torch.no_grad()
def test_a_budget_per_tile():
    model = build("llava-next")
    given = inputs("llava-next", model, [[3, Size(32, 32), 4, Size(16, 32, 1), 2]])
    for recipe in ("fastervlm:tokens=3,per_tile=true", "divprune:tokens=3,per_tile=true"):
        assert str(sparsight.parse(recipe)) == recipe
        with sparsight.prune(model, recipe) as handle:
            model(**given)
            assert handle.counts == [15, 9]


@torch.no_grad()
def test_next_padding_is_no_candidate_but_takes_part_in_attention():
    model = build("llava-next")
    given = inputs("llava-next", model, [[3, Size(16, 30), 4]])
    with sparsight.prune(model, "fastervlm:keep=0.9") as handle:
        model(**given)
        plan = handle.plans[0]
    tower = build("llava-next", "eager").model.vision_tower(given["pixel_values"][0], output_attentions=True)
    assert tower.attentions[-2].shape[0] == 3
    assert plan.total == given["input_ids"].eq(IMAGE).sum()


@torch.no_grad()
def test_large_images_of_onevision_are_interpolated():
    model = build("onevision")
    given = inputs("onevision", model, [[3, Size(48, 48), 4]])
    assert given["input_ids"].eq(IMAGE).sum() < 16 + 12 * 13
    for recipe in ("col_ln:tokens=20", "vispruner:tokens=21,score=column_mean", "divprune:tokens=9"):
        with sparsight.prune(model, recipe) as handle:
            got, plans = model(**given).logits, handle.plans
            assert handle.counts == [int(recipe.split("tokens=")[1].split(",")[0])]
        assert torch.allclose(got, by_hand("onevision", model, given, [plan.keep[0] for plan in plans]), atol=1e-10)
