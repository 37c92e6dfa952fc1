"""The user's own call: what transformers' processors give goes into generate as it is."""

import numpy as np
import pytest
import torch
from lvlms import IMAGE, PAD, VIDEO, build

import sparsight

WORDS = ["<pad>", "<unk>", "<s>", "USER:", "ASSISTANT:", "what", "is", "this", "?"]


def tokenizer(image: str, video: str):
    """Words as tokens, with the placeholders at the ids that the tiny models know."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    vocabulary.update({f"w{i}": i for i in range(len(WORDS), IMAGE)})
    vocabulary.update({image: IMAGE, video: VIDEO, "<|vision_start|>": 92, "<|vision_end|>": 93})
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [image, video, "<|vision_start|>", "<|vision_end|>"]
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=special)
    made.padding_side, made.image_token, made.video_token = "left", image, video
    made.image_token_id, made.video_token_id = IMAGE, VIDEO
    return made


def processor(name: str):
    import transformers as t

    size, crop = {"shortest_edge": 16}, {"height": 16, "width": 16}
    if name in ("llava", "llava-dinov2"):
        images = t.CLIPImageProcessor(size=size, crop_size=crop)
        return t.LlavaProcessor(
            images,
            tokenizer("<image>", "<video>"),
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    if name == "llava-next":
        images = t.LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=pinpoints)
        return t.LlavaNextProcessor(
            images,
            tokenizer("<image>", "<video>"),
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if name == "onevision":
        images = t.LlavaOnevisionImageProcessor(size=crop, image_grid_pinpoints=[*pinpoints, [48, 48]])
        return t.LlavaOnevisionProcessor(
            images, tokenizer("<image>", "<video>"), t.LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
        )  # fmt: skip
    images = t.Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)
    return t.Qwen2_5_VLProcessor(
        images, tokenizer("<|image_pad|>", "<|video_pad|>"), t.Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
    )


def photo(h: int, w: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["llava", "llava-dinov2", "llava-next", "onevision", "qwen2.5"])
def test_generate_with_what_the_processor_gives(name):
    model = build(name).float()
    prepare = processor(name)
    mark = "<|vision_start|> <|image_pad|> <|vision_end|>" if name == "qwen2.5" else "<image>"
    texts = [f"USER: {mark} what is this ? ASSISTANT:", f"USER: {mark} w20 {mark} ASSISTANT:", "USER: what is this ? ASSISTANT:"]
    images = [[photo(40, 24, 0)], [photo(30, 60, 1), photo(64, 64, 2)]]
    both = prepare(images=images, text=texts[:2], padding=True, return_tensors="pt")
    alone = [prepare(images=[images[i]], text=texts[i : i + 1], return_tensors="pt") for i in range(2)]
    plain = model.generate(**both, max_new_tokens=4, do_sample=False)
    with sparsight.prune(model, "divprune:tokens=5") as handle:
        out = model.generate(**both, max_new_tokens=4, do_sample=False)
        assert handle.counts == [5, 5, 5]
        assert out.shape == plain.shape
        assert torch.equal(out[:, :-4], both["input_ids"])
        for i in range(2):
            assert torch.equal(model.generate(**alone[i], max_new_tokens=4, do_sample=False)[0, -4:], out[i, -4:])
        text = prepare(text=texts[2:], return_tensors="pt")
        assert model.generate(**text, max_new_tokens=4).shape[1] == text["input_ids"].shape[1] + 4
    assert model.config.image_token_id == IMAGE
    assert model.generation_config.pad_token_id == PAD
