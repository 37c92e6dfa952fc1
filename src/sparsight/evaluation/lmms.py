"""lmms-eval: its tasks on a pruned model, and a pruned model for its own command, found by the entry point "lmms_eval.models":
`lmms-eval --model sparsight --model_args ...`. Read with lmms-eval 0.7.3. The only file that imports it."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms

from ..data.questions import Question
from ..errors import PruneError
from ..load.checkpoint import one_line
from ..load.vlms import find_source
from ..prune import prune
from ..runs.settings import PRECISIONS, precision_on
from .asking import NOT_FINITE, AnswerLog, Asker
from .vlm_sets import Benchmark, by_rule, kept_sample, needs_network

MOST = 1024
"""New tokens where a task does not say how many."""


def manifest() -> Any:
    """What lmms-eval's entry point asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sparsight", simple_class_path=f"{__name__}.Sparsight")


@dataclass(frozen=True)
class Outcome:
    """scores: those of lmms-eval and, by the papers' rules, of `metrics`; samples: one dict per question, images left out."""

    scores: dict[str, float]
    samples: list[dict[str, Any]]


def quiet() -> None:
    """lmms-eval logs to stdout; what it has to say belongs to stderr."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")


class Harness:
    """Tasks of lmms-eval for one model; each is loaded once, whatever the number of recipes."""

    def __init__(self, asker: Asker, out: Path, include: tuple[str, ...] = ()) -> None:
        import lmms_eval.models  # noqa: F401 - sets up logging
        from lmms_eval.tasks import TaskManager

        quiet()
        self.asker, self.out = asker, out
        self.manager = TaskManager("WARNING", include_path=list(include) or None, model_name="sparsight")
        self.loaded: dict[str, Any] = {}

    def task(self, bench: Benchmark) -> Any:
        """The task object, its data loaded."""
        from lmms_eval.tasks import get_task_dict

        mark = f"{bench.task}|{sorted(bench.prompt.items())}"
        if mark not in self.loaded:
            if bench.task not in self.manager.all_tasks:
                raise PruneError(f"lmms-eval has no task {bench.task!r}; lmms-eval tasks lists them")
            try:
                found = get_task_dict([bench.task], self.manager, "simple")[bench.task]
            except PruneError:
                raise
            except Exception as error:  # whatever the hub client, the network or the data meet
                raise needs_network(bench.name, bench.dataset or bench.task, one_line(error)) from error
            if isinstance(found, (dict, tuple)) or "generate" not in str(found.get_config("output_type")):
                raise PruneError(f"{bench.task} is a group or asks no questions; name a task of type generate_until")
            if bench.prompt:
                found.lmms_eval_specific_kwargs = {**(found.lmms_eval_specific_kwargs or {}), **bench.prompt}
            self.loaded[mark] = found
        return self.loaded[mark]

    def run(self, bench: Benchmark, log: AnswerLog, limit: int | None) -> Outcome:
        """All questions of a task, those in the log not asked again."""
        from lmms_eval.evaluator import simple_evaluate

        task = self.task(bench)
        model = Sparsight(asker=self.asker, log=log)
        folder = self.out / "submissions"
        done = simple_evaluate(
            model=model, tasks=[task], limit=limit, log_samples=True, bootstrap_iters=0, task_manager=self.manager,
            batch_size=self.asker.size, verbosity="WARNING", cli_args=Namespace(output_path=str(folder), process_with_media=False),
        )  # fmt: skip
        quiet()
        name = next(iter(done["results"]))
        scores = {key.removesuffix(",none"): float(v) for key, v in done["results"][name].items() if isinstance(v, (int, float))}
        samples = done["samples"][name]
        return Outcome({**scores, **by_rule(bench.rule, samples)}, [kept_sample(sample) for sample in samples])


class Sparsight(lmms):  # type: ignore[misc]
    """A vision-language model under a recipe. Answers are greedy, as in the papers, whatever temperature a task names.

    pretrained: a folder or a repository of the Hub. recipe: "name:key=value;key=value" with semicolons where recipes have commas,
    which part the arguments of lmms-eval; empty for the unpruned model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        recipe: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        precision: str = "auto",
        prompt: str | None = None,
        square: bool = False,
        asker: Asker | None = None,
        log: AnswerLog | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)
        if unknown:
            raise PruneError(
                f"model_args {', '.join(unknown)} are not known; there are pretrained, recipe, precision, prompt, square"
            )
        if asker is None:
            place = device or ("cuda" if torch.cuda.is_available() else "cpu")
            precision = precision_on(place, precision)
            if precision not in PRECISIONS:
                raise PruneError(f"precision={precision!r} is not known; choose {', '.join(PRECISIONS)}")
            source = find_source(pretrained or None, None, None)
            asker = Asker(source.load(place, PRECISIONS[precision], 0), source.processor, int(batch_size), prompt, bool(square))
            if recipe:
                asker.handle = prune(asker.model, recipe.replace(";", ","))
        self.asker = asker
        self.log = log or AnswerLog()
        self._device = next(asker.model.parameters()).device

    @property
    def batch_size(self) -> int:
        return self.asker.size

    @property
    def device(self) -> torch.device:
        return self._device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers of a task's requests."""
        questions = [self.question(*request.args) for request in requests]
        answers = self.asker.ask(questions, self.log)
        for question, answer in zip(questions, answers, strict=True):
            if answer.text is None and answer.fault != NOT_FINITE:
                raise PruneError(f"{question.key}: an image cannot be read ({answer.fault}); fetch the data set again")
        return [answer.text or "" for answer in answers]

    def question(self, text: str, wanted: dict[str, Any], visuals: Any, number: Any, task: str, split: str) -> Question:
        """One request as a question."""

        def pictures() -> list[Any]:
            return list(visuals(self.task_dict[task][split][number]) or [])

        until = wanted.get("until") or ()
        ends = (until,) if isinstance(until, str) else tuple(until)
        mark = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        return Question(f"{task}/{split}/{number}/{mark}", pictures, text, int(wanted.get("max_new_tokens") or MOST), ends)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise PruneError("this task compares likelihoods of given answers; a pruned prompt answers by generating (generate_until)")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise PruneError("this task asks in several rounds; a pruned prompt answers single questions (generate_until)")
