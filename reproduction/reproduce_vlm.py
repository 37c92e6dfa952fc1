"""Run the entries of vision-language models: scores on sets of questions by `evaluate_vlm`."""

from __future__ import annotations

from pathlib import Path

from sparsight.errors import PruneError
from sparsight.prune import prune
from sparsight.recipe import Recipe

from .order import Order, Yield
from .published import Row, index

HARNESS = "lmms"
"""As a data set: the one of the evaluation harness, from the network."""


def answer(order: Order, brought: Yield) -> None:
    """Scores of every row, model by model; a data set is a file of questions, or the harness's own of the measure's name."""
    for key, name in order.models.items():
        rows = [row for row in order.rows if row.model == key]
        try:
            one_model(order, brought, key, name, rows)
        except PruneError as error:
            if name:
                raise
            brought.missing.append(f"weights {key}: {error}")


def one_model(order: Order, brought: Yield, key: str, name: str, rows: list[Row]) -> None:
    """All sets that are at hand, each under every recipe."""
    from sparsight.evaluation.evaluate_vlm import evaluate_vlm

    own = index().models[key].name
    recipes = possible(name or own, rows, brought)
    for data, place in order.data.items():
        wanted = [measure.key for measure in order.entry.measures if (measure.data or rows[0].data) == data]
        if not place or not wanted:
            continue
        tasks = wanted if place == HARNESS else [place]
        out = order.out / f"{Path(name or own).name}-{data}"
        done = evaluate_vlm(
            name or own, list(recipes.values()), tasks, out, limit=order.limit, batch_size=order.settings.batch_size,
            device=order.settings.device, precision=order.settings.precision, listen=order.listen,
        )  # fmt: skip
        brought.versions |= done.versions
        brought.differs += [*remarks(order, key, name, data, place), *done.notes]
        brought.files.append(str(out / "results.json"))
        found = {row.recipe: row for row in done.rows}
        for row in rows:
            result = found.get(str(recipes[row.recipe]) if row.recipe in recipes else row.recipe)
            for score in result.scores if result is not None else ():
                for measure in [score.set] if place == HARNESS else wanted:
                    brought.numbers[key, data, row.recipe, measure] = score.score


def possible(name: str, rows: list[Row], brought: Yield) -> dict[str, Recipe]:
    """The recipes that this model can carry out, by their text; of the others a note says why not."""
    from sparsight.load.vlms import find_source

    shell, found = find_source(name, None, None).shell, {}
    for row in rows:
        recipe = None if row.pending else row.parsed()
        if recipe is not None and row.recipe not in found:
            try:
                prune(shell, recipe).remove()
                found[row.recipe] = recipe
            except PruneError as error:
                brought.notes[row.model, row.data, row.recipe] = str(error)
    return found


def remarks(order: Order, key: str, name: str, data: str, place: str) -> list[str]:
    """In what a run is not the paper's."""
    said = []
    if name and name != index().models[key].name:
        said.append(f"model {key}: {name} instead of {index().models[key].name}")
    if place != HARNESS:
        said.append(f"data {data}: the questions of {place} instead of {index().data[data].title}")
    if order.limit:
        said.append(f"data {data}: only {order.limit} questions")
    return said
