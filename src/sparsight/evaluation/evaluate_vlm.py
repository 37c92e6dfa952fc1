"""evaluate_vlm(...) -> VlmEvaluation: a vision-language model, unpruned and under recipes, on sets of questions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..data.fingerprint import digest
from ..data.questions import LocalSet, check_words, read_set
from ..errors import PruneError, shown
from ..load import demo_vlm
from ..load.vlms import Source, find_source, own_source
from ..pages.vlm_evaluation_page import vlm_evaluation_page
from ..prune import family_of, prune, resolve
from ..recipe import Recipe
from ..runs.intervals import Interval, paired, paired_means
from ..runs.settings import PRECISIONS, check_settings, device_name, precision_on, versions_in_use
from ..runs.settings import Settings as Measured
from ..runs.store import UNPRUNED, ResultStore, claim, fingerprint_model, release, write_text
from ..runs.sweep import Listener, RowJob, ignore, pruned, run_rows
from ..vlms.tower_memo import remembering
from .asking import NOT_FINITE, AnswerLog, Asker
from .vlm_scores import Score, VlmEvaluation, VlmRow
from .vlm_sets import Benchmark, check_data, check_installed, check_judge, find, score_set

if TYPE_CHECKING:
    from .lmms import Harness

Task = LocalSet | Benchmark


@dataclass(frozen=True)
class Settings:
    """How questions are asked; all of it goes into the key under which answers are kept."""

    batch_size: int
    device: str
    precision: str
    limit: int | None
    prompt: str | None
    square: bool


def evaluate_vlm(
    model: str | nn.Module,
    recipes: Sequence[str | Recipe] = (),
    tasks: Sequence[str] = (),
    out: str | Path = "runs/evaluate-vlm",
    *,
    processor: Any = None,
    limit: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    precision: str = "auto",
    prompt: str | None = None,
    square: bool = False,
    listen: Listener = ignore,
) -> VlmEvaluation:
    """Scores of a model on sets of questions, unpruned first, then under each recipe; results and every answer go into `out`.

    model: a folder or a repository of the Hugging Face Hub, or a module with its processor, which runs as and where it is. tasks: names of `benchmarks.SETS` or `benchmarks.GROUPS`, FILE.jsonl (see
    `questions.read_set`), FILE.yaml or lmms:TASK for any other task of lmms-eval; the model "demo-vlm" brings its own. precision: "auto" is
    fp32 on the CPU, where bf16 is slower and changes answers, and bf16 elsewhere. limit: the first so many questions of each set.
    prompt: text with {images} and {question} in place of the checkpoint's chat template. square: images padded to squares.
    Called again with the same arguments it goes on after the last answer. Raises PruneError before any heavy work.
    """
    wanted = list({str(recipe): recipe for recipe in (resolve(recipe, {}) for recipe in recipes)}.values())
    if limit is not None and limit < 1:
        raise PruneError(f"limit={limit} leaves no question; give 1 or more, or leave it out")
    sets, include = find_tasks(tasks or own_questions(model), limit)
    if isinstance(model, nn.Module):
        like = next(model.parameters())
        device, precision = str(like.device), next((name for name, kind in PRECISIONS.items() if kind == like.dtype), "fp32")
    device = check_settings(Measured(batch_size, "fp32" if precision == "auto" else precision, device)).device
    settings = Settings(batch_size, device, precision_on(device, precision), limit, prompt, square)
    source = own_source(model, processor) if isinstance(model, nn.Module) else find_source(model, None, None)
    for one in sets:
        if isinstance(one, LocalSet):
            check_words(one, source.processor.tokenizer)
    for recipe in wanted:
        with prune(source.shell, recipe):
            pass
    made = claim(Path(out).expanduser())
    try:
        module = source.load(settings.device, PRECISIONS[settings.precision], 0)
        asker = Asker(module, source.processor, batch_size, prompt, square)
    except PruneError:
        release(made)
        raise
    return Job(source, asker, settings, Path(out).expanduser(), include, listen).run(wanted, sets)


def own_questions(model: str | nn.Module) -> list[str]:
    """The questions that a model brings: those of the demo model."""
    if model != demo_vlm.NAME:
        return []
    demo_vlm.packaged(demo_vlm.NAME)
    return [str(demo_vlm.questions())]


def find_tasks(tasks: Sequence[str], limit: int | None) -> tuple[list[Task], tuple[str, ...]]:
    """The sets by name, each once, and folders of further tasks of lmms-eval. Raises PruneError for what cannot run here."""
    if not tasks:
        raise PruneError("no sets are given: --tasks pope,gqa,... or FILE.jsonl with questions of your own")
    found: list[Task] = []
    include = []
    for name in tasks:
        path = Path(name).expanduser()
        if path.suffix == ".jsonl" or os.path.isdir(path):
            found.append(read_set(path, limit))
        elif path.suffix in (".yaml", ".yml"):
            found.append(own_task(path))
            include.append(str(path.parent.resolve()))
        elif name.startswith("lmms:"):
            task, _, metric = name.removeprefix("lmms:").partition(":")
            found.append(Benchmark(task, task, task, metric, "", relative=True))
        elif "/" in name:
            raise PruneError(
                f"there is no file or folder {shown(name)}; give FILE.jsonl with questions, or the folder that holds it"
            )
        else:
            found += find(name)
    for one in found:
        if isinstance(one, Benchmark) and one.dataset:
            check_data(one.name, one.dataset)
    for one in found:
        if isinstance(one, Benchmark):
            check_judge(one)
            check_installed(one.name)
    names = [one.name for one in found]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise PruneError(f"the set {double} is asked for twice; sets are told apart by their names")
    return found, tuple(dict.fromkeys(include))


def own_task(path: Path) -> Benchmark:
    """A task of lmms-eval in a YAML file of one's own; its first metric counts."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PruneError(f"{path} cannot be read ({error.strerror}); give a task file of lmms-eval") from None
    task = re.search(r"""^task:\s*["']?([\w.-]+)""", text, re.MULTILINE)
    metric = re.search(r"""^\s*-\s*metric:\s*["']?([\w.-]+)""", text, re.MULTILINE)
    if task is None:
        raise PruneError(f"{path} has no line 'task: NAME'; give a task file of lmms-eval")
    return Benchmark(task[1], task[1], task[1], metric[1] if metric else "", "")


