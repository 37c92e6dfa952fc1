"""Where pruning pays: accuracy of the demo model in four regimes of pictures, by method and budget, beside random places and a smaller picture.

    python benchmarks/regimes.py --photos TEST --ground SCENES --out runs/regimes --page docs/results.md
    python benchmarks/regimes.py --speed --out runs/regimes --page docs/results.md        # later, on a quiet machine

TEST: photos in one folder per class that the model was not trained on; SCENES: any photos. Without them the packaged photos are used. Answers are kept
every 16 pictures: started again, it goes on from there. After every regime it writes OUT/regimes.json and OUT/regimes.md, puts the tables
between the marks of --page, and draws the regime's picture with kept patches beside the page, in images. --speed times the same recipes
beside the unpruned model, engine by engine, and adds the columns.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sparsight.data.demo_sets import photos_of
from sparsight.data.sources import open_source
from sparsight.evaluation.beside import BASELINES, beside
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.result import Evaluation
from sparsight.load.models import Loaded, at_size, load
from sparsight.look.patches import look, pictures, tint
from sparsight.prune import resolve
from sparsight.runs.comparison import group_of
from sparsight.runs.intervals import Interval, paired
from sparsight.runs.store import UNPRUNED, write, write_text
from sparsight.speed.bench import bench
from sparsight.speed.bench_result import Bench

EARLY, LATE = "keep=0.5,layers=0/3/6", "keep=0.5,layers=3/6/9"
SHOWN = ("resize", "random", "class_attention", "col_ln", "similarity")
"""Methods in the pictures, each under the first of its recipes."""
CHUNK = 16
START, END = "<!-- made by benchmarks/regimes.py -->", "<!-- end of what benchmarks/regimes.py makes -->"


def spelled(budget: str, *names: str) -> tuple[str, ...]:
    """Methods under one budget."""
    return tuple(f"{name}:{budget}" for name in names)


@dataclass(frozen=True)
class Regime:
    """Pictures and what is asked of them. data: the words of the demo set; first: recipes that are measured before the others of any regime;
    besides, random, resize and pool at equal work."""

    title: str
    data: str
    n: int
    first: tuple[str, ...]
    then: tuple[str, ...]
    batch: int = 4


SCORES = ("class_attention", "col_ln")
INPUT = tuple(f"similarity:keep={keep},layers=input" for keep in (0.15, 0.25))
MORE = (f"similarity:{EARLY}", f"compose:{EARLY},score=col_ln,select=diverse")
REGIMES = {
    "small": Regime(
        "Small: a photo of 126 pixels on plain ground, 448 x 448", "demo:small,size=448,object=126", 404,
        (*spelled(EARLY, "random", *SCORES), INPUT[0], "resize:tokens=576", "resize:tokens=256"), (*MORE, INPUT[1], *spelled(LATE, *SCORES)),
    ),
    "centred": Regime(
        "Centred: the photo itself, 224 x 224", "demo:centred,size=224", 505,
        (*spelled(EARLY, "random", *SCORES), *spelled(LATE, "random", *SCORES), *(f"resize:tokens={side**2}" for side in (11, 9, 8))),
        (*MORE, f"similarity:{LATE}", "similarity:keep=0.5,layers=input"), 16,
    ),
    "scene": Regime(
        "Scene: a photo of 168 pixels in a real scene, 448 x 448", "demo:scene,size=448,object=168", 303,
        (*spelled(EARLY, "random", *SCORES), INPUT[1], *spelled(LATE, "random", "class_attention"), "resize:tokens=256"),
        (*MORE, *spelled(LATE, "col_ln")),
    ),
    "mosaic": Regime(
        "Mosaic: the largest photo, of 300 pixels, among smaller ones of other classes, 448 x 448", "demo:mosaic,size=448,object=300", 202,
        (*spelled(EARLY, "random", *SCORES), INPUT[1], "resize:tokens=256"), MORE,
    ),
}  # fmt: skip


@dataclass
class Row:
    """One recipe in one regime; accuracies as fractions with 95% intervals, differences paired. against: the baselines beside it."""

    recipe: str
    tokens: list[float]
    macs: int
    share: float
    top1: Interval
    to_unpruned: Interval | None = None
    to_random: Interval | None = None
    to_resize: Interval | None = None
    against: list[str] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)


# ---- measuring ----------------------------------------------------------------------------------------------------------


def data_of(regime: Regime, words: argparse.Namespace) -> str:
    """The demo set of a regime, of the photos that were given."""
    text = f"{regime.data},n={words.n or regime.n}" + (f",photos={words.photos}" if words.photos else "")
    return text + (f",ground={words.ground}" if words.ground and text.startswith("demo:scene") else "")


def measure(name: str, words: argparse.Namespace, whole: bool) -> tuple[Evaluation, dict[str, list[int]], list[str] | None]:
    """Answers of a regime: the evaluation, 1 or 0 for each picture by recipe, and the pictures' photos where one photo makes several."""
    regime, out = REGIMES[name], words.out / name
    done = evaluate(
        "demo", data_of(regime, words), recipes_of(name, whole), out, beside=BASELINES if whole else (), batch_size=regime.batch,
        chunk=CHUNK, device="cpu", listen=lambda step: print(f"\r{name}: {step}   ", end="", flush=True),
    )  # fmt: skip
    print()
    hits: dict[str, list[int]] = {}
    names: list[str] = []
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            hits.setdefault(line["recipe"], []).append(int(line["correct"]))
            names += [line["image"]] if line["recipe"] == UNPRUNED else []
    return done, hits, photos_of(names)


