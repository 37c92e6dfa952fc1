"""What a prompt says behind its images: the question's words as the language model embeds them, or as CLIP's text tower does.

The words are those behind the last image of their row (all text, where nothing is behind it), without special tokens and, where a processor
is known, without what its chat template puts behind the question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError, shown
from .request import VlmRequest
from .tiles import ImageTokens

MARK = "sparsight"
"""A question whose place in the chat template is looked for."""
INSTRUCTION = "\nAnswer the question using a single word or phrase."
"""What LLaVA's benchmarks put behind a question; CDPruner's authors take it off before CLIP reads it."""
INSTEAD = "take text=llm (the words as the language model embeds them) or text=none"


class Words:
    """The signal `text` of one model, and for CLIP `feats` in the same space.

    source: "llm", "clip" or "clip:NAME". processor: of the model, where it is known. embeds: CLIP's text embeddings [M, D] of every question.
    """

    def __init__(self, family: Any, source: str, processor: Any = None, embeds: Any = None) -> None:
        kind = type(family.model).__name__
        self.family = family
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.clip: Clip | None = None
        self.embeds = None if embeds is None else checked(embeds)
        self.ending = [] if processor is None else ending(processor, self.tokenizer)
        self.special = special_ids(family.model.config) | set(getattr(self.tokenizer, "all_special_ids", None) or [])
        how, _, name = source.partition(":")
        self.by_clip = how == "clip"
        if self.embeds is not None and not self.by_clip:
            raise PruneError("text_embeds are CLIP's text embeddings, which this recipe does not compare with; leave them out")
        if self.by_clip and not name and self.embeds is None:
            raise PruneError(
                f"text=clip compares with CLIP's text embeddings, and {kind} has no text tower of CLIP: name one (tower=openai/clip-vit-large-"
                f"patch14-336, or a folder), give the embeddings (prune(..., text_embeds=)), or {INSTEAD}"
            )
        if name and self.embeds is None and self.tokenizer is None:
            raise PruneError(
                f"tower={name} reads the question, which takes the tokenizer of {kind}: prune(..., processor=processor)"
            )
        if name:
            self.clip = load_clip(name)

    def joined(self, images: list[ImageTokens], rows: list[int], request: VlmRequest) -> list[ImageTokens]:
        """The images with the text of their rows."""
        said = {row: self.of_row(request, row) for row in set(rows)}
        found = [replace(image, text=said[row]) for image, row in zip(images, rows, strict=True)]
        return [self.in_its_space(image) for image in found] if self.by_clip else found

    def ids(self, request: VlmRequest, row: int) -> Tensor:
        """Ids of the words of one row of the prompt."""
        ids, mask = request.new[row], None if request.mask is None else request.along(request.mask)[row]
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        visual = torch.isin(
            ids, ids.new_tensor([token for kind in ("image", "video") if (token := self.family.token_id(kind)) is not None])
        )
        place = torch.arange(ids.shape[0], device=ids.device)
        behind = place > place.where(visual, -1).amax()
        for where in (real & behind, real & ~visual):
            words = self.without_template(ids[where])
            if words.shape[0]:
                return words
        return ids[:0]

    def without_template(self, ids: Tensor) -> Tensor:
        """Ids without the template's ending and without special tokens."""
        tail = 0
        for one, wanted in zip(reversed(ids.tolist()), reversed(self.ending), strict=False):
            if one != wanted:
                break
            tail += 1
        ids = ids[: ids.shape[0] - tail]
        return ids[~torch.isin(ids, ids.new_tensor(sorted(self.special)))]

    @torch.no_grad()
    def of_row(self, request: VlmRequest, row: int) -> Tensor:
        """The text [T, C] of one row; one row of zeros where it has none."""
        ids = self.ids(request, row)
        if not self.by_clip:
            embedding = self.family.core.get_input_embeddings()
            found: Tensor = embedding(ids)
            return found if ids.shape[0] else found.new_zeros(1, found.shape[-1])
        if self.embeds is not None:
            return self.embeds.to(ids.device)
        assert self.clip is not None
        question = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
        return self.clip.read(question.removesuffix(INSTRUCTION).removesuffix(INSTRUCTION.strip()).strip(), ids.device)

    @torch.no_grad()
    def in_its_space(self, image: ImageTokens) -> ImageTokens:
        """The image with its encoder features where CLIP's text is."""
        tiles, wide = [], torch.promote_types(torch.float32, image.tokens.dtype)
        assert image.text is not None
        for tile in image.tiles:
            feats = tile.signals.get("feats")
            feats = image.tokens[tile.columns] if feats is None else feats
            feats = feats if self.clip is None else self.clip.look(feats)
            if feats.shape[-1] != image.text.shape[-1]:
                raise PruneError(
                    f"text_embeds have {image.text.shape[-1]} channels, the encoder's features {feats.shape[-1]}: name the CLIP that both are "
                    f"of (tower=), which has the projection between them, or {INSTEAD}"
                )
            tiles.append(replace(tile, signals={**tile.signals, "feats": feats.to(wide)}))
        return replace(image, tiles=tiles, text=image.text.to(wide))


