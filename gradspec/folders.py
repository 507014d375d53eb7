"""The folder a run writes to: found or made before the work, never one that holds somebody's files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def first_free(model: str, parent: Path = Path("runs")) -> Path:
    """Returns the first of parent/MODEL-1, parent/MODEL-2, ... that is not there yet.

    Example:
        >>> first_free("path/to/my_nets.py:small", Path("no-such-folder")).as_posix()
        'no-such-folder/my_nets-small-1'
    """
    last = model.rsplit("/", 1)[-1].replace(".py:", "-")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "model"
    return next(path for n in itertools.count(1) if not (path := parent / f"{name}-{n}").exists())


def numbered(number: int, name: str) -> str:
    """Returns a folder's name for a part of any name: the number tells apart what a file system does not.

    Example:
        >>> numbered(2, "avgpool+recalibrated"), numbered(3, "猫")
        ('02-avgpool-recalibrated', '03')
    """
    return f"{number:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[:40]}".strip("-")


@contextmanager
def claimed(folder: Path, mark: str | None = None) -> Iterator[Path]:
    """Yields the folder, made at once so that no other run takes its name; what it made and left empty goes again.

    Args:
        folder: A new folder, an empty one, or one of ours to be written again.
        mark: Name of the file by which a folder with files is known to be ours; None: no such folder is.

    Raises:
        ValueError: The folder holds files that may not be overwritten, or cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with claimed(Path(parent, "run")) as run:
        ...         _ = run.joinpath("table.csv").write_text("a,b")
        ...     with claimed(Path(parent, "run")) as run:
        ...         pass
        Traceback (most recent call last):
        ValueError: ...run already holds files: name a new folder with --out, or remove this one.
    """
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # a mark that another process is about to write is none of somebody's files
    if any(not (mark and name.startswith(f".{mark}.")) for name in files) and (not mark or mark not in files):
        raise ValueError(f"{folder} already holds files: name a new folder with --out, or remove this one.")
    made = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot make the folder {folder} ({error.strerror}): name another one with --out.") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # rmdir refuses a folder that holds anything
            for path in made:
                path.rmdir()
