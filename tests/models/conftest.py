"""The products with packed weights that this torch has."""

import pytest

from sparsight.models import _packed
from sparsight.models._kernel import MKL, ONEDNN, Kernel, works


@pytest.fixture(params=[MKL, ONEDNN], ids=["mkl", "onednn"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Packs weights with one of them, whichever is fast on this CPU."""
    if not works(request.param):
        pytest.skip("this torch does not have it")
    monkeypatch.setattr(_packed, "kernel", lambda: request.param)
    return request.param
