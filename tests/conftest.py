"""What all tests share: golden files, random tensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

Load = Callable[[str], dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def golden() -> Load:
    """Load a golden file of tests/golden as tensors by name, e.g. golden("vit/tome_parse_r")."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
