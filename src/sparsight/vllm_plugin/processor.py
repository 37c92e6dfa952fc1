"""What a pruned model adds to vLLM's multimodal processors: shorter placeholders, and each image's recipe beside its pixels.

Read with vLLM 0.32. What is refused here reaches the user as HTTP 400 with its text; later it would end the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig

from ..errors import PruneError
from .recipes import KEY, OFF, ServedRecipes, check_text, recipe_row
from .startup import default_recipe, enabled, served_recipes

FIELD = "sparsight_recipe"
"""Name of the recipe among an image's tensors."""


class PruningProcessor:
    """Mixin in front of one of vLLM's processors.

    sized_by  the tensors of an image that say how many tokens it has; of pixels only their height and width.
    """

    sized_by: ClassVar[tuple[str, ...]] = ("pixel_values",)

    @cached_property
    def recipes(self: Any) -> ServedRecipes:
        return served_recipes(self.info.get_hf_config())

    def recipe(self: Any, kwargs: Mapping[str, object]) -> str:
        """The recipe of a request's images: its own, else the server's. Raises PruneError for one that cannot be served."""
        config = self.info.get_hf_config()
        if not enabled(config):
            if kwargs.get(KEY) is not None:
                raise PruneError(
                    f'this server prunes no images; start it with --hf-overrides \'{{"{KEY}": "{OFF}"}}\' for recipes by request'
                )
            return OFF
        own = kwargs.get(KEY)
        text = default_recipe(config, self.info.ctx.get_mm_config()) if own is None else check_text(own)
        if text != OFF:
            self.recipes.find(text)
        return text

    def _get_mm_hashes(self: Any, inputs: Any) -> Any:
        """The recipe is part of what an image is known by in every cache, the server's own as well, and also if the client names it."""
        text = self.recipe(inputs.hf_processor_mm_kwargs)
        kwargs = without(inputs.hf_processor_mm_kwargs)
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=kwargs if text == OFF else {**kwargs, KEY: text}))  # type: ignore[misc]

    def _apply_hf_processor_main(self: Any, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        text, images = self.recipe(hf_kwargs), mm_items.get_count("image", strict=False)
        if text != OFF and images and mm_items["image"].get_passthrough_data():
            raise PruneError("image embeddings have no scores to prune by; send images, or prune before you encode them")
        data = super()._apply_hf_processor_main(mm_items, without(hf_kwargs))  # type: ignore[misc]
        if text != OFF and images:
            data[FIELD] = [recipe_row(text)] * images
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields: Mapping[str, Any] = super()._get_mm_fields_config(hf_inputs, without(hf_processor_mm_kwargs))  # type: ignore[misc]
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)} if FIELD in hf_inputs else fields

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any) -> Sequence[Any]:
        text = self.recipe(hf_processor_mm_kwargs)
        updates: Sequence[Any] = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items=mm_items, hf_processor_mm_kwargs=without(hf_processor_mm_kwargs), out_mm_kwargs=out_mm_kwargs
        )
        if text == OFF:
            return updates
        return [
            replace(update, replacement=partial(self.shortened, update.replacement, text, out_mm_kwargs))
            if update.modality == "image"
            else update
            for update in updates
        ]

    def shortened(self, whole: Any, text: str, items: Any, number: int) -> Any:
        """The placeholders of what is left of an image."""
        placeholders = whole(number)
        return placeholders[: self.count(text, self.size(items["image"][number]), len(placeholders))]

    def size(self, item: Any) -> tuple[tuple[int, ...], ...]:
        """What an image's count of tokens follows from."""
        given = [(name, item[name].data) for name in self.sized_by]
        return tuple(tuple(data.shape[-2:]) if name == "pixel_values" else tuple(data.flatten().tolist()) for name, data in given)

    @cached_property
    def count(self) -> Any:
        """Text of a recipe, size and tokens of an image -> tokens that are left."""
        return lru_cache(maxsize=1024)(partial(count, self.recipes, self.sized_by))


def count(recipes: ServedRecipes, names: tuple[str, ...], text: str, size: tuple[tuple[int, ...], ...], total: int) -> int:
    """Tokens that are left of an image. size: by name, height and width of pixels, or the whole of another tensor."""
    call = {
        name: torch.empty(1, 3, *values, device="meta") if name == "pixel_values" else torch.tensor([values])
        for name, values in zip(names, size, strict=True)
    }
    return recipes.find(text).count(call, total)


def without(kwargs: Mapping[str, object]) -> dict[str, object]:
    """A request's arguments without the recipe, which transformers' processors do not know."""
    return {name: value for name, value in kwargs.items() if name != KEY}


class UnprunedBudget:
    """Mixin in front of vLLM's processing infos of the LLaVA family: a server's memory is planned for images left whole, which a
    request may ask for."""

    def get_mm_max_tokens_per_item(self: Any, seq_len: int, mm_counts: Mapping[str, int]) -> Any:
        if not enabled(self.get_hf_config()):
            return super().get_mm_max_tokens_per_item(seq_len, mm_counts)  # type: ignore[misc]
        return {"image": self.get_max_image_tokens()}
