"""The evaluation sets of the papers by name: task and metric of lmms-eval, scale of the published numbers, and relative scores.

Sets of arXiv 2603.01236 (AgilePruner, tables 5-7 and 10-16) and of the Col-Ln paper (tables 6 and 12).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.questions import Item, LocalSet, plain
from ..errors import PruneError
from ..load.checkpoint import one_line
from . import metrics
from .asking import Answer
from .question_scores import judged, summary

INSTALL = "pip install 'sparsight[hf,lmms]'"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
JUDGE = "a language model is asked about answers that are no letter, if OPENAI_API_KEY is set; else they count as wrong"
SERVER = "the AgilePruner paper reports the test split, scored by the set's server; this is the validation split, which has answers"


@dataclass(frozen=True)
class Benchmark:
    """One column of a results table.

    task, metric  of lmms-eval (0.7.3); `metric` may name a filter after a comma.   rule  "harness", or "pope" / "mme": scored from the
    answers by `sparsight.evaluation.metrics`, as the papers do.   scale  of lmms-eval's number to the published one.   full  highest score.
    relative  whether it counts in the relative score.   prompt  changes to lmms-eval's prompt.   judge  whether every answer needs an API.
    """

    name: str
    title: str
    task: str
    metric: str
    dataset: str
    scale: float = 100.0
    full: float = 100.0
    rule: str = "harness"
    relative: bool = True
    judge: bool = False
    note: str = ""
    prompt: Mapping[str, object] = field(default_factory=dict)


HUB = "lmms-lab-encoder"
OCR = {"ocr": True}

SETS = (
    Benchmark("vqav2", "VQAv2", "vqav2_val", "exact_match", f"{HUB}/VQAv2", note=SERVER),
    Benchmark("gqa", "GQA", "gqa", "exact_match", f"{HUB}/GQA"),
    Benchmark("vizwiz", "VizWiz", "vizwiz_vqa_val", "exact_match", f"{HUB}/VizWiz-VQA", note=SERVER),
    Benchmark("sqa", "ScienceQA-IMG", "scienceqa_img", "exact_match", f"{HUB}/ScienceQA"),
    Benchmark(
        "textvqa", "TextVQA", "textvqa_val", "exact_match", f"{HUB}/textvqa", prompt=OCR,
        note="with the reference OCR tokens in the prompt, as LLaVA's authors have it; textvqa_plain is without",
    ),
    Benchmark("textvqa_plain", "TextVQA (no OCR)", "textvqa_val", "exact_match", f"{HUB}/textvqa"),
    Benchmark("pope", "POPE", "pope", "f1", f"{HUB}/POPE", rule="pope", note="mean F1 of the random, popular and adversarial split"),
    Benchmark("mme", "MME", "mme", "total", f"{HUB}/MME", 1, 2800, "mme", note="perception and cognition"),
    Benchmark("mme_perception", "MME perception", "mme", "perception", f"{HUB}/MME", 1, 2000, "mme"),
    Benchmark("mme_cognition", "MME cognition", "mme", "cognition", f"{HUB}/MME", 1, 800, "mme"),
    Benchmark("mmb", "MMBench", "mmbench_en_dev", "gpt_eval_score", f"{HUB}/MMBench", 1, note=JUDGE),
    Benchmark("mmb_static", "MMBench (no judge)", "mmbench_en_dev_static", "gpt_eval_score", f"{HUB}/MMBench", 1),
    Benchmark("mmb_cn", "MMBench-CN", "mmbench_cn_dev", "gpt_eval_score", f"{HUB}/MMBench", 1, note=JUDGE),
    Benchmark("mmvet", "MM-Vet", "mmvet", "gpt_eval_score", f"{HUB}/MMVet", 1, judge=True, note="a language model judges every answer"),
    Benchmark("chartqa", "ChartQA", "chartqa", "relaxed_overall", f"{HUB}/ChartQA"),
    Benchmark("ai2d", "AI2D", "ai2d", "exact_match,flexible-extract", f"{HUB}/ai2d"),
    Benchmark("ocrbench", "OCRBench", "ocrbench", "ocrbench_accuracy", "echo840/OCRBench"),
    Benchmark("chair_s", "CHAIR_S", "coco_cap_chair", "coco_cap_chair_s", "tsunghanwu/mscoco_chair", 1, relative=False, note="lower is better"),
    Benchmark("chair_i", "CHAIR_I", "coco_cap_chair", "coco_cap_chair_i", "tsunghanwu/mscoco_chair", 1, relative=False, note="lower is better"),
    Benchmark("chair_recall", "CHAIR recall", "coco_cap_chair", "coco_cap_recall", "tsunghanwu/mscoco_chair", 1, relative=False),
)  # fmt: skip

GROUPS = {
    "col_ln": ("vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme_perception", "mmb", "mmb_cn", "mmvet"),
    "agile": ("vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme", "mmb", "mmb_cn"),
    "agile_mix": ("gqa", "sqa", "pope", "mme"),
    "agile_qwen": ("textvqa_plain", "chartqa", "ai2d", "ocrbench", "mme_perception", "mme_cognition", "mmb", "mmb_cn"),
    "chair": ("chair_s", "chair_i", "chair_recall"),
}
"""The papers' tables: Col-Ln tables 6 and 12; AgilePruner table 7; its tables 5 and 6; its table 16; its tables 2 and 8."""


