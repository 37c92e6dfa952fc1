"""analyse(...) -> Analysis: how a model's attention looks block by block, and what recipes would make of it, on any images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..data.images import Folder, Skipped, batches, even, open_folder
from ..data.reading import Transform, name_below, readable
from ..errors import PruneError
from ..load.answers import finite_rows
from ..load.models import Loaded, data_folder, look_of, open_model
from ..ops.distance import uniform_distance
from ..ops.schedule import Schedule, show
from ..ops.score import check_order
from ..prune import resolve
from ..recipe import Recipe
from ..runs.settings import Settings, check_settings, device_name, versions_in_use
from ..runs.store import ResultStore, claim, digest, fingerprint_model, release
from ..runs.sweep import Listener, Step, ignore
from .analysis import Agreement, Analysis, Head, Histogram, Left
from .block_probe import Probe, Sums, Tally, ask, correlations
from .complexity import NOT_FINITE
from .rank import need_plot
from .watch import unpruned

ORDERS = (1.0, 2.0, 4.0, float("inf"))
USUAL = ("class_attention:keep=0.5", "col_ln:keep=0.5", "renyi:keep=0.5")
"""Recipes where none are given; the first needs a class token."""

KEEP_EVERY = 5.0
"""Seconds after which what was seen is kept, so that a killed run loses no more."""
KEPT_AS = "analysis"


def analyse(
    model: str | Loaded | nn.Module = "demo",
    data: str | Path | None = None,
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/analyse",
    *,
    transform: Transform | None = None,
    orders: Sequence[float] = ORDERS,
    layers: str | Sequence[int] = "all",
    limit: int | None = None,
    shown: int = 2,
    batch_size: int = 8,
    device: str = "auto",
    seed: int = 0,
    listen: Listener | None = None,
) -> Analysis:
    """Entropy and reach of the attention, scores, agreement of kept sets and effective rank, block by block; figures, tables and a page
    go into `out`.

    model, transform: see `open_model`. The model is not pruned: every recipe is asked in every block what it would keep of all tokens,
    by its own budget. orders: of the Renyi row entropy, 1 is Shannon's; the first of them, or 1 if it is there, goes with the attention distance. layers: block numbers,
    as a list or as in "0/3/6". shown: images with heat maps. Figures 1, 4, 5 of the Col-Ln paper and 3, 5, 6 of the Renyi entropy
    paper are made of these. Called again with the same arguments it goes on after the last images that were kept in OUT/rows. Raises
    PruneError before any heavy work.
    """
    settings = check_settings(Settings(batch_size, "fp32", device, seed, 0), shown)
    need_plot("analyse")
    wanted = check_orders(orders)
    folder, target = open_folder(data_folder(model, data), limit), Path(out).expanduser()
    made = claim(target)
    try:
        loaded = open_model(model, transform, device=settings.device)
        return run(loaded, folder, prepare(loaded, recipes, wanted, layers, seed), settings, shown, target, listen or ignore)
    except BaseException:
        release(made)
        raise


def run(loaded: Loaded, folder: Folder, probe: Probe, settings: Settings, shown: int, out: Path, listen: Listener) -> Analysis:
    """Look at all images, then write."""
    names = list(map(name_of, probe.recipes))
    key = digest(
        __version__, fingerprint_model(loaded.model), look_of(loaded), folder.fingerprint(times=True), names, list(map(str, probe.orders)), probe.layers,
        str(settings), shown,
    )  # fmt: skip
    drawn = set(even(range(len(folder)), min(shown, len(folder))))
    skipped = pass_through(probe, folder, loaded.transform, settings.batch_size, drawn, ResultStore(out / "rows", key), listen)
    done = sum_up(loaded, folder, skipped, probe, settings)
    publish(done, loaded, folder, probe, out, listen)
    return done


def check_orders(orders: Sequence[float]) -> tuple[float, ...]:
    if not orders:
        raise PruneError("no order of the entropy is given; give at least one, such as 1 (Shannon) or 2")
    return tuple(dict.fromkeys(check_order(float(order)) for order in orders))


def prepare(
    loaded: Loaded, recipes: Sequence[str | Recipe], orders: tuple[float, ...], layers: str | Sequence[int], seed: int
) -> Probe:
    family = unpruned(loaded.model).family
    blocks = check_layers(layers, len(family.blocks))
    chosen = recipes or (USUAL if family.class_token else USUAL[1:])
    found = {name_of(recipe): recipe for recipe in (resolve(recipe, {}) for recipe in chosen)}
    asked = [ask(loaded.model, recipe, blocks) for recipe in found.values()]
    at = orders.index(1.0) if 1.0 in orders else 0
    tallies = {layer: Tally(len(orders)) for layer in blocks}
    return Probe(loaded.model, asked, blocks, orders, at, seed, tallies)


def name_of(recipe: Recipe) -> str:
    """The recipe without its layers, which are not used."""
    values = dict(recipe.params)
    body = ",".join(f"{name}={show(values[name])}" for name in recipe.shown if name != "layers")
    return f"{recipe.name}:{body}" if body else recipe.name


def check_layers(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    if isinstance(layers, str) and layers[:1].isdigit():
        try:
            layers = [int(part) for part in layers.split("/")]
        except ValueError:
            raise PruneError(f"layers={layers} is no list of block numbers; write 0/3/6, or all") from None
    found = Schedule(layers if isinstance(layers, str) else tuple(layers), keep=1.0).resolve(depth)
    if found[0] < 0:
        raise PruneError("layers=input is before the first block, where there is no attention; give block numbers")
    return found


def pass_through(
    probe: Probe, folder: Folder, transform: Transform, size: int, drawn: set[int], store: ResultStore, listen: Listener
) -> list[Skipped]:
    """All images through the model, from where an earlier run was: those that cannot be read. Raises PruneError if none can."""
    like, total = next(probe.model.parameters()), len(folder)
    start, skipped = store.find(KEPT_AS, partial(go_on, probe, folder)) or (0, [])
    files = batches(replace(folder, paths=folder.paths[start:], labels=None), transform, size)
    listen(Step(start, total, "reading", restored=start > 0, unit="images"))
    kept, bad = time.monotonic(), []
    with torch.inference_mode():
        for images, chosen in files:
            places = [start + place for place in chosen]
            images = images.to(like)
            fine = finite_rows(probe.model(images)).tolist()
            bad += [Skipped(folder.paths[place], NOT_FINITE) for place, good in zip(places, fine, strict=True) if not good]
            images, places = images[fine], [place for place, good in zip(places, fine, strict=True) if good]
            if not places:
                continue
            shown = {item: place for item, place in enumerate(places) if place in drawn}
            probe.run(images, places, shown)
            listen(Step(places[-1] + 1, total, "looking into blocks", unit="images"))
            if time.monotonic() - kept >= KEEP_EVERY:
                keep(probe, folder, places[-1] + 1, [*skipped, *files.skipped, *bad], store)
                kept = time.monotonic()
    skipped += [*files.skipped, *bad]
    if len(skipped) == total:
        first = skipped[0]
        raise PruneError(
            f"none of the {total} images in {folder.path} can be read; {name_below(first.path, folder.path)}: {first.reason}"
        )
    keep(probe, folder, total, skipped, store)
    return skipped


def keep(probe: Probe, folder: Folder, done: int, skipped: Sequence[Skipped], store: ResultStore) -> None:
    """Keep what the first `done` images have shown. Images are read ahead, so some that are skipped may lie behind those."""
    places = {path: place for place, path in enumerate(folder.paths)}
    seen = [(places[item.path], item.reason) for item in skipped if places[item.path] < done]
    store.keep(KEPT_AS, {"done": done, "skipped": seen, **probe.to_dict()})


def go_on(probe: Probe, folder: Folder, data: dict[str, Any]) -> tuple[int, list[Skipped]]:
    """Take up what `keep` kept: the images that are done, and those that were skipped."""
    done, skipped = int(data["done"]), [Skipped(folder.paths[place], reason) for place, reason in data["skipped"]]
    probe.restore(data)
    return done, skipped


def sum_up(loaded: Loaded, folder: Folder, skipped: Sequence[Skipped], probe: Probe, settings: Settings) -> Analysis:
    """The sums as means, with what has to be known about how they came about."""
    names = list(map(name_of, probe.recipes))
    grid, size = probe.grid, probe.size
    patch = (size[0] / grid[0], size[1] / grid[1])
    drawn = sorted({place for tally in probe.tallies.values() for place, _ in tally.maps})
    return Analysis(
        model=loaded.name,
        data=readable(str(folder.path)) if loaded.name != "demo" else folder.path.name,
        images=len(folder) - len(skipped),
        grid=grid,
        patch=patch,
        layers=list(probe.layers),
        recipes=names,
        orders=list(probe.orders),
        order=probe.orders[probe.order],
        kept=probe.kept,
        uniform=uniform_distance(grid, patch),
        device=device_name(settings.device),
        seed=settings.seed,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions_in_use(loaded.model),
        notes=list(filter(None, [folder.note, *remarks(probe.recipes, probe.layers)])),
        skipped=[(name_below(item.path, folder.path), item.reason) for item in skipped],
        maps=[folder.name(place) for place in drawn],
        histograms=[
            Histogram(layer, order, tally.kept[index].astype(int).tolist(), tally.pruned[index].astype(int).tolist())
            for index, order in enumerate(probe.orders)
            for layer, tally in probe.tallies.items()
        ],
        heads=[head for layer, tally in probe.tallies.items() for head in heads_of(layer, tally)],
        agreements=[
            Agreement(layer, names[a], names[b], *means(sums))
            for layer, tally in probe.tallies.items()
            for (a, b), sums in sorted(tally.pairs.items(), key=lambda pair: pair[0])
        ],
        left=[
            Left(layer, names[number], *means(sums))
            for layer, tally in probe.tallies.items()
            for number, sums in sorted(tally.ranks.items(), key=lambda pair: pair[0])
        ],
    )


def means(sums: Sums) -> list[float]:
    """Means of sums that stand behind their number."""
    found: list[float] = (sums[1:] / sums[0]).tolist()
    return found


def heads_of(layer: int, tally: Tally) -> list[Head]:
    count, distances = np.asarray(tally.distances)[:2]
    rows = zip(
        (distances / count).tolist(), (tally.entropies / count).T.tolist(), correlations(np.asarray(tally.distances)), strict=True
    )
    return [Head(layer, index, *row) for index, row in enumerate(rows)]


def remarks(recipes: list[Recipe], layers: tuple[int, ...]) -> list[str]:
    late = [recipe.name for recipe in recipes if recipe.where == "before" and 0 in layers]
    mixed = [recipe.name for recipe in recipes if recipe.score is None]
    notes = [f"{', '.join(late)}: before a block, so not asked at block 0"] if late else []
    return notes + ([f"{', '.join(mixed)}: no score, so no heat map"] if mixed else [])


def publish(done: Analysis, loaded: Loaded, folder: Folder, probe: Probe, out: Path, listen: Listener) -> None:
    """Draw everything, then write figures, tables, JSON and the page, the page last; sheets of an earlier run that are no more go."""
    from ..pages.analysis_page import analysis_page
    from ..runs.store import write, write_text
    from .analysis_figures import figures
    from .heat import maps_table, sheets

    listen(Step(len(folder), len(folder), "drawing", unit="images"))
    (maps, shown_maps), (plots, shown_plots) = sheets(done, loaded, folder, probe), figures(done)
    drawn = {**maps, **plots}
    texts = {**done.tables(), "scores.csv": maps_table(done, folder, probe), "analysis.json": done.to_json()}
    texts["report.html"] = analysis_page(done, {**shown_maps, **shown_plots})
    for name, data in drawn.items():
        write(out / name, lambda part, data=data: part.write_bytes(data))  # type: ignore[misc]
    for name, text in texts.items():
        write_text(out / name, text)
    for old in (*out.glob("scores[0-9]*.png"), out / "agreement.png"):
        if old.name not in drawn:
            old.unlink(missing_ok=True)
