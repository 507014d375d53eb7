"""From a picture to a network's input: upright 8-bit RGB, resize, crop, normalisation, and its mean and std."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224
CROP = 0.875  # side of the centre crop over the resized shorter side: 224 of 256, the field's habit

Transform = Callable[[Image.Image], Tensor]


class Preprocess:
    """Turns a picture (PIL, any mode) into a network's input (C, H, W), float32.

    Args:
        make: Makes the transform of an upright RGB picture for a side in pixels, None: the network's own.
        size: That side.
    """

    def __init__(self, make: Callable[[int | None], Transform], size: int | None = None) -> None:
        self._make, self._transform = make, make(size)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Returns the network's input (C, H, W) for a picture of any size and mode."""
        if not isinstance(picture, Image.Image):
            raise TypeError(f"expected a PIL image, got {type(picture).__name__}; open the file with PIL.Image.open")
        return self._transform(as_rgb(picture))

    def at(self, size: int) -> Preprocess:
        """Returns the same preprocessing for `size` x `size` pixels, the ratio of resize to crop kept."""
        return Preprocess(self._make, size)

    def __repr__(self) -> str:
        return f"Preprocess({self._transform!r})"


def as_rgb(picture: Image.Image) -> Image.Image:
    """Returns the picture upright (EXIF orientation) in 8-bit RGB: first frame, transparency dropped, 16 bits scaled.

    Raises:
        ValueError: Floating-point pixels outside 0..255.

    Example:
        >>> as_rgb(Image.fromarray(np.full((2, 3), 65535, np.uint16))).getpixel((0, 0))
        (255, 255, 255)
    """
    picture.load()  # a truncated file raises here, once
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":  # Pillow's own conversion clips these at 255
        picture = _eight_bit(picture)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, Pillow warns
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float64)
    low, high = pixels.min(), pixels.max()
    if picture.mode == "F":
        if not (low >= 0 and high <= 255):
            raise ValueError(f"floating-point pixels from {low:g} to {high:g}, not in 0..1 or 0..255")
        scale = 255.0 if high <= 1 else 1.0
    else:
        scale = 1 / 257 if picture.mode.startswith("I;16") or high > 255 else 1.0  # 65535 / 257 = 255
    return Image.fromarray(np.round(np.clip(pixels * scale, 0, 255)).astype(np.uint8))


