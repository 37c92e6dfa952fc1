"""Tiny random checkpoints that transformers and vLLM both load, with tokenizer and image processor, and pictures for them.

python tests_vllm/checkpoints.py llava FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

IMAGE, EOS, VOCAB = 120, 1, 128
WORDS = [f"w{i}" for i in range(VOCAB)]
TOKENS = {
    0: "<pad>",
    EOS: "</s>",
    2: "<unk>",
    IMAGE: "<image>",
    121: "<|vision_start|>",
    122: "<|vision_end|>",
    123: "<|video_pad|>",
}
IMAGE_TOKEN = {
    "llava": "<image>",
    "llava-next": "<image>",
    "onevision": "<image>",
    "qwen2.5": "<|image_pad|>",
    "qwen3": "<|image_pad|>",
}
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }} {% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }} {% else %}IMAGE {% endif %}{% endfor %}{% endif %}{% endfor %}"
)
TEXT = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT.update(
    {"num_key_value_heads": 1, "max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": None}
)


def words(name: str) -> list[str]:
    """The vocabulary: special tokens, then w3, w4 ..."""
    special = {**TOKENS, IMAGE: IMAGE_TOKEN[name]}
    return [special.get(i, word) for i, word in enumerate(WORDS)]


def tokenizer(name: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    listed = words(name)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    start, end = ("<|vision_start|> ", " <|vision_end|>") if name.startswith("qwen") else ("", "")
    made.add_special_tokens({"additional_special_tokens": [listed[i] for i in (IMAGE, 121, 122, 123)]})
    made.chat_template = TEMPLATE.replace("IMAGE", start + listed[IMAGE] + end)
    return made


def vision(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "projection_dim": 32}
    return {"model_type": "clip_vision_model", **sizes, "image_size": 56, "patch_size": 14, **more}


def llava() -> tuple[Any, Any]:
    import transformers as t

    config = t.LlavaConfig(
        vision_config=vision(), text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE, image_token_index=IMAGE,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    pixels = t.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = t.LlavaProcessor(
        pixels, tokenizer("llava"), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return t.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    import transformers as t

    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = t.LlavaNextConfig(
        vision_config=vision(), text_config={"model_type": "mistral", **TEXT, "sliding_window": None}, image_token_id=IMAGE,
        image_token_index=IMAGE, image_grid_pinpoints=pinpoints, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    pixels = t.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    processor = t.LlavaNextProcessor(
        pixels, tokenizer("llava-next"), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return t.LlavaNextForConditionalGeneration(config), processor


def onevision() -> tuple[Any, Any]:
    import transformers as t

    pinpoints = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 224], [224, 168]]
    seen = {**vision(), "model_type": "siglip_vision_model", "vision_use_head": False}
    config = t.LlavaOnevisionConfig(
        vision_config=seen, text_config={"model_type": "qwen2", **TEXT}, image_token_id=IMAGE, image_token_index=IMAGE, video_token_id=123,
        video_token_index=123, image_grid_pinpoints=pinpoints, vision_feature_layer=-1, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    sizes = {"height": 56, "width": 56}
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=sizes, image_grid_pinpoints=pinpoints), tokenizer("onevision"),
        t.LlavaOnevisionVideoProcessor(size=sizes), num_image_tokens=16, vision_feature_select_strategy="full", video_token="<|video_pad|>",
    )  # fmt: skip
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def qwen_ids(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": text,
        "image_token_id": IMAGE,
        "video_token_id": 123,
        "vision_start_token_id": 121,
        "vision_end_token_id": 122,
    }


def qwen_pixels() -> dict[str, Any]:
    import transformers as t

    sizes = {
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 224 * 224},
    }
    return {"image_processor": t.Qwen2VLImageProcessor(**sizes), "video_processor": t.Qwen2VLVideoProcessor(**sizes)}


def qwen25() -> tuple[Any, Any]:
    import transformers as t

    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    seen = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14}
    seen.update(
        {"spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [2], "tokens_per_second": 2}
    )
    config = t.Qwen2_5_VLConfig(vision_config=seen, **qwen_ids({**TEXT, "rope_parameters": rope}))
    processor = t.Qwen2_5_VLProcessor(tokenizer=tokenizer("qwen2.5"), **qwen_pixels())
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3() -> tuple[Any, Any]:
    import transformers as t

    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
    seen = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14}
    seen.update(
        {"spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    )
    config = t.Qwen3VLConfig(vision_config=seen, **qwen_ids({**TEXT, "rope_parameters": rope, "head_dim": 32}))
    processor = t.Qwen3VLProcessor(tokenizer=tokenizer("qwen3"), **qwen_pixels())
    return t.Qwen3VLForConditionalGeneration(config), processor


BUILD = {"llava": llava, "llava-next": llava_next, "onevision": onevision, "qwen2.5": qwen25, "qwen3": qwen3}


def checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of that family in the folder."""
    torch.manual_seed(0)
    model, processor = BUILD[name]()
    rng = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        scale = 0.3 if "norm" in key else 1.6 * parameter.shape[-1] ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=rng) * scale + (
            1.0 if "norm" in key and key.endswith("weight") else 0.0
        )
    model.lm_head.weight.data[IMAGE - 4 :] = 0  # no placeholders in answers, and no early end
    model.lm_head.weight.data[:3] = 0
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    older_names(folder)
    return folder


def older_names(folder: Path) -> None:
    """vLLM reads a tower's weights under the name that transformers gave them before it left `vision_model` out."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    renamed = {
        key.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model" not in key else key: value
        for key, value in weights.items()
    }
    save_file(renamed, path, metadata={"format": "pt"})


def picture(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    """A picture of random blocks."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)


def said(name: str, count: int, seed: int = 0) -> str:
    """So many words."""
    listed = words(name)
    return " ".join(listed[3 + (seed + 7 * i) % 100] for i in range(count))


def prompt(name: str, parts: list[str | Image.Image]) -> str:
    """What the chat template makes of texts and images in their order."""
    start, end = ("<|vision_start|> ", " <|vision_end|>") if name.startswith("qwen") else ("", "")
    return " ".join(part if isinstance(part, str) else start + IMAGE_TOKEN[name] + end for part in parts)


class Reference:
    """Transformers' model of a checkpoint: answers under a recipe, each prompt alone."""

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.name = name
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def answer(self, recipe: str, parts: list[str | Image.Image], new: int) -> list[int]:
        """Token ids of the answer to texts and images. recipe: "none" for the whole model."""
        import sparsight

        images = [part for part in parts if not isinstance(part, str)]
        given = self.processor(images=images or None, text=[prompt(self.name, parts)], return_tensors="pt")
        handle = None if recipe == "none" else sparsight.prune(self.model, recipe)
        try:
            out = self.model.generate(**given, max_new_tokens=new, do_sample=False)
        finally:
            if handle is not None:
                handle.remove()
        return out[0, given["input_ids"].shape[1] :].tolist()


def same(found: list[int], expected: list[int]) -> bool:
    """Equal up to the earlier stop: vLLM also stops at the tokenizer's end, transformers only at the generation config's."""
    stop = min(len(found), len(expected))
    return stop > 0 and found[:stop] == expected[:stop]


if __name__ == "__main__":
    checkpoint(sys.argv[1], Path(sys.argv[2]))
