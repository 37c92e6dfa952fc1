"""Every vision-language model of transformers that takes `mm_encoder_outputs`: one family, and a table of special lines (`special`).

Read with transformers 5.23. Images are what the encoder's `get_image_features` gives: one entry of a list, or one row of a tensor, is one
image. Reduced features go back in the shape they came in: lists stay lists, tensors become [K, 1, D], which beams take apart at the right
places. What runs along the prompt follows it by its shape, positions with axes by the model's own `get_rope_index` (`mrope`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..signals import square
from . import encoder_rows, mrope
from .call_state import under_way
from .family import LVLM
from .request import VlmRequest
from .special import Special, special
from .tiles import ImageSite, ImageTokens, KeptTokens, Tile

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
SHAPES = ("spatial_shapes", "target_sizes", "image_sizes")
"""Further arguments that say how high and wide an image is, in patches or in pixels."""
CLASS_TOKENS = ("class_embedding", "cls_token", "class_token")
ATTENTION = {"q", "k", "v", "class_attn", "token_weight"}


class Generic(LVLM):
    """Any class that takes `mm_encoder_outputs` and makes them with `get_image_features`."""

    name = "transformers vision-language"
    fallback = True
    classes = ("any that takes mm_encoder_outputs",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.listener: encoder_rows.EncoderListener | None = None

    @classmethod
    def serves(cls, model: nn.Module) -> bool:
        return "mm_encoder_outputs" in inspect.signature(model.forward).parameters and hasattr(core_of(model), "get_image_features")

    @property
    def special(self) -> Special:
        return special(self.model)

    @property
    def core(self) -> Any:
        return core_of(self.model)

    @property
    def language_model(self) -> Any:
        return self.core.get_decoder()

    @property
    def pixels(self) -> dict[str, str]:
        return {**super().pixels, "image": self.special.pixels}

    @property
    def blocks(self) -> list[nn.Module]:
        encoder = self.core.get_encoder(modality="image")
        return [] if encoder is self.core else encoder_rows.blocks_in(encoder)

    @property
    def class_token(self) -> bool:
        """Whether the encoder has a class token, by the name of its weight."""
        encoder = self.core.get_encoder(modality="image")
        names = (name.rpartition(".")[2] for name, _ in encoder.named_parameters()) if self.blocks else ()
        return any(name in CLASS_TOKENS for name in names)

    @property
    def prefix(self) -> int:
        return int(self.class_token)

    @property
    def made(self) -> int:
        """The deepest block that features are made of."""
        config, depth = self.config, len(self.blocks)
        places = [config, getattr(config, "adapter_config", None)]
        words = ("vision_feature_layer", "vision_feature_layers")
        chosen = next((found for place in places for word in words if (found := getattr(place, word, None)) is not None), -1)
        indices = [chosen] if isinstance(chosen, int) else chosen
        return max(index - (not self.special.blocks) if index >= 0 else depth + index for index in indices)

    def scored(self, consuming: bool) -> int:
        """The block whose attention is heard: the last in which every patch of an image sees every other, or the next one, which consumes
        the features."""
        full = getattr(self.core.get_encoder(modality="image"), "fullatt_block_indexes", None)
        return max(full) if full else min(self.made + consuming, len(self.blocks) - 1)

    def check(self) -> None:
        kind = type(self.model).__name__
        if self.special.refused:
            raise PruneError(f"tokens cannot leave {kind}: {self.special.refused}")
        if self.token_id("image") is None:
            raise PruneError(f"{kind} has no image_token_id in its configuration, so nobody knows the images' places in a prompt")
        if self.language_model is self.core or not isinstance(self.language_model, nn.Module):
            raise PruneError(f"{kind} does not say which of its parts is the language model (get_decoder)")

    def token_id(self, kind: str) -> int | None:
        name = self.special.video if kind == "video" else "image_token_id"
        found: int | None = getattr(self.config, name, None)
        return found

    @property
    def lacks(self) -> str:
        """Why attention is not among the signals; empty if it is."""
        if self.special.attention:
            return self.special.attention
        return "" if self.blocks else "its vision encoder does not use transformers' attention interface"

    def offers(self) -> tuple[str, ...]:
        plain = ("x", "size", "position", "grid", "valid", "training")
        attention = () if self.lacks else ("q", "k", "v", "prefix", "scale", "token_weight")
        return plain + attention + (("class_attn",) if attention and self.class_token else ())

    # ---- installation -------------------------------------------------------------------------------------------------

    def add(self, sites: list[ImageSite]) -> None:
        super().add(sites)
        if ATTENTION & set(sites[0].needs):
            block = self.blocks[self.scored(sites[0].consuming)]
            attention = encoder_rows.attention_in(block)
            assert attention is not None
            self.listener = encoder_rows.EncoderListener(attention, self.blocks[self.made]).install()

    def take_out(self, sites: list[Any]) -> None:
        super().take_out(sites)
        if not self.sites and self.listener is not None:
            self.listener.remove()
            self.listener = None

    @contextmanager
    def hearing(self, taps: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
        """While this lasts attention is heard, and autograd records what comes behind the last block."""
        if self.listener is None:
            yield {}
            return
        call = encoder_rows.EncoderCall(self, self.listener.attention, self.listener.block)
        with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()), under_way(call):
            yield {"rows": call}

    # ---- images -------------------------------------------------------------------------------------------------------

    def check_images(self, kind: str, call: dict[str, Any]) -> None:
        super().check_images(kind, call)
        takes = inspect.signature(getattr(self.core, f"get_{kind}_features")).parameters
        for name in (GRIDS[kind],):
            if name in takes and call.get(name) is None:
                raise PruneError(f"{name} is missing: pass everything that the processor gives")

    def taps(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        return {}

    def images(self, kind: str, output: Any, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> list[ImageTokens]:
        with torch.inference_mode(False), torch.set_grad_enabled("rows" in heard or torch.is_grad_enabled()):
            features = self.features(kind, output, call)
        tiles = self.scored_tiles(features, heard["rows"]) if "rows" in heard else [[whole(tokens)] for tokens in features]
        if "rows" in heard and not heard["rows"].own:
            features = [tokens.detach() for tokens in features]
        extras = [self.split(layer, features) for layer in deepstack(output)]
        found = []
        for i, (tokens, own, grid) in enumerate(zip(features, tiles, self.grids(kind, call, features), strict=True)):
            placed = [self.placed(tile, grid, tokens.shape[0], site) for tile in own]
            found.append(ImageTokens(tokens, placed, tuple(layer[i] for layer in extras), grid))
        return found

    def scored_tiles(self, features: list[Tensor], call: encoder_rows.EncoderCall) -> list[list[Tile]]:
        """For every image its tiles: the tokens whose rows attend to each other, with q, k and v."""
        kind = type(self.model).__name__
        if call.hidden is None:
            raise PruneError(f"the vision encoder of {kind} did not run where pruning listens to it; images are encoded elsewhere")
        with torch.inference_mode(False), torch.enable_grad():
            token = encoder_rows.row_tokens(torch.cat(features), call.hidden, kind)
        image = torch.repeat_interleave(torch.tensor([len(tokens) for tokens in features])).to(token.device)
        first = torch.tensor([0, *(len(tokens) for tokens in features)]).cumsum(0).tolist()
        tiles: list[list[Tile]] = [[] for _ in features]
        seen = torch.zeros_like(image, dtype=torch.bool)
        for domain in encoder_rows.domains(call.heard, token, kind):
            own = token[domain.rows]
            numbers = torch.unique(own[own >= 0])
            signals = encoder_rows.token_signals(domain, own, self.special.class_last)
            i = int(image[numbers[0]])
            if signals is None or bool(seen[numbers].any()) or bool((image[numbers] != i).any()):
                what = (
                    "tokens made of unlike numbers of rows"
                    if signals is None
                    else "rows of several images, or not all rows of a token, in one attention"
                )
                raise PruneError(
                    f"the vision encoder of {kind} has {what}; use a method that looks at tokens alone: divprune, fps, random"
                )
            seen[numbers] = True
            tiles[i].append(Tile(numbers - first[i], signals))
        return tiles

    def placed(self, tile: Tile, grid: tuple[int, int] | None, total: int, site: ImageSite) -> Tile:
        """A tile with its grid, where the recipe asks for one."""
        if not {"grid", "position"} & set(site.needs):
            return tile
        n = tile.columns.shape[0]
        own = grid if n == total else square(n)
        if own is None:
            raise PruneError(
                f"the grid of an image with {n} tokens is not known in {type(self.model).__name__}; use a method that needs none"
            )
        return replace(tile, signals={**tile.signals, "grid": own, "position": torch.arange(n, device=tile.columns.device)})

    def grids(self, kind: str, call: dict[str, Any], features: list[Tensor]) -> list[tuple[int, int] | None]:
        """Grid (h, w) of every image's tokens: of its patches, as far as the call says so, with the same shape; else a square."""
        name = next((name for name in (GRIDS[kind], *SHAPES) if isinstance(call.get(name), Tensor)), None)
        if name is None or call[name].shape[0] != len(features):
            return [square(tokens.shape[0]) for tokens in features]
        return [like_patches(h, w, tokens.shape[0]) for (h, w), tokens in zip(call[name][:, -2:].tolist(), features, strict=True)]

    def features(self, kind: str, output: Any, call: dict[str, Any]) -> list[Tensor]:
        """Tokens [n, D] of every image."""
        found = output[self.special.features]
        if isinstance(found, Tensor) and found.dim() == 2:
            raise PruneError(
                f"{type(self.model).__name__} gives the features of all images as one, and does not say where each ends"
            )
        if self.special.rows:
            count = int(output.last_hidden_state.shape[0])
            whole = torch.cat(list(found))
            return list(whole.view(count, -1, whole.shape[-1]))
        return list(found)

    def split(self, layer: Any, features: list[Tensor]) -> list[Tensor]:
        """Further features of one layer, image by image."""
        parts = list(layer)
        if [part.shape[0] for part in parts] == [tokens.shape[0] for tokens in features]:
            return parts
        return list(torch.split(torch.cat(parts), [tokens.shape[0] for tokens in features]))

    def output(self, output: Any, kept: list[KeptTokens]) -> Any:
        name = self.special.features
        made = type(output)(**{key: value if torch.is_grad_enabled() else detached(value) for key, value in output.items()})
        made[name] = like(output[name], [one.tokens for one in kept])
        layers = [like(layer, list(parts)) for layer, *parts in zip(deepstack(output), *(one.extras for one in kept), strict=True)]
        if layers:
            given = zip(output.deepstack_features, layers, strict=True)
            made["deepstack_features"] = [(old[0], new) if numbered(old) else new for old, new in given]
        return made

    def set_positions(self, request: VlmRequest) -> None:
        if hasattr(self.core, "get_rope_index"):
            mrope.set_positions(self.core, request)


