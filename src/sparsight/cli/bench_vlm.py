"""sparsight bench-vlm: the stages of a vision-language model. Parses, shows progress, prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Device, Language, LanguageRecipes, Seed, Word, one_model


def bench_vlm(
    word: Word = None,
    model: Language = None,
    config: Annotated[str | None, typer.Option(help="Instead of a model: tiny or llava-7b-shape, with random weights.")] = None,
    recipe: LanguageRecipes = None,
    data: Annotated[Path | None, typer.Option("--data", "--images", help="Folder of images. [default: noise]")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text beside each image.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time, one image each.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 16,
    layers: Annotated[int | None, typer.Option(help="Cut the language model to its first layers.")] = None,
    rounds: Annotated[int, typer.Option(help="Pairs of runs per recipe.")] = 6,
    engine: Annotated[str, typer.Option(help="eager, or openvino (the CPU, LLaVA).")] = "eager",
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16; auto is bf16 on CUDA, else fp32.")] = "auto",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench-vlm"),
) -> None:
    """Time vision encoder, selection, prefill and decoding, unpruned and pruned in turn; memory, KV cache and MACs.

    Interrupted and started again with the same arguments, it goes on after the last finished row.

    \b
    Examples:
      sparsight bench-vlm --config tiny --recipe vispruner:tokens=64
      sparsight bench-vlm llava-hf/llava-1.5-7b-hf --data IMAGES --recipe fastv:layer=2,keep=0.5
      sparsight bench-vlm demo-vlm --recipe fastervlm:tokens=64 --engine openvino
    """
    from ..speed.bench_vlm import bench_vlm as measure
    from .progress import Watch
    from .results import print_stages

    with Watch(out) as watch:
        done = measure(
            one_model(word, model, "") or None, recipe or (), out, config=config, images=data, prompt=prompt, batch_size=batch_size, new_tokens=new_tokens,
            layers=layers, rounds=rounds, device=device, precision=precision, seed=seed, engine=engine, listen=watch,
        )  # fmt: skip
    print_stages(done, out)
