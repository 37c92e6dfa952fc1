"""A tiny LLaVA with random weights that answers yes or no, saved with its processor, and questions about real photos."""

import json
import shutil
from pathlib import Path

import torch

WORDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "USER:",
    "ASSISTANT:",
    "yes",
    "no",
    "is",
    "there",
    "a",
    "dog",
    "in",
    "the",
    "image?",
    "what",
    "colour",
    *[
        "airplanes",
        "butterfly",
        "dalmatian",
        "elephant",
        "emu",
        "flamingo",
        "hawksbill",
        "kangaroo",
        "Leopards",
        "llama",
        "okapi",
        "sunflower",
    ],
]
IMAGE = len(WORDS)
SIDE, PATCH = 16, 4


def make_processor():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<image>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def make_model():
    """Yes and no have opposite rows in the head, so that one of them has the highest logit; both end the answer."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 16}
    text = {"model_type": "llama", **sizes, "vocab_size": IMAGE + 1, "max_position_embeddings": 256, "pad_token_id": 0}
    torch.manual_seed(1)
    config = LlavaConfig(vision_config=vision, text_config={**text, "bos_token_id": 2, "eos_token_id": 5}, image_token_id=IMAGE)
    model = LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    head = model.lm_head.weight.data
    row = torch.randn(head.shape[1])
    head.zero_()
    head[WORDS.index("yes")], head[WORDS.index("no")] = row, -row
    model.generation_config.eos_token_id = [WORDS.index("yes"), WORDS.index("no")]
    model.generation_config.pad_token_id = 0
    return model


def save_tiny(folder: Path) -> Path:
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def save_questions(folder: Path, count: int = 8, **more) -> Path:
    """Yes/no questions about the package's own photos: is there what there is, and is there something else."""
    from sparsight.demo import demo_images

    folder.mkdir(parents=True, exist_ok=True)
    photos = sorted(demo_images().rglob("*.jpg"))[:count]
    lines = []
    for i, photo in enumerate(photos):
        shutil.copy(photo, folder / f"{i}.jpg")
        asked = photos[(i + i % 2) % len(photos)].parent.name
        answer = "yes" if asked == photo.parent.name else "no"
        line = {"id": f"q{i}", "image": f"{i}.jpg", "question": f"is there a {asked} in the image?", "answer": answer}
        lines.append(json.dumps({**line, **more}))
    (folder / "photos.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "photos.jsonl"
