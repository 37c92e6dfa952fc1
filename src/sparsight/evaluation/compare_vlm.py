"""compare_vlm(...) -> VlmComparison: a vision-language model unpruned and under methods x budgets, on questions about pictures.

How it is kept short. Pictures are taken sixteen at a time; their questions are written by the processor once, sorted so that answers of one length
stand in one batch, and asked under every recipe before the next sixteen. Meanwhile `vlms.tower_memo` keeps what the vision tower gave
for each of them, so the tower runs once per picture however many recipes and questions there are, and `shared_start` lets the language
model read a picture once per recipe where it can. What is timed is timed without either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from .. import __version__
from ..data.fingerprint import digest
from ..data.questions import Item, LocalSet, check_words, read_set
from ..data.reading import reason
from ..errors import PruneError
from ..load import demo_vlm
from ..load.vlms import Source, find_source, own_source
from ..prune import family_of
from ..recipe import Recipe
from ..runs.settings import PRECISIONS, Settings, check_settings, device_name, precision_on, versions_in_use
from ..runs.store import UNPRUNED, ResultStore, claim, fingerprint_model, release, write_text
from ..runs.sweep import Listener, RowJob, Step, ignore, pruned, run_rows
from ..runs.vlm_comparison import Cost, VlmComparison, VlmRow
from ..speed.stages import Times, count_macs, time_stages
from ..speed.timing import spread
from ..vlms.tower_memo import MOST, remembering
from .asking import NOT_FINITE, Answer, Asker, Prompted, batched
from .measure import name_parts
from .question_scores import Names, judged, kind_of, scenes_of, tally
from .shared_start import SharedStart, going_on, is_shared
from .vlm_entries import Entry, entries_of, grid_made

AT_ONCE = 16
"""Pictures whose questions are asked under every recipe before the next ones."""
ASKING = 0.85
"""Share of the work that is asking, for the progress bar; the rest is the paired runs."""
LEAST_ROUNDS = 2

Answers = dict[str, Answer]


def compare_vlm(
    model: str | nn.Module = demo_vlm.NAME,
    data: str | Path | None = None,
    methods: Sequence[str] | None = None,
    tokens: Sequence[int] = (64, 16),
    out: str | Path = "runs/compare-vlm",
    *,
    processor: Any = None,
    recipes: Sequence[str | Recipe] = (),
    seeds: int = 3,
    baselines: bool = True,
    batch_size: int = 16,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    prompt: str | None = None,
    shown: int = 4,
    rounds: int = 4,
    listen: Listener | None = None,
) -> VlmComparison:
    """Ask every question unpruned and under every method x budget; write results, answers and a page into `out`.

    model: "demo-vlm", a folder, OWNER/NAME on the Hugging Face Hub, or a module with its processor. data: a folder or a .jsonl file of
    questions (`questions.read_set`), by default those of the demo model. methods: names or recipe strings, by default all that choose image
    tokens; tokens: budgets that fill in what a string leaves open; recipes: added as they are. seeds: runs of a method that draws.
    baselines: rows of random, resize and pool. limit: so many pictures. rounds: pairs of timed runs per row. shown: pictures on the page.
    Called again with the same arguments it goes on after the last answers; with another limit or other methods it takes those that are
    there. Raises PruneError before any heavy work.
    """
    settings = check_settings(Settings(batch_size, "fp32" if precision == "auto" else precision, device), shown)
    if isinstance(model, nn.Module):
        like = next(model.parameters())
        names = [name for name, kind in PRECISIONS.items() if kind == like.dtype]
        settings = Settings(batch_size, names[0] if names else str(like.dtype), str(like.device))
    else:
        settings = Settings(batch_size, precision_on(settings.device, precision), settings.device)
    if rounds < LEAST_ROUNDS or (limit is not None and limit < 1) or any(amount < 1 for amount in tokens):
        raise PruneError(f"rounds={rounds}, limit={limit}, tokens={list(tokens)}: rounds must be 2 or more, the others 1 or more")
    source = own_source(model, processor) if isinstance(model, nn.Module) else find_source(model, None, None)
    asked = part_of(read_set(questions_of(source.name, data)), limit)
    check_words(asked, source.processor.tokenizer)
    grid = grid_made(family_of(source.shell), source.processor)
    entries, notes = entries_of(source.shell, source.depth, grid, methods, tokens, recipes, seeds, baselines)
    made = claim(folder := Path(out).expanduser())
    try:
        module = source.load(settings.device, PRECISIONS.get(settings.precision, torch.float32), 0)
        asker = Asker(module, source.processor, batch_size, prompt)
        job = Job(source, asker, asked, grid, entries, settings, rounds, folder, notes)
    except PruneError:
        release(made)
        raise
    return job.run(shown, listen or ignore)


def questions_of(name: str, data: str | Path | None) -> str | Path:
    """The questions to ask; the demo model brings its own."""
    if data is not None:
        return data
    if name != demo_vlm.NAME:
        raise PruneError(f"no questions for {name}; give a folder or a .jsonl file with --data (only demo-vlm brings questions)")
    return demo_vlm.questions()


def part_of(one: LocalSet, pictures: int | None) -> LocalSet:
    """The questions about the first so many pictures."""
    known = list(dict.fromkeys(item.images for item in one.items))[:pictures]
    items = [item for item in one.items if item.images in set(known)]
    return LocalSet(one.name, one.path, items, one.most)


@dataclass(frozen=True, eq=False)
class Sheet:
    """Questions about some pictures as the processor writes them: batches, the same split behind their pictures where that can be, and
    answers that say why a picture cannot be read."""

    batches: list[Prompted]
    start: SharedStart | None
    faults: Answers


@dataclass(eq=False)
class Job:
    """A comparison whose parts have all been checked: model on its device, questions, rows."""

    source: Source
    asker: Asker
    asked: LocalSet
    grid: tuple[int, int] | None
    entries: list[Entry]
    settings: Settings
    rounds: int
    out: Path
    notes: list[str]

    @cached_property
    def store(self) -> ResultStore:
        s = self.settings
        key = digest(
            "compare-vlm", __version__, fingerprint_model(self.asker.model), s.batch_size, s.precision, device_name(s.device), self.asker.prompt,
            torch.get_num_threads(),
        )  # fmt: skip
        return ResultStore(self.out / "rows", key)

    @cached_property
    def family(self) -> Any:
        return family_of(self.asker.model)

    @property
    def image_token(self) -> int | None:
        """Id of a visual token in a prompt."""
        return getattr(self.source.config, "image_token_id", None)

    @property
    def fill(self) -> int:
        """Id of padding."""
        return self.asker.processor.tokenizer.pad_token_id or 0

    @cached_property
    def groups(self) -> list[list[Item]]:
        """Questions about `AT_ONCE` pictures each."""
        about: dict[tuple[Path, ...], list[Item]] = {}
        for item in self.asked.items:
            about.setdefault(item.images, []).append(item)
        pictures = list(about.values())
        parts = (pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE))
        return [[item for items in part for item in items] for part in parts]

    def run(self, shown: int, listen: Listener) -> VlmComparison:
        """All answers, then all rows; then the files in `out`."""
        total = len(self.entries)

        def timing(step: Step) -> None:
            listen(Step(ASKING * total + (1 - ASKING) * step.done, total, step.text, step.row, step.restored))

        answers = self.ask_all(lambda share, text: listen(Step(ASKING * total * share, total, text)))
        self.check(answers)
        rows = run_rows(self.rows(answers), total, self.store, VlmRow.from_dict, timing)
        done = self.sum_up(rows, answers)
        self.publish(done, answers, shown, listen)
        return done

    # ---- answers ------------------------------------------------------------------------------------------------------

    def ask_all(self, tell: Callable[[float, str], object]) -> dict[str, Answers]:
        """Answers to all questions, by the name of every recipe and seed; finished ones from the store, whatever else was asked then."""
        runs = [(entry, place, name) for entry in self.entries for place, name in enumerate(entry.names)]
        found: dict[str, Answers] = {name: {} for _, _, name in runs}
        whole = len(runs) * len(self.groups)
        with remembering(self.family, most=2 * MOST):
            for number, items in enumerate(self.groups):
                sheet = cache(partial(self.write, items))
                which = replace(self.asked, items=items).content()
                for turn, (entry, place, name) in enumerate(runs):
                    tell((number * len(runs) + turn) / whole, f"{name}, questions about pictures {number * AT_ONCE + 1} and on")
                    key = f"{name}, {which}"
                    known = self.store.find(key, read_answers)
                    if known is None or set(known) != {item.key for item in items}:
                        known = self.ask(entry, place, sheet())
                        self.store.keep(key, {name: asdict(answer) for name, answer in known.items()})
                    found[name] |= known
        return found

    def ask(self, entry: Entry, place: int, sheet: Sheet) -> Answers:
        """Answers under one recipe."""
        found, recipe = dict(sheet.faults), entry.installed(place)
        with pruned(self.asker.model, recipe) as handle:
            start = sheet.start if is_shared(recipe) else None
            read = None if start is None else start.read(self.asker.model, handle)
            if start is None or read is None:
                self.asker.handle = handle
                for batch in sheet.batches:
                    found |= {q.key: a for q, a in zip(batch.questions, self.asker.reply(batch), strict=True)}
                return found
        cache, kept = read
        self.asker.handle = None
        for rest in start.rests:
            answers = self.asker.reply(going_on(rest, cache, self.fill))
            for question, row, answer in zip(rest.batch.questions, rest.rows.tolist(), answers, strict=True):
                found[question.key] = replace(answer, kept=kept[row : row + 1])
        return found

    def write(self, items: list[Item]) -> Sheet:
        """Write the prompts of these questions, answers of about one length together."""
        pictures: dict[tuple[Path, ...], list[Image.Image]] = {}
        faults: Answers = {}
        for item in items:
            try:
                pictures[item.images] = pictures.get(item.images) or [self.asker.prepared(picture) for picture in item.load()]
            except Exception as error:  # Pillow's decoders raise whatever their format meets
                faults[item.key] = Answer(None, fault=reason(error))
        able = sorted((i for i in items if i.key not in faults), key=lambda i: (max(map(len, i.answers)), kind_of(i), len(i.text)))
        about = {item.key: pictures[item.images] for item in able}
        groups = batched([self.asked.question(item) for item in able], self.asker.size)
        batches = [self.asker.prompted(group, [about[q.key] for q in group]) for group in groups]
        start = SharedStart.of(batches, {item.key: item.images for item in able}, self.image_token)
        return Sheet(batches, start, faults)

    def check(self, answers: Mapping[str, Answers]) -> None:
        """Raise PruneError where no answer means anything."""
        for name, some in answers.items():
            if all(answer.text is None for answer in some.values()):
                key, first = next(iter(some.items()))
                if first.fault == NOT_FINITE:
                    raise PruneError(
                        f"all {len(some)} answers under {name} come from logits that are NaN or infinite; check the weights, or take another precision"
                    )
                picture = next(item.images[0] for item in self.asked.items if item.key == key)
                raise PruneError(f"{self.asked.path}: no question could be answered; {picture}: {first.fault}")

    # ---- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, answers: Mapping[str, Answers]) -> Iterator[RowJob[VlmRow]]:
        """The rows to be measured, by name."""
        names, which = Names.of(self.asked.items), self.asked.content()
        for entry in self.entries:
            yield RowJob(
                entry.name,
                partial(self.measure, entry, answers, names),
                f"{', '.join(entry.names)}, row about {which}, {self.rounds} rounds",
            )

    def measure(self, entry: Entry, answers: Mapping[str, Answers], names: Names, step: Callable[[float], object]) -> VlmRow:
        """One row: scores from the answers, cost from runs in turn with the unpruned model."""
        said = [[answers[name][item.key] for item in self.asked.items] for name in entry.names]
        counts = [tally(self.asked.items, [answer.text for answer in one], names) for one in said]
        left = [number for one in said for answer in one for number in answer.kept]
        kept = sum(left) / len(left) if left else None
        parts = name_parts(entry.recipes[0] if entry.recipes else None)
        return VlmRow(
            recipe=entry.name,
            label=UNPRUNED if not entry.recipes else label_of(entry, parts["label"]),
            budget=parts["budget"],
            definition=parts["definition"],
            seeds=entry.names,
            kept=kept,
            cost=self.cost(entry, step),
            lost=sum(answer.fault == NOT_FINITE for one in said for answer in one),
            counts=counts,
        )

    def cost(self, entry: Entry, step: Callable[[float], object]) -> Cost:
        """What one prompt costs, timed in turn with the unpruned model."""
        model, recipe = self.asker.model, entry.installed(0)
        inputs = self.one_prompt
        with pruned(model, recipe) as handle:
            macs, lengths, cache = count_macs(model, self.family, handle, inputs)
        runs: list[Times] = []
        beside: list[Times] = []
        for turn in range(self.rounds + 1):
            ways = ((recipe, runs), (None, beside))
            for way, log in ways if turn % 2 else ways[::-1]:
                with torch.no_grad(), pruned(model, way) as handle:
                    times = time_stages(model, self.family, handle, inputs, 2)
                if turn:  # the first pair is to warm up
                    log.append(times)
            step((turn + 1) / (self.rounds + 1))
        gains = spread(before.reading / after.reading for before, after in zip(beside, runs, strict=True))
        seconds, encoding = spread(one.reading for one in runs), spread(one.vision for one in runs)
        return Cost(macs.vision, macs.selection, macs.prefill, cache, lengths, seconds, gains, encoding)

    @cached_property
    def one_prompt(self) -> dict[str, Any]:
        """The first question whose picture can be read, as a batch of one."""
        for item in self.asked.items:
            batches = self.write([item]).batches
            if batches:
                return batches[0].inputs
        raise PruneError(f"{self.asked.path}: no picture can be read")

    # ---- results ------------------------------------------------------------------------------------------------------

    def sum_up(self, rows: list[VlmRow], answers: Mapping[str, Answers]) -> VlmComparison:
        """The rows with everything that has to be known about how they came about."""
        s, items, first = self.settings, self.asked.items, answers[UNPRUNED]
        lost = [f"{row.lost} answers of {row.recipe} are lost: {NOT_FINITE}" for row in rows if row.lost]
        return VlmComparison(
            model=self.source.name,
            data=self.asked.name
            if self.source.name != demo_vlm.NAME or self.asked.path != demo_vlm.questions()
            else "its own pictures",
            data_fingerprint=digest([(i.key, i.text, i.answers, i.kind, i.scene, i.objects) for i in items]),
            questions=len(items),
            capacity=int((self.one_prompt["input_ids"] == self.image_token).sum()),
            device=device_name(s.device),
            threads=torch.get_num_threads(),
            precision=s.precision,
            batch_size=s.batch_size,
            rounds=self.rounds,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions_in_use(self.asker.model),
            notes=[*self.notes, *lost],
            skipped=[(item.key, first[item.key].fault) for item in items if first[item.key].text is None],
            pictures=[", ".join(path.name for path in images) for images in dict.fromkeys(item.images for item in items)],
            scenes=scenes_of(items),
            rows=rows,
        )

    def publish(self, done: VlmComparison, answers: Mapping[str, Answers], shown: int, listen: Listener) -> None:
        """Write results.json, results.csv, answers.jsonl and report.html."""
        from ..pages.vlm_report import vlm_report
        from .vlm_gallery import gallery

        listen(Step(len(done.rows), len(done.rows), "drawing the report"))
        write_text(self.out / "results.json", done.to_json())
        write_text(self.out / "results.csv", done.to_csv())
        write_text(self.out / "answers.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines(answers)))
        with remembering(self.family):
            exhibits = gallery(self, done, answers, shown)
        write_text(self.out / "report.html", vlm_report(done, exhibits))

    def lines(self, answers: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
        """Every answer of every recipe and seed."""
        for name, some in answers.items():
            for item in self.asked.items:
                answer = some[item.key]
                right = None if answer.text is None else judged(item, answer.text)
                yield {
                    "recipe": name, "id": item.key, "kind": kind_of(item), "question": item.text, "target": list(item.answers),
                    "answer": answer.text, "right": right, "kept": answer.kept, "fault": answer.fault,
                }  # fmt: skip


def label_of(entry: Entry, label: str) -> str:
    """The method without its seed where there are several."""
    return " ".join(word for word in label.split() if len(entry.recipes) == 1 or not word.startswith("seed="))


def read_answers(data: dict[str, Any]) -> Answers:
    """Answers as the store has them."""
    return {key: Answer(**answer) for key, answer in data.items()}
