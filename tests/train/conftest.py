"""Images for the tests of training."""

from pathlib import Path

import pytest
from train_runs import draw


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images") / "train")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test images."""
    return draw(tmp_path_factory.mktemp("others") / "test", each=3, seed=1)


@pytest.fixture(autouse=True)
def needs_accelerate() -> None:
    pytest.importorskip("accelerate")
