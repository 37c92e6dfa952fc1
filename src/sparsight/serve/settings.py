"""Limits of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import PruneError


@dataclass(frozen=True)
class Limits:
    """batch_size: images of a forward; max_wait: seconds that an image waits for others; queue: requests under way, more get 503;
    timeout: seconds for the upload, and again for the answer; max_upload: bytes of a body; max_pixels: of an image."""

    batch_size: int = 16
    max_wait: float = 0.005
    queue: int = 128
    timeout: float = 30.0
    max_upload: float = 16 * 2**20
    max_pixels: float = 50e6

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "max_wait": 0, "queue": 1, "timeout": 0.001, "max_upload": 1, "max_pixels": 1}.items():
            value = getattr(self, name)
            if not (value >= least and math.isfinite(value)):
                raise PruneError(f"{name}={value:g} must be at least {least}{'' if math.isfinite(value) else ' and finite'}")
