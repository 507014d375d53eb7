"""What `gradspec explain` writes of each picture: maps, overlays, a sheet of all, and a manifest."""

from __future__ import annotations

import itertools
import json
import platform
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradspec import plots
from gradspec.attributions import Attribution, GradCAM, GradCAMPlusPlus
from gradspec.data import picture_id
from gradspec.engine import Engine
from gradspec.explaining import pictures_at_once
from gradspec.forgrad import FORGrad
from gradspec.images import described, pixels_of
from gradspec.names import called, settings_of
from gradspec.plots._style import png_bytes
from gradspec.targets import label_probability

SHEET, MANIFEST = "contact-sheet.png", "manifest.json"
_MOST_ROWS = 20  # pictures in the sheet
_MOST_LINES = 50  # pictures in the table
_MOST_BYTES = 150  # of a file's name, which may have 255
_PACKAGES = ("gradspec", "torch", "torchvision", "timm", "numpy", "pillow", "matplotlib")

Named = tuple[str, Tensor]  # a picture's path and the network's input (C, H, W)


class Explanations:
    """A folder of explanations, each written as soon as it is there; `close` adds the sheet and the manifest.

    Args:
        engine: The network.
        methods: The attributions by the word that stands in the files' names.
        out: The folder.

    Attributes:
        rows: What is known of each picture, plain JSON: label, probabilities, and of each map files, passes, seconds.
        failed: Methods that were left out, with the reason.
    """

    def __init__(self, engine: Engine, methods: Mapping[str, Attribution], out: Path) -> None:
        self.engine, self.methods, self.out = engine, methods, out
        self.rows: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
        self._classes: list[str] | None = described(engine.model, "classes")
        self._shown: list[np.ndarray] = []
        self._notes: dict[str, list[str]] = {}
        self._taken: set[str] = set()

    def add(self, pictures: Iterable[Named], label: int | None, count: int) -> None:
        """Explains pictures of any sizes, under one bar.

        Args:
            pictures: Their paths and the network's inputs.
            label: The class to be explained; None: the network's prediction.
            count: How many pictures there are, for the bar.
        """
        methods, bar = list(self.methods.values()), None
        with ExitStack() as stack:
            for names, images in _of_one_size(pictures, methods):
                if bar is None:  # the first picture says how many passes there will be
                    each = sum(method.passes(*images.shape[-2:]) for method in methods) + (2 if label is None else 3)
                    bar = stack.enter_context(self.engine.bar("explain", count * each))
                with self.engine.counted_by(bar):
                    self._add(names, images, label)

    @property
    def finished(self) -> int:
        """Returns how many pictures have the maps of all methods."""
        return sum(row["maps"].keys() == self.methods.keys() - self.failed.keys() for row in self.rows)

    def _add(self, names: list[str], images: Tensor, label: int | None) -> None:
        rows, labels = self._answers(names, images, label)
        self.rows += rows
        pixels = pixels_of(self.engine.model, images)
        self._shown += list(pixels[: _MOST_ROWS - len(self._shown)])
        for word, method in self.methods.items():
            if word in self.failed:
                continue
            try:
                maps, cost = self._explained(word, method, images, labels)
            except (ValueError, RuntimeError) as error:  # it does not apply to this network: the others may
                self.failed[word] = " ".join(str(error).split())
                warnings.warn(f"{word} is left out: {self.failed[word]}", stacklevel=2)
                continue
            for row, picture, values in zip(rows, pixels, maps, strict=True):
                row["maps"][word] = self._written(row, word, picture, values) | cost

    def _answers(self, names: list[str], images: Tensor, label: int | None) -> tuple[list[dict[str, Any]], Tensor]:
        """What the network says of the pictures, and the classes to be explained (N,)."""
        predicted = self.engine.predictions(images)
        labels = predicted if label is None else torch.full_like(predicted, label)
        best = _probabilities(self.engine, images, predicted)
        found = best if label is None else _probabilities(self.engine, images, labels)
        columns = {
            "picture": names,
            "id": [picture_id(image) for image in images],
            "size": [list(images.shape[-2:])] * len(images),
            "label": labels.tolist(),
            "class": [self._class(i) for i in labels.tolist()],
            "probability": found.tolist(),
            "predicted": predicted.tolist(),
            "predicted_class": [self._class(i) for i in predicted.tolist()],
            "predicted_probability": best.tolist(),
            "file": [self._file_name(name) for name in names],
        }
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [row | {"maps": {}} for row in rows], labels

    def _class(self, index: int) -> str | None:
        return self._classes[index] if self._classes and index < len(self._classes) else None

    def _file_name(self, path: str) -> str:
        """The picture's name as the beginning of its files' names, unlike any before, also to a Mac."""
        stem = re.sub(r"[^\w.-]+", "-", Path(path).stem).strip("-.") or "picture"
        stem = stem.encode()[:_MOST_BYTES].decode(errors="ignore")
        names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        name = next(name for name in names if name.casefold() not in self._taken)
        self._taken.add(name.casefold())
        return name

    def _explained(
        self, word: str, method: Attribution, images: Tensor, labels: Tensor
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The maps (N, H, W), and what one of them took."""
        engine, count = self.engine, len(images)
        forwards, backwards, began = engine.forwards, engine.backwards, time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            maps = method(engine, images, labels).cpu().numpy()
        inner = method.attribution if isinstance(method, FORGrad) else method
        found = {"layer": inner.layer_of(engine, images)} if isinstance(inner, (GradCAM, GradCAMPlusPlus)) else {}
        cost = {
            "forwards": (engine.forwards - forwards) // count,
            "backwards": (engine.backwards - backwards) // count,
            "seconds": round((time.perf_counter() - began) / count, 4),
            **found,
        }
        self._note(word, [str(warning.message) for warning in caught])
        return maps, cost

    def _note(self, word: str, sentences: list[str]) -> None:
        """Passes warnings on, each once and not for every batch."""
        known = self._notes.setdefault(word, [])
        for sentence in dict.fromkeys(sentences):
            if sentence not in known:
                known.append(sentence)
                warnings.warn(f"{word}: {sentence}", stacklevel=2)

    def _written(self, row: dict[str, Any], word: str, pixels: np.ndarray, values: np.ndarray) -> dict[str, str]:
        """The names of the files that hold a map and its overlay."""
        name = f"{row['file']}.{word}"
        np.save(self.out / f"{name}.npy", values)
        title = [Path(row["picture"]).name, f"{called(self.methods[word])} · {_said(row)}"]
        self.out.joinpath(f"{name}.png").write_bytes(png_bytes(plots.overlay(pixels, values, title)))
        return {"map": f"{name}.npy", "overlay": f"{name}.png"}

    # ---- all of them -------------------------------------------------------------------------

    def close(self, facts: Mapping[str, Any]) -> None:
        """Writes the sheet and the manifest of what is there; nothing where nothing is.

        Args:
            facts: Further entries of the manifest.
        """
        if not any(row["maps"] for row in self.rows):
            return
        self.out.joinpath(MANIFEST).write_text(
            json.dumps(self._manifest() | dict(facts), indent=1, ensure_ascii=False), encoding="utf-8"
        )
        self.out.joinpath(SHEET).write_bytes(self._sheet())

    def _manifest(self) -> dict[str, Any]:
        engine = self.engine
        spec = described(engine.model, "spec") or {}
        methods = {word: settings_of(method) for word, method in self.methods.items()}
        for word, notes in self._notes.items():
            methods[word]["notes"] = notes
        for word, reason in self.failed.items():
            methods[word]["left_out"] = reason
        return {
            "model": spec.get("spec"),
            "weights": spec.get("weights"),
            "weights_sha256": spec.get("weights_sha256"),
            "methods": methods,
            "units": engine.units,
            "precision": engine.precision,
            "device": str(engine.device),
            "form": engine.form,
            "pictures": self.rows,
            "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "model_spec": spec,
        }

    def _sheet(self) -> bytes:
        rows = [
            plots.Shown(pixels, _beside(row), self._read(row))
            for pixels, row in zip(self._shown, self.rows, strict=False)
        ]
        model = str((described(self.engine.model, "spec") or {}).get("spec", "")).rpartition("/")[2]
        many = f"the first {len(rows)} of {len(self.rows)} pictures" if len(self.rows) > len(rows) else ""
        return png_bytes(plots.contact_sheet(rows, " · ".join(filter(None, [model, many]))))

    def _read(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        names = {word: called(method) for word, method in self.methods.items()}
        return {names[word]: np.load(self.out / found["map"]) for word, found in row["maps"].items()}

    def table(self) -> str:
        """Returns picture, label, probability and the seconds of each method, a line each."""
        head = ["picture", "label", "probability", *(f"{called(m)} s" for m in self.methods.values())]
        lines = [head]
        for row in self.rows[:_MOST_LINES]:
            seconds = [f"{row['maps'][word]['seconds']:.3f}" if word in row["maps"] else "-" for word in self.methods]
            lines.append([Path(row["picture"]).name, _called(row), f"{row['probability']:.4f}", *seconds])
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        more = len(self.rows) - _MOST_LINES
        return "\n".join(text + ([f"... and {more} more, see {MANIFEST}"] if more > 0 else []))


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    pairs = list(zip(cells, widths, strict=True))
    return [cell.ljust(width) for cell, width in pairs[:2]] + [cell.rjust(width) for cell, width in pairs[2:]]


def _called(row: dict[str, Any], which: str = "") -> str:
    """The first name of a row's label, or of what was predicted."""
    name = row[f"{which}class"]
    return name.partition(",")[0] if name else f"class {row['predicted' if which else 'label']}"


def _said(row: dict[str, Any]) -> str:
    return f"{_called(row)} {_share(row['probability'])}"


def _share(probability: float) -> str:
    return f"{probability:.2f}" if probability >= 0.01 else f"{probability:.1g}"


def _beside(row: dict[str, Any]) -> list[str]:
    lines = [Path(row["picture"]).name, _said(row)]
    if row["label"] != row["predicted"]:
        lines += ["predicted:", f"{_called(row, 'predicted_')} {_share(row['predicted_probability'])}"]
    return lines


def _of_one_size(pictures: Iterable[Named], methods: list[Attribution]) -> Iterator[tuple[list[str], Tensor]]:
    """Neighbours of one size, so many as are worth working on together: what is finished is soon on the disk."""
    names: list[str] = []
    inputs: list[Tensor] = []
    for name, image in pictures:
        if inputs and (image.shape != inputs[0].shape or len(inputs) == pictures_at_once(image.shape, *methods)):
            yield names, torch.stack(inputs)
            names, inputs = [], []
        names.append(name)
        inputs.append(image)
    if inputs:
        yield names, torch.stack(inputs)


def _probabilities(engine: Engine, images: Tensor, labels: Tensor) -> Tensor:
    """The softmax probability of each picture's label (N,)."""
    found = [
        engine.scores(part, 1, lambda i, j, part=part: part.images[i], label_probability)[:, 0]
        for part in engine.groups(images, labels, [""] * len(images))
    ]
    return torch.cat(found).cpu()
