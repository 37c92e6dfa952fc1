"""sparsight serve refuses what cannot be served with one line, before anything listens."""

import socket
import sys

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "evit:kep=0.7"], "did you mean 'keep'?"),
        (["--recipe", "ats:keep=0.5", "--engine", "openvino"], "take engine eager"),
        (["--recipe", "vispruner:tokens=64", "--port", "0"], "has no language"),
        (["--recipe", "evit:layers=50", "--port", "0"], "layers"),
        (["--engine", "tpu"], "engine='tpu' is not known; choose eager, onnxruntime, openvino"),
        (["--engine", "openvino", "--device", "cuda"], "openvino runs on the CPU"),
        (["--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["--max-upload", "nan"], "max_upload=nan must be at least 1"),
        (["--port", "70000"], "port=70000 must be between 0 and 65535"),
        (["--host", "256.1.1.1"], "cannot listen on port 8000 of 256.1.1.1"),
        (["no_such_model", "--port", "0"], "timm has no model 'no_such_model'"),
        (["/nowhere/at/all", "--port", "0"], "no model folder"),
    ],
)
def test_refused(sparsight, words, said):
    code, text, news = sparsight("serve", *words)
    assert (code, text) == (2, "")
    assert said in news.splitlines()[-1]
    assert news.splitlines()[-1].startswith("error: ")


def test_a_port_that_is_taken(sparsight):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, news = sparsight("serve", "--port", port)
        assert code == 2
        assert news == f"error: cannot listen on port {port} of 127.0.0.1 (Address already in use); give another --port or --host\n"


def test_a_missing_package_is_named(sparsight, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, news = sparsight("serve", "--port", "0")
    assert (code, news) == (2, "error: uvicorn is needed here; install it with: pip install 'sparsight[serve]'\n")
