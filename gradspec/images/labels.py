"""Which pictures a folder holds and which class each one shows: sub-folders, labels.csv, or nothing at all."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
LABELS_FILE = "labels.csv"
_FILE_COLUMNS = ("file", "filename", "path")
_CLASS_COLUMNS = ("wnid", "class", "label")
_SPLITS = {"train", "val", "valid", "validation", "test"}


class PictureError(ValueError):
    """A folder of pictures cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder.

    Attributes:
        ids: Their paths relative to the folder, with `/`, in a fixed order.
        labels: Class index of each, or None where the folder says nothing.
        missing: Name -> reason of those that labels.csv lists but the folder lacks, and of those without a name in
            UTF-8.
    """

    ids: tuple[str, ...]
    labels: tuple[int, ...] | None
    missing: dict[str, str] = field(default_factory=dict)


class ClassIndex:
    """Finds a model's class by WordNet id or name.

    Args:
        classes: Names, each perhaps with synonyms as in `tench, Tinca tinca`; None: unknown.
        wnids: WordNet ids in the same order; None: unknown.
        synonyms: Other names of each class, asked after the model's own.

    Example:
        >>> index = ClassIndex(["tench, Tinca tinca", "Cardigan, Welsh corgi", "cardigan"], ["n01", "n02", "n02963159"])
        >>> index.find("tinca_tinca"), index.find("n02963159-knitted"), index.find("Cardigan"), index.find("shark")
        (0, 2, 1, None)
    """

    def __init__(
        self, classes: Sequence[str] | None, wnids: Sequence[str] | None, synonyms: Sequence[str] | None = None
    ) -> None:
        self.size = len(classes or wnids or ())
        self.wnids = wnids
        self._by_wnid = {wnid: index for index, wnid in enumerate(wnids or ())}
        # From strict to loose, since ImageNet has both a Cardigan (a dog) and a cardigan.
        self._levels = [*_levels(classes or ()), *_levels(synonyms or ())]

    def find(self, name: str) -> int | None:
        """Returns the class index of a WordNet id or name, None where there is none.

        Raises:
            PictureError: The name stands for several classes.
        """
        wnid = re.search(r"(?<![A-Za-z0-9])n\d{8}(?!\d)", name)
        if wnid and wnid[0] in self._by_wnid:
            return self._by_wnid[wnid[0]]
        several: set[int] = set()
        for level, key in zip(self._levels, _keys(name) * 2, strict=True):
            found = level.get(key, set())
            if len(found) == 1:
                return min(found)
            several = several or found
        if several:
            raise PictureError(f"{name!r} names the model's classes {sorted(several)}: use WordNet ids or indices.")
        return None


def _levels(names: Sequence[str]) -> list[dict[str, set[int]]]:
    """For each form of `_keys`: names and their synonyms -> class indices."""
    levels: list[dict[str, set[int]]] = [{}, {}, {}]
    for index, name in enumerate(names):
        for synonym in filter(None, {name, *name.split(",")}):
            for level, key in zip(levels, _keys(synonym), strict=True):
                level.setdefault(key, set()).add(index)
    return levels


def _keys(name: str) -> tuple[str, str, str]:
    """A name as it stands, with _ and - as spaces, and without case and apostrophes."""
    spaced = re.sub(r"[\s_-]+", " ", name).strip()
    return name.strip(), spaced, re.sub(r"['’.]", "", spaced).casefold()


def listing(folder: Path, classes: ClassIndex) -> Listing:
    """Returns the pictures of a folder with their classes.

    Raises:
        PictureError: No pictures, or classes that cannot be told.
    """
    if not folder.is_dir():
        raise PictureError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}: expected a folder of pictures."
        )
    if (folder / LABELS_FILE).is_file():
        return _from_csv(folder, classes)
    flat = [path.name for path in _visible(folder) if _is_picture(path)]
    trees = {path.name: sorted(_below(path, path.name)) for path in _visible(folder) if path.is_dir()}
    trees = {name: ids for name, ids in trees.items() if ids}
    if flat and trees:
        raise PictureError(
            f"{folder} holds both pictures and sub-folders of pictures ({_first(trees)}): sort all pictures into "
            f"sub-folders by class, or list them in {LABELS_FILE}."
        )
    if not flat and not trees:
        raise PictureError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    found = _from_tree(folder, trees, classes) if trees else Listing(tuple(sorted(flat)), None)
    return _writable(found)


def _writable(found: Listing) -> Listing:
    """The pictures whose names are UTF-8: others cannot be written into a result."""
    odd = {name: name.encode("utf-8", "backslashreplace").decode() for name in found.ids}
    odd = {name: shown for name, shown in odd.items() if shown != name}
    if not odd:
        return found
    kept = [place for place, name in enumerate(found.ids) if name not in odd]
    ids = tuple(found.ids[place] for place in kept)
    labels = None if found.labels is None else tuple(found.labels[place] for place in kept)
    return Listing(ids, labels, found.missing | dict.fromkeys(odd.values(), "its name is not UTF-8"))


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _below(folder: Path, prefix: str, above: tuple[Path, ...] = ()) -> list[str]:
    """The pictures anywhere below; a link back to a folder above is not followed."""
    found, above = [], (*above, folder.resolve())
    for path in _visible(folder):
        if path.is_dir():
            found += [] if path.resolve() in above else _below(path, f"{prefix}/{path.name}", above)
        elif _is_picture(path):
            found.append(f"{prefix}/{path.name}")
    return found


def _from_tree(folder: Path, trees: dict[str, list[str]], classes: ClassIndex) -> Listing:
    if not classes.size:
        raise PictureError(
            f"The sub-folders of {folder} ({_first(trees)}) are classes, but no class names are known to match them: "
            "pass a model that has .classes or .wnids, as load_model gives it."
        )
    found = {name: classes.find(name) for name in trees}
    unmatched = [name for name, index in found.items() if index is None]
    if unmatched:
        split = next((name for name in trees if name.lower() in _SPLITS), None)
        advice = f"did you mean {folder / split}?" if split else "name them by WordNet id or as the model's classes."
        raise PictureError(
            f"{len(unmatched)} of {len(trees)} sub-folders of {folder} are none of the model's {classes.size} classes "
            f"({_first(unmatched)}): {advice}"
        )
    pairs = sorted((picture, found[name]) for name, pictures in trees.items() for picture in pictures)
    return Listing(tuple(picture for picture, _ in pairs), tuple(index or 0 for _, index in pairs))


def _from_csv(folder: Path, classes: ClassIndex) -> Listing:
    found: dict[str, int] = {}
    missing: dict[str, str] = {}
    for place, row in _rows(folder / LABELS_FILE):
        name = _inside(folder, row, place)
        label = _class_of(row, classes, place)
        if found.setdefault(name, label) != label:
            raise PictureError(f"{place} gives {name} the class {label}, an earlier row {found[name]}: keep one.")
        if not (folder / name).is_file():
            missing[name] = f"not there, but in {LABELS_FILE}"
    ids = tuple(name for name in found if name not in missing)
    if not ids:
        reason = f"none of its {len(missing)} files is there ({_first(missing)})" if missing else "it has no rows"
        raise PictureError(f"{folder / LABELS_FILE} lists no pictures: {reason}.")
    return Listing(ids, tuple(found[name] for name in ids), missing)


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Place (for messages) and cells of each row, by lower-case column."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise PictureError(f"{path} is not a CSV file in UTF-8 ({error}).") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(header) & set(_FILE_COLUMNS) or not set(header) & {"index", *_CLASS_COLUMNS}:
        raise PictureError(
            f"{path} has the columns {', '.join(header) or 'none'}: expected file and one of index, wnid, class, label."
        )
    cells = (dict(zip(header, (cell.strip() for cell in row), strict=False)) for row in rows[1:])
    return [(f"{path}, row {number},", row) for number, row in enumerate(cells, start=2)]


def _inside(folder: Path, row: dict[str, str], place: str) -> str:
    """The picture's id: its path below the folder, wherever links lead no further out."""
    name = next((row[column] for column in _FILE_COLUMNS if row.get(column)), "")
    root = folder.resolve()
    try:
        inside = bool(name) and (root / name).resolve().is_relative_to(root)
        (root / name).is_file()  # raises for a name that no file can have
    except (OSError, RuntimeError, ValueError):  # too long, a NUL, a link to itself
        inside = False
    if not inside:
        raise PictureError(f"{place} names {name!r}: expected a file inside the folder.")
    return Path(name).as_posix()