@dataclass(eq=False)
class Job:
    """A checked evaluation."""

    source: Source
    asker: Asker
    settings: Settings
    out: Path
    include: tuple[str, ...]
    listen: Listener
    harness: Harness | None = None

    def run(self, recipes: list[Recipe], sets: list[Task]) -> VlmEvaluation:
        """All scores, finished ones taken from disk; then the files in `out`."""
        store = ResultStore(self.out / "rows", digest(self.model_key(), asdict(self.settings)))
        everything = [None, *recipes]
        with remembering(family_of(self.asker.model)):
            scores = run_rows(self.jobs(everything, sets, store), len(everything) * len(sets), store, Score.from_dict, self.listen)
        reference, rows = scores[: len(sets)], []
        for place, recipe in enumerate(everything):
            mine = scores[place * len(sets) : (place + 1) * len(sets)]
            text = UNPRUNED if recipe is None else str(recipe)
            definition = None if recipe is None or recipe.name == "custom" else json.loads(recipe.to_json())
            if recipe is not None:
                mine = [compared(*pair) for pair in zip(mine, reference, strict=True)]
            rows.append(VlmRow.make(text, definition, mine, reference))
        done = self.finished(rows, sets)
        write_text(self.out / "results.json", done.to_json())
        write_text(self.out / "results.csv", done.to_csv())
        write_text(self.out / "report.html", vlm_evaluation_page(done))
        return done

    def jobs(self, recipes: Sequence[Recipe | None], sets: list[Task], store: ResultStore) -> Iterator[RowJob[Score]]:
        """Every set under every recipe, by name; the model is pruned while its sets are asked."""
        for recipe in recipes:
            text = UNPRUNED if recipe is None else str(recipe)
            with pruned(self.asker.model, recipe) as handle:
                self.asker.handle = handle
                for one in sets:
                    key = f"{text}, {one.name}, {set_key(one)}"
                    yield RowJob(f"{text}, {one.name}", partial(self.score, one, text, store.file(key, "").name), key)

    def finished(self, rows: list[VlmRow], sets: list[Task]) -> VlmEvaluation:
        """The result with everything that a reader needs to know."""
        s = self.settings
        notes = [f"{one.title}: {one.note}" for one in sets if isinstance(one, Benchmark) and one.note]
        date, versions = datetime.now(timezone.utc).isoformat(timespec="seconds"), versions_in_use(self.asker.model)
        return VlmEvaluation(
            self.source.name,
            device_name(s.device),
            s.precision,
            s.batch_size,
            s.limit,
            s.prompt,
            s.square,
            date,
            versions,
            notes,
            rows,
        )

    def score(self, one: Task, recipe: str, name: str, progress: Callable[[float], object]) -> Score:
        """One set under the recipe at work. Answers are kept one by one until the score is."""
        log = AnswerLog(self.out / "rows" / f"{name}.log")
        answers = f"answers/{name}.jsonl"
        score, lines = self.ask(one, log, answers, progress) if isinstance(one, LocalSet) else self.ask_harness(one, log, answers)
        (self.out / "answers").mkdir(exist_ok=True)
        write_text(self.out / answers, "".join(json.dumps(line) + "\n" for line in lines))
        log.close()
        return replace(score, recipe=recipe)

    def ask(
        self, one: LocalSet, log: AnswerLog, file: str, progress: Callable[[float], object]
    ) -> tuple[Score, list[dict[str, Any]]]:
        """Questions of a file."""
        done = 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            progress(done / len(one.items))

        answers = self.asker.ask(one.questions(), log, step)
        if all(answer.fault == NOT_FINITE for answer in answers):
            raise all_bad(len(answers), one.name)
        metrics, hits = score_set(one, answers)
        lines = [
            {
                "id": i.key,
                "question": i.text,
                "target": list(i.answers),
                "answer": a.text,
                "right": hit,
                "kept": a.kept,
                "fault": a.fault,
            }
            for i, a, hit in zip(one.items, answers, hits, strict=True)
        ]
        skipped = [(i.key, a.fault) for i, a in zip(one.items, answers, strict=True) if a.text is None]
        value = next(iter(metrics.values()))
        return made(one.name, one.name, value, 100.0, True, metrics, hits, skipped, kept([a.kept for a in answers]), file), lines

    def ask_harness(self, one: Benchmark, log: AnswerLog, file: str) -> tuple[Score, list[dict[str, Any]]]:
        """Questions of a task of lmms-eval."""
        if self.harness is None:
            from .lmms import Harness  # needs lmms-eval

            self.harness = Harness(self.asker, self.out, self.include)
        done = self.harness.run(one, log, self.settings.limit)
        metric = one.metric or next(iter(done.scores), "")
        if metric not in done.scores:
            raise PruneError(f"{one.task} has no score {metric!r}; it gives {', '.join(done.scores) or 'none that is a number'}")
        hits = [sample["right"] for sample in done.samples]
        left = {key.split("/")[-2]: answer.kept for key, answer in log.known.items()}
        samples = [{**sample, "kept": left.get(str(sample["id"]), [])} for sample in done.samples]
        value = one.scale * done.scores[metric]
        bad = [(key, answer.fault) for key, answer in log.known.items() if answer.text is None]
        if bad and len(bad) == len(log.known):
            raise all_bad(len(bad), one.name)
        score = made(one.name, one.title, value, one.full, one.relative, done.scores, hits, [], kept(list(left.values())), file)
        return replace(score, skipped=bad), samples

    def model_key(self) -> str:
        """What tells this model from others: name, configuration, files."""
        if self.source.module is not None:
            return fingerprint_model(self.source.module)
        folder = Path(self.source.path or self.source.name).expanduser()
        files = sorted(folder.glob("*")) if os.path.isdir(folder) else []
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return digest(self.source.name, str(self.source.config), facts)


