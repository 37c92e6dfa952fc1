"""export_vlm(model, recipe, out): a pruned vision-language model as a folder of OpenVINO graphs, checked on real pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import PruneError, shown
from ..load.vlms import Inputs, Source, find_source, make_prompts
from ..prune import Handle, prune, resolve
from ..recipe import Recipe
from ..runs.comparison import UNPRUNED
from ..runs.settings import versions_in_use
from .engines import need_module
from .export import runtime_versions
from .exported import Result, check_difference, check_place, percent, scratch
from .openvino_vlm import PARTS, Facts, OpenVinoVlm, open_vlm, write_facts
from .vlm_tracing import Graphs, check_traceable, embedding_graph, has_grids, language_graph, vision_graph

NEW = 8
"""Tokens of the answers that are compared."""


@dataclass(frozen=True)
class ExportedVlm(Result):
    """A folder that was written and what the check on `prompts` pictures with one question said.

    tokens: visual tokens of a picture in the prompt; difference: largest absolute difference of a logit of the first token from PyTorch's,
    over pictures with the same kept tokens; scale: the largest such logit; same_kept, same_answers: shares of the pictures.
    """

    folder: str
    model: str
    recipe: str
    bytes: int
    tokens: int
    prompts: int
    difference: float
    scale: float
    same_kept: float
    same_answers: float
    versions: dict[str, str]

    def __str__(self) -> str:
        pictures, answers = f"{self.prompts} pictures", f"answers in {percent(self.same_answers)}"
        return (
            f"{self.folder}: {self.model}, {self.recipe}, openvino, {self.bytes / 1e6:.1f} MB, {self.tokens} visual tokens; "
            f"{self.agreement(pictures, answers)}"
        )


def export_vlm(
    model: str,
    recipe: str | Recipe | None = None,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    prompt: str | None = None,
    limit: int = 16,
    listen: Callable[[str], object] | None = None,
) -> ExportedVlm:
    """Write the pruned model (recipe None: the unpruned one) as graphs of OpenVINO's, with its processor, into the folder `out`.

    model: demo-vlm, or a folder or Hub repository of a LLaVA, a Qwen2-VL or a Qwen2.5-VL. out: a folder that is new or empty, by default
    MODEL-openvino. data: folder of pictures for the check, at most `limit`; by default the demo model's own, noise for others; prompt: the
    question about them. Of a Qwen-VL the pictures must have one size, and what is written takes pictures of that size alone. The folder
    appears only after the logits of the first token have passed (1e-4 of the largest). `open_vlm(out)` opens it. listen: called with a word
    on what takes long. Raises PruneError, for arguments before anything is loaded.
    """
    need_module("openvino")
    wanted = None if recipe is None else resolve(recipe, {})
    folder = check_folder(out, model)
    source = find_source(model, None, None)
    check_traceable(source.shell, wanted)
    if wanted is not None:
        prune(source.shell, wanted).remove()
    prompts = make_prompts(source, data, prompt, limit, 0)
    grid = grid_of(source, prompts.inputs)
    module = source.load("cpu", torch.float32, 0)
    if listen is not None:
        listen(f"tracing {source.name}, a minute or more ...")
    inputs = prompts.to("cpu", torch.float32)
    others = embedding_graph(module), language_graph(module)
    with nullcontext() if wanted is None else prune(module, wanted) as handle, scratch(folder) as room:
        graphs = Graphs(vision_graph(module, handle, first_picture(inputs, grid), grid), *others)
        facts = facts_of(source, module, wanted, inputs)
        write(graphs, facts, source.processor, room)
        made = open_vlm(room)
        found = compare(module, handle, made, inputs)
        check_difference(*found[:2])
        size, tokens = sum(part.stat().st_size for part in room.iterdir()), len(made.places[-1])
        del made  # its files are mapped
        settle(room, folder)
    versions = versions_in_use(module) | runtime_versions("openvino")
    return ExportedVlm(str(folder), source.name, facts.recipe, size, tokens, len(inputs["input_ids"]), *found, versions)


def check_folder(out: str | Path | None, model: str) -> Path:
    """The folder to write, which must not hold anything yet."""
    folder = Path(out).expanduser() if out is not None else Path(f"{Path(model).name}-openvino")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PruneError(f"{shown(folder)} exists already; give a new folder with --out")
    check_place(folder, "folder")
    return folder


def grid_of(source: Source, inputs: Inputs) -> tuple[int, ...] | None:
    """(t, h, w) of the patches of every picture, None where pictures have no grids. Raises PruneError if they have several."""
    if not has_grids(source.shell):
        return None
    grids = sorted({tuple(grid) for grid in inputs["image_grid_thw"].tolist()})
    if len(grids) > 1:
        sizes = ", ".join(f"{h} x {w}" for _, h, w in grids[:4])
        raise PruneError(
            f"{source.name} cuts these pictures into {sizes} patches, and an export is for one size; give pictures of one size, such as by "
            "resizing them beforehand"
        )
    return grids[0]


def first_picture(inputs: Inputs, grid: tuple[int, ...] | None) -> Tensor:
    """Pixels of the first picture, as the vision encoder takes them."""
    pixels: Tensor = inputs["pixel_values"]
    return pixels[: 1 if grid is None else prod(grid)]


def facts_of(source: Source, module: Any, recipe: Recipe | None, inputs: Inputs) -> Facts:
    """What the exported model has to know of itself; the prompts have one picture each."""
    ends = module.generation_config.eos_token_id
    token, grid = int(source.config.image_token_id), grid_of(source, inputs)
    vision = source.config.vision_config
    return Facts(
        sparsight=__version__,
        model=source.name,
        recipe=UNPRUNED if recipe is None else str(recipe),
        image_token=token,
        visual=int((inputs["input_ids"][0] == token).sum()),
        size=list(inputs["pixel_values"].shape[1:]),
        ends=[] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)],
        pad=int(module.generation_config.pad_token_id or 0),
        grid=None if grid is None else list(grid),
        merge=1 if grid is None else vision.spatial_merge_size,
        patch=0 if grid is None else vision.patch_size,
    )


def write(graphs: Graphs, facts: Facts, processor: Any, room: Path) -> None:
    """All files of the folder."""
    import openvino

    for part in PARTS:
        openvino.save_model(getattr(graphs, part), room / f"{part}.xml", compress_to_fp16=False)
    write_facts(facts, room)
    processor.save_pretrained(room)


def settle(room: Path, folder: Path) -> None:
    """Let the finished folder appear under its name."""
    if folder.is_dir():
        folder.rmdir()
    os.chmod(room, 0o777 & ~umask())
    os.replace(room, folder)


def umask() -> int:
    """What the process keeps from the modes of new files."""
    found = os.umask(0)
    os.umask(found)
    return found


def prompt_of(inputs: Inputs, number: int) -> Inputs:
    """One of several prompts with one picture each."""
    count = len(inputs["input_ids"])
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    return {name: inputs[name].chunk(count)[number] for name in names if name in inputs}


def compare(module: Any, handle: Handle | None, made: OpenVinoVlm, inputs: Inputs) -> tuple[float, float, float, float]:
    """The four numbers of `ExportedVlm` from difference to same_answers, picture by picture."""
    differences, scale, kept, answers = [], 0.0, [], []
    for number in range(len(inputs["input_ids"])):
        one = prompt_of(inputs, number)
        asked = partial(module.generate, **one, max_new_tokens=NEW, do_sample=False, num_beams=1)
        wanted = asked(output_logits=True, return_dict_in_generate=True)
        got = made.generate(**one, max_new_tokens=NEW)
        first = made.read(one["input_ids"], one["pixel_values"], one["attention_mask"])[0]
        same = handle is None or torch.equal(handle.plans[-1].keep[0].sort().values, made.kept[-1])
        if same:
            differences.append(float((wanted.logits[0] - first).abs().max()))
        scale = max(scale, float(wanted.logits[0].abs().max()))
        kept.append(same)
        answers.append(torch.equal(wanted.sequences, got))
    if not differences:
        raise PruneError("the exported model keeps other tokens than PyTorch in every picture; nothing was written")
    return max(differences), scale, sum(kept) / len(kept), sum(answers) / len(answers)
