"""The program `sparsight`. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from .. import __version__
from ..errors import PruneError, shown
from .analyse import analyse
from .app import app as page
from .bench import bench
from .bench_vlm import bench_vlm
from .calibrate import calibrate
from .compare import compare
from .evaluate import evaluate
from .evaluate_vlm import evaluate_vlm
from .export import export
from .families import families
from .macs import macs
from .methods import methods
from .rank import rank
from .reproduce import reproduce
from .robustness import robustness
from .save import save
from .serve import serve
from .show import show
from .train import train
from .tune import tune
from .vtc_split import vtc_split

# Typer has had a copy of click inside since 0.17, and click itself before; either way this is the base of its complaints.
UsageFault: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

LONGEST = 1000
"""Characters of an error that are printed, the middle left out of a longer one."""

# Plain help: drawing it with rich would cost a quarter of a second.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
VERBS = (
    analyse, page, bench, bench_vlm, calibrate, compare, evaluate, robustness, evaluate_vlm, export, families, macs, methods, rank, reproduce, save, serve, show,
    train, tune, vtc_split,
)  # fmt: skip
for verb in VERBS:
    app.command(short_help=" ".join((verb.__doc__ or "").partition("\n\n")[0].split()))(verb)


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparsight {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=print_version, is_eager=True, help="Print the version."),
) -> None:
    """Keep only the visual tokens that matter.

    \b
    Examples:
      sparsight compare --methods evit,tome,col_ln     methods on the demo model, as a table and a page
      sparsight methods                                what there is to choose from
      sparsight VERB --help                            options and examples of a verb
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: with one line, and what is finished is kept."""
    raise KeyboardInterrupt("SIGTERM")


def run() -> None:
    """Entry point: errors are one line on stderr and exit code 2, Ctrl-C is exit code 130, SIGTERM 143."""
    signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files need not be text
    try:
        sys.exit(app(standalone_mode=False))
    except (PruneError, UsageFault) as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"error: {shown(' '.join(text.split()), LONGEST)}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort) as error:
        print("stopped", file=sys.stderr)
        sys.exit(143 if error.args else 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a name that no file can have, a folder that may not be read
        print(f"error: {shown(str(error.filename or ''))}: {error.strerror or shown(str(error))}", file=sys.stderr)
        sys.exit(2)