@dataclass(eq=False)
class Clip:
    """A CLIP of transformers with its tokenizer; its vision blocks are not used."""

    name: str
    model: Any
    tokenizer: Any

    def look(self, feats: Tensor) -> Tensor:
        """Patch features [n, C] of its vision tower (the encoder's own are the same) in the joint space: [n, D]."""
        norm, projection = self.model.vision_model.post_layernorm.to(feats.device), self.model.visual_projection.to(feats.device)
        if feats.shape[-1] != projection.in_features:
            raise PruneError(
                f"tower={self.name} projects features of {projection.in_features} channels, and the encoder's have {feats.shape[-1]}; name the "
                f"CLIP that the encoder is of, or {INSTEAD}"
            )
        found: Tensor = projection(norm(feats.float()))
        return found

    def read(self, question: str, device: torch.device) -> Tensor:
        """Text embeddings [M, D] of a question: nothing is cut off, each segment of the tower's length is one embedding."""
        ids = self.tokenizer(question)["input_ids"]
        length = int(self.model.config.text_config.max_position_embeddings)
        spare = -len(ids) % length
        padded = torch.tensor([*ids, *[0] * spare]).view(-1, length)
        mask = torch.tensor([*[1] * len(ids), *[0] * spare]).view(-1, length)
        tower = self.model.text_model.to(device)
        pooled = tower(input_ids=padded.to(device), attention_mask=mask.to(device)).pooler_output
        found: Tensor = self.model.text_projection.to(device)(pooled)
        return found


def checked(embeds: Any) -> Tensor:
    """CLIP's text embeddings as given. Raises PruneError for what is none."""
    if not isinstance(embeds, Tensor) or embeds.dim() != 2 or not embeds.is_floating_point() or not embeds.shape[0]:
        got = list(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise PruneError(f"text_embeds must be CLIP's text embeddings, a tensor [M, D], got {got}")
    return embeds.detach().float()


def load_clip(name: str) -> Clip:
    """A CLIP by its name: a folder, or a repository of the Hugging Face Hub."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if not isinstance(config, transformers.CLIPConfig):
            raise PruneError(f"tower={shown(name)} is a {config.model_type}, not a CLIP")
        model = transformers.CLIPModel.from_pretrained(name).float().eval()
        return Clip(name, model, transformers.AutoTokenizer.from_pretrained(name))
    except PruneError:
        raise
    except Exception as error:  # whatever the hub client or transformers meets
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PruneError(f"the CLIP tower={shown(name)} cannot be loaded ({shown(said)}); give a folder, or {INSTEAD}") from None


def special_ids(config: Any) -> set[int]:
    """Ids that a configuration calls those of special tokens, the text part's too."""
    parts = [config, config.get_text_config()]
    found: set[int] = set()
    for part in parts:
        for name, value in part.to_dict().items():
            if name.endswith(("token_id", "token_ids")):
                found |= {one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)}
    return found


def ending(processor: Any, tokenizer: Any) -> list[int]:
    """Ids that the processor's chat template puts behind a question; none where there is no template."""
    if not getattr(processor, "chat_template", None):
        return []
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": MARK}]}]
    text = str(processor.apply_chat_template(said, add_generation_prompt=True))
    found: list[int] = tokenizer(text.rpartition(MARK)[2], add_special_tokens=False)["input_ids"]
    return found


def processor_of(model: nn.Module, given: Any) -> Any:
    """The processor that `prune` is given, or with which the model was loaded."""
    return model.__dict__.get("_sparsight_processor") if given is None else given
