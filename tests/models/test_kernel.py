"""Which product with packed weights runs on which CPU."""

import sys

import pytest
import torch

from sparsight.models import _kernel
from sparsight.models._kernel import FEW, MKL, ONEDNN


@pytest.mark.parametrize(
    ("maker", "machine", "capability", "expected"),
    [
        ("GenuineIntel", "x86_64", "AVX512", (MKL, FEW)),
        ("GenuineIntel", "x86_64", "AVX2", (MKL, FEW)),
        ("AuthenticAMD", "x86_64", "AVX512", (ONEDNN, sys.maxsize)),
        ("AuthenticAMD", "AMD64", "AVX2", (ONEDNN, FEW)),
        ("", "aarch64", "DEFAULT", None),
    ],
)
def test_the_fast_one_of_a_processor(maker, machine, capability, expected, monkeypatch):
    def no_file(_path):
        raise FileNotFoundError

    monkeypatch.setattr(_kernel.Path, "read_text", no_file)
    monkeypatch.setattr(_kernel.platform, "processor", lambda: maker)
    monkeypatch.setattr(_kernel.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(_kernel, "works", lambda _kernel: True)
    found = _kernel.kernel.__wrapped__()
    assert (found and (found.pack, found.most)) == (expected and (expected[0].pack, expected[1]))


def test_none_where_torch_does_not_have_it(monkeypatch):
    def gone(*_):
        raise AttributeError("no such operator")

    assert not _kernel.works(MKL._replace(pack=gone))
    assert not _kernel.works(ONEDNN._replace(times=lambda x, *_: x))
    monkeypatch.setattr(_kernel, "works", lambda _kernel: False)
    assert _kernel.kernel.__wrapped__() is None