def find(name: str) -> list[Benchmark]:
    """The set of that name, or all sets of a paper's table; a PruneError with the nearest names for others."""
    known = {one.name: one for one in SETS}
    if name in known:
        return [known[name]]
    if name in GROUPS:
        return [known[part] for part in GROUPS[name]]
    near = difflib.get_close_matches(name, [*known, *GROUPS], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"sets: {', '.join(known)}; tables: {', '.join(GROUPS)}"
    raise PruneError(f"no evaluation set {name!r}; {hint} (or give FILE.jsonl, or FILE.yaml or lmms:TASK for a task of lmms-eval)")


def relative(scores: Sequence[float], reference: Sequence[float]) -> float | None:
    """Mean over sets of score / unpruned score, in percent: AgilePruner's "Average" and "Rel."; None where an unpruned score is 0."""
    if not scores or any(value <= 0 for value in reference):
        return None
    return 100 * sum(a / b for a, b in zip(scores, reference, strict=True)) / len(scores)


def average(scores: Sequence[float], full: Sequence[float]) -> float | None:
    """Mean over sets of the score in percent of the highest possible one: Col-Ln's "Average" (MME perception is out of 2000)."""
    return 100 * sum(a / b for a, b in zip(scores, full, strict=True)) / len(scores) if scores else None


# ---- what runs here ---------------------------------------------------------------------------------------------------


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
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

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
    if any(os.environ.get(word, "0") not in ("", "0") for word in OFFLINE):
        raise needs_network(name, dataset, f"{OFFLINE[0]} or {OFFLINE[1]} is set")
    try:
        HfApi().dataset_info(dataset, timeout=5)
    except HfHubHTTPError:
        return  # the server answers; what it says of the data set, lmms-eval's own download will meet
    except Exception as error:  # whatever the network meets: offline mode, no route, no name, no time
        raise needs_network(name, dataset, one_line(error)) from None


def needs_network(name: str, dataset: str, reason: str) -> PruneError:
    """The refusal of a set whose data are not here, and how to bring them."""
    return PruneError(
        f"{name} needs the data set {dataset} of the Hugging Face Hub, which is not in the cache ({reason}). Where there is a network "
        f"run the same command with --limit 1 (log in with 'hf auth login' first), then copy its HF_HOME folder (~/.cache/huggingface) "
        f"here and set HF_HOME to it, {OFFLINE[0]}=1 and {OFFLINE[1]}=1; or ask questions of your own: --tasks FILE.jsonl"
    )


# ---- samples of lmms-eval ---------------------------------------------------------------------------------------------


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


def kept_sample(sample: dict[str, Any]) -> dict[str, Any]:
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


# ---- questions of one's own -------------------------------------------------------------------------------------------


def score_set(one: LocalSet, answers: Sequence[Answer]) -> tuple[dict[str, float], list[float | None]]:
    """Scores in percent, the one that counts first, and for each question 1 or 0 (None where it could not be asked, or is a list)."""
    asked = [(item, answer.text) for item, answer in zip(one.items, answers, strict=True) if answer.text is not None]
    if not asked:
        raise PruneError(f"{one.path}: no question could be answered; {one.items[0].images[0]}: {answers[0].fault}")
    if one.kinds:
        rights = [None if a.text is None else judged(item, a.text) for item, a in zip(one.items, answers, strict=True)]
        found = summary(one.items, [answer.text for answer in answers])
        first = "accuracy" if "accuracy" in found else "recall"
        return {first: found.pop(first), **found}, [None if hit is None else float(hit) for hit in rights]
    hits = [None if a.text is None else float(right(item, a.text, one.binary)) for item, a in zip(one.items, answers, strict=True)]
    accuracy = {"accuracy": 100 * sum(hit for hit in hits if hit is not None) / len(asked)}
    if not one.binary:
        return accuracy, hits
    splits: dict[str, list[tuple[Item, str]]] = {}
    for item, text in asked:
        splits.setdefault(item.category, []).append((item, text))
    parts = {name: metrics.pope([text for _, text in part], [item.answers[0] for item, _ in part]) for name, part in splits.items()}
    whole = metrics.pope([text for _, text in asked], [item.answers[0] for item, _ in asked])
    rest = {"precision": 100 * whole.precision, "recall": 100 * whole.recall, "yes_ratio": 100 * whole.yes_ratio}
    return {"f1": 100 * metrics.mean_f1(parts), **accuracy, **rest}, hits


def right(item: Item, answer: str, binary: bool) -> bool:
    """Whether an answer is right: POPE's reading of yes and no, else the same words."""
    if binary:
        return metrics.says_no(answer) == (plain(item.answers[0]) == "no")
    return plain(answer) in {plain(one) for one in item.answers}
