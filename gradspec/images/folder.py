"""A folder of pictures as batches for a network: decoded when asked for, the same at every pass."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from .labels import ClassIndex, PictureError, listing
from .preprocessing import as_rgb, described, plain

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no EPS: Pillow runs Ghostscript for it
MAX_ASPECT = 100  # a longer strip grows beyond memory when its shorter side is resized
_WORKERS, _AHEAD = 2, 16  # threads that decode, pictures in flight

Batch = tuple[Tensor, Tensor | None, list[str]]


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """The pictures of a folder: iterate for batches (images (N, C, H, W), labels (N,) or None, ids), again and again.

    A picture that cannot be read is left out, by name and reason in `skipped`; batches stay full. At the end of the
    pass that found it, a warning says so.

    Attributes:
        folder: Where the pictures are.
        ids: Path of each picture relative to the folder.
        labels: Class index of each (len(ids),) int64, or None: the folder names no classes.
        preprocess: Picture -> network input (C, H, W).
        batch_size: Pictures of a batch; the last may be smaller.
        skipped: Name -> reason of pictures left out so far.
    """

    folder: Path
    ids: tuple[str, ...]
    labels: Tensor | None
    preprocess: Callable[[Image.Image], Tensor]
    batch_size: int = 16
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of pictures, those known to be unreadable left out."""
        return sum(name not in self.skipped for name in self.ids)

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches in the order of `ids`.

        Raises:
            PictureError: No picture can be read, or the preprocessing fails.
        """
        known, count = set(self.skipped), 0
        with contextlib.closing(self._pictures()) as pictures:
            while batch := list(itertools.islice(pictures, self.batch_size)):
                count += len(batch)
                yield self._stacked(batch)
        new = {name: reason for name, reason in self.skipped.items() if name not in known}
        if not count:
            raise PictureError(_none_readable(self.folder, self.skipped))
        if new:
            warnings.warn(f"Skipped in {self.folder}: {_told(new)}.", stacklevel=2)

    def subset(self, positions: Sequence[int] | range) -> PictureFolder:
        """Returns the pictures at these positions of `ids`, for example `range(8)`."""
        chosen = list(positions)
        labels = None if self.labels is None else self.labels[chosen]
        ids = tuple(self.ids[i] for i in chosen)
        others = set(self.ids).difference(ids)  # what only labels.csv knows stays
        skipped = {name: reason for name, reason in self.skipped.items() if name not in others}
        return replace(self, ids=ids, labels=labels, skipped=skipped)

    def _pictures(self) -> Generator[tuple[int, Tensor], None, None]:
        """Position and network input of each readable picture, a few decoded ahead."""
        waiting = (i for i, name in enumerate(self.ids) if name not in self.skipped)
        running: deque[tuple[int, Image.Image | str, Future[Tensor | str]]] = deque()
        pool = ThreadPoolExecutor(_WORKERS)
        try:
            while True:
                for i in itertools.islice(waiting, _AHEAD - len(running)):
                    opened = _opened(self.folder / self.ids[i])
                    running.append((i, opened, pool.submit(self._decoded, self.ids[i], opened)))
                if not running:
                    return
                i, _, future = running[0]
                result = future.result()
                running.popleft()
                if isinstance(result, str):
                    self.skipped[self.ids[i]] = result
                else:
                    yield i, result
        finally:
            pool.shutdown(cancel_futures=True)
            for _, opened, _ in running:
                if isinstance(opened, Image.Image):
                    opened.close()

    def _decoded(self, name: str, opened: Image.Image | str) -> Tensor | str:
        """The network's input, or why the picture cannot be read."""
        if isinstance(opened, str):
            return opened
        try:
            with opened:
                picture = as_rgb(opened)
        except Exception as error:  # Pillow's decoders raise what they like
            return _reason(error)
        try:
            result = self.preprocess(picture)
        except Exception as error:
            raise PictureError(f"The preprocessing fails at {name} ({type(error).__name__}: {error}).") from error
        if not isinstance(result, Tensor) or result.ndim != 3:
            shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise PictureError(f"The preprocessing makes {shape} of {name}: expected a tensor (C, H, W).")
        return result

    def _stacked(self, batch: list[tuple[int, Tensor]]) -> Batch:
        positions, inputs = [i for i, _ in batch], [x for _, x in batch]
        ids = [self.ids[i] for i in positions]
        odd = next((i for i, x in enumerate(inputs) if x.shape != inputs[0].shape), None)
        if odd is not None:
            raise PictureError(
                f"The preprocessing makes {tuple(inputs[0].shape)} of {ids[0]} and {tuple(inputs[odd].shape)} of "
                f"{ids[odd]}: expected one size for all, so let it crop."
            )
        return torch.stack(inputs), None if self.labels is None else self.labels[positions], ids