def plain(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Preprocess:
    """Returns the preprocessing of a network that brings none: 256/224 resize, centre crop, 0..1, then mean and std.

    A picture whose shorter side has the resized length already is not resampled.
    """
    if mean is None or std is None:
        return Preprocess(functools.partial(_cropped, _identity))
    return Preprocess(functools.partial(_cropped, functools.partial(_normalised, mean=mean, std=std)))


def _cropped(finish: Callable[[Tensor], Tensor], size: int | None) -> Transform:
    from torchvision import transforms

    side = size or SIZE
    resize = transforms.Resize(int(side / CROP))
    return transforms.Compose([resize, transforms.CenterCrop(side), transforms.ToTensor(), finish])


def _identity(pixels: Tensor) -> Tensor:
    return pixels


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


@dataclass(frozen=True)
class Foreign:
    """A `preprocess` function of somebody else's, and what it was found to do.

    Attributes:
        preprocess: The same as our `Preprocess`.
        mean: Mean (3,) in 0..1 that it subtracts, None where it is no normalisation (x - mean) / std per channel.
        std: Standard deviation (3,) that it divides by, or None.
        takes: Its argument: a tensor (N, 3, H, W) or (3, H, W) of values in 0..1, or a PIL image.
    """

    preprocess: Preprocess
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    takes: str


def foreign(function: Callable[[Any], Any]) -> Foreign:
    """Returns what a `preprocess` function does: its argument by trying, mean and std by its values at 0 and 1.

    Raises:
        ValueError: It takes neither a tensor nor a picture, or returns something else than a floating-point tensor.

    Example:
        >>> found = foreign(lambda pixels: pixels * 2 - 1)
        >>> found.mean, found.std
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    failure: Exception | None = None
    for call in (_on_batch, _on_tensor, _on_picture):
        try:
            result = call(function, torch.zeros(3, SIZE, SIZE))
            if result.ndim == 3 and result.is_floating_point():
                break
        except Exception as error:
            failure = failure or error  # of the form that was documented
    else:
        reason = f": {type(failure).__name__}: {failure}" if failure else ""
        raise ValueError(f"takes neither a tensor (N, 3, H, W) of 0..1 nor a PIL image and returns a tensor{reason}")
    takes = {_on_batch: "(N, 3, H, W)", _on_tensor: "(3, H, W)", _on_picture: "PIL image"}[call]
    mean, std = _mean_std(functools.partial(call, function), pixelwise=call is not _on_picture)
    if call is _on_picture:
        preprocess = Preprocess(functools.partial(_as_it_is, function))
    else:
        preprocess = Preprocess(functools.partial(_cropped, functools.partial(call, function)))
    return Foreign(preprocess, mean, std, takes)


def _on_batch(function: Callable[[Any], Any], pixels: Tensor) -> Tensor:
    return function(pixels[None])[0]


def _on_tensor(function: Callable[[Any], Any], pixels: Tensor) -> Tensor:
    return function(pixels)


def _on_picture(function: Callable[[Any], Any], pixels: Tensor) -> Tensor:
    levels = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0)
    return _as_it_is(function)(Image.fromarray(levels.numpy()))


def _as_it_is(function: Callable[[Any], Any], size: int | None = None) -> Transform:
    if size is not None:
        raise ValueError("the network's own preprocess takes whole pictures, so its size cannot be changed")
    return function


_Moments = tuple[tuple[float, ...] | None, tuple[float, ...] | None]


def _mean_std(apply: Callable[[Tensor], Tensor], *, pixelwise: bool) -> _Moments:
    """Mean and std of an `apply` that is (x - mean) / std per channel, else None twice.

    In float64 where that works, so that 0.485 comes back as 0.485.
    """
    for dtype in (torch.float64, torch.float32):
        with contextlib.suppress(Exception):
            return _moments(apply, dtype, pixelwise)
    return None, None


def _moments(apply: Callable[[Tensor], Tensor], dtype: torch.dtype, pixelwise: bool) -> _Moments:
    def respond(*colour: float) -> Tensor | None:
        out = apply(torch.tensor(colour, dtype=dtype)[:, None, None].expand(3, SIZE, SIZE).contiguous()).double()
        even = (out - out[:, :1, :1]).abs().amax() < 1e-5
        return out[:, 0, 0] if even and len(out) == 3 else None

    black, white, mixed = respond(0, 0, 0), respond(1, 1, 1), respond(0.2, 0.6, 0.8)
    if black is None or white is None or mixed is None or not bool((white - black > 0).all()):
        return None, None
    gain = white - black
    agrees = torch.allclose(mixed, black + gain * torch.tensor([0.2, 0.6, 0.8], dtype=torch.float64), atol=1e-4)
    if not agrees or (pixelwise and not _is_pixelwise(apply, dtype, black, gain)):
        return None, None
    mean, std = (-black / gain).tolist(), (1 / gain).tolist()
    return tuple(round(value, 10) + 0.0 for value in mean), tuple(round(value, 10) for value in std)  # no -0.0


def _is_pixelwise(apply: Callable[[Tensor], Tensor], dtype: torch.dtype, black: Tensor, gain: Tensor) -> bool:
    """Whether a picture of noise is changed pixel by pixel, not blurred, resized or cropped."""
    noise = torch.rand(3, SIZE, SIZE, dtype=dtype, generator=torch.Generator().manual_seed(0))
    out, expected = apply(noise.clone()).double(), black[:, None, None] + gain[:, None, None] * noise.double()
    return out.shape == expected.shape and torch.allclose(out, expected, atol=1e-4)


def moments(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns mean and std of a network's input, a float per channel of pixels in 0..1; None where it says none.

    Only lists of numbers count: a buffer of that name is what a network that normalises by itself has, whose input is
    not normalised yet.
    """
    mean, std = described(model, "mean"), described(model, "std")
    if not all(isinstance(values, (tuple, list)) for values in (mean, std)) or len(mean) != len(std):
        return None
    try:
        return tuple(float(value) for value in mean), tuple(float(value) for value in std)
    except (TypeError, ValueError):
        return None


def described(model: Any, name: str, default: Any = None) -> Any:
    """Returns mean, std, preprocess, classes, wnids or spec of a network, `default` where nothing is known.

    What `load_model` found comes first, also where the network uses the same name for something of its own.
    """
    return vars(model).get("_gradspec", {}).get(name, getattr(model, name, default))


def pixels_of(model: Any, images: Tensor) -> np.ndarray:
    """Returns pictures as they are looked at (N, C, H, W), 0..1: mean and std of the model taken out again.

    Where the model says none, each picture is stretched from its darkest to its lightest value.

    Example:
        >>> net = torch.nn.Identity()
        >>> net.mean, net.std = (0.5,), (0.25,)
        >>> pixels_of(net, torch.tensor([[[[-2.0, 0.0, 2.0]]]])).tolist()
        [[[[0.0, 0.5, 1.0]]]]
    """
    images = images.detach().float().cpu()
    known = moments(model)
    if known is None or len(known[0]) not in (1, images.shape[1]):
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return ((images - low) / (high - low).clamp(min=1e-12)).numpy()  # a picture of one value is black, not 0 / 0
    mean, std = (torch.tensor(values)[:, None, None] for values in known)
    return (images * std + mean).clamp(0, 1).numpy()
