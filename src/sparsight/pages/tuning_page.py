"""tuning_page(...), sensitivity_page(...) -> str: what `tune` found as one page, and what each place of a model loses as another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .page import counted, render
from .plots import Plot, Point, Series, around, ends

if TYPE_CHECKING:
    from ..tune.result import TunedRow, Tuning
    from ..tune.sensitivity import Sensitivity, SiteRow

KINDS = {"front": 0, "chosen": 1, "other trials": 2, "stopped early": 3, "given": 4}
"""What a dot can be, and its look."""


def tuning_page(done: Tuning) -> str:
    """The front, the choice, the plot of all trials, recipes of one's own beside it."""
    facts = (
        f"searched on {done.images['search']} of {done.data['search']}", f"reported on {done.images['report']} of {done.data['report']}",
        done.target, f"cost in {done.unit} ({done.engine})", done.device, done.precision, done.date[:10],
    )  # fmt: skip
    return render(
        "tuning.html",
        done=done,
        title=f"{done.model}: tuned in {counted(len(done.trials), 'trial')}",
        facts=facts,
        plots=[searched(done), reported(done)],
        heads=(
            "Recipe",
            f"{word(done.metric)} (searched)",
            f"{word(done.metric)} (reported)",
            "Change",
            done.unit,
            "Speed-up",
            "Tokens",
            "Trial",
        ),
        kinds=[Series(name, look) for name, look in KINDS.items()],
        quality=word(done.metric),
    )


def word(metric: str) -> str:
    return {"accuracy": "Top-1 %", "agreement": "Agreement %"}.get(metric, "Right %")


def searched(done: Tuning) -> Plot:
    """All trials on the images that were searched."""
    names = {row.trial for row in done.rows[1:]}
    dots = []
    for one in done.trials:
        name = "stopped early" if one.stopped else "front" if one.trial in names else "other trials"
        name = "chosen" if one.trial == done.chosen.trial else name
        dots.append((name, Point(one.cost, 100 * one.quality, str(one))))
    base = done.rows[0]
    origin = Point(base.cost, 100 * (base.search or 0.0), "unpruned")
    return plot(dots, origin, done, "(searched)")


def reported(done: Tuning) -> Plot:
    """The front and recipes of one's own on the other images."""
    dots = [("chosen" if row.chosen else "front", point(row)) for row in done.rows[1:]]
    dots += [("given", point(row)) for row in done.given]
    return plot(dots, point(done.rows[0]), done, "(reported)")


def plot(dots: list[tuple[str, Point]], origin: Point, done: Tuning, where: str) -> Plot:
    """Dots without lines, which would promise what lies between."""
    series = [Series(name, KINDS[name], points=[one]) for name, one in dots]
    return Plot(series, origin, done.unit, f"{word(done.metric)} {where}", better=-1)


def point(row: TunedRow) -> Point:
    value = 100 * row.report.value
    return Point(row.cost, value, str(row), upright=around(row.report_change, value))


def sensitivity_page(done: Sensitivity) -> str:
    """Table and plot of one site at a time."""
    facts = (
        f"{done.images} images of {done.data}",
        f"cost in {done.unit} ({done.engine})",
        done.device,
        done.precision,
        done.date[:10],
    )
    return render(
        "sensitivity.html",
        done=done,
        title=f"{done.model}: one site at a time",
        facts=facts,
        plots=[losses(done)],
        quality=word(done.metric),
        images=[row for row in done.rows[1:] if row.place == "image"],
    )


def losses(done: Sensitivity) -> Plot:
    """Change over the block, a line for each method and share; the dotted lines are the unpruned model."""
    methods = list(dict.fromkeys(method for method, _ in done.series))
    shares = list(dict.fromkeys(keep for _, keep in done.series))
    series = [
        Series(f"{method}, keep {keep:g}", methods.index(method) + len(methods) * shares.index(keep), shares.index(keep), [moved(row) for row in rows])
        for (method, keep), rows in done.series.items()
    ]  # fmt: skip
    return Plot(series, Point(0, 0, "unpruned"), "Block where tokens leave", f"Change of {done.metric}, points")


def moved(row: SiteRow) -> Point:
    return Point(float(row.place), 100 * row.change.value if row.change else 0.0, str(row), upright=ends(row.change, 100))
