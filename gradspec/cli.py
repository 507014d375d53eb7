"""The `gradspec` command: one frozen dataclass per subcommand, its fields the options and their docstrings the help.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a failure during the work, 2 a wrong argument,
130 interrupted; of `gradspec diff` 1 where the runs differ. Only the running command imports torch, pandas and
matplotlib, so that `gradspec --help` answers in under half a second.
"""

from __future__ import annotations

import dis
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import tyro

import gradspec as gs
from gradspec.commands.auditing import AuditCommand
from gradspec.commands.collecting import CollectCommand, DiffCommand
from gradspec.commands.demonstrating import DemoCommand
from gradspec.commands.evaluating import EvaluateCommand
from gradspec.commands.explaining import ExplainCommand
from gradspec.commands.fitting import FitCommand
from gradspec.commands.listing import ModelsCommand, ReportCommand
from gradspec.commands.options import note
from gradspec.commands.surveying import AtlasCommand

DESCRIPTION = (
    "How much high frequency a network's gradient carries, operator by operator, and what a low-pass filter makes of "
    "its explanations. (`gradspec --version`: its version.)"
)

Command = (
    Annotated[AtlasCommand, tyro.conf.subcommand("atlas")]
    | Annotated[AuditCommand, tyro.conf.subcommand("audit")]
    | Annotated[CollectCommand, tyro.conf.subcommand("collect")]
    | Annotated[DemoCommand, tyro.conf.subcommand("demo")]
    | Annotated[DiffCommand, tyro.conf.subcommand("diff")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[ExplainCommand, tyro.conf.subcommand("explain")]
    | Annotated[FitCommand, tyro.conf.subcommand("fit")]
    | Annotated[ModelsCommand, tyro.conf.subcommand("models")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
)


def main(args: Sequence[str] | None = None) -> int:
    """The exit code of the command line `args` (`sys.argv[1:]` where None).

    Example:
        >>> main(["--version"])
        gradspec ...
        0
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print("gradspec", gs.__version__)
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: note(f"warning: {message}")
        return _exit_code(args or ["--help"])


def _exit_code(args: Sequence[str]) -> int:
    """Runs the command; no exception leaves."""
    config = (tyro.conf.DisallowNone,)  # else every optional flag also reads the word None
    try:
        command = tyro.cli(Command, prog="gradspec", description=DESCRIPTION, args=args, config=config)
    except SystemExit as stop:  # 0 after --help, 2 after a wrong argument
        return int(stop.code or 0)
    try:
        code = command.run()
        sys.stdout.flush()
        return code or 0
    except SystemExit as stop:
        note(f"error: the network's own code ended the program (sys.exit({stop.code!r}))")
        return 1
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `gradspec models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    """The exit code for an exception; one that gradspec did not foresee also shows where it comes from."""
    foreseen = _foreseen(error)
    if not foreseen:
        traceback.print_exception(type(error), error, error.__traceback__)
    note(f"error: {error}" if foreseen else f"error: {type(error).__name__}: {error}")
    wrong_argument = (ValueError, TypeError, LookupError, ImportError, FileNotFoundError, NotADirectoryError)
    return 2 if foreseen and isinstance(error, wrong_argument) else 1


def _foreseen(error: Exception) -> bool:
    """Whether a `raise` statement of gradspec's made the exception: then its text is a sentence for the user.

    A bug in gradspec, or torch failing in a call from it, ends in a frame of gradspec too, but not at a `raise`.
    """
    end = error.__traceback__
    while end and end.tb_next:
        end = end.tb_next
    if end is None or isinstance(error, AssertionError):
        return False
    code, module = end.tb_frame.f_code.co_code, end.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] == "gradspec" and dis.opname[code[end.tb_lasti]] == "RAISE_VARARGS"
