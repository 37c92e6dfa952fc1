"""`resize` and `pool` in vision-language models: the answers are those of the untouched model on pictures made smaller by hand."""

import pytest
import torch
from lvlms import IMAGE, VIDEO, Size, answer, build, common, inputs, llava, product, randomised
from torch import Tensor

import sparsight
from sparsight.ops import select
from sparsight.speed.stages import prefill_macs
from sparsight.vlms.smaller import FlatPatches

NAMES = ("llava", "llava-siglip", "llava-dinov2", "qwen2", "qwen2.5", "qwen3")
ANY_SIZE = ("llava-dinov2", "qwen2", "qwen2.5", "qwen3")
"""Those that take a smaller picture without being asked."""
QWEN = FlatPatches(patch=4, frames=2, merge=2)


def unit(name: str) -> int:
    """Pixels of a token."""
    return 8 if name.startswith("qwen") else 4


def photo(name: str, seed: int = 0, frames: int = 1, h: int = 16, w: int = 16) -> Tensor:
    """A picture of 4 x 4 tokens, or of another height and width for Qwen; several frames are a video."""
    h, w = (2 * h, 2 * w) if name.startswith("qwen") else (16, 16)
    return torch.randn(frames, 3, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def small(picture: Tensor, h: int, w: int) -> Tensor:
    made = torch.nn.functional.interpolate(picture.float(), (h, w), mode="bicubic", antialias=True)
    return made.to(picture.dtype)


def processed(pictures: list[Tensor]) -> list[Tensor]:
    """Rows of patches, by transformers' own processor."""
    from transformers import Qwen2VLImageProcessor

    as_they_are = Qwen2VLImageProcessor(patch_size=4, merge_size=2, do_resize=False, do_rescale=False, do_normalize=False)
    return [as_they_are(images=[one[0].float()], return_tensors="pt")["pixel_values"] for one in pictures]


def prompt(name: str, samples: list[list[int | Tensor]], side: str = "left") -> dict[str, Tensor]:
    """What a processor would give for samples of text tokens and pictures."""
    rows, pictures = [], []
    for sample in samples:
        row: list[int] = []
        for item in sample:
            if isinstance(item, int):
                row += [1 + (7 * item + 3 * i) % 80 for i in range(item)]
            else:
                frames, h, w = max(1, len(item) // 2), item.shape[-2] // unit(name), item.shape[-1] // unit(name)
                mark = VIDEO if len(item) > 1 else IMAGE
                each = [mark] * (h * w)
                # Qwen3-VL has a time stamp before every frame
                row += ([7, *each] * frames)[1:] if name == "qwen3" and frames > 1 else each * frames
                pictures.append(item)
        rows.append(row)
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    given = {"input_ids": ids, "attention_mask": mask}
    if not name.startswith("qwen"):
        return {**given, "pixel_values": torch.cat(pictures)} if pictures else given
    given["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    for kind, names in ((1, ("pixel_values", "image_grid_thw")), (2, ("pixel_values_videos", "video_grid_thw"))):
        chosen = [one for one in pictures if (len(one) > 1) == (kind == 2)]
        if chosen:
            full = [one if len(one) > 1 else one.expand(2, -1, -1, -1) for one in chosen]
            grids = [(len(one) // 2, one.shape[-2] // 4, one.shape[-1] // 4) for one in full]
            given.update(zip(names, (torch.cat([QWEN.rows(one) for one in full]), torch.tensor(grids)), strict=True))
    return given


def by_hand(name: str, model, samples: list[list[int | Tensor]]) -> Tensor:
    """Logits of the untouched model for pictures of any size."""
    given = prompt(name, samples)
    if name in ANY_SIZE:
        return model(**given).logits
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    tower, prefix = model.model.vision_tower, int(name == "llava")
    states = tower(given.pop("pixel_values"), interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
    features = model.model.multi_modal_projector(states[:, prefix:])
    return model(**given, mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(features))}).logits


def test_flat_patches_are_those_of_the_processor():
    rng = torch.Generator().manual_seed(0)
    for h, w in ((16, 16), (8, 40), (24, 16)):
        picture = torch.rand(1, 3, h, w, generator=rng)
        rows = processed([picture])[0]
        assert torch.equal(QWEN.pictures(rows, (1, h // 4, w // 4)), picture.expand(2, -1, -1, -1))
        assert torch.equal(QWEN.rows(picture.expand(2, -1, -1, -1)), rows)
    video = torch.rand(6, 3, 16, 8, generator=rng)
    assert torch.equal(QWEN.pictures(QWEN.rows(video), (3, 4, 2)), video)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_keeping_all_is_the_untouched_model(name):
    model = build(name)
    given = prompt(name, [[3, photo(name), 4], [2, photo(name, 1), 2, photo(name, 2), 6]])
    expected, said = model(**given).logits, answer(model, given)
    with sparsight.prune(model, "resize:keep=1") as handle:
        assert torch.equal(model(**given).logits, expected)
        assert torch.equal(answer(model, given), said)
        assert handle.counts == [16, 16, 16]
    assert torch.equal(model(**given).logits, expected)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_model_sees_the_smaller_picture(name):
    model, side, pictures = build(name), unit(name), [photo(name), photo(name, 1)]
    samples = [[3, pictures[0], 4, pictures[1], 2]]
    for recipe, tokens in (("resize:tokens=4", 2), ("resize:keep=0.6", 3), ("resize:tokens=15", 3), ("resize:tokens=1", 1)):
        first, second = (small(one, tokens * side, tokens * side) for one in pictures)
        want = by_hand(name, model, [[3, first, 4, second, 2]])
        with sparsight.prune(model, recipe) as handle:
            out = model(**prompt(name, samples))
            assert (handle.counts, handle.grid, handle.layers) == ([tokens**2] * 2, (4, 4), [-2])
            cells = select.cells(torch.zeros(1, 16, 0), (4, 4), tokens**2)
            for plan in handle.plans:
                assert torch.equal(plan.keep, cells.keep)
                assert torch.equal(plan.owner, cells.owner)
            stands = prompt(name, samples)["input_ids"][0, handle.last.index[0]]
            assert int((stands == IMAGE).sum()) == 2 * tokens**2
        torch.testing.assert_close(out.logits, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", product(list(NAMES), lambda name: name in ("llava", "qwen2.5")))
@torch.no_grad()
def test_item_of_a_batch_equals_the_item_alone(name, side):
    model = build(name)
    wide = photo(name, 3, h=8, w=24)  # of another shape in Qwen only
    samples = [[3, photo(name), 4], [9], [2, photo(name, 1), 2, wide, 6]]
    with sparsight.prune(model, "resize:keep=0.5") as handle:
        together = model(**prompt(name, samples, side))
        counts = handle.counts
        for row, sample in zip(together.logits, samples, strict=True):
            alone = model(**prompt(name, [sample])).logits[0]
            starts = range(row.shape[0] - alone.shape[0] + 1)
            assert min((row[i : i + alone.shape[0]] - alone).abs().max() for i in starts) < 1e-5
            assert handle.counts == counts[: len(handle.counts)]
            counts = counts[len(handle.counts) :]
        said = answer(model, prompt(name, samples))
        for row, sample in zip(said, samples, strict=True):
            assert torch.equal(answer(model, prompt(name, [sample]))[0], row)


@pytest.mark.parametrize("name", product(list(ANY_SIZE), lambda name: name != "qwen2"))
@torch.no_grad()
def test_generation_is_that_of_the_smaller_picture(name):
    """Over two turns of a conversation with one cache, and with beams."""
    model, picture, side = build(name), photo(name, 5), 2 * unit(name)
    given, wanted = prompt(name, [[3, picture, 4]]), prompt(name, [[3, small(picture, side, side), 4]])
    beams = answer(model, wanted, num_beams=2)
    first, second = two_turns(model, wanted)
    with sparsight.prune(model, "resize:tokens=4") as handle:
        assert torch.equal(answer(model, given, num_beams=2), beams)
        got = two_turns(model, given)
        assert handle.counts == [4]
    assert torch.equal(got[0], first)
    assert torch.equal(got[1], second)


def two_turns(model, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What is said to a prompt and then, with its cache, to three more tokens."""
    said = model.generate(**given, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    width = given["input_ids"].shape[1]
    ids = torch.cat([said.sequences, torch.tensor([[11, 12, 13]])], dim=1)
    more = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=said.past_key_values, max_new_tokens=4, do_sample=False
    )
    return said.sequences[:, width:], more[:, ids.shape[1] :]


@pytest.mark.parametrize("name", ["llava", "llava-siglip"])
@torch.no_grad()
def test_generation_with_cache_equals_without(name):
    model = build(name)
    with sparsight.prune(model, "resize:tokens=9"):
        given = prompt(name, [[3, photo(name), 4]])
        assert torch.equal(answer(model, given), answer(model, given, use_cache=False))


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@torch.no_grad()
def test_frames_of_a_video_become_smaller(name):
    model, video = build(name), photo(name, 6, frames=6)
    want = model(**prompt(name, [[3, small(video, 16, 16), 4]])).logits
    with sparsight.prune(model, "resize:tokens=13") as handle:
        assert torch.allclose(model(**prompt(name, [[3, video, 4]])).logits, want, atol=1e-9)
        assert handle.counts == [12]
        assert (handle.plans[0].keep[0] // 16).tolist() == [0] * 4 + [1] * 4 + [2] * 4


@torch.no_grad()
def test_registers_of_a_tower_stay():
    torch.manual_seed(0)
    model = common(randomised(llava("dinov2_with_registers")("sdpa")))
    ids = torch.tensor([[3, *[IMAGE] * 20, 6, 7]])
    picture = photo("llava")
    want = model(input_ids=torch.cat([ids[:, :9], ids[:, -2:]], dim=1), pixel_values=small(picture, 8, 8)).logits
    with sparsight.prune(model, "resize:tokens=4") as handle:
        assert torch.allclose(model(input_ids=ids, pixel_values=picture).logits, want, atol=1e-9)
        assert handle.counts == [8]
        assert handle.plans[0].keep[0, :4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["llava-dinov2", "qwen2.5"])
@torch.no_grad()
def test_methods_inside_the_language_model_go_on_from_there(name):
    model, picture, side = build(name), photo(name, 7), 3 * unit(name)
    with sparsight.prune(model, "fastv:layer=1,keep=0.5") as inside:
        want = answer(model, prompt(name, [[3, small(picture, side, side), 4]]))
        left = inside.counts
        with sparsight.prune(model, "resize:tokens=10"):
            assert torch.equal(answer(model, prompt(name, [[3, picture, 4]])), want)
            assert inside.counts == left


def test_training_goes_through():
    model = build("llava").train()
    given = prompt("llava", [[3, photo("llava"), 4]])
    labels = given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)
    with sparsight.prune(model, "resize:tokens=4"):
        model(**given, labels=labels).loss.backward()
    assert model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_the_encoder_costs_less_too():
    model = build("llava-dinov2")
    given = prompt("llava-dinov2", [[3, photo("llava-dinov2"), 4]])
    whole, resized, pooled = (prefill_macs(model, given, text) for text in (None, "resize:tokens=4", "pool:tokens=4"))
    assert resized.vision < pooled.vision == whole.vision
    assert resized.prefill == pooled.prefill < whole.prefill


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_pool_averages_behind_the_projector(name):
    model = build(name)
    given = prompt(name, [[3, photo(name), 4, photo(name, 1), 2]])
    core = model.model
    takes = {key: value for key, value in given.items() if key in ("pixel_values", "image_grid_thw")}
    features = torch.stack(list(core.get_image_features(**takes).pooler_output))
    want = torch.nn.functional.avg_pool2d(features.mT.unflatten(2, (4, 4)), 2).flatten(2).mT
    with sparsight.prune(model, "pool:tokens=4") as handle:
        request = caught(model, given)
        assert handle.counts == [4, 4]
    torch.testing.assert_close(request, want)


def caught(model, given: dict[str, Tensor]) -> Tensor:
    """Image tokens that reach the language model, [B, 4, D]."""
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**given)
    hook.remove()
    embeds = seen[0][0]
    return torch.stack([embeds[3:7], embeds[11:15]])


@pytest.mark.parametrize(
    ("name", "size"), [("llava-next", Size(32, 32)), ("llava-next", Size(12, 30)), ("onevision", Size(48, 48))]
)
@torch.no_grad()
def test_pool_in_tiles(name, size):
    """Of every tile by its share; padding and interpolation leave a tile rows and columns of its own."""
    model = build(name)
    given = inputs(name, model, [[3, size, 4]])
    takes = {key: value for key, value in given.items() if key in ("pixel_values", "image_sizes")}
    tokens = type(model.model).get_image_features(model.model, **takes).pooler_output[0]
    with sparsight.prune(model, "pool:tokens=20") as handle:
        made = model(**given).image_hidden_states
        assert 10 < handle.counts[0] == len(made) <= 20
    if size.h == size.w == 32:
        overview = torch.nn.functional.avg_pool2d(tokens[:16].mT.unflatten(1, (4, 4)), 2).flatten(1).mT
        torch.testing.assert_close(made[:4], overview)


@pytest.mark.parametrize("name", ["llava-next", "onevision"])
def test_models_of_tiles_say_what_to_do(name):
    model = build(name)
    with pytest.raises(
        sparsight.PruneError,
        match=r"tiles of one size; ask its processor for fewer tiles or pixels \(.*image_grid_pinpoints\), or compare with pool",
    ):
        sparsight.prune(model, "resize:tokens=4")
    assert "forward" not in vars(model)


def test_what_cannot_be_is_refused():
    with pytest.raises(sparsight.PruneError, match="tokens=17 is more than the 16 tokens"):
        sparsight.prune(build("llava"), "resize:tokens=17")
    model = build("qwen2.5")
    given = inputs("qwen2.5", model, [[3, Size(16, 16), 4]])
    with sparsight.prune(model, "resize:tokens=9"), pytest.warns(UserWarning, match="tokens=9.* so all are kept"):
        model(**given)
    with sparsight.prune(model, "resize:tokens=9,fewer=error"), pytest.raises(sparsight.PruneError, match="more than the 4 tokens"):
        model(**given)
    with sparsight.prune(model, "resize:tokens=2"):
        with pytest.raises(sparsight.PruneError, match="pruned already"):
            sparsight.prune(model, "divprune:tokens=2")
        with pytest.raises(sparsight.PruneError, match="image_grid_thw is missing"):
            model(**{name: value for name, value in given.items() if name != "image_grid_thw"})
        with pytest.raises(sparsight.PruneError, match="4 placeholder"):
            model(
                **{
                    **given,
                    "pixel_values": torch.cat([given["pixel_values"]] * 2),
                    "image_grid_thw": given["image_grid_thw"].repeat(2, 1),
                }
            )
