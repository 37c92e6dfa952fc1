"""rank(model, images) -> Ranking: effective rank and attention entropy of every image of a folder, and how they go together."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..data.feed import Feed
from ..data.images import open_folder
from ..data.reading import Transform, readable
from ..errors import PruneError
from ..load.models import Loaded
from ..load.vlms import open_encoder
from ..runs.store import write, write_text
from .complexity import SPACES, check_choice, measure_all, place_of, score_of


@dataclass(frozen=True)
class Row:
    """One image. erank: effective rank of its tokens; entropy: of the attention on them, in nats."""

    image: str
    tokens: int
    erank: float
    entropy: float


@dataclass(frozen=True)
class Ranking:
    """Images with their complexity, and its correlations over them; None where there is nothing to correlate.

    score: whose entropy it is (class, column_mean, col_ln); space: whose rank it is (tokens, features); place: where both were taken.
    """

    model: str
    images: str
    score: str
    space: str
    place: str
    pearson: float | None
    spearman: float | None
    skipped: list[tuple[str, str]]
    rows: list[Row] = field(repr=False)

    def __str__(self) -> str:
        return (
            f"{self.model}, {len(self.rows)} images: effective rank {spread([row.erank for row in self.rows])}, attention entropy "
            f"{spread([row.entropy for row in self.rows])} nats; {self.correlation}"
        )

    @property
    def correlation(self) -> str:
        if self.pearson is None or self.spearman is None:
            return "no correlation of images that do not differ"
        return f"correlation {self.pearson:+.3f} (Pearson), {self.spearman:+.3f} (Spearman)"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_csv(self) -> str:
        """One line per image: the data behind the plot."""
        rows = ((row.image, row.tokens, repr(row.erank), repr(row.entropy)) for row in self.rows)
        return table(("image", "tokens", "erank", "entropy"), rows)

    def save(self, folder: Path) -> list[Path]:
        """Write rank.csv, rank.json and rank.png; a PruneError if the folder cannot be written or matplotlib is missing."""
        files = [folder / f"rank.{ending}" for ending in ("csv", "json", "png")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(files[2], lambda part: scatter(self, part))
            write_text(files[0], self.to_csv())
            write_text(files[1], self.to_json())
        except OSError as error:
            raise PruneError(f"output folder {folder} cannot be written ({error.strerror}); give another one with --out") from None
        return files


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue()


def rank(
    model: str | Loaded | nn.Module,
    images: Any,
    out: str | Path | None = None,
    *,
    score: str | None = None,
    space: str = "tokens",
    layer: int | None = None,
    processor: Any = None,
    transform: Transform | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    device: str = "cpu",
) -> Ranking:
    """Effective rank and attention entropy of each image, as in table 4 and figure 5 of arXiv:2603.01236.

    model: a vision or a vision-language model, by name, folder or as an object, with its processor or transform where they are not those
    of its checkpoint. images: a folder, paths, PIL images or batches of the processor. score: whose attention, by default the class token's, else the mean column. space: rank of the "tokens" that a language
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
    name, module, encode = open_encoder(model, processor, transform, device)
    feed = Feed(items, encode, next(module.parameters()), batch_size)
    done = ranked(name, module, feed, root, score, space, layer)
    if out is not None:
        done.save(Path(out).expanduser())
    return done


def ranked(name: str, model: nn.Module, feed: Feed, root: Path | None, score: str | None, space: str, layer: int | None) -> Ranking:
    kind, step = score_of(model, score)
    found, bad = measure_all(model, feed, step, space, layer=layer)
    if not found:
        raise PruneError(f"no image can be read; {': '.join([*bad, ('none were given',)][0])}")
    rows = [Row(short(file, root), one.tokens, one.erank, one.entropy) for file, one in found]
    ranks, entropies = [row.erank for row in rows], [row.entropy for row in rows]
    skipped = [(short(file, root), reason) for file, reason in bad]
    correlations = pearson(ranks, entropies), spearman(ranks, entropies)
    return Ranking(name, readable(str(root or "given")), kind, space, place_of(model, layer), *correlations, skipped, rows)


def short(name: str, root: Path | None) -> str:
    """A file's name below the folder."""
    return name if root is None else name.removeprefix(f"{readable(str(root))}/")


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of two lists of numbers, None where one of them does not vary."""
    return None if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of the ranks of two lists of numbers, ties sharing the mean of their ranks."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def need_plot(what: str = "the scatter plot") -> None:
    """Raise PruneError, before any heavy work, if no plot can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PruneError(f"{what} needs matplotlib; pip install 'sparsight[viz]'") from None


def scatter(ranking: Ranking, path: Path) -> None:
    """Effective rank against attention entropy, one dot per image."""
    need_plot()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        [row.entropy for row in ranking.rows], [row.erank for row in ranking.rows], s=14, alpha=0.7, color="#0072b2", linewidths=0
    )
    axes.set_xlabel("attention entropy (nats)")
    axes.set_ylabel("effective rank")
    axes.set_title(f"{Path(ranking.model).name}, {len(ranking.rows)} images\n{ranking.correlation}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
