"""sparsight tune: find the recipe for a model. Parses, shows progress, prints the front."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import BatchSize, DataSet, Device, Precision, Recipes, Seed, Split, Word, items, numbers, one_model


def tune(
    word: Word = None,
    model: Annotated[str | None, typer.Option(help="As for compare; with --tasks a vision-language model. [default: demo]")] = None,
    data: DataSet = None,
    report: Annotated[
        str | None, typer.Option(help="Images to report on. [default: one half is searched, the other reported]")
    ] = None,
    split: Split = None,
    report_split: Annotated[str | None, typer.Option(help="Folder or split to report on.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many images (or questions) of --data, spread over the classes.")
    ] = None,
    report_limit: Annotated[int | None, typer.Option(help="Only so many images of --report or --report-split.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Target: at least so many times faster.")] = None,
    loss: Annotated[
        float | None, typer.Option(help="Target: at most so many points lost. [default: 1, without any target]")
    ] = None,
    ms: Annotated[float | None, typer.Option(help="Target: at most so many milliseconds; needs an engine.")] = None,
    engine: Annotated[str, typer.Option(help="Cost: macs, or measured in eager, compile, onnxruntime, openvino ...")] = "macs",
    latency_batch: Annotated[int, typer.Option(help="Images per forward where time is measured.")] = 1,
    metric: Annotated[str | None, typer.Option(help="accuracy, or agreement with the unpruned model. [default: by labels]")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods to search, joined by commas. [default: all that fit]")] = None,
    recipe: Recipes = None,
    trials: Annotated[int, typer.Option(help="Trials to finish, by all workers together.")] = 60,
    storage: Annotated[
        str | None, typer.Option(help="URL that workers share, such as sqlite:///T.db. [default: a file in OUT]")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="No search: one site at a time, as table and picture.")
    ] = False,
    keep: Annotated[str, typer.Option(help="Shares kept, for --sensitivity.")] = "0.7,0.4",
    tasks: Annotated[Path | None, typer.Option(help="FILE.jsonl with questions, for a vision-language model.")] = None,
    prompt: Annotated[str | None, typer.Option(help="With --tasks: prompt with {images} and {question}.")] = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for trials, results and the recipe.")] = Path("runs/tune"),
) -> None:
    """Find the best recipe for a model and its images: resolution, method, blocks, share kept at each, score, selector, reducer.

    One part of the images is searched, the other reported. Killed and started again, it goes on; the same command in a second terminal,
    or on a machine that shares OUT or --storage, helps. OUT gets recipe.json with its evidence, results.json and report.html.

    \b
    Examples:
      sparsight tune --data IMAGES --speedup 2
      sparsight tune vit_small_patch16_224 --data IMAGES --split train --report-split val --loss 1 --recipe tome:remove=8
      sparsight tune --data UNLABELLED --ms 20 --engine openvino --trials 100
      sparsight tune --data IMAGES --sensitivity --methods col_ln,tome
      sparsight tune MODEL_FOLDER --tasks QUESTIONS.jsonl --speedup 1.5 --batch-size 4
    """
    from ..errors import PruneError
    from .progress import Watch
    from .results import print_sensitivity, print_tuning

    name, chosen = one_model(word, model, None if tasks else "demo"), items(methods) if methods else None
    shared = {
        "report": report,
        "limit": limit,
        "methods": chosen,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
    }
    images = {
        "data": data, "split": split, "report_split": report_split, "metric": metric, "engine": engine, "latency_batch": latency_batch,
    }  # fmt: skip
    if sensitivity:
        from ..tune.sensitivity import sensitivity as look

        shares = numbers(keep, float, "--keep")
        with Watch(out) as watch:
            seen = look(name, out=out, keep=shares, seed=seed, listen=watch, **shared, **images)  # type: ignore[arg-type]
        print_sensitivity(seen, out)
        return
    only = {"ms": ms, "report_limit": report_limit}
    search = {"speedup": speedup, "loss": loss, "trials": trials, "storage": storage, "recipes": recipe or (), "strict": False}
    with Watch(out) as watch:
        if tasks is not None:
            refuse(
                data=data,
                split=split,
                report_split=report_split,
                metric=metric,
                engine=None if engine == "macs" else engine,
                **only,
            )
            from ..tune.language import tune_questions

            done = tune_questions(name, tasks, out, prompt=prompt, seed=seed, listen=watch, **shared, **search)  # type: ignore[arg-type]
        else:
            refuse(prompt=prompt)
            from ..tune.tune import tune as find

            done = find(name, out=out, seed=seed, listen=watch, **shared, **images, **only, **search)  # type: ignore[arg-type]
    print_tuning(done, out)
    if not done.met:
        raise PruneError(done.verdict)


def refuse(**given: object) -> None:
    """Complain of options that the kind of model has no use for."""
    wrong = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if wrong:
        raise typer.BadParameter(
            f"{', '.join(wrong)} {'are' if len(wrong) > 1 else 'is'} for {'questions' if 'prompt' in given else 'images'}; leave out"
        )
