"""Run a task of lmms-eval on a pruned model, and say what is missing where it cannot run."""

from __future__ import annotations

import os
import re
import socket
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from ..errors import PruneError
from ..load.checkpoint import one_line
from . import metrics
from .asking import Asker, Journal
from .vlm_sets import Benchmark

INSTALL = "pip install 'sparsight[hf,lmms]'"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def manifest() -> Any:
    """What lmms-eval's entry point asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sparsight", simple_class_path=f"{__package__}.lmms_model.Sparsight")


@dataclass(frozen=True)
class Outcome:
    """scores: those of lmms-eval and, by the papers' rules, of `metrics`; samples: one dict per question, images left out."""

    scores: dict[str, float]
    samples: list[dict[str, Any]]


def check_installed(what: str) -> None:
    """Raise PruneError if lmms-eval is missing."""
    from importlib.util import find_spec

    if find_spec("lmms_eval") is None:
        raise PruneError(
            f"{what} runs by lmms-eval, which is not installed; {INSTALL} (local questions in a .jsonl file need nothing)"
        )


def check_judge(bench: Benchmark) -> None:
    """Raise PruneError if every answer needs a judge and there is none: all would count as wrong."""
    if bench.judge and os.environ.get("API_TYPE", "openai") == "openai" and not os.environ.get("OPENAI_API_KEY"):
        raise PruneError(
            f"{bench.name} is judged by a language model behind an API: set OPENAI_API_KEY (OPENAI_API_URL for a server of your own), "
            "or leave the set out"
        )


def check_data(name: str, dataset: str) -> None:
    """Raise PruneError, without waiting long, if a data set is neither in the cache nor within reach."""
    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    owner, _, title = dataset.partition("/")
    # lmms-eval 0.7 reads copies of its older data sets' repositories
    places = [
        Path(constants.HF_HUB_CACHE) / f"datasets--{owner}--{title}",
        home / f"{owner}___{title.lower()}",
        home / f"{owner}___{title}",
    ]
    if any(place.is_dir() for place in places):
        return
    reason = f"{OFFLINE[0]} or {OFFLINE[1]} is set" if any(os.environ.get(word, "0") not in ("", "0") for word in OFFLINE) else ""
    if not reason and not getproxies():
        host = re.sub(r"^\w+://|[:/].*$", "", constants.ENDPOINT)
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError as error:
            reason = f"{host} cannot be reached: {one_line(error)}"
    if reason:
        raise needs_network(name, dataset, reason)


def needs_network(name: str, dataset: str, reason: str) -> PruneError:
    """The refusal of a set whose data are not here, and how to bring them."""
    return PruneError(
        f"{name} needs the data set {dataset} of the Hugging Face Hub, which is not in the cache ({reason}). Where there is a network "
        f"run the same command with --limit 1 (log in with 'hf auth login' first), then copy its HF_HOME folder (~/.cache/huggingface) "
        f"here and set HF_HOME to it, {OFFLINE[0]}=1 and {OFFLINE[1]}=1; or ask questions of your own: --tasks FILE.jsonl"
    )


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

    def run(self, bench: Benchmark, journal: Journal, limit: int | None) -> Outcome:
        """All questions of a task, those in the journal not asked again."""
        from lmms_eval.evaluator import simple_evaluate

        from .lmms_model import Sparsight

        task = self.task(bench)
        model = Sparsight(asker=self.asker, journal=journal)
        folder = self.out / "submissions"
        done = simple_evaluate(
            model=model, tasks=[task], limit=limit, log_samples=True, bootstrap_iters=0, task_manager=self.manager,
            batch_size=self.asker.size, verbosity="WARNING", cli_args=Namespace(output_path=str(folder), process_with_media=False),
        )  # fmt: skip
        quiet()
        name = next(iter(done["results"]))
        scores = {key.removesuffix(",none"): float(v) for key, v in done["results"][name].items() if isinstance(v, (int, float))}
        samples = done["samples"][name]
        return Outcome({**scores, **by_rule(bench.rule, samples)}, [plain(sample) for sample in samples])


def by_rule(rule: str, samples: list[dict[str, Any]]) -> dict[str, float]:
    """The papers' own scores, from the answers."""
    if rule == "pope":
        splits: dict[str, list[tuple[str, str]]] = {}
        for sample in samples:
            splits.setdefault(str(sample["doc"].get("category", "")), []).append((reply(sample), str(sample["target"])))
        found = {name: metrics.pope([a for a, _ in part], [label for _, label in part]) for name, part in splits.items()}
        return {"f1": metrics.mean_f1(found), **{f"f1_{name}": part.f1 for name, part in found.items() if name}}
    if rule == "mme":
        rows: dict[str, dict[str, list[tuple[Any, str, str]]]] = {}
        for sample in samples:
            doc = sample["doc"]
            rows.setdefault(doc["category"], {}).setdefault(doc["question_id"], []).append(
                (doc["question_id"], reply(sample), sample["target"])
            )
        pairs = {task: [row for group in images.values() if len(group) == 2 for row in group] for task, images in rows.items()}
        done = metrics.mme({task: found for task, found in pairs.items() if found})
        return {"total": done.total, "perception": done.perception, "cognition": done.cognition}
    return {}


def reply(sample: dict[str, Any]) -> str:
    """The model's answer to a sample."""
    found = sample["filtered_resps"][0]
    return str(found[0] if isinstance(found, list) else found)


def plain(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as it is kept: the question, the right answer, the model's, and whether it was right."""
    return {
        "id": sample["doc_id"], "question": str((sample.get("arguments") or [""])[0]), "target": str(sample["target"]),
        "answer": reply(sample), "right": hit(sample),
    }  # fmt: skip


def hit(sample: dict[str, Any]) -> float | None:
    """How right an answer is, from 0 to 1, where lmms-eval says so for single questions."""
    known = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media"}
    for name, value in sample.items():
        value = value.get("score") if isinstance(value, dict) else value
        if name not in known and isinstance(value, (int, float)) and 0 <= value <= 1:
            return float(value)
    return None
