"""How a model is run: batch, precision, device, seed; what can be had here, and what a result says about it."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import PruneError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How answers and times are measured; all of it goes into the key under which they are kept. seconds: of paired runs per row."""

    batch_size: int = 32
    precision: str = "fp32"
    device: str = "cpu"
    seed: int = 0
    seconds: float = 4.0

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.precision}, {self.device}, seed {self.seed}"


def check_settings(settings: Settings, shown: int = 0) -> Settings:
    """The settings with the device spelled out; a PruneError for what cannot be. shown: number of images to draw."""
    for name, value, least in (("batch_size", settings.batch_size, 1), ("shown", shown, 0), ("seconds", settings.seconds, 0)):
        if not (value >= least and math.isfinite(value)):
            raise PruneError(f"{name}={value:g} must be at least {least}{'' if math.isfinite(value) else ' and a finite number'}")
    if settings.precision not in PRECISIONS:
        raise PruneError(f"precision={settings.precision!r} is not known; choose {', '.join(PRECISIONS)}")
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise PruneError(f"device={name!r} cannot be used ({why}); try cpu") from None
    return replace(settings, device=name)


def precision_on(device: str, precision: str) -> str:
    """The precision of a vision-language model, "auto" spelled out: fp32 on the CPU, where bf16 is slower, and bf16 elsewhere."""
    return precision if precision != "auto" else "fp32" if device.startswith("cpu") else "bf16"


def versions_in_use(model: nn.Module) -> dict[str, str]:
    """Versions of Python, this library, torch and the framework that the model comes from."""
    from .. import __version__

    found = {"python": platform.python_version(), "sparsight": __version__, "torch": str(torch.__version__)}
    home = type(model).__module__.partition(".")[0]
    version = getattr(sys.modules.get(home), "__version__", None)
    return found | ({home: str(version)} if version else {})


def device_name(device: str) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device} ({platform.machine()})"
