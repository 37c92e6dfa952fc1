"""What the generic family has to know of single classes: one line each. All other classes of transformers need none."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

ENCODER_READ_TWICE = (
    "its language model reads the Q-Former's output beside the features, which would keep the full length; prune a model whose images go through "
    "mm_encoder_outputs alone"
)

RESAMPLED = "its tokens are made by a resampler, so none of them belongs to a place in the image"


PADDED = "its pictures come as padded rows of patches; ask its processor for fewer"
TABLE = "its position table is for one size"


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
    resize    how pictures are made smaller before the encoder: "size" it takes squares of any size, "asked" if it is asked for positions of
              another size, "sizes" pictures padded to one size with image_sizes beside them.
    one_size  why pictures cannot be made smaller.
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
    resize: str = ""
    one_size: str = ""


PLAIN = Special()
SPECIAL: dict[str, Special] = {
    "Blip2ForConditionalGeneration": Special(refused=ENCODER_READ_TWICE),
    "InstructBlipForConditionalGeneration": Special(refused=ENCODER_READ_TWICE),
    "InstructBlipVideoForConditionalGeneration": Special(refused=ENCODER_READ_TWICE),
    "DiffusionGemmaForBlockDiffusion": Special(
        refused="it writes whole blocks by diffusion, and its images go to an encoder that is asked again"
    ),
    "FuyuForCausalLM": Special(refused="it has no vision encoder: patches go to the language model as they are"),
    "AyaVisionForConditionalGeneration": Special(tiles="overview", resize="asked"),
    "Cohere2VisionForConditionalGeneration": Special(tiles="mark", resize="asked"),
    "GotOcr2ForConditionalGeneration": Special(tiles="run"),
    "InternVLForConditionalGeneration": Special(tiles="run", resize="size"),
    "Lfm2VlForConditionalGeneration": Special(tiles="mark", one_size=PADDED),
    "Ovis2ForConditionalGeneration": Special(tiles="mark", one_size=TABLE),
    "QianfanOCRForConditionalGeneration": Special(tiles="run", resize="size"),
    "VideoLlavaForConditionalGeneration": Special(renamed="pixel_values_images", resize="asked"),
    "Idefics2ForConditionalGeneration": Special(rows=True, attention=RESAMPLED),
    "Idefics3ForConditionalGeneration": Special(rows=True, tiles="overview", resize="size"),
    "SmolVLMForConditionalGeneration": Special(rows=True, tiles="overview", resize="size"),
    "Llama4ForConditionalGeneration": Special(
        features="last_hidden_state", class_last=True, tiles="overview", one_size="its rotary positions are made for one size"
    ),
    "Glm4vForConditionalGeneration": Special(video="image_token_id"),
    "Glm4vMoeForConditionalGeneration": Special(video="image_token_id"),
    "DeepseekVLForConditionalGeneration": Special(resize="asked"),
    "Gemma3ForConditionalGeneration": Special(one_size="its projector makes the same number of tokens of every picture"),
    "Gemma4ForConditionalGeneration": Special(one_size=PADDED),
    "JanusForConditionalGeneration": Special(resize="asked"),
    "LightOnOcrForConditionalGeneration": Special(resize="sizes"),
    "LlavaForConditionalGeneration": Special(resize="sizes"),
    "MiniCPMV4_6ForConditionalGeneration": Special(one_size=PADDED),
    "Mistral3ForConditionalGeneration": Special(resize="sizes"),
    "PaliGemmaForConditionalGeneration": Special(resize="asked"),
    "VipLlavaForConditionalGeneration": Special(resize="asked"),
    "Molmo2ForConditionalGeneration": Special(
        video="image_token_id", blocks=True, one_size="its processor says which patches make a token"
    ),
}
"""By the name of the class with the language-model head."""


def special(model: nn.Module) -> Special:
    """The line of a model's class, or of one that it inherits from."""
    return next((SPECIAL[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in SPECIAL), PLAIN)
