"""The command line: one module for each family of commands, `main` over them all.

Results go to stdout (paths, or JSON lines with --json), everything else to stderr. An error is one line and exit code
2. Nothing heavy is imported before it is known that there is something to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from cartouche.cli import doctor, draw, measure, read, search, train, weights
from cartouche.cli.app import app
from cartouche.config import CartoucheError, shown

__all__ = ["app", "doctor", "draw", "main", "measure", "read", "search", "train", "weights"]

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
EXTRAS = {"torch": "torch", "onnx": "train", "onnxscript": "train", "onnx_ir": "train", "rapidocr": "ocr"}
"""Which extra brings a package that drawing does without."""


def _say_version(wanted: bool) -> None:
    import cartouche

    if wanted:
        sys.stdout.write(f"cartouche {cartouche.__version__}\n")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version)]


@app.callback()
def options(version: Version = False) -> None:
    """Draws pictures from words, reads pictures into words, checks the one with the other."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (done, and not all is well: redrawn otherwise, a broken picture, weights
    that do not fit, nobody listens), 2 (an error, said in one line) or 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path in other letters
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(app(arguments or ["--help"], prog_name="cartouche", standalone_mode=False) or 0)
    except UsageError as error:
        return _complain(error.format_message())  # type: ignore[attr-defined]
    except CartoucheError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        return _complain(f"this needs {error.name}, which is not installed; pip install 'cartouche-ai[{extra}]'")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody listens: Python need not say so again
        return 1
    except OSError as error:
        return _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except MemoryError:
        return _complain("out of memory; choose a smaller --size or --count")
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _complain(message: str) -> int:
    sys.stderr.write(f"error: {shown(' '.join(message.split()), longest=2000)}\n")
    return 2
