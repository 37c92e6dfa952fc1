"""The command line's tests run the program in this process, with the tiny model and the images of the tools' tests."""

import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from sparsight.cli.main import run


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C works, also where a shell has started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@pytest.fixture
def sparsight(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """Run the program in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsight", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run()
        return (stop.value.code or 0, *capsys.readouterr())

    return call
