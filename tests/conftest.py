"""What all tests share: golden files, random tensors."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

Load = Callable[[str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for tiny models: more would only wait for each other, for seconds if the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output goes into a pipe without a width, whatever other libraries have put into the environment."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def golden() -> Load:
    """Load a golden file of tests/golden as tensors by name, e.g. golden("vit/tome_parse_r")."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


def beside(golden: Load, kind: str) -> Load:
    """Load a golden file of tests/golden/KIND; the larger ones lie beside the repository, where there are any, and else skip."""

    def load(name: str) -> dict[str, torch.Tensor]:
        if (GOLDEN / kind / f"{name}.npz").exists():
            return golden(f"{kind}/{name}")
        large = GOLDEN.parent.parent.parent / "shared" / "vectors" / kind / f"{name}.npz"
        if not large.exists():
            pytest.skip(f"{name} is too large for the repository")
        with np.load(large, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def vlm(golden: Load) -> Load:
    """Golden files of methods for vision-language models."""
    return beside(golden, "vlm")


@pytest.fixture(scope="session")
def newer(golden: Load) -> Load:
    """Golden files of the methods of 2025 and later."""
    return beside(golden, "newer")


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the module's results in `out`, for tests that go on in that folder."""
    request.getfixturevalue("done")
    return Path(shutil.copytree(request.getfixturevalue("out"), tmp_path / "copied"))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
