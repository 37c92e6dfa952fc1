"""rank(model, images) -> Ranking: effective rank and attention entropy of every image of a folder, and how they go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.feed import Encode, Feed, encoder, own_encoder, stacked
from ..data.images import open_folder
from ..errors import PruneError
from ..load.models import Loaded, load_model
from ..load.vlms import find_source
from .complexity import SPACES, check_choice, measure, place_of, score_of
from .ranking import Ranking, Row, need_plot, pearson, spearman


def rank(
    model: str | Loaded | nn.Module,
    images: Any,
    out: str | Path | None = None,
    *,
    score: str | None = None,
    space: str = "tokens",
    layer: int | None = None,
    processor: Any = None,
    batch_size: int = 8,
    limit: int | None = None,
    device: str = "cpu",
) -> Ranking:
    """Effective rank and attention entropy of each image, as in table 4 and figure 5 of arXiv:2603.01236.

    model: a vision or a vision-language model, by name, folder or as an object. images: a folder, paths, PIL images or batches of the
    processor. score: whose attention, by default the class token's, else the mean column. space: rank of the "tokens" that a language
    model gets or of the encoder's "features". layer: block of a vision model, by default the last but one. out: a folder for rank.csv,
    rank.json and the scatter plot rank.png. Raises PruneError before any heavy work for what cannot be measured.
    """
    if batch_size < 1:
        raise PruneError(f"batch_size={batch_size} must be 1 or more")
    check_choice("space", space, SPACES)
    root = Path(images).expanduser() if isinstance(images, (str, Path)) else None
    items = open_folder(root, limit).paths if root is not None and not root.is_file() else images
    if out is not None:
        need_plot()
    name, module, encode = opened(model, processor, device)
    feed = Feed(items, encode, next(module.parameters()), batch_size)
    done = ranked(name, module, feed, root, score, space, layer)
    if out is not None:
        done.save(Path(out).expanduser())
    return done


def ranked(name: str, model: nn.Module, feed: Feed, root: Path | None, score: str | None, space: str, layer: int | None) -> Ranking:
    """Measure every image that can be read."""
    kind, step = score_of(model, score)
    rows = [
        Row(short(file, root), one.tokens, one.erank, one.entropy)
        for names, call in feed
        for file, one in zip(names, measure(model, call, step, space, layer=layer), strict=True)
    ]
    if not rows:
        raise PruneError(f"no image can be read; {': '.join(feed.skipped[0]) if feed.skipped else 'none were given'}")
    ranks, entropies = [row.erank for row in rows], [row.entropy for row in rows]
    skipped = [(short(file, root), reason) for file, reason in feed.skipped]
    correlations = pearson(ranks, entropies), spearman(ranks, entropies)
    return Ranking(name, str(root or "given"), kind, space, place_of(model, layer), *correlations, skipped, rows)


def short(name: str, root: Path | None) -> str:
    """A file's name below the folder."""
    return (
        Path(name).relative_to(root).as_posix() if root is not None and Path(name).is_relative_to(root) and root.is_dir() else name
    )


def opened(model: str | Loaded | nn.Module, processor: Any, device: str) -> tuple[str, nn.Module, Encode]:
    """Name, model and preprocessing."""
    if isinstance(model, nn.Module):
        return type(model).__name__, model, own_encoder(model, processor)
    if isinstance(model, str) and speaks(model):
        source = find_source(model, None, None)
        return model, source.load(device, torch.float32, 0), encoder(processor or source.processor)
    loaded = load_model(model) if isinstance(model, str) else model
    return loaded.name, loaded.model.to(device), encoder(processor) if processor is not None else stacked(loaded.transform)


def speaks(name: str) -> bool:
    """Whether a name is that of a vision-language model: a folder whose config.json says so, or a repository OWNER/NAME of the Hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name.count("/") == 1 and ":" not in name and "@" not in name and not name.startswith((".", "/", "~"))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return any("ForConditionalGeneration" in kind for kind in config.get("architectures") or [])
    except (OSError, ValueError, AttributeError):
        return False