def load_images(
    folder: str | os.PathLike[str],
    model: nn.Module | None = None,
    limit: int | None = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    size: int | None = None,
) -> PictureFolder:
    """Returns the pictures of a folder as the model wants them, with the labels that the folder tells.

    - `labels.csv` in the folder: its rows, in their order; columns `file` and `index`, or `wnid`, `class`, `label`.
    - Sub-folders: one per class, named by WordNet id (also within the name) or by the model's name of it, without
      regard to case, `_` and `-`. They are never numbered.
    - Pictures alone: labels are None, which stands for the model's own prediction.

    Hidden files are ignored; otherwise pictures come sorted by path. They are turned upright and to RGB.

    Args:
        folder: The folder.
        model: Gives the preprocessing and the classes, as `load_model` returns it. None: pixels in 0..1, the shorter
            side resized, 224 x 224 from the centre.
        limit: At most so many pictures: a subset drawn from `seed`, in the folder's order. A smaller limit draws a part
            of a larger one's.
        batch_size: Pictures of a batch.
        seed: Seed of the subset.
        size: Side in pixels, where it shall differ from the model's own.

    Raises:
        PictureError: No pictures, none that can be read, classes that the model does not have, or a file of labels.csv
            outside the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (40, 30), 51).save(Path(folder, "grey.png"))
        ...     [(images, labels, ids)] = load_images(folder, size=8)
        >>> images.shape, round(images.mean().item(), 4), labels, ids
        (torch.Size([1, 3, 8, 8]), 0.2, None, ['grey.png'])
    """
    for name, value in {"limit": limit, "batch_size": batch_size, "size": size}.items():
        if value is not None and value < 1:
            raise PictureError(f"expected {name} of at least 1, got {value}.")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"expected model as a torch.nn.Module, got {type(model).__name__}")
    folder = Path(folder)
    found = listing(folder, _class_index(model))
    if found.missing:
        told = _told(found.missing)
        warnings.warn(f"Skipped in {folder}: {told}.", stacklevel=2)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(found.ids))[:limit])
    labels = None if found.labels is None else torch.tensor(found.labels)[torch.from_numpy(chosen)]
    ids = tuple(found.ids[i] for i in chosen)
    pictures = PictureFolder(folder, ids, labels, _preprocess(model, size), batch_size, dict(found.missing))
    _check_readable(pictures)
    return pictures


def _class_index(model: nn.Module | None) -> ClassIndex:
    if model is None:
        return ClassIndex(None, None)
    wnids = described(model, "wnids")
    return ClassIndex(described(model, "classes"), wnids, _synonyms(wnids))


def _synonyms(wnids: Sequence[str] | None) -> list[str] | None:
    """WordNet's words for each class, such as `tench, Tinca tinca`."""
    if not wnids:
        return None
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [_or_empty(info.label_name_to_description, wnid) for wnid in wnids]


def _or_empty(look_up: Callable[[str], str], wnid: str) -> str:
    try:
        return look_up(wnid)
    except KeyError:
        return ""


def _preprocess(model: nn.Module | None, size: int | None) -> Callable[[Image.Image], Tensor]:
    own: Any = plain() if model is None else described(model, "preprocess")
    if own is None:
        raise PictureError(
            "The model carries no preprocess: load it with load_model, or set model.preprocess to a function of a "
            "PIL image that returns the network's input (C, H, W)."
        )
    if model is not None and size == (described(model, "spec") or {}).get("size"):  # the network's own
        size = None
    if size is None or hasattr(own, "at"):
        return own if size is None else own.at(size)
    mean, std = described(model, "mean"), described(model, "std")
    if mean is None or std is None:
        raise PictureError("The model's preprocess has a size of its own: leave out size.")
    return plain(mean, std).at(size)


def _check_readable(pictures: PictureFolder) -> None:
    """Raises now and not at the first pass where no picture can be read."""
    skipped: dict[str, str] = {}
    for name in pictures.ids:
        result = pictures._decoded(name, _opened(pictures.folder / name))
        if isinstance(result, Tensor):
            return
        skipped[name] = result
    raise PictureError(_none_readable(pictures.folder, skipped))


def _opened(path: Path) -> Image.Image | str:
    """The picture with its header read, or why it is refused.

    In the caller's thread: filters of warnings belong to the whole process.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"refused: more than {Image.MAX_IMAGE_PIXELS} pixels, a decompression bomb"
    except Exception as error:
        return _reason(error)
    width, height = picture.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        picture.close()
        return f"refused: a strip of {width} x {height} pixels"
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"


def _none_readable(folder: Path, skipped: dict[str, str]) -> str:
    return f"No picture in {folder} can be read; skipped: {_told(skipped)}."


def _told(skipped: dict[str, str], shown: int = 5) -> str:
    told = "; ".join(f"{name}: {reason}" for name, reason in itertools.islice(skipped.items(), shown))
    return f"{len(skipped)} picture(s) ({told}{'; ...' if len(skipped) > shown else ''})"