def core_of(model: nn.Module) -> Any:
    """The model that holds vision encoder and language model."""
    base = getattr(model, "base_model", model)
    return base if hasattr(base, "get_image_features") else model


def deepstack(output: Any) -> list[Any]:
    """Features that the language model adds behind its first layers, image by image for each of these layers."""
    given = getattr(output, "deepstack_features", None) or []
    return [layer[1] if numbered(layer) else layer for layer in given]


def numbered(layer: Any) -> bool:
    """Whether a layer's features come with the layer's number (Granite)."""
    return isinstance(layer, tuple) and isinstance(layer[0], int)


def detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def whole(tokens: Tensor) -> Tile:
    """All tokens of an image as one tile."""
    return Tile(torch.arange(tokens.shape[0], device=tokens.device), {})


def like_patches(h: int, w: int, n: int) -> tuple[int, int] | None:
    """The grid of n tokens that has the shape of a grid of patches; None if there is none."""
    side = math.isqrt(h * w // n) if n and h * w % n == 0 else 0
    return (h // side, w // side) if side and side * side * n == h * w and h % side == w % side == 0 else None


def like(given: Any, tokens: list[Tensor]) -> Any:
    """Tokens [K, D] of every image as the features were given: a list, or one tensor of rows [K, 1, D]. With one token a row, beams are
    repeated image by image."""
    return torch.cat(tokens).unsqueeze(1) if isinstance(given, Tensor) else tokens
