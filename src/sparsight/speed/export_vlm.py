"""export_vlm(model, recipe, out): a pruned vision-language model as a folder of OpenVINO graphs, checked on real pictures."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import PruneError, shown
from ..load.vlms import Inputs, Source, find_source, make_prompts
from ..prune import Handle, prune, resolve
from ..recipe import Recipe
from ..runs.comparison import UNPRUNED
from ..runs.settings import versions_in_use
from .engines import need_module
from .export import TOLERANCE, runtime_versions
from .openvino_vlm import PARTS, Facts, OpenVinoVlm, open_vlm, write_facts
from .vlm_tracing import Graphs, check_traceable, embedding_graph, language_graph, vision_graph

NEW = 8
"""Tokens of the answers that are compared."""


@dataclass(frozen=True)
class ExportedVlm:
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
        return (
            f"{self.folder}: {self.model}, {self.recipe}, openvino, {self.bytes / 1e6:.1f} MB, {self.tokens} visual tokens; on {self.prompts} pictures the "
            f"same tokens kept in {100 * self.same_kept:.1f}%, the same answers in {100 * self.same_answers:.1f}%, largest difference "
            f"{self.difference:.1e} (largest logit {self.scale:.1f})"
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


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

    model: demo-vlm, or a folder or Hub repository of a LLaVA. out: a folder that is new or empty, by default MODEL-openvino. data: folder of
    pictures for the check, at most `limit`; by default the demo model's own, noise for others; prompt: the question about them. The folder
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
    module = source.load("cpu", torch.float32, 0)
    if listen is not None:
        listen(f"tracing {source.name}, a minute or more ...")
    inputs = prompts.to("cpu", torch.float32)
    others = embedding_graph(module), language_graph(module)
    with nullcontext() if wanted is None else prune(module, wanted) as handle:
        graphs = Graphs(vision_graph(module, handle, inputs["pixel_values"][:1]), *others)
        facts = facts_of(source, module, wanted, inputs)
        room = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
        try:
            write(graphs, facts, source.processor, room)
            made = open_vlm(room)
            found = compare(module, handle, made, inputs)
            if not found[0] <= TOLERANCE * max(1.0, found[1]):
                raise PruneError(
                    f"the exported model differs from PyTorch by {found[0]:.1e} (logits up to {found[1]:.1f}); nothing was written"
                )
            size, tokens = sum(part.stat().st_size for part in room.iterdir()), len(made.places[-1])
            del made  # its files are mapped
            settle(room, folder)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    versions = versions_in_use(module) | runtime_versions("openvino")
    return ExportedVlm(str(folder), source.name, facts.recipe, size, tokens, len(inputs["input_ids"]), *found, versions)


def check_folder(out: str | Path | None, model: str) -> Path:
    """The folder to write, which must not hold anything yet."""
    folder = Path(out).expanduser() if out is not None else Path(f"{Path(model).name}-openvino")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PruneError(f"{shown(folder)} exists already; give a new folder with --out")
    parent = folder.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PruneError(f"{shown(folder)} cannot be written; give a folder below one that exists and is yours")
    return folder


def facts_of(source: Source, module: Any, recipe: Recipe | None, inputs: Inputs) -> Facts:
    """What the exported model has to know of itself; the prompts have one picture each."""
    ends = module.generation_config.eos_token_id
    token = int(source.config.image_token_id)
    return Facts(
        sparsight=__version__,
        model=source.name,
        recipe=UNPRUNED if recipe is None else str(recipe),
        image_token=token,
        visual=int((inputs["input_ids"][0] == token).sum()),
        size=list(inputs["pixel_values"].shape[1:]),
        ends=[] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)],
        pad=int(module.generation_config.pad_token_id or 0),
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
    try:
        if folder.is_dir():
            folder.rmdir()
        os.chmod(room, 0o777 & ~umask())
        os.replace(room, folder)
    except OSError as error:
        raise PruneError(f"{shown(folder)} cannot be written: {error.strerror or error}") from None


def umask() -> int:
    """What the process keeps from the modes of new files."""
    found = os.umask(0)
    os.umask(found)
    return found


def compare(module: Any, handle: Handle | None, made: OpenVinoVlm, inputs: Inputs) -> tuple[float, float, float, float]:
    """The four numbers of `ExportedVlm` from difference to same_answers, picture by picture."""
    differences, scale, kept, answers = [], 0.0, [], []
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    for number in range(len(given["input_ids"])):
        one = {name: value[number : number + 1] for name, value in given.items()}
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
