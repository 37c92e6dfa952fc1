"""A vision-language model as three OpenVINO graphs: pictures to pruned tokens, ids to embeddings, embeddings to the next token's logits.

The language model's graph keeps keys and values as states of an inference request; no selection is in it, so that one serves every recipe.
LLaVA's pictures all have one size. Qwen-VL's have grids of their own, so that its graph is for one grid: what follows from the grid (places of
patches, windows, rows of each token) is known before the trace and constant in it. Read with transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..prune import Handle, family_of
from ..recipe import Recipe
from ..vlms.tiles import TileOutcome, run, shares_of
from .tracing import complaint, openvino_rules

GRIDS = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
"""Models whose pictures are rows of patches [t * h * w, D] with a grid beside them, and whose positions have three axes."""
BROKEN = "{} cannot be traced for openvino"


@dataclass(frozen=True, eq=False)
class Graphs:
    """Models of OpenVINO's.

    vision      pixels [1, C, H, W], or rows of patches [h * w, D] -> tokens [1, K, D] for the language model; the place [K] that each has among the picture's tokens in
                the prompt, -1 for none of them; the kept patches [K'].
    embeddings  ids [B, L] -> [B, L, D].
    language    embeddings [B, L, D], positions [B, L] (or [3, B, L]), additive mask [B, 1, L, past + L] -> logits [B, 1, V] behind the last token.
    """

    vision: Any = field(repr=False)
    embeddings: Any = field(repr=False)
    language: Any = field(repr=False)


def check_traceable(model: nn.Module, recipe: Recipe | None) -> None:
    """Raise PruneError for a model or a recipe that cannot become graphs of fixed shapes."""
    family, name = family_of(model), type(model).__name__
    if not family.language or not (family.one_row or has_grids(model)):
        raise PruneError(
            f"{name} cannot be exported as a vision-language model; that is for LLaVA, whose pictures are one tile each, and for Qwen2-VL and "
            "Qwen2.5-VL, for pictures of one size"
        )
    if has_grids(model) and getattr(family.language_model, "has_sliding_layers", False):
        raise PruneError(f"{name} with sliding attention cannot be exported; set text_config.use_sliding_window = False")
    if has_grids(model) and recipe is not None and recipe.where == "image":
        raise PruneError(
            f"{recipe.name} makes pictures smaller, which {name} does by its processor: give that a smaller max_pixels and export unpruned"
        )
    if recipe is not None and recipe.where == "decoder":
        raise PruneError(
            f"{recipe.name} drops tokens between layers of the language model, which OpenVINO's graph cannot; take a method before it, such "
            "as fastervlm:tokens=64"
        )
    if recipe is not None and (not recipe.schedule.word or dict(recipe.params).get("count") == "adaptive"):
        raise PruneError(
            f"{recipe} keeps another number of tokens in every image, which no static graph can hold; give a fixed budget"
        )


def has_grids(model: nn.Module) -> bool:
    """Whether each picture has a grid of its own."""
    return any(kind.__name__ in GRIDS for kind in type(model).__mro__)


class Vision(nn.Module):
    """Vision encoder, selection and projector for one picture. grid: (t, h, w) of its patches, where pictures have grids."""

    def __init__(self, model: nn.Module, handle: Handle | None, grid: tuple[int, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.family = [family_of(model)]  # in a list: a family is no module
        self.pruned = handle is not None
        self.call, self.options = ({}, {}) if grid is None else known(self.family[0].core.visual, grid)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        family, call = self.family[0], {"pixel_values": pixels, **self.call}
        if not self.pruned:
            (tokens,) = family.core.get_image_features(**call, **self.options, return_dict=True).pooler_output
            count = tokens.shape[0]
            return tokens.unsqueeze(0), torch.arange(count), torch.arange(count)  # OpenVINO wants two, even if they are equal
        site = family.sites[0]
        if site.where == "image":
            smaller = family.smaller("image", call, site.budget)
            images = family.look("image", {**call, **smaller.arguments}, site, **smaller.options)[1]
            whole = smaller.kept(0, images[0])
            return whole.tokens.unsqueeze(0), whole.anchors, whole.plan.keep[0]
        (image,) = family.look("image", call, site, **self.options)[1]
        (share,) = shares_of(site, image)
        if share is None:
            raise PruneError(f"{site.least} tokens are the least for this recipe")
        project = family.project() if site.where == "encoder" else None
        (part,) = run(site, [image], [(0, 0)], *share, project)
        columns = image.tiles[0].columns
        places = columns[part.anchors.clamp(min=0)].where(part.anchors >= 0, -1)
        return self.tokens(image.tokens, part, places).unsqueeze(0), places, part.plan.keep[0]

    @staticmethod
    def tokens(given: Tensor, part: TileOutcome, places: Tensor) -> Tensor:
        return given[places] if part.tokens is None else part.tokens


class Language(nn.Module):
    """The language model with its head behind the last token, keys and values in and out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language = family_of(model).core.language_model
        self.head = model.get_output_embeddings()

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.language.config)
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        output = self.language(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        logits = self.head(output.last_hidden_state[:, -1:])
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def known(tower: Any, grid: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What follows from a picture's grid: arguments of `get_image_features`, and more of them that the tower would make of it. Numbers
    that Python looks at are numpy's, because tensors have no values in a trace."""
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

    grids, merge = torch.tensor([grid]), tower.spatial_merge_size
    options = {
        "image_position_ids": get_vision_position_ids(grids, merge),
        "image_cu_seqlens": get_vision_cu_seqlens(grids).numpy(),
    }
    if hasattr(tower, "window_size"):
        index, borders = get_vision_window_index(grids, merge, tower.window_size, tower.patch_size)
        options.update(image_window_index=index, image_cu_window_seqlens=borders.numpy())
    return {"image_grid_thw": np.array([grid])}, options


@contextmanager
def rows_known(family: Any, pixels: Tensor, grid: tuple[int, ...] | None) -> Iterator[None]:
    """While this lasts the family knows which rows of its encoder make a token, of a picture of this grid."""
    if grid is None or not family.sites:
        yield
        return
    family.known = family.tile_rows("image", {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])}, family.sites[0])
    try:
        yield
    finally:
        family.known = None


