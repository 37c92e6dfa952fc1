"""A tiny LLaVA with a DINOv2 tower, a tokenizer of words and random weights, and questions of every kind about the packaged photos."""

from functools import cache
from pathlib import Path

import torch

SIDE, PATCH = 28, 7
IMAGE, PAD, END, UNKNOWN = "<image>", "<pad>", "</s>", "<unk>"


@cache
def names():
    """All that the embedded ViT knows, which questions may ask for."""
    from sparsight.data.scenes import look_alikes

    return sorted(look_alikes())


def make_tokenizer():
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sparsight.data.scenes import FORMS, NUMBERS, PLACES

    words = [PAD, END, UNKNOWN, "user", "assistant", ":", "?", ",", "yes", "no", "nothing", *NUMBERS, *" ".join(PLACES).split()]
    words += [word for form in FORMS.values() for word in form.split() if "{" not in word]
    words += [name for name in names() if " " not in name]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token=UNKNOWN))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    core.add_tokens([AddedToken(name, single_word=True) for name in names() if " " in name])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE},
    )


def make_processor(side=SIDE, patch=PATCH):
    from transformers import BitImageProcessor, LlavaProcessor

    template = (
        "{% for message in messages %}user : {% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
        "{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}assistant :"
    )
    pictures = BitImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        pictures,
        make_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def make_model(vision=None):
    """Of the words that it may say about a third ends the answer."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    own = {"model_type": "dinov2", **sizes, "mlp_ratio": 2, "image_size": SIDE, "patch_size": PATCH, "use_mask_token": False}
    text = {"model_type": "llama", **sizes, "intermediate_size": 24, "vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision or own,
        text_config={**text, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "tie_word_embeddings": True},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name and not (vision and "vision_tower" in name):
            torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config.eos_token_id = [1, *range(2, len(tokenizer), 3)]
    model.generation_config.pad_token_id = 0
    return model


def save_demo(folder: Path) -> Path:
    """An ordinary folder of transformers."""
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def save_scenes(folder: Path, count: int = 6) -> Path:
    """Pictures and questions as the demo model's."""
    from sparsight.data.scenes import write_questions
    from sparsight.demo import demo_images

    write_questions(folder, demo_images(), count, seed=1)
    return folder


def save_compact(folder: Path) -> Path:
    """The form of the package: int8 without the tower's weights that are the embedded ViT's. Random projector and language model."""
    from safetensors.torch import save_file

    from sparsight.demo import SCALE, demo_weights
    from sparsight.demo.tower import TRAINED, dinov2_config, dinov2_state

    model = make_model(dinov2_config().to_dict())
    model.model.vision_tower.load_state_dict(dinov2_state(demo_weights()[0]))
    starts = (*(f"model.vision_tower.encoder.layer.{i}." for i in TRAINED), "model.multi_modal_projector.", "model.language_model.")
    stored = {}
    for name, value in model.state_dict().items():
        if not name.startswith(starts):
            continue
        if "vision_tower" in name:
            value = value * 1.01  # trained
        if value.dim() == 2:
            scale = (value.abs().amax(dim=1).clamp_min(1e-8) / 127).half()
            stored[name], stored[name + SCALE] = (value / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale
        else:
            stored[name] = value.half()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    make_processor(224, 14).save_pretrained(folder)
    return folder
