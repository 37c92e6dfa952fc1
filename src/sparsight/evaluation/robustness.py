"""robustness(...) -> Robustness: what common corruptions do to accuracy, to effective rank and to the choice of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.corruptions import Corrupted, check_names
from ..errors import PruneError
from ..load.answers import hits
from ..load.models import Loaded
from ..ops.rank import effective_rank
from ..prune import Handle, family_of
from ..recipe import Recipe
from ..runs.chunks import Chunk
from ..runs.comparison import UNPRUNED
from ..runs.intervals import METHOD, paired, share
from ..runs.store import write, write_text
from ..runs.sweep import Ask, Sweep
from ..runs.workers import Crew
from .compare import check_settings
from .damage import Damage, Robustness, draw
from .evaluate import Listener, check_pace, ignore, make_sweep, reserved
from .measure import Settings, device_name, versions_in_use
from .study import Data, Study, check_recipes, prepare

CLEAN = "clean"


def robustness(
    model: str | Loaded = "demo",
    data: str | Path | None = None,
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/robustness",
    *,
    corruptions: Sequence[str] = ("all",),
    severities: Sequence[int] = (1, 3),
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    chunk: int = 256,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    listen: Listener | None = None,
) -> Robustness:
    """The unpruned model and every recipe on clean and corrupted images; writes results.json and robustness.png into `out`.

    corruptions: "all" fifteen or some of their names; severities: 1 to 5. Effective rank is that of the patch tokens that leave the last
    block; of a pruned model, of those that are left. The other arguments, and going on after an interruption, are as in `evaluate`.
    The AgilePruner paper's appendix E (its table 17) does so with the features of CLIP on MME.
    """
    pace, settings = check_pace(batch_size, chunk, workers), check_settings(Settings(batch_size, precision, device, seed, 0), 0)
    variants = check_names(corruptions, severities)
    crew = Crew.join(settings.device)
    settings, folder = replace(settings, device=crew.device), Path(out).expanduser()
    with reserved(folder, crew):
        study = prepare(model, Data(data, split, limit), "classify", settings, None)
        chosen = check_recipes(recipes, study.loaded.model)
    study = replace(study, ask=watch(study.loaded.model, study.ask), key=f"{study.key} with rank and places")
    sweep = make_sweep(study, chosen, pace, settings, crew, folder)
    counts = run(study, sweep, variants, seed, listen or ignore)
    text = finish(study, sweep, variants, counts, settings, folder).to_json() if crew.rank == 0 else None
    return Robustness.from_json(crew.share(text))


def run(study: Study, sweep: Sweep, variants: list[tuple[str, int]], seed: int, listen: Listener) -> dict[str, int]:
    """All images, clean and under every corruption: the number of chunks of each part."""
    parts = {CLEAN: study.source} | {f"{name}-{level}": Corrupted(study.source, name, level, seed) for name, level in variants}
    total = None if study.source.total is None else -(-study.source.total * len(parts) // sweep.crew.size)
    done, counts = 0, {}
    for part, source in parts.items():

        def step(images: int, part: str = part) -> None:
            nonlocal done
            done += images
            listen(done, total, part)

        listen(done, total, part)
        counts[part] = sweep.run(source, part, step)
    for part, count in counts.items():
        sweep.crew.bring(sweep.shelf.folder, sweep.files(part, count))
    return counts


def watch(model: nn.Module, ask: Ask) -> Ask:
    """The question, with two more columns: rank [n] of the tokens after the last block, and the patches that keep a slot, keep [n, K]."""
    family = family_of(model)

    def asked(images: Tensor, handle: Handle | None) -> Mapping[str, Tensor]:
        left: list[Tensor] = []
        hook = family.blocks[-1].register_forward_hook(lambda _m, _a, output: left.append(output))
        try:
            columns = dict(ask(images, handle))
        finally:
            hook.remove()
        tokens = left[-1][:, family.prefix :].float()
        if handle is not None:
            plan = handle.plans[-1]
            if plan.valid is not None and plan.valid.shape == tokens.shape[:2]:
                tokens = tokens * plan.valid.unsqueeze(-1)
            columns["keep"] = handle.sources()[-1].keep.int()
        columns["rank"] = effective_rank(tokens).float()
        return columns

    return asked


def finish(
    study: Study, sweep: Sweep, variants: list[tuple[str, int]], counts: dict[str, int], settings: Settings, out: Path
) -> Robustness:
    """Merge the chunks and write the files."""
    clean = sweep.collect(CLEAN, counts[CLEAN])
    if not len(clean[0]):
        raise PruneError(
            f"none of the images of {study.source.title} can be read; {clean[0].skipped[0][1]}: {clean[0].skipped[0][2]}"
        )
    rows = [damage(CLEAN, 0, recipe, chunk, chunk) for recipe, chunk in zip(sweep.recipes, clean, strict=True)]
    skipped = {name: why for _, name, why in clean[0].skipped}
    for name, level in variants:
        spoilt = sweep.collect(f"{name}-{level}", counts[f"{name}-{level}"])
        rows += [damage(name, level, *three) for three in zip(sweep.recipes, spoilt, clean, strict=True)]
        skipped |= {name: why for _, name, why in spoilt[0].skipped}
    done = Robustness(
        model=study.loaded.name,
        data=study.source.title,
        images=len(clean[0]),
        device=device_name(settings.device),
        precision=settings.precision,
        seed=settings.seed,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions_in_use(study.loaded.model),
        interval_method=METHOD,
        notes=[note for note in study.notes if note],
        skipped=sorted(skipped.items()),
        rows=rows,
    )
    write(out / "robustness.png", lambda part: draw(done, part))
    write_text(out / "results.json", done.to_json())
    return done


def damage(name: str, severity: int, recipe: Recipe | None, spoilt: Chunk, clean: Chunk) -> Damage:
    """One corruption under one recipe, against the same recipe on the clean images that both could read."""
    both = sorted(set(spoilt.places) & set(clean.places))
    here, there = ([chunk.places.index(place) for place in both] for chunk in (spoilt, clean))
    before, after = clean.columns["rank"][there].double(), spoilt.columns["rank"][here].double()
    known = [(a, b) for a, b in zip(here, there, strict=True) if spoilt.labels[a] is not None]
    right = [
        hits(chunk.columns["top"][[pair[side] for pair in known]], torch.tensor([spoilt.labels[a] for a, _ in known]), 1)
        for side, chunk in ((0, spoilt), (1, clean))
    ]
    return Damage(
        corruption=name,
        severity=severity,
        recipe=UNPRUNED if recipe is None else str(recipe),
        images=len(both),
        top1=share(right[0]) if known else None,
        top1_change=paired(right[0], right[1]) if known and severity else None,
        rank=float(after.mean()),
        rank_change=float((after - before).abs().mean()),
        rank_relative=float(((after - before).abs() / before).mean()),
        kept=overlap(spoilt.columns["keep"][here], clean.columns["keep"][there]) if recipe is not None else None,
    )


def overlap(keep: Tensor, clean: Tensor) -> float:
    """Mean share of the patches kept of the clean image, clean [n, K], that are kept again, keep [n, K']; -1 is padding."""
    again = ((clean.unsqueeze(2) == keep.unsqueeze(1)).any(dim=2) & (clean >= 0)).sum(dim=1)
    return float((again / (clean >= 0).sum(dim=1).clamp(min=1)).mean())
