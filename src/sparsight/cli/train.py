"""sparsight train: fine-tune a pruned model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..train.settings import HINTS, TrainSettings
from .words import DataSet, Limit, Split, Word, one_model


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give the verb an option for every training setting, by its name; what is not given stays as the preset has it."""
    known: Any = function
    signature = inspect.signature(function, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    made = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[HINTS[one.name] | None, typer.Option(help=one.metadata["help"], show_default=False)],
        )
        for one in fields(TrainSettings)
    ]
    known.__signature__ = signature.replace(parameters=[*own, *made], return_annotation=None)
    known.__annotations__ = {one.name: one.annotation for one in (*own, *made)}
    return function


@with_settings
def train(
    word: Word = None,
    model: Annotated[
        str | None, typer.Option(help="A timm name, a folder, ARCH@FILE.safetensors, or demo. [default: demo]")
    ] = None,
    data: DataSet = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Such as evit:keep=0.7; unpruned for a baseline. [default: the preset's, or that of a model trained before]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the trained model, its log, page and checkpoints.")] = Path("runs/train"),
    preset: Annotated[str, typer.Option(help="plain, evit or renyi: values of all settings that are not given.")] = "plain",
    test: Annotated[str | None, typer.Option(help="Images to report top-1 on, before and after.")] = None,
    split: Split = None,
    limit: Limit = None,
    teacher: Annotated[str | None, typer.Option(help="Model to distil from. [default: the model itself, unpruned]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses a card.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read images; 0 reads in this one.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0 for an epoch.")] = 0,
    log_every: Annotated[int, typer.Option(help="Steps between lines of the log.")] = 10,
    eval_every: Annotated[int, typer.Option(help="Epochs between looks at the test images; 0 for the end only.")] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard, too, into OUT/tensorboard.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done: steps, tokens, MACs, memory.")] = False,
    **settings: Any,
) -> None:
    """Fine-tune a model while it is pruned; `sparsight.load(OUT)` and every verb take the folder.

    Interrupted and started again with the same arguments, it goes on from the last checkpoint. Several processes, FSDP, several machines:
    accelerate launch -m sparsight train ...

    \b
    Examples:
      sparsight train vit_small_patch16_224.augreg_in21k_ft_in1k --data IMAGENET --split train --preset evit --out runs/evit
      sparsight train --data DIR --test OTHER --recipe col_ln:keep=0.5,layers=0/3/6 --epochs 5 --lr 2e-5 --dry-run
      sparsight train --data DIR --recipe dynamicvit:keep=0.7 --learned-lr 100 --distill-logits 0.5 --distill-tokens 0.5
    """
    from ..runs.workers import leads
    from ..train.train import plan_training
    from ..train.train import train as run
    from .progress import Watch
    from .table import say

    given = {name: value for name, value in settings.items() if value is not None}
    asked: Any = {"preset": preset, "test": test, "split": split, "limit": limit, "teacher": teacher, "device": device, **given}
    name = one_model(word, model)
    if dry_run:
        print(plan_training(name, data, recipe, out, **asked))
        return
    paced: Any = {
        "workers": workers,
        "save_every": save_every,
        "log_every": log_every,
        "eval_every": eval_every,
        "tensorboard": tensorboard,
    }
    with Watch(out) as watch:
        done = run(name, data, recipe, out, listen=watch, **asked, **paced)
    if leads():
        say(str(done))
        for line in (
            *done.notes,
            *(f"skipped {image}: {why}" for image, why in done.skipped[:10]),
            f"{out}: model, report.html, loss.png, log.jsonl",
        ):
            say(line)
