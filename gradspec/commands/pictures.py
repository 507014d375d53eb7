"""The pictures that a command works on: of a folder, given one by one, or generated; and parts of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gradspec as gs
from gradspec.commands.options import note

if TYPE_CHECKING:
    import torch
    from torch import nn

_GENERATED = 16  # without --limit


class Chosen(Protocol):
    """The options by which a command names its pictures."""

    @property
    def images(self) -> Path | None:
        """The folder."""
        ...

    @property
    def limit(self) -> int | None:
        """At most so many."""
        ...

    @property
    def batch_size(self) -> int | None:
        """In a pass."""
        ...

    @property
    def seed(self) -> int:
        """Of everything drawn."""
        ...

    @property
    def size(self) -> int | None:
        """Side of the pictures."""
        ...


def folder_of(command: Chosen, model: nn.Module) -> Any:
    """Returns the pictures of --images in batches, as the model wants them."""
    batch = command.batch_size or 16
    assert command.images is not None
    return gs.load_images(command.images, model, command.limit, batch_size=batch, seed=command.seed, size=command.size)


def generated(command: Chosen, model: nn.Module, count: int = _GENERATED, *, say: bool = True) -> torch.Tensor:
    """Returns generated pictures (N, C, H, W) as the model wants them, drawn at its input size: nothing smooths them.

    Args:
        command: --limit says how many, --size how large.
        model: What takes them.
        count: N, where --limit does not say.
        say: That they are generated, on stderr.
    """
    from gradspec import demo

    height, width = (command.size, command.size) if command.size else input_size(model)
    images = demo.pictures(command.limit or count, size=(height, width), seed=command.seed).images
    if say:
        note(
            f"no --images: {len(images)} generated pictures, {height} x {width}, labelled by the network's predictions"
        )
    return as_input(model, images)


def as_input(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns the network's input for RGB pictures (N, 3, H, W) in 0..1, not resized where mean and std are known."""
    import torch
    from torchvision.transforms.functional import to_pil_image

    from gradspec.images import described

    mean, std = described(model, "mean"), described(model, "std")
    if mean is None or std is None or len(mean) != 3:
        preprocess = described(model, "preprocess")
        return torch.stack([preprocess(to_pil_image(image)) for image in images])
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def input_size(model: nn.Module) -> tuple[int, int]:
    """Returns the (height, width) to which the model's preprocessing brings a picture."""
    from PIL import Image

    from gradspec.images import described

    height, width = described(model, "preprocess")(Image.new("RGB", (256, 256))).shape[-2:]
    return height, width


def picture_files(given: Sequence[Path]) -> list[Path]:
    """Returns the files that are named, and in folders those that look like pictures; each once, in a fixed order.

    Raises:
        FileNotFoundError, ValueError: For what is not there, and for folders without pictures.
    """
    from gradspec.images.labels import SUFFIXES

    if not given:
        raise ValueError("Expected at least one IMAGE, a picture or a folder of pictures.")
    found: dict[Path, Path] = {}
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"There is no picture and no folder {path}.")
        below = [path]
        if path.is_dir():
            visible = (file for file in sorted(path.rglob("*")) if not _hidden(file.relative_to(path)))
            below = [file for file in visible if file.suffix.lower() in SUFFIXES and file.is_file()]
            if not below:
                raise ValueError(f"{path} holds no pictures ({', '.join(SUFFIXES)}).")
        for file in below:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


# ---- parts of them ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Held:
    """Pictures in memory that are gone through, and taken in parts, like those of a folder.

    Attributes:
        images: x (N, C, H, W), as the network wants them.
        labels: y (N,), or None: the network's predictions.
        ids: A name for each.
        batch_size: Of a batch.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    ids: tuple[str, ...]
    batch_size: int = 32

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, list[str]]]:
        """Yields batches in order."""
        for start in range(0, len(self.ids), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.images[part], None if self.labels is None else self.labels[part], list(self.ids[part])

    def subset(self, positions: Sequence[int]) -> Held:
        """Returns the pictures at these positions."""
        chosen = list(positions)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels, ids=tuple(self.ids[i] for i in chosen))


def held(images: torch.Tensor, labels: torch.Tensor | None = None) -> Held:
    """Returns pictures in memory under names made of their content."""
    from gradspec.data import names_of

    return Held(images, labels, tuple(names_of(images)))


def parted(pictures: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Returns two parts of the pictures without a common one, drawn from the seed, each in the order of the whole.

    Args:
        pictures: A `PictureFolder`, or `Held`.
        share: The first part's, above 0 and below 1.
        seed: Of the draw.

    Raises:
        ValueError: For fewer than two pictures.
    """
    import numpy as np

    count = len(pictures.ids)
    if count < 2:
        raise ValueError("Expected at least two pictures, one to fit cutoffs on and another to report on, got one.")
    order = np.random.default_rng(seed).permutation(count)
    first = min(max(round(share * count), 1), count - 1)
    return pictures.subset(sorted(order[:first].tolist())), pictures.subset(sorted(order[first:].tolist()))


def without(pictures: Any, names: Collection[str]) -> tuple[Any, int]:
    """Returns the pictures that do not have these names, and how many do.

    Raises:
        ValueError: All of them do.
    """
    kept = [place for place, name in enumerate(pictures.ids) if name not in names]
    if not kept:
        raise ValueError(
            f"All {len(pictures.ids)} pictures were used to fit the cutoffs: name other ones with --images, or more of "
            "them with --limit."
        )
    return pictures.subset(kept), len(pictures.ids) - len(kept)