def vision_graph(model: nn.Module, handle: Handle | None, pixels: Tensor, grid: tuple[int, ...] | None = None) -> Any:
    """The vision part for pictures of the size of pixels [1, C, H, W], or of a grid (t, h, w) of rows [t * h * w, D]; pruned as the model is
    now."""
    vision = Vision(model, handle, grid).eval()
    with torch.no_grad(), rows_known(vision.family[0], pixels, grid):
        return convert(vision, (pixels,), None, ["pixels"], ["tokens", "places", "kept"])


def embedding_graph(model: Any) -> Any:
    """Ids to embeddings."""
    free = torch.export.Dim.AUTO
    return convert(
        model.get_input_embeddings(), (torch.ones(2, 3, dtype=torch.int64),), ({0: free, 1: free},), ["ids"], ["embeddings"]
    )


def language_graph(model: Any) -> Any:
    """The language model; its keys and values are states."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads, free = text.num_key_value_heads, torch.export.Dim.AUTO
    past = tuple(torch.zeros(2, heads, 3, width) for _ in range(2 * text.num_hidden_layers))
    line, places = torch.arange(3, 8).expand(2, -1), {0: free, 1: free}
    if has_grids(model):
        line, places = line.expand(3, -1, -1), {1: free, 2: free}
    example = (torch.zeros(2, 5, text.hidden_size), line, torch.zeros(2, 1, 5, 8), past)
    shapes = ({0: free, 1: free}, places, {0: free, 2: free, 3: free}, tuple({0: free, 2: free} for _ in past))
    before, after = ([f"{word}_{number}" for number in range(len(past))] for word in ("past", "present"))
    graph = convert(Language(model).eval(), example, shapes, ["embeddings", "positions", "mask", *before], ["logits", *after])
    cache = openvino.PartialShape([-1, heads, -1, width])
    graph.reshape({place: cache if number > 2 else place.partial_shape for number, place in enumerate(graph.inputs)})
    apply_make_stateful_transformation(graph, dict(zip(before, after, strict=True)))
    return graph


def convert(module: nn.Module, example: tuple[Any, ...], shapes: Any, inputs: list[str], outputs: list[str]) -> Any:
    """A module as a model of OpenVINO's with inputs and outputs of these names. Raises PruneError."""
    import openvino

    with torch.no_grad(), complaint(BROKEN.format(type(module).__name__)):
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        graph = openvino.convert_model(program, extension=openvino_rules())
    for places, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for place, name in zip(places, names, strict=True):
            place.get_tensor().set_names({name})
    return graph