def all_bad(count: int, name: str) -> PruneError:
    """The refusal of a score without a single answer that means anything."""
    return PruneError(
        f"all {count} answers to {name} come from logits that are NaN or infinite; check the weights, or take another precision"
    )


def set_key(one: Task) -> str:
    """What tells this set from others."""
    return (
        one.fingerprint() if isinstance(one, LocalSet) else digest(one.name, one.task, one.metric, str(sorted(one.prompt.items())))
    )


def made(
    name: str, title: str, value: float, full: float, counts: bool, metrics: dict[str, float], hits: list[float | None],
    skipped: list[tuple[str, str]], left: float | None, file: str,
) -> Score:  # fmt: skip
    """A score with its accuracy."""
    judged = [hit for hit in hits if hit is not None]
    accuracy = sum(judged) / len(judged) if judged else None
    return Score(name, title, value, full, counts, metrics, len(hits) - len(skipped), skipped, accuracy, None, left, file, hits)


def compared(score: Score, reference: Score) -> Score:
    """The score with its paired difference of accuracy to the unpruned one."""
    pairs = [(a, b) for a, b in zip(score.hits, reference.hits, strict=True) if a is not None and b is not None]
    if not pairs:
        return score
    after, before = zip(*pairs, strict=True)
    whole = all(value in (0, 1) for value in (*after, *before))
    change: Interval = paired([int(a) for a in after], [int(b) for b in before]) if whole else paired_means(after, before)
    return replace(score, accuracy_change=change)


def kept(counts: list[list[int]]) -> float | None:
    """Mean number of visual tokens left of an image, or at a site inside the language model."""
    flat = [number for one in counts for number in one]
    return sum(flat) / len(flat) if flat else None
