"""What the generic family has to know of single classes: one line each. All other classes of transformers need none."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

ENCODER_READ_TWICE = (
    "its language model reads the Q-Former's output beside the features, which would keep the full length; prune a model whose images go through "
    "mm_encoder_outputs alone"
)

RESAMPLED = "its tokens are made by a resampler, so none of them belongs to a place in the image"


@dataclass(frozen=True)
class Special:
    """One class.

    refused   why no token can leave it.
    renamed   an older name of pixel_values that the model still takes.
    features  where the encoder's output has the features that the language model gets.
    rows      features of all images of a batch row come as one: split by the encoder's tiles.
    video     what the configuration calls the placeholder of videos, where it is that of images.
    tiles     how tiles of an image stand in the prompt: "run" side by side, "mark" with one token between them, "overview" the last one
              behind a mark that all overviews have; "" if nothing is cut into tiles.
    attention   why no attention belongs to a token.
    class_last  the class token is the encoder's last row.
    blocks    vision_feature_layer counts blocks, not the states between them.
    """

    refused: str = ""
    renamed: str = ""
    features: str = "pooler_output"
    rows: bool = False
    video: str = "video_token_id"
    tiles: str = ""
    attention: str = ""
    class_last: bool = False
    blocks: bool = False


PLAIN = Special()
SPECIAL: dict[str, Special] = {
    "Blip2ForConditionalGeneration": Special(refused=ENCODER_READ_TWICE),
    "InstructBlipForConditionalGeneration": Special(refused=ENCODER_READ_TWICE),
    "InstructBlipVideoForConditionalGeneration": Special(refused=ENCODER_READ_TWICE),
    "DiffusionGemmaForBlockDiffusion": Special(
        refused="it writes whole blocks by diffusion, and its images go to an encoder that is asked again"
    ),
    "FuyuForCausalLM": Special(refused="it has no vision encoder: patches go to the language model as they are"),
    "AyaVisionForConditionalGeneration": Special(tiles="overview"),
    "Cohere2VisionForConditionalGeneration": Special(tiles="mark"),
    "GotOcr2ForConditionalGeneration": Special(tiles="run"),
    "InternVLForConditionalGeneration": Special(tiles="run"),
    "Lfm2VlForConditionalGeneration": Special(tiles="mark"),
    "Ovis2ForConditionalGeneration": Special(tiles="mark"),
    "QianfanOCRForConditionalGeneration": Special(tiles="run"),
    "VideoLlavaForConditionalGeneration": Special(renamed="pixel_values_images"),
    "Idefics2ForConditionalGeneration": Special(rows=True, attention=RESAMPLED),
    "Idefics3ForConditionalGeneration": Special(rows=True, tiles="overview"),
    "SmolVLMForConditionalGeneration": Special(rows=True, tiles="overview"),
    "Llama4ForConditionalGeneration": Special(features="last_hidden_state", class_last=True, tiles="overview"),
    "Glm4vForConditionalGeneration": Special(video="image_token_id"),
    "Glm4vMoeForConditionalGeneration": Special(video="image_token_id"),
    "Molmo2ForConditionalGeneration": Special(video="image_token_id", blocks=True),
}
"""By the name of the class with the language-model head."""


def special(model: nn.Module) -> Special:
    """The line of a model's class, or of one that it inherits from."""
    return next((SPECIAL[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in SPECIAL), PLAIN)
