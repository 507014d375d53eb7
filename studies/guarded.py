"""Runs a study that ends with the process that started it, even where that was killed: for `all_studies.py`.

    python studies/guarded.py studies/propositions.py --smoke

Standard input is a pipe whose other end that process holds: it closes when the process is gone. The study is then
interrupted, as by Ctrl-C, and killed with all that it started where this takes too long. It must lead a process group
of its own.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE = 10.0  # seconds that an interrupted study has to end


def watch(patience: float = PATIENCE) -> None:
    """Waits for the end of standard input, and ends this process then."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(patience)
    os.killpg(0, signal.SIGKILL)


def main(argv: Sequence[str]) -> None:
    """Runs a script with its options, as Python itself would."""
    script = argv[0]
    threading.Thread(target=watch, daemon=True).start()
    sys.argv, sys.path[0] = list(argv), str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
