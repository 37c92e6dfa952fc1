"""A pruned model for lmms-eval, which finds it by the entry point "lmms_eval.models": `lmms-eval --model sparsight --model_args ...`.

Read with lmms-eval 0.7.3. The only file that imports it at the top.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lmms_eval.api.model import lmms

from ..errors import PruneError
from ..load.vlms import find_source
from ..prune import prune
from .asking import Asker, Journal, Question
from .measure import PRECISIONS

MOST = 1024
"""New tokens where a task does not say how many."""


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
        precision: str = "bf16",
        prompt: str | None = None,
        square: bool = False,
        asker: Asker | None = None,
        journal: Journal | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)
        if unknown:
            raise PruneError(
                f"model_args {', '.join(unknown)} are not known; there are pretrained, recipe, precision, prompt, square"
            )
        if asker is None:
            if precision not in PRECISIONS:
                raise PruneError(f"precision={precision!r} is not known; choose {', '.join(PRECISIONS)}")
            place = device or ("cuda" if torch.cuda.is_available() else "cpu")
            source = find_source(pretrained or None, None, None)
            asker = Asker(source.load(place, PRECISIONS[precision], 0), source.processor, int(batch_size), prompt, bool(square))
            if recipe:
                asker.handle = prune(asker.model, recipe.replace(";", ","))
        self.asker = asker
        self.journal = journal or Journal()
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
        answers = self.asker.ask(questions, self.journal)
        for question, answer in zip(questions, answers, strict=True):
            if answer.text is None:
                raise PruneError(f"{question.key}: an image cannot be read ({answer.fault}); fetch the data set again")
        return [str(answer.text) for answer in answers]

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
