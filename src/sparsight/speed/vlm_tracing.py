"""A vision-language model as three OpenVINO graphs: pictures to pruned tokens, ids to embeddings, embeddings to the next token's logits.

The language model's graph keeps keys and values as states of an inference request; no selection is in it, so that one serves every recipe.
Read with transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..prune import Handle, family_of
from ..recipe import Recipe
from ..vlms.tiles import TileOutcome, run, shares_of
from .tracing import complaint, openvino_rules

BROKEN = "{} cannot be traced for openvino"


@dataclass(frozen=True, eq=False)
class Graphs:
    """Models of OpenVINO's.

    vision      pixels [1, C, H, W] -> tokens [1, K, D] for the language model; the place [K] that each has among the picture's tokens in
                the prompt, -1 for none of them; the kept patches [K'].
    embeddings  ids [B, L] -> [B, L, D].
    language    embeddings [B, L, D], positions [B, L], additive mask [B, 1, L, past + L] -> logits [B, 1, V] behind the last token.
    """

    vision: Any = field(repr=False)
    embeddings: Any = field(repr=False)
    language: Any = field(repr=False)


def check_traceable(model: nn.Module, recipe: Recipe | None) -> None:
    """Raise PruneError for a model or a recipe that cannot become graphs of fixed shapes."""
    family, name = family_of(model), type(model).__name__
    if not family.language or not family.one_row:
        raise PruneError(
            f"{name} cannot be exported as a vision-language model; that is for LLaVA, whose pictures are one tile each"
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


class Vision(nn.Module):
    """Vision encoder, selection and projector for one picture."""

    def __init__(self, model: nn.Module, handle: Handle | None) -> None:
        super().__init__()
        self.model = model
        self.family = [family_of(model)]  # in a list: a family is no module
        self.pruned = handle is not None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        family, call = self.family[0], {"pixel_values": pixels}
        if not self.pruned:
            (tokens,) = family.core.get_image_features(**call, return_dict=True).pooler_output
            count = tokens.shape[0]
            return tokens.unsqueeze(0), torch.arange(count), torch.arange(count)  # OpenVINO wants two, even if they are equal
        site = family.sites[0]
        if site.where == "image":
            smaller = family.smaller("image", call, site.budget)
            images = family.look("image", {**call, **smaller.arguments}, site, **smaller.options)[1]
            whole = smaller.kept(0, images[0])
            return whole.tokens.unsqueeze(0), whole.anchors, whole.plan.keep[0]
        (image,) = family.look("image", call, site)[1]
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


def vision_graph(model: nn.Module, handle: Handle | None, pixels: Tensor) -> Any:
    """The vision part for pictures of the size of pixels [1, C, H, W], pruned as the model is now."""
    return convert(Vision(model, handle).eval(), (pixels,), None, ["pixels"], ["tokens", "places", "kept"])


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
    line = torch.arange(3, 8).expand(2, -1)
    example = (torch.zeros(2, 5, text.hidden_size), line, torch.zeros(2, 1, 5, 8), past)
    shapes = ({0: free, 1: free}, {0: free, 1: free}, {0: free, 2: free, 3: free}, tuple({0: free, 2: free} for _ in past))
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
