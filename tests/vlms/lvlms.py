"""Tiny random vision-language models in float64, and prompts for them made without a processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

IMAGE, VIDEO, PAD, VOCAB = 90, 91, 0, 96
PATCH = 4


@dataclass(frozen=True)
class Size:
    """An image of a prompt by its pixels; frames > 0 for a video."""

    h: int = 16
    w: int = 16
    seed: int = 0
    frames: int = 0


Sample = list[int | Size]
"""A prompt: numbers are runs of so many text tokens."""


def text_config(kind: str = "llama", **more: Any) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {"model_type": kind, **sizes, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": PAD, **more}


def vision_config(kind: str, image: int = 16) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "projection_dim": 16}
    return {"model_type": kind, **sizes, "image_size": image, "patch_size": PATCH, "vision_use_head": False, "mlp_ratio": 2}


def randomised(model: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        parameter.data = noise * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    model.lm_head.weight.data[IMAGE:] = 0  # an answer with placeholders could not be read again
    return model.double().eval()


def common(model: Any) -> Any:
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def llava(tower: str = "clip_vision_model", image: int = 16, **more: Any) -> Callable[[str], nn.Module]:
    def build(attention: str) -> nn.Module:
        from transformers import LlavaConfig, LlavaForConditionalGeneration

        strategy = "full" if tower.startswith("siglip") else "default"
        config = LlavaConfig(
            vision_config=vision_config(tower, image), text_config=text_config(**more), image_token_id=IMAGE,
            vision_feature_select_strategy=strategy, vision_feature_layer=-2,
        )  # fmt: skip
        config._attn_implementation = attention
        return LlavaForConditionalGeneration(config)

    return build


def llava_next(attention: str) -> nn.Module:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=vision_config("clip_vision_model"), text_config=text_config("mistral", sliding_window=None), image_token_id=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )  # fmt: skip
    config._attn_implementation = attention
    return LlavaNextForConditionalGeneration(config)


def onevision(attention: str) -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        vision_config=vision_config("siglip_vision_model"), text_config=text_config("qwen2"), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32], [48, 48]], vision_aspect_ratio="anyres_max_4", vision_feature_layer=-1,
    )  # fmt: skip
    config._attn_implementation = attention
    return LlavaOnevisionForConditionalGeneration(config)


def qwen(version: str) -> Callable[[str], nn.Module]:
    def build(attention: str) -> nn.Module:
        import transformers as t

        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        text = {k: v for k, v in text_config().items() if k != "model_type"}
        text.update(rope_parameters=rope, head_dim=8) if version == "3" else text.update(rope_parameters=rope)
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 92, "vision_end_token_id": 93}
        shared = {"depth": 3, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
        if version == "2":
            vision = {**shared, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
            config = t.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
            kind = t.Qwen2VLForConditionalGeneration
        elif version == "2.5":
            vision = {**shared, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 16}
            vision.update(fullatt_block_indexes=[1], tokens_per_second=2)
            config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
            kind = t.Qwen2_5_VLForConditionalGeneration
        else:
            vision = {**shared, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "num_position_embeddings": 16}
            config = t.Qwen3VLConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0, 1]}, **ids)
            kind = t.Qwen3VLForConditionalGeneration
        config._attn_implementation = attention
        return kind(config)

    return build


BUILD: dict[str, Callable[[str], nn.Module]] = {
    "llava": llava(),
    "llava-siglip": llava("siglip_vision_model"),
    "llava-dinov2": llava("dinov2", image=24),  # its pictures are smaller than its positions, as DINOv2's processor makes them
    "llava-qwen2": llava(kind="qwen2"),
    "llava-next": llava_next,
    "onevision": onevision,
    "qwen2": qwen("2"),
    "qwen2.5": qwen("2.5"),
    "qwen3": qwen("3"),
}
CLASS_TOKEN = ("llava", "llava-dinov2", "llava-qwen2", "llava-next")


@cache
def template(name: str, attention: str) -> nn.Module:
    torch.manual_seed(0)
    return common(randomised(BUILD[name](attention)))


def build(name: str, attention: str = "sdpa") -> Any:
    """A model of its own, equal for equal names."""
    import copy

    return copy.deepcopy(template(name, attention))


def product(cases: list[Any], usual: Callable[..., bool]) -> list[Any]:
    """Parameters of a test, of which those that are not usual belong to the full product (make test-all)."""
    import pytest

    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    marked = [pytest.param(*row, id="-".join(map(str, row)), marks=() if usual(*row) else pytest.mark.product) for row in rows]
    return marked


# ---- prompts ----------------------------------------------------------------------------------------------------------


def picture(size: Size, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(100 + size.seed + 7 * size.h + size.w)
    return torch.randn(*shape, generator=rng, dtype=torch.float64) * 2


def tokens_of(name: str, model: Any, size: Size) -> int:
    """Placeholders of an image, counted by the model itself."""
    if name.startswith("qwen"):
        return max(1, size.frames) * (size.h // PATCH) * (size.w // PATCH) // 4
    if name in ("llava-next", "onevision"):
        with torch.no_grad():
            return len(type(model.model).get_image_features(model.model, **pixels(name, model, [size])).pooler_output[0])
    return 16


def pixels(name: str, model: Any, sizes: list[Size]) -> dict[str, Any]:
    if not sizes:
        return {}
    if name.startswith("qwen"):
        grid = [(max(1, s.frames), s.h // PATCH, s.w // PATCH) for s in sizes]
        flat = torch.cat([picture(s, t * h * w, 3 * 2 * PATCH**2) for s, (t, h, w) in zip(sizes, grid, strict=True)])
        kind = ("pixel_values_videos", "video_grid_thw") if sizes[0].frames else ("pixel_values", "image_grid_thw")
        return dict(zip(kind, (flat, torch.tensor(grid)), strict=True))
    if name in ("llava-next", "onevision"):
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches as count

        counts = [count([s.h, s.w], model.config.image_grid_pinpoints, 16) for s in sizes]
        most = max(counts)
        stacked = [
            torch.nn.functional.pad(picture(s, n, 3, 16, 16), (0, 0) * 3 + (0, most - n))
            for s, n in zip(sizes, counts, strict=True)
        ]
        return {"pixel_values": torch.stack(stacked), "image_sizes": torch.tensor([[s.h, s.w] for s in sizes])}
    return {"pixel_values": torch.stack([picture(s, 3, 16, 16) for s in sizes])}


def inputs(name: str, model: Any, samples: list[Sample], side: str = "left") -> dict[str, Any]:
    """What a processor would give."""
    rows, sizes = [], []
    for sample in samples:
        row: list[int] = []
        start = 1 + 5 * len(sample) + sum(item for item in sample if isinstance(item, int))
        for item in sample:
            if isinstance(item, Size):
                placeholders = [VIDEO if item.frames else IMAGE] * tokens_of(name, model, item)
                if name == "qwen3" and item.frames:  # a time stamp before every frame
                    each = len(placeholders) // item.frames
                    placeholders = (([7, *placeholders[:each]]) * item.frames)[1:]
                row += placeholders
                sizes.append(item)
            else:
                row += [1 + (start + 3 * i) % 80 for i in range(item)]
            start += 11
        rows.append(row)
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    given = {"input_ids": ids, "attention_mask": mask}
    if name.startswith("qwen"):
        given["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    given.update(pixels(name, model, [s for s in sizes if not s.frames]))
    given.update(pixels(name, model, [s for s in sizes if s.frames]))
    return given


def alone(given: dict[str, Any], name: str, model: Any, sample: Sample) -> dict[str, Any]:
    return inputs(name, model, [sample])


def answer(model: Any, given: dict[str, Any], new: int = 6, **options: Any) -> Tensor:
    """What generate adds to the prompt."""
    out = model.generate(**given, max_new_tokens=new, do_sample=False, **options)
    assert torch.equal(
        out[:, : given["input_ids"].shape[1]], given["input_ids"].repeat_interleave(len(out) // len(given["input_ids"]), 0)
    )
    return out[:, given["input_ids"].shape[1] :]
