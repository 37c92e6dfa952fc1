"""robustness(...) -> Robustness: what common corruptions do to accuracy, to effective rank and to the choice of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from torch import Tensor, nn

from ..data.corruptions import Corrupted, check_names
from ..data.reading import Transform
from ..errors import PruneError
from ..load.models import Loaded
from ..ops.rank import effective_rank
from ..pages.robustness_page import robustness_page
from ..prune import Handle, family_of
from ..recipe import Recipe
from ..runs.intervals import METHOD, share
from ..runs.settings import Settings, check_settings, device_name, versions_in_use
from ..runs.store import UNPRUNED, Chunk, write, write_text
from ..runs.sweep import Ask, Listener, Sweep, ignore
from ..runs.workers import Workers
from .accuracy import judge, note_of
from .corruption_rows import CorruptionRow, Robustness, draw
from .study import Data, Study, check_pace, check_recipes, make_sweep, prepare, reserved

CLEAN = "clean"


def robustness(
    model: str | Loaded | nn.Module = "demo",
    data: str | Path | None = None,
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/robustness",
    *,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
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
    """The unpruned model and every recipe on clean and corrupted images; writes results.json, report.html and robustness.png into `out`.

    corruptions: "all" fifteen or some of their names; severities: 1 to 5. Effective rank is that of the patch tokens that leave the last
    block; of a pruned model, of those that are left. The other arguments, and going on after an interruption, are as in `evaluate`.
    The AgilePruner paper's appendix E (its table 17) does so with the features of CLIP on MME.
    """
    pace, settings = check_pace(batch_size, chunk, workers), check_settings(Settings(batch_size, precision, device, seed, 0), 0)
    variants = check_names(corruptions, severities)
    processes = Workers.join(settings.device)
    settings, folder = replace(settings, device=processes.device), Path(out).expanduser()
    with reserved(folder, processes):
        study = prepare(model, Data(data, split, limit), "classify", settings, None, transform, classes)
        chosen = check_recipes(recipes, study.loaded.model)
        study = replace(study, ask=watch(study.loaded.model, study.ask), key=f"{study.key} with rank and places")
        sweep = make_sweep(study, chosen, pace, settings, processes, folder)
        parts = {CLEAN: study.source} | {f"{name}-{level}": Corrupted(study.source, name, level, seed) for name, level in variants}
        answers = sweep.run(parts, listen or ignore)
        text = finish(study, sweep, variants, answers, settings, folder).to_json() if answers else None
        return Robustness.from_json(processes.share(text))


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
    study: Study, sweep: Sweep, variants: list[tuple[str, int]], answers: dict[str, list[Chunk]], settings: Settings, out: Path
) -> Robustness:
    """Write the files."""
    clean = answers[CLEAN]
    rows = [corrupted(CLEAN, 0, recipe, chunk, chunk) for recipe, chunk in zip(sweep.recipes, clean, strict=True)]
    skipped = {name: why for _, name, why in clean[0].skipped}
    for name, level in variants:
        spoilt = answers[f"{name}-{level}"]
        rows += [corrupted(name, level, *three) for three in zip(sweep.recipes, spoilt, clean, strict=True)]
        skipped |= {name: why for _, name, why in spoilt[0].skipped}
    bad = [
        note_of(f"{UNPRUNED if recipe is None else recipe}, {part}", judge(chunk, chunk).not_finite, len(chunk))
        for part, chunks in answers.items()
        for recipe, chunk in zip(sweep.recipes, chunks, strict=True)
    ]
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
        notes=[note for note in (*study.notes, *bad) if note],
        skipped=sorted(skipped.items()),
        rows=rows,
    )
    write(out / "robustness.png", lambda part: draw(done, part))
    write_text(out / "report.html", robustness_page(done))
    write_text(out / "results.json", done.to_json())
    return done


def corrupted(name: str, severity: int, recipe: Recipe | None, spoilt: Chunk, clean: Chunk) -> CorruptionRow:
    """One corruption under one recipe, against the same recipe on the clean images that both could read."""
    both = sorted(set(spoilt.places) & set(clean.places))
    if not both:
        raise PruneError(f"no image can be read both clean and under {name}; {spoilt.skipped[0][1]}: {spoilt.skipped[0][2]}")
    mine, theirs = (chunk.part([chunk.places.index(place) for place in both]) for chunk in (spoilt, clean))
    judged, before = judge(mine, theirs), judge(theirs, theirs)
    fine = mine.columns["finite"] & theirs.columns["finite"]
    ranks, first = mine.columns["rank"][fine].double(), theirs.columns["rank"][fine].double()
    return CorruptionRow(
        corruption=name,
        severity=severity,
        recipe=UNPRUNED if recipe is None else str(recipe),
        images=len(both),
        top1=share(judged.top1, judged.photos[1]) if judged.top1 is not None else None,
        top1_change=judged.intervals(before)["top1_change"] if severity else None,
        rank=float(ranks.mean()),
        rank_change=float((ranks - first).abs().mean()),
        rank_relative=float(((ranks - first).abs() / first).mean()),
        kept=overlap(mine.columns["keep"], theirs.columns["keep"]) if recipe is not None else None,
    )


def overlap(keep: Tensor, clean: Tensor) -> float:
    """Mean share of the patches kept of the clean image, clean [n, K], that are kept again, keep [n, K']; -1 is padding."""
    again = ((clean.unsqueeze(2) == keep.unsqueeze(1)).any(dim=2) & (clean >= 0)).sum(dim=1)
    return float((again / (clean >= 0).sum(dim=1).clamp(min=1)).mean())
