"""Where one `generate` of a vision-language model in OpenVINO spends its time, and what memory it takes."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .openvino_vlm import OpenVinoVlm, Prompt
from .stages import Inputs, Meter, Times
from .timing import now

MEMORY = "weights, inputs, and how much the process's resident memory rose in one generate (Linux; elsewhere 0)"
STAGES = "OpenVINO chooses tokens inside the vision encoder's graph and makes the first token's logits inside the language model's: selection counts as vision, the head as prefill"


class Metered(OpenVinoVlm):
    """The same model, which tells a meter what it does."""

    meter: Meter

    def look(self, pixels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        self.meter.enter("vision")
        found = super().look(pixels)
        self.meter.leave()
        return found

    def prefill(self, embeddings: Tensor, mask: Tensor, positions: Tensor, after: Tensor) -> tuple[Tensor, Prompt]:
        self.meter.enter("prefill")
        found = super().prefill(embeddings, mask, positions, after)
        self.meter.leave()
        self.meter.first_token()
        return found


def generate(vlm: OpenVinoVlm, inputs: Inputs, tokens: int) -> Any:
    """Exactly so many new tokens for every prompt."""
    return vlm.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens)


def time_openvino(vlm: OpenVinoVlm, inputs: Inputs, tokens: int) -> Times:
    """One `generate` of at least two tokens on the clock."""
    watched = Metered(vlm.facts, vlm.vision, vlm.embeddings, vlm.language)
    watched.meter = Meter(partial(now, torch.device("cpu")))
    generate(watched, inputs, tokens)
    watched.meter.charge()
    return Times(**watched.meter.spent, tokens=tokens)


def rise(vlm: OpenVinoVlm, inputs: Inputs, tokens: int) -> int:
    """Bytes by which the process's resident memory rises in one `generate`, the first one if it is to be all of them; 0 where the system
    does not say."""
    status = Path("/proc/self/status")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest point starts again from here
    before = resident(status, "VmRSS")
    generate(vlm, inputs, tokens)
    return max(0, resident(status, "VmHWM") - before)


def resident(status: Path, word: str) -> int:
    """Bytes that Linux says of a process."""
    if not status.is_file():
        return 0
    found = re.search(rf"{word}:\s+(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else 0
