"""One explanation for many filters: of its gradients, and of its finished maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradspec.attributions.base import Attribution, Explain, explained
from gradspec.attributions.filters import UNFILTERED, LowPass, filtered
from gradspec.attributions.smooth import Noisy, of_one_stream
from gradspec.attributions.white import White
from gradspec.engine import Engine, Pictures
from gradspec.forgrad.layers import LowPassGrad


class Wish(NamedTuple):
    """One attribution's maps: what explains, the filter of each of its gradients, and that of its finished maps."""

    source: Explain
    drawn: LowPass = UNFILTERED
    finish: LowPass | None = None

    @property
    def key(self) -> Any:
        """Equal for equal attributions of gradspec's; of other libraries' only for the same object."""
        try:
            hash(self.source)
        except TypeError:
            return id(self.source)
        return self.source if isinstance(self.source, Attribution) else id(self.source)

    @property
    def stream(self) -> Any:
        """Equal for attributions that can share their gradients too."""
        key = self.key
        return key.draws if isinstance(key, Noisy) else key

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward passes one picture takes, 1 where nobody says it."""
        return self.source.passes(height, width) if isinstance(self.source, Attribution) else 1


def streams(wishes: Sequence[Wish]) -> list[list[Wish]]:
    """Returns the wishes in groups, each of which one stream of gradients or one explanation fulfils."""
    found: dict[Any, list[Wish]] = {}
    for wish in wishes:
        found.setdefault(wish.stream, []).append(wish)
    return list(found.values())


def maps_of_group(engine: Engine, wishes: Sequence[Wish], pictures: Pictures) -> list[Tensor]:
    """Returns the maps of one group of pictures, in the order of the wishes.

    Raises:
        ValueError: For a filter of gradients where a foreign attribution draws none at the input.
    """
    raw: dict[tuple[Any, LowPass], Tensor] = {}
    for stream in streams(wishes):
        raw |= _explained(engine, stream, pictures)
    maps = [raw[wish.key, wish.drawn] for wish in wishes]
    finishes: dict[tuple[Any, LowPass], dict[int, LowPass]] = {}
    for place, wish in enumerate(wishes):
        if wish.finish is not None:
            finishes.setdefault((wish.key, wish.drawn), {})[place] = wish.finish
    for source, places in finishes.items():
        for place, found in zip(places, filtered(_magnitude(raw[source]), [*places.values()]), strict=True):
            maps[place] = found.abs()
    return maps


def _magnitude(maps: Tensor) -> Tensor:
    """|mean_c φ_c| (N, H, W), float32 as all maps are."""
    return (maps.mean(1) if maps.ndim == 4 else maps).float().abs()


def _explained(engine: Engine, stream: Sequence[Wish], pictures: Pictures) -> dict[tuple[Any, LowPass], Tensor]:
    """The unfinished maps of one stream, each once, by the wish's key and the filter of its gradients."""
    sources = {wish.key: wish.source for wish in stream}
    filters = {key: list(dict.fromkeys(wish.drawn for wish in stream if wish.key == key)) for key in sources}
    first, lows = stream[0].source, filters[stream[0].key]
    if isinstance(first, Noisy):
        methods: Any = [*sources.values()]  # all of the same draws
        maps = of_one_stream(methods, engine, pictures, [*filters.values()])
    elif isinstance(first, White):
        maps = [first._filtered(engine, pictures, lows)]
    else:
        maps = [[_foreign(engine, first, low, pictures) for low in lows]]
    pairs = [(key, low) for key, of_key in filters.items() for low in of_key]
    return dict(zip(pairs, (found for of_key in maps for found in of_key), strict=True))


def _foreign(engine: Engine, attribution: Explain, low: LowPass, pictures: Pictures) -> Tensor:
    """The maps of what draws its gradients itself, behind a filter of them."""
    if low.cutoff is None:
        return explained(engine, attribution, *pictures)
    front, drawn = LowPassGrad(*low), []

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: drawn.append(True))

    front.register_forward_hook(watch)
    maps = explained(engine, attribution, *pictures, front=front)
    if not drawn:
        raise ValueError(
            f"Expected a method that draws gradients at the input, got {type(attribution).__name__}, of which none was "
            "filtered: use where='attribution'."
        )
    return maps
