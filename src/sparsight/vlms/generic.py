"""Every vision-language model of transformers that takes `mm_encoder_outputs`: one family, and a table of special lines (`special`).

Read with transformers 5.23. Images are what the encoder's `get_image_features` gives: one entry of a list, or one row of a tensor, is one
image. Reduced features go back in the shape they came in: lists stay lists, tensors become [K, 1, D], which beams take apart at the right
places. What runs along the prompt follows it by its shape, positions with axes by the model's own `get_rope_index` (`mrope`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops import select
from ..ops.schedule import earlier_block
from ..signals import SHALLOW, heads_of, square
from . import encoder_rows, mrope
from .attention_listener import Attended, attention_in
from .call_state import under_way
from .family import LVLM, PIXELS
from .request import VlmRequest
from .smaller import FlatPatches, SmallerImages, cells, padded, squares
from .special import Special, special
from .tiles import ATTENTION, ImageSite, ImageTokens, KeptTokens, Tile

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
SHAPES = ("spatial_shapes", "target_sizes", "image_sizes")
"""Further arguments that say how high and wide an image is, in patches or in pixels."""
CLASS_TOKENS = ("class_embedding", "cls_token", "class_token")


class Generic(LVLM):
    """Any class that takes `mm_encoder_outputs` and makes them with `get_image_features`."""

    name = "transformers vision-language"
    fallback = True
    classes = ("any that takes mm_encoder_outputs",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.listener: encoder_rows.EncoderListener | None = None
        self.known: list[list[encoder_rows.TileRows]] | None = None

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

    @property
    def full(self) -> list[int]:
        """Blocks in which every patch of an image sees every other."""
        return sorted(getattr(self.core.get_encoder(modality="image"), "fullatt_block_indexes", None) or range(len(self.blocks)))

    def listened(self, site: ImageSite) -> dict[str, int]:
        """Blocks whose attention a site asks for: under "" the last full one of those that make the features, or the next, which consumes them;
        under "shallow_" the earlier one that the recipe names."""
        wanted, full = heads_of(site.needs), self.full
        last = self.made + site.consuming
        found = {"": max((block for block in full if block <= last), default=full[-1])} if wanted & {"q", "k", "v"} else {}
        if wanted & {"shallow_q", "shallow_k"} and site.shallow is not None:
            found[SHALLOW] = earlier_block(site.shallow, len(self.blocks), full)
        return found

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
        attention = {name for name in ATTENTION if name not in ("position", "grid")}  # those of `tiles`
        gone = attention if self.lacks else {"class_token"}  # a class token is not projected
        return (*(name for name in super().offers() if name not in gone), "frames")

    # ---- installation -------------------------------------------------------------------------------------------------

    def add(self, sites: list[ImageSite]) -> None:
        super().add(sites)
        if heads_of(sites[0].needs):
            self.listen(sites[0])

    def take_out(self, sites: list[Any]) -> None:
        super().take_out(sites)
        if not self.sites:
            self.unlisten()

    def listen(self, site: ImageSite) -> None:
        """Let the encoder report the attention that a site asks for, until `unlisten`."""
        modules = {ahead: attention_in(self.blocks[block]) for ahead, block in self.listened(site).items()}
        self.listener = encoder_rows.EncoderListener(modules, self.blocks[self.made]).install()

    def unlisten(self) -> None:
        if self.listener is not None:
            self.listener.remove()
            self.listener = None

    def prepare(self, call: dict[str, Any], generating: bool) -> VlmRequest | None:
        if call.get(self.special.renamed) is not None:
            call["pixel_values"] = call.pop(self.special.renamed)
        return super().prepare(call, generating)

    def look(self, kind: str, call: dict[str, Any], site: ImageSite, **options: Any) -> tuple[Any, list[ImageTokens], list[str]]:
        if self.listener is not None or not heads_of(site.needs):
            return super().look(kind, call, site, **options)
        self.listen(site)
        try:
            return super().look(kind, call, site, **options)
        finally:
            self.unlisten()

    @contextmanager
    def hearing(self, taps: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
        """While this lasts attention is heard, and autograd records what comes behind the last block."""
        if self.listener is None:
            yield {}
            return
        block = self.listener.block if self.known is None else None
        call = encoder_rows.EncoderCall(self, block, {module: [] for module in self.listener.modules})
        with self.recording(torch.is_grad_enabled()), under_way(call):
            yield {"rows": call}

    @contextmanager
    def recording(self, on: bool) -> Iterator[None]:
        """Let autograd record or not, as far as anybody asks which rows make a token."""
        if self.known is not None:
            yield
            return
        with torch.inference_mode(False), torch.set_grad_enabled(on):
            yield

    def tile_rows(self, kind: str, call: dict[str, Any], site: ImageSite) -> list[list[encoder_rows.TileRows]] | None:
        """Which rows of the encoder make the tiles of each image of a call, for `known`; None where the site asks for no attention. It goes
        by the sizes of the images, so that a graph for one size can be traced with it."""
        if self.listener is None:
            return None
        with self.hearing({}) as heard:
            output = getattr(self.core, f"get_{kind}_features")(
                **{name: call[name] for name in (PIXELS[kind], GRIDS[kind]) if name in call}, return_dict=True
            )
        with self.recording(True):
            features = self.features(kind, output, call)
        return self.lay_out(features, heard["rows"])

    # ---- smaller images -----------------------------------------------------------------------------------------------

    @property
    def flat(self) -> FlatPatches | None:
        """How pictures lie in flat patches with grids beside them, in the encoders of the Qwen-VL kind; None for others."""
        encoder = self.core.get_encoder(modality="image")
        embed, merge = getattr(encoder, "patch_embed", None), getattr(encoder, "spatial_merge_size", None)
        patch, frames = getattr(embed, "patch_size", None), getattr(embed, "temporal_patch_size", None)
        known = isinstance(patch, int) and isinstance(frames, int) and isinstance(merge, int)
        return FlatPatches(patch, frames, merge) if known else None  # type: ignore[arg-type]

    @property
    def other_sizes(self) -> bool:
        return self.flat is not None or bool(self.special.resize)

    @property
    def one_size(self) -> str:
        return self.special.one_size or super().one_size

    @property
    def cuts_tiles(self) -> bool:
        return bool(self.special.tiles)

    @property
    def unit(self) -> int:
        """Pixels of a token's side, where a picture's tokens are its patches, or squares of them."""
        patch = self.core.get_encoder(modality="image").config.patch_size
        sides = (getattr(self.config, name, None) for name in ("spatial_merge_size", "downsample_factor", "scale_factor"))
        merge = next((side for side in sides if side), round(1 / getattr(self.config, "downsample_ratio", 1)))
        return int(patch if isinstance(patch, int) else patch[0]) * int(merge)

    def smaller(self, kind: str, call: dict[str, Any], budget: Callable[[int], int]) -> SmallerImages:
        if self.flat is not None:
            return self.smaller_patches(kind, call, budget)
        name, pixels, sizes = PIXELS[kind], call[PIXELS[kind]], call.get("image_sizes")
        if kind == "video" or (self.special.resize == "sizes" and sizes is None):
            what = "videos of" if kind == "video" else "pictures without image_sizes for"
            raise PruneError(f"{what} {type(self.model).__name__} cannot be made smaller; take pool, or another method")
        if sizes is not None and self.special.resize == "sizes":
            made, sizes, plans, given = padded(pixels, sizes, self.unit, budget)
            return SmallerImages({name: made, "image_sizes": sizes}, plans, given)
        mask = call.get("pixel_attention_mask")
        if mask is not None and not bool(mask[pixels.flatten(2).ne(0).any(dim=2)].all()):
            raise PruneError(
                f"pictures of {type(self.model).__name__} that are padded cannot be made smaller; have its processor cut tiles"
            )
        made, plan, grid = squares(pixels, self.unit, budget)
        count = int(pixels.flatten(-3).ne(0).any(dim=-1).sum()) if self.special.rows else len(pixels)  # black ones fill rows up
        arguments = {name: made, **({} if mask is None else {"pixel_attention_mask": None})}
        options = {"interpolate_pos_encoding": True} if self.special.resize == "asked" and made.shape != pixels.shape else {}
        return SmallerImages(arguments, [plan] * count, [grid] * count, options)

    def smaller_patches(self, kind: str, call: dict[str, Any], budget: Callable[[int], int]) -> SmallerImages:
        """Every frame of a video gets an even share of its budget."""
        flat, pixels, grids = self.flat, call[PIXELS[kind]], call[GRIDS[kind]]
        assert flat is not None
        merge = flat.merge
        made, sizes, plans, given = [], [], [], []
        for rows, (t, h, w) in zip(pixels.split(grids.prod(dim=1).tolist()), grids.tolist(), strict=True):
            grid = (h // merge, w // merge)
            count = max(1, budget(t * grid[0] * grid[1]) // t)
            side = select.smaller(grid, count)
            made.append(rows if side == grid else flat.smaller(rows, (t, h, w), side))
            sizes.append((t, side[0] * merge, side[1] * merge))
            plans.append(cells(grid, count, pixels.device, frames=t))
            given.append(grid)
        return SmallerImages({PIXELS[kind]: torch.cat(made), GRIDS[kind]: grids.new_tensor(sizes)}, plans, given)

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
        with self.recording("rows" in heard or torch.is_grad_enabled()):
            features = self.features(kind, output, call)
        tiles = (
            self.scored_tiles(features, heard["rows"])
            if "rows" in heard
            else [frames(tokens, t) for tokens, t in zip(features, self.frames(kind, call, features), strict=True)]
        )
        if "rows" in heard and not heard["rows"].own:
            features = [tokens.detach() for tokens in features]
        extras = [self.split(layer, features) for layer in deepstack(output)]
        found = []
        counts = self.frames(kind, call, features)
        uneven = call.get(GRIDS[kind]) is None or any(len(x) % t for x, t in zip(features, counts, strict=True))
        if kind == "video" and "frames" in site.needs and uneven:
            raise PruneError(
                f"{type(self.model).__name__} does not say which tokens of a video are of which frame, which this recipe asks for"
            )
        for i, (tokens, own, grid) in enumerate(zip(features, tiles, self.grids(kind, call, features), strict=True)):
            placed = [self.placed(tile, grid, tokens.shape[0], site) for tile in own]
            found.append(ImageTokens(tokens, placed, tuple(layer[i] for layer in extras), grid, frames=counts[i]))
        return found

    def scored_tiles(self, features: list[Tensor], call: encoder_rows.EncoderCall) -> list[list[Tile]]:
        """For every image its tiles: the tokens whose rows attend to each other, with q, k and v."""
        heads = encoder_rows.whole(self.heard(call))
        found = self.known or self.lay_out(features, call)
        return [[Tile(tile.columns, encoder_rows.signals_of(heads, tile)) for tile in image] for image in found]

    def heard(self, call: encoder_rows.EncoderCall) -> dict[str, list[Attended]]:
        assert self.listener is not None
        return {ahead: call.heard[module] for ahead, module in self.listener.named.items()}

    def lay_out(self, features: list[Tensor], call: encoder_rows.EncoderCall) -> list[list[encoder_rows.TileRows]]:
        """For every image the rows of the encoder that its tiles are made of."""
        kind = type(self.model).__name__
        if call.hidden is None:
            raise PruneError(f"the vision encoder of {kind} did not run where pruning listens to it; images are encoded elsewhere")
        with torch.inference_mode(False), torch.enable_grad():
            token = encoder_rows.row_tokens(torch.cat(features), call.hidden, kind)
        image = torch.repeat_interleave(torch.tensor([len(tokens) for tokens in features])).to(token.device)
        first = torch.tensor([0, *(len(tokens) for tokens in features)]).cumsum(0).tolist()
        tiles: list[list[encoder_rows.TileRows]] = [[] for _ in features]
        seen = torch.zeros_like(image, dtype=torch.bool)
        for domain in encoder_rows.domains(self.heard(call), token, kind):
            own = token[domain.rows]
            numbers = torch.unique(own[own >= 0])
            found = encoder_rows.token_order(own, self.special.class_last)
            i = int(image[numbers[0]])
            if found is None or bool(seen[numbers].any()) or bool((image[numbers] != i).any()):
                what = (
                    "tokens made of unlike numbers of rows"
                    if found is None
                    else "rows of several images, or not all rows of a token, in one attention"
                )
                raise PruneError(
                    f"the vision encoder of {kind} has {what}; use a method that looks at tokens alone: divprune, fps, random"
                )
            seen[numbers] = True
            order, prefix, each = found
            tiles[i].append(encoder_rows.TileRows(numbers - first[i], domain.rows[order], prefix, each, domain.scale))
        return tiles

    def placed(self, tile: Tile, grid: tuple[int, int] | None, total: int, site: ImageSite) -> Tile:
        """A tile with its grid, where the recipe asks for one."""
        if not {"grid", "position"} & set(site.needs):
            return tile
        n = tile.columns.shape[0]
        own = grid if grid is not None and n in (total, grid[0] * grid[1]) else square(n)
        if own is None:
            raise PruneError(
                f"the grid of an image with {n} tokens is not known in {type(self.model).__name__}; use a method that needs none"
            )
        return replace(tile, signals={**tile.signals, "grid": own, "position": torch.arange(n, device=tile.columns.device)})

    def frames(self, kind: str, call: dict[str, Any], features: list[Tensor]) -> list[int]:
        """Frames of every video, as far as the call says so; 1 for images."""
        grids = call.get(GRIDS[kind])
        return [1] * len(features) if grids is None or len(grids) != len(features) else grids[:, 0].tolist()

    def grids(self, kind: str, call: dict[str, Any], features: list[Tensor]) -> list[tuple[int, int] | None]:
        """Grid (h, w) of every image's tokens: of its patches, as far as the call says so, with the same shape; else a square."""
        name = next((name for name in (GRIDS[kind], *SHAPES) if hasattr(call.get(name), "shape")), None)
        shapes = call[name] if name else None
        if isinstance(places := call.get(f"{kind}_position_ids"), Tensor) and places.dim() == 3:
            shapes = places.amax(dim=1).flip(-1) + 1  # Gemma 4: x and y of every patch
        if shapes is None or shapes.shape[0] != len(features):
            return [square(tokens.shape[0]) for tokens in features]
        counts = [len(tokens) // t for tokens, t in zip(features, self.frames(kind, call, features), strict=True)]
        return [like_patches(h, w, n) for (h, w), n in zip(shapes[:, -2:].tolist(), counts, strict=True)]

    def views(self, kind: str, call: dict[str, Any]) -> list[list[Tensor]]:
        """The grid of one image, or of each frame of a video; nothing where there is no grid of as many tokens as stand in the prompt,
        or where tiles of one image look like images."""
        if self.special.tiles and len(call[PIXELS[kind]]) > 1:
            return [[]]
        tokens = torch.empty(int((call["input_ids"] == self.token_id(kind)).sum()), 0)
        (grid,), (count,) = self.grids(kind, call, [tokens]), self.frames(kind, call, [tokens])
        return [[] if grid is None else [tile.columns.view(grid) for tile in frames(tokens, count)]]

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

    def joined(self, kind: str, request: VlmRequest, images: list[ImageTokens]) -> list[ImageTokens]:
        if not self.special.tiles or kind != "image":
            return images
        places = request.places(kind, self.token_id(kind), [image.tokens.shape[0] for image in images])
        ends = image_ends(self.special.tiles, request.ids, places)
        starts = [0, *(i + 1 for i in ends[:-1])]
        return [together(images[start : end + 1]) for start, end in zip(starts, ends, strict=True)]

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


def frames(tokens: Tensor, count: int) -> list[Tile]:
    """All tokens of an image as one tile; of a video those of each of its frames."""
    return [Tile(columns, {}) for columns in torch.arange(tokens.shape[0], device=tokens.device).chunk(count)]


def image_ends(tiles: str, ids: Tensor, places: list[tuple[int, Tensor]]) -> list[int]:
    """Numbers of the tiles that are the last of their image, from their places in the prompt (`Special.tiles`)."""
    spans = [(row, int(columns[0]), int(columns[-1])) for row, columns in places]
    after = [*spans[1:], (-1, 0, 0)]
    last = [row != other for (row, _, _), (other, _, _) in zip(spans, after, strict=True)]
    if tiles == "overview":
        mark = {row: int(ids[row, first - 1]) if first else -1 for (row, first, _), end in zip(spans, last, strict=True) if end}
        ended = [end or int(ids[row, first - 1]) == mark[row] for (row, first, _), end in zip(spans, last, strict=True)]
    else:
        gap = 1 if tiles == "mark" else 0
        ended = [end or first - stop > gap + 1 for end, (_, _, stop), (_, first, _) in zip(last, spans, after, strict=True)]
    return [i for i, end in enumerate(ended) if end]


def together(tiles: list[ImageTokens]) -> ImageTokens:
    """One image from what was taken for images."""
    if len(tiles) == 1:
        return tiles[0]
    first, parts = 0, []
    for image in tiles:
        parts += [replace(tile, columns=tile.columns + first) for tile in image.tiles]
        first += image.tokens.shape[0]
    extras = tuple(torch.cat(layer) for layer in zip(*(image.extras for image in tiles), strict=True))
    return ImageTokens(torch.cat([image.tokens for image in tiles]), parts, extras)


def like_patches(h: int, w: int, n: int) -> tuple[int, int] | None:
    """The grid of n tokens that has the shape of a grid of patches; None if there is none."""
    side = math.isqrt(h * w // n) if n and h * w % n == 0 else 0
    return (h // side, w // side) if side and side * side * n == h * w and h % side == w % side == 0 else None


def like(given: Any, tokens: list[Tensor]) -> Any:
    """Tokens [K, D] of every image as the features were given: a list, or one tensor of rows [K, 1, D]. With one token a row, beams are
    repeated image by image."""
    return torch.cat(tokens).unsqueeze(1) if isinstance(given, Tensor) else tokens