def model_of(data: str) -> Loaded:
    """The demo model at the size of the pictures."""
    return at_size(load("demo"), open_source(data, limit=1).size)


def recipes_of(name: str, whole: bool) -> tuple[str, ...]:
    """The recipes of a regime, or those that are measured first."""
    return REGIMES[name].first + (REGIMES[name].then if whole else ())


def rows_of(
    name: str, done: Evaluation, hits: dict[str, list[int]], photos: list[str] | None, words: argparse.Namespace
) -> list[Row]:
    """The rows of a regime with their paired differences to the unpruned model and to the baselines of the same group."""
    loaded = model_of(data_of(REGIMES[name], words))
    known = {score.recipe for score in done.scores}
    recipes = [recipe for recipe in (resolve(text, {}) for text in recipes_of(name, True)) if str(recipe) in known]
    placed = beside(loaded.model, recipes, BASELINES, image_size=loaded.image_size).groups
    groups = {str(recipe): [group_of(recipe)] for recipe in recipes} | placed
    rows = []
    for score in done.scores:
        row = Row(score.recipe, score.tokens, score.macs, score.macs / done.scores[0].macs, score.top1 or Interval(0, 0, 1))
        if score.recipe != UNPRUNED:
            row.to_unpruned = paired(hits[score.recipe], hits[UNPRUNED], photos)
        for kind in ("random", "resize"):
            own = groups.get(score.recipe, ())
            beside_it = [text for text in groups if text.startswith(kind) and text in known and set(groups[text]) & set(own)]
            if beside_it and beside_it[0] != score.recipe and not score.recipe.startswith("resize"):
                setattr(row, f"to_{kind}", paired(hits[score.recipe], hits[beside_it[0]], photos))
                row.against.append(beside_it[0])
        rows.append(row)
    order = list(dict.fromkeys(group for recipe in recipes if recipe.name != "resize" for group in groups[str(recipe)]))
    return sorted(rows, key=lambda row: place_of(row, groups, order))


def place_of(row: Row, groups: dict[str, list[tuple[str, str]]], order: list[tuple[str, str]]) -> tuple[int, int, float]:
    """Unpruned, resized pictures by size, then group by group by accuracy."""
    if row.recipe == UNPRUNED or row.recipe.startswith("resize"):
        return (0 if row.recipe == UNPRUNED else 1, -row.macs, 0.0)
    return (2, order.index(groups[row.recipe][0]), -row.top1.value)


# ---- speed --------------------------------------------------------------------------------------------------------------


