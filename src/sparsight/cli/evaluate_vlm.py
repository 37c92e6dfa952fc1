"""sparsight evaluate-vlm: scores of a pruned vision-language model on sets of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Device, Language, LanguageRecipes, Word, items, one_model


def evaluate_vlm(
    word: Word = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="pope,mme,gqa,... or a paper's table (agile, col_ln ...), FILE.jsonl, FILE.yaml, lmms:TASK. demo-vlm brings its own."
        ),
    ] = "",
    model: Language = None,
    recipe: LanguageRecipes = None,
    out: Annotated[Path, typer.Option(help="Folder for results and answers.")] = Path("runs/evaluate-vlm"),
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions of each set.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions per generate.")] = 1,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16; auto is fp32 on the CPU, else bf16.")] = "auto",
    prompt: Annotated[str | None, typer.Option(help="Prompt with {images} and {question}. [default: the chat template]")] = None,
    square: Annotated[bool, typer.Option("--square", help="Pad images to squares first, as LLaVA-1.5's authors do.")] = False,
) -> None:
    """Evaluate a model unpruned and under recipes; sets of the papers run by lmms-eval (pip install 'sparsight[hf,lmms]').

    Interrupted and started again with the same arguments, it goes on after the last answer.

    \b
    Examples:
      sparsight evaluate-vlm demo-vlm --recipe divprune:tokens=32 --batch-size 16
      sparsight evaluate-vlm llava-hf/llava-1.5-7b-hf --tasks pope,mme --recipe vispruner:tokens=64
      sparsight evaluate-vlm MODEL_FOLDER --tasks QUESTIONS.jsonl --recipe fastv:layer=2,keep=0.5
    """
    from ..evaluation.evaluate_vlm import evaluate_vlm as evaluate
    from .progress import Watch
    from .results import print_vlm_evaluation

    with Watch(out) as watch:
        done = evaluate(
            one_model(word, model, None), recipe or (), items(tasks), out, limit=limit, batch_size=batch_size, device=device,
            precision=precision, prompt=prompt, square=square, listen=watch,
        )  # fmt: skip
    print_vlm_evaluation(done, out)