def _class_of(row: dict[str, str], classes: ClassIndex, place: str) -> int:
    """The row's class index; index and wnid must agree where both are known."""
    names = [row[column] for column in _CLASS_COLUMNS if row.get(column)]
    number = row.get("index") or next((name for name in names if name.isdecimal() and classes.find(name) is None), "")
    if not number:
        return _class_named(names, classes, place)
    if not number.isdecimal() or (classes.size and int(number) >= classes.size):
        allowed = f"0 to {classes.size - 1}" if classes.size else "0 or more"
        raise PictureError(f"{place} has the class index {number!r}: expected {allowed}.")
    index, wnid = int(number), row.get("wnid")
    if wnid and classes.wnids and classes.wnids[index] != wnid:
        raise PictureError(
            f"{place} says index {index} is {wnid}, the model that it is {classes.wnids[index]}: "
            "leave out the column index where it counts other classes than the model's."
        )
    return index


def _class_named(names: list[str], classes: ClassIndex, place: str) -> int:
    for name in names:
        index = classes.find(name)
        if index is not None:
            return index
    known = f"none of the model's {classes.size} classes" if classes.size else "unknown without a model's classes"
    raise PictureError(f"{place} has the class {names[0] if names else ''!r}: {known}.")


def _first(names: Iterable[str], shown: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