def time_regime(name: str, words: argparse.Namespace) -> Bench:
    """Milliseconds of the same recipes beside the unpruned model, on a few pictures. To be run on a machine without other work."""
    recipes = [row["recipe"] for row in read(words.out / "regimes.json")[name]["rows"] if row["recipe"] != UNPRUNED]
    return bench(
        "demo", recipes, words.out / f"{name}-speed", backends=words.backends.split(","), batch_sizes=(1, 8), data=data_of(REGIMES[name], words),
        seconds=words.seconds, device="cpu",
    )  # fmt: skip


def speeds(done: Bench, recipe: str) -> list[dict[str, Any]]:
    """Speed-ups of a recipe, engine by engine and batch by batch."""
    return [
        {"engine": row.backend, "batch": timing.batch, "ms": 1e3 * timing.seconds, "unpruned_ms": 1e3 * timing.unpruned,
         **asdict(timing.speedup)}
        for row in done.rows if row.recipe == recipe for timing in row.timings
    ]  # fmt: skip


# ---- writing ------------------------------------------------------------------------------------------------------------


def points(found: dict[str, float] | None) -> str:
    """A difference in points, bold where its interval leaves out zero."""
    if found is None:
        return ""
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    text = f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(entry: dict[str, Any]) -> list[str]:
    """One regime as Markdown."""
    timed = sorted({(cell["engine"], cell["batch"]) for row in entry["rows"] for cell in row["speed"]})
    heads = ["recipe", "tokens left", "GMACs", "work", "top-1 %", "to unpruned", "to random", "to resize of equal work"]
    heads += [f"{engine}, batch {batch}: speed-up" for engine, batch in timed]
    out = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in entry["rows"]:
        low, high = (f"{100 * row['top1'][name]:.1f}" for name in ("low", "high"))
        cells = [
            row["recipe"] if row["recipe"] == UNPRUNED else f"`{row['recipe']}`",
            str(round(row["tokens"][-1])) if row["tokens"] else str(entry["patches"]), f"{row['macs'] / 1e9:.2f}", f"{row['share']:.2f}",
            f"{100 * row['top1']['value']:.1f} ({low} to {high})", *(points(row[name]) for name in ("to_unpruned", "to_random", "to_resize")),
        ]  # fmt: skip
        found = {(cell["engine"], cell["batch"]): cell for cell in row["speed"]}
        cells += [
            f"{found[key]['median']:.2f} ({found[key]['low']:.2f}-{found[key]['high']:.2f})" if key in found else ""
            for key in timed
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def markdown(results: dict[str, Any], images: str) -> str:
    """All regimes that are there."""
    out: list[str] = []
    for name, entry in results.items():
        out += [f"### {entry['title']}", "", f"{entry['images']} pictures, `{entry['data']}`.", ""]
        out += [
            f"![The same pictures under six recipes: what is left of them, and the answer]({images}/{name}.jpg)",
            "",
            *table(entry),
            "",
        ]
    return "\n".join(out)


def publish(results: dict[str, Any], words: argparse.Namespace) -> None:
    """JSON, Markdown, and the page's part between the marks."""
    write_text(words.out / "regimes.json", json.dumps(results, indent=1) + "\n")
    text = markdown(results, "images")
    write_text(words.out / "regimes.md", text)
    if words.page:
        before, mark, rest = words.page.read_text(encoding="utf-8").partition(START)
        if not mark or END not in rest:
            raise SystemExit(f"{words.page} has no lines {START} and {END}")
        write_text(words.page, f"{before}{START}\n\n{text}\n{END}{rest.partition(END)[2]}")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


# ---- pictures -----------------------------------------------------------------------------------------------------------


def draw(name: str, hits: dict[str, list[int]], words: argparse.Namespace, path: Path, count: int = 3) -> None:
    """A few pictures of a regime, drawn by lot, with the patches that each method leaves in the end; a frame of red where the answer is wrong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    data = data_of(REGIMES[name], words)
    loaded, source = model_of(data), open_source(data)
    places = sorted(random.Random(0).sample(range(source.total or 0), min(count, source.total or 0)))
    images = torch.stack([loaded.transform(ref.read()) for ref in source.refs(places.__contains__)])
    shown = [UNPRUNED, *firsts(hits)]
    sheets = {text: sheet(loaded, text, images) for text in shown}
    figure, axes = plt.subplots(len(places), len(shown), figsize=(2.1 * len(shown), 2.25 * len(places) + 0.4), squeeze=False)
    for column, text in enumerate(shown):
        axes[0][column].set_title(text.replace(":", ":\n").replace(",", ",\n") if text != UNPRUNED else text, fontsize=8)
        for line, place in enumerate(places):
            axis, right = axes[line][column], hits[text][place]
            axis.imshow(sheets[text][line])
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel("right" if right else "wrong", fontsize=8, color="#00695c" if right else "#b3261e")
            for spine in axis.spines.values():
                spine.set(color="#00897b" if right else "#b3261e", linewidth=2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda part: figure.savefig(part, format="jpeg", dpi=80, pil_kwargs={"quality": 80}))
    plt.close(figure)


def firsts(recipes: Iterable[str]) -> list[str]:
    """The recipe of each shown method: similarity before the first block, the others in the early schedule, or the first that there is."""
    found = []
    for method in SHOWN:
        own = [text for text in recipes if text.partition(":")[0] == method]
        words = {"similarity": "layers=input", "resize": "tokens=256"}.get(method, EARLY)
        found += ([text for text in own if words in text] or own)[:1]
    return found


def sheet(loaded: Loaded, text: str, images: torch.Tensor) -> list[Image.Image]:
    """What is left of the images: dropped patches white; a resized picture in its own size."""
    whole = pictures(images, loaded.transform)
    if text == UNPRUNED:
        return whole
    recipe = resolve(text, {})
    found = []
    for picture, sites in zip(whole, look(loaded.model, recipe, images), strict=True):
        if recipe.where == "image":
            side = round(picture.width * (sites[-1].tokens / sites[-1].owner.size) ** 0.5)
            ground = Image.new("RGB", picture.size, "white")
            ground.paste(picture.resize((side, side), Image.Resampling.BICUBIC), ((picture.width - side) // 2,) * 2)
            found.append(ground)
            continue
        layer = Image.fromarray(tint(sites[-1]), "RGBA").resize(picture.size, Image.Resampling.NEAREST)
        found.append(Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/regimes"))
    parser.add_argument("--page", type=Path, help="a page with the marks; pictures go into images beside it")
    parser.add_argument("--photos", type=Path, help="photos, one folder per class [default: the packaged ones]")
    parser.add_argument("--ground", type=Path, help="photos of scenes [default: parts of the photos]")
    parser.add_argument("--regimes", default=",".join(REGIMES), help="[default: %(default)s]")
    parser.add_argument("--n", type=int, help="pictures of each regime [default: its own number]")
    parser.add_argument("--speed", action="store_true", help="time the recipes of OUT/regimes.json; answers nothing")
    parser.add_argument("--backends", default="eager,openvino")
    parser.add_argument("--seconds", type=float, default=8.0, help="of paired runs per recipe and batch size")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    results = read(words.out / "regimes.json")
    names = words.regimes.split(",")
    for name in names if words.speed else ():
        timed = time_regime(name, words)
        for row in results[name]["rows"]:
            row["speed"] = speeds(timed, row["recipe"])
        publish(results, words)
    for whole, name in () if words.speed else product((False, True), names):
        done, hits, photos = measure(name, words, whole)
        rows = [asdict(row) for row in rows_of(name, done, hits, photos, words)]
        entry = {"title": REGIMES[name].title, "data": done.data, "images": done.images, "patches": (done.image_size[0] // 14) ** 2}
        results[name] = {**entry, "date": done.date, "versions": done.versions, "notes": done.notes, "rows": rows}
        results = {key: results[key] for key in REGIMES if key in results}
        draw(name, hits, words, (words.page.parent if words.page else words.out) / "images" / f"{name}.jpg")
        publish(results, words)


if __name__ == "__main__":
    main()
