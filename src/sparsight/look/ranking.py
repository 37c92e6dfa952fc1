"""What `rank` returns: complexity of each image, correlations, tables and a scatter plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..errors import PruneError
from ..runs.store import write, write_text


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
        """Both correlations in words."""
        if self.pearson is None or self.spearman is None:
            return "no correlation of images that do not differ"
        return f"correlation {self.pearson:+.3f} (Pearson), {self.spearman:+.3f} (Spearman)"

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_csv(self) -> str:
        """One line per image: the data behind the plot."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "tokens", "erank", "entropy"])
        writer.writerows([row.image, row.tokens, repr(row.erank), repr(row.entropy)] for row in self.rows)
        return text.getvalue()

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


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of two lists of numbers, None where one of them does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of the ranks of two lists of numbers, ties sharing the mean of their ranks."""
    return pearson(places(x), places(y))


def places(values: Sequence[float]) -> list[float]:
    """Rank of each number from 0, equal ones at the mean of their ranks."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return [float(place) for place in (last - (count + 1) / 2)[group]]


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
