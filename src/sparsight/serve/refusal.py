"""Refusal: why a request gets no prediction, as an HTTP status and one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GONE = 499
"""Status under which requests are counted whose client has hung up; nobody reads it."""


@dataclass(eq=False)
class Refusal(Exception):
    """What the client is told instead of a prediction. more: further fields of the JSON beside `error`; headers: of the answer."""

    status: int
    text: str
    more: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text
