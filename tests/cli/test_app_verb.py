"""sparsight app: what cannot be shown is one line, and a real one starts and stops."""

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="needs the extra app")


def test_refused(sparsight):
    for words, said in (
        (["--port", "70000"], "port=70000 must be between 0 and 65535"),
        (["no_such_model", "--port", "0"], "timm has no model 'no_such_model'"),
        (["owner/some-llava"], "owner/some-llava is a vision-language model; the page takes a vision model here"),
    ):
        code, text, news = sparsight("app", *words)
        assert (code, text) == (2, "")
        assert news.splitlines()[-1].startswith("error: ")
        assert said in news.splitlines()[-1]


@pytest.mark.product
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_starts_on_this_machine_alone_and_stops(number):
    words = [sys.executable, "-m", "sparsight", "app", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, restore_signals=True) as process:
        said = ""
        while not (found := re.search(r"the page is at (http://127\.0\.0\.1:\d+); Ctrl-C stops it", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(found[1], timeout=60) as answer:
            assert b"<title>Sparsight</title>" in answer.read()
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr.read() == "stopped\n"
        assert process.stdout.read() == ""
