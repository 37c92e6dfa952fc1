"""Tiny random models of every kind that can be saved, and what they answer; run as a program it loads folders in a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import sparsight

SIDE = 64
KINDS = ("timm", "transformers", "open_clip", "lvlm", "generic")
"""Frameworks of vision models; a vision-language model with a family of its own (LLaVA), and one of the generic family (InternVL)."""
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def made(kind: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model, and how it is saved."""
    torch.manual_seed(0)
    if kind == "timm":
        import timm

        model = timm.create_model("test_vit", img_size=SIDE, num_classes=5, dynamic_img_size=True).eval()
        return spread_out(model), {"classes": list("abcde")}
    if kind == "transformers":
        import transformers as t

        sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
        config = t.ViTConfig(**sizes, image_size=SIDE, patch_size=8, num_labels=5)
        return spread_out(t.ViTForImageClassification(config).eval()), {
            "processor": t.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
        }
    if kind == "open_clip":
        import open_clip

        (folder / "saved-tiny.json").write_text(json.dumps(OPEN_CLIP))
        open_clip.add_model_config(folder / "saved-tiny.json")
        return spread_out(open_clip.create_model("saved-tiny").eval()), {"architecture": "saved-tiny"}
    from tiny_vlm import make_model, make_processor

    if kind == "generic":
        from generic_models import build

        return build("internvl"), {"processor": make_processor()}
    return make_model(), {"processor": make_processor()}


def spread_out(model: Any) -> Any:
    """Weights large enough that attention is far from uniform."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "text" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def answers(kind: str, model: Any) -> torch.Tensor:
    """What the model says about pictures that are always the same."""
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    if kind == "lvlm":
        image = model.config.image_token_id
        ids = torch.tensor([[2, 3, *[image] * 16, 9, 10]])
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=x[:1, :, :16, :16]).logits[:, -1]
    if kind == "generic":
        from generic_models import inputs

        return model(**inputs("internvl", [[3, (32, 32), 4]])).logits[:, -1]
    found = model.encode_image(x) if kind == "open_clip" else model(x)
    return getattr(found, "logits", found)


def load(kind: str, folder: str) -> Any:
    return (sparsight.load_vlm if kind in ("lvlm", "generic") else sparsight.load)(folder)


if __name__ == "__main__":  # KIND=FOLDER ... -> their answers in the file named first
    torch.save({f: answers(*f.split("=", 1)[:1], load(*f.split("=", 1)).model) for f in sys.argv[2:]}, sys.argv[1])
