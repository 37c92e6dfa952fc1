"""sparsight compare: the main job, for vision models and for vision-language models. Parses, shows progress, prints the table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .words import Baselines, Device, Equal, Limit, Seed, Word, items, numbers, one_model, split


def compare(
    word: Word = None,
    model: Annotated[
        str | None,
        typer.Option(help="demo, demo-vlm, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors. [default: demo]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images, best in class folders, or demo:small; questions for a vision-language model. The demo models bring their own."
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Names or recipes, joined by commas. [default: all]")] = None,
    keep: Annotated[str | None, typer.Option(help="Fractions kept at each site, joined by commas. [default: 0.7,0.5]")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks joined by '/'; several lists joined by commas. [default: 3/6/9]")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Of a vision-language model: visual tokens kept, joined by commas. [default: 64,16]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Of a vision-language model: runs of a method that draws at random.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/compare"),
    recipe: Annotated[list[str] | None, typer.Option(help="A whole recipe to add; may be given several times.")] = None,
    beside: Baselines = "random,resize",
    equal: Equal = "macs",
    batch_size: Annotated[
        int | None, typer.Option(help="Images, or questions, per forward. [default: 32, or 16 questions]")
    ] = None,
    limit: Limit = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16; auto is fp32, and bf16 for a vision-language model on a GPU.")
    ] = "auto",
    seed: Seed = 0,
    shown: Annotated[int, typer.Option("--shown", "--images", help="Images shown in the report.")] = 4,
    seconds: Annotated[
        float | None, typer.Option(help="Time for the paired runs of each row. [default: 4; not of questions]")
    ] = None,
) -> None:
    """Compare methods and budgets with the unpruned model: accuracy, agreement, speed, MACs, memory.

    Of a vision-language model: answers to questions about simple and complex pictures, hallucination, prefill, KV cache. Interrupted and
    started again with the same arguments, it goes on after the last finished row.

    \b
    Examples:
      sparsight compare --methods evit,tome,col_ln --keep 0.7,0.5 --layers 3/6/9
      sparsight compare --data demo:small --methods class_attention,col_ln --keep 0.5 --layers 0/3/6 --beside random,resize,pool
      sparsight compare vit_small_patch16_224 --data IMAGES --recipe col_ln:keep=0.7,layers=0/3/6
      sparsight compare --model demo-vlm --methods random,fastervlm,divprune,agile --tokens 64,16
    """
    name = one_model(word, model)
    wanted = split(methods) if methods else None
    shared: dict[str, Any] = {"recipes": recipe or (), "limit": limit, "device": device, "shown": shown}
    if asks_questions(name, data, tokens):
        for option, given in (
            ("--keep", keep),
            ("--layers", layers),
            ("--seconds", seconds),
            ("--seed", seed or None),
            ("--equal", None if equal == "macs" else equal),
        ):
            if given is not None:
                raise typer.BadParameter(f"{option} is for vision models; {name} takes --tokens, --seeds", param_hint=option)
        about_questions(name, data, wanted, tokens, seeds, bool(items(beside)), out, batch_size or 16, precision, shared)
        return
    if tokens is not None or seeds != 3:
        raise typer.BadParameter(f"--tokens and --seeds are for vision-language models; {name} takes --keep")
    from ..evaluation.compare import compare as measure
    from .progress import Watch
    from .results import print_comparison

    with Watch(out) as watch:
        done = measure(
            name, data, wanted, items(keep or "0.7,0.5"), items(layers or "3/6/9"), out, beside=items(beside), equal=items(equal),
            batch_size=batch_size or 32, precision="fp32" if precision == "auto" else precision, seed=seed,
            seconds=4.0 if seconds is None else seconds, listen=watch, **shared,
        )  # fmt: skip
    print_comparison(done, out)


def about_questions(
    name: str, data: Path | None, methods: list[str] | None, tokens: str | None, seeds: int, baselines: bool, out: Path, batch_size: int,
    precision: str, shared: dict[str, Any],
) -> None:  # fmt: skip
    """The comparison of a vision-language model."""
    from ..evaluation.compare_vlm import compare_vlm
    from .progress import Watch
    from .results import print_vlm_comparison

    budgets = numbers(tokens or "64,16", int, "--tokens")
    with Watch(out) as watch:
        done = compare_vlm(
            name,
            data,
            methods,
            budgets,
            out,
            seeds=seeds,
            baselines=baselines,
            batch_size=batch_size,
            precision=precision,
            listen=watch,
            **shared,
        )
    print_vlm_comparison(done, out)


def asks_questions(name: str, data: Path | None, tokens: str | None) -> bool:
    """Whether the model is a vision-language model. OWNER/NAME on the Hub is one where tokens or questions are given."""
    from ..load.vlms import speaks

    if not speaks(name):
        return False
    questions = data is not None and (data.suffix == ".jsonl" or (os.path.isdir(data) and any(data.glob("*.jsonl"))))
    return name == "demo-vlm" or os.path.isdir(Path(name).expanduser()) or tokens is not None or questions
