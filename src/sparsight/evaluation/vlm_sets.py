"""The evaluation sets of the papers by name: task and metric of lmms-eval, scale of the published numbers, and relative scores.

Sets of arXiv 2603.01236 (AgilePruner, tables 5-7 and 10-16) and of the Col-Ln paper (tables 6 and 12).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import PruneError

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
