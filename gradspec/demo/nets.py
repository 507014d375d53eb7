"""Small networks trained on the generated pictures, with their weights in the package."""

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from gradspec.demo.pictures import CLASSES

if TYPE_CHECKING:
    from PIL.Image import Image

_WEIGHTS = Path(__file__).parent / "weights"


class DemoNet(nn.Sequential):
    """A classifier of the generated pictures that knows how its input is made.

    Input: pictures (N, 3, H, W) as `preprocess` returns them, at least 16 pixels high and wide. Output: logits (N, 10).
    Any size runs, but the stated accuracy holds at the size of the training pictures alone (`spec["size"]`): objects of
    twice the pixels are mostly named wrong.

    Attributes:
        mean: Mean of each colour channel in 0..1 that `preprocess` subtracts.
        std: Standard deviation of each channel that it divides by.
        classes: Names of the ten classes.
        spec: What the weights' file says: name, size (pixels per side of the training pictures), accuracy on
            test_pictures unseen pictures of that size, seed, steps, script and more. Empty for an untrained network.
    """

    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.2, 0.2, 0.2)
    classes: list[str] = CLASSES
    spec: dict[str, Any]

    def __init__(self, layers: "OrderedDict[str, nn.Module]") -> None:
        super().__init__(layers)
        self.spec = {}

    def preprocess(self, picture: "Image | torch.Tensor") -> torch.Tensor:
        """Returns the network's input for a picture.

        A PIL image becomes (3, S, S), S the side of the training pictures: shorter side resized, centre cropped.
        A tensor (..., 3, H, W) of values in 0..1 keeps its size.

        Raises:
            ValueError: The tensor is not one of RGB values in 0..1.
        """
        pixels = picture if isinstance(picture, torch.Tensor) else _square(picture, self.spec.get("size", 64))
        if pixels.ndim < 3 or pixels.shape[-3] != 3 or not pixels.is_floating_point():
            raise ValueError(
                f"expected a floating-point tensor (..., 3, H, W) with values in 0..1, got {pixels.dtype} "
                f"{tuple(pixels.shape)}; divide 8-bit pictures by 255"
            )
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def _square(image: "Image", side: int) -> torch.Tensor:
    from PIL import ImageOps

    pixels = np.array(ImageOps.fit(image.convert("RGB"), (side, side)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


_MAX_POOL = partial(nn.MaxPool2d, 2)


def vgg(pool: Callable[[], nn.Module] = _MAX_POOL) -> DemoNet:
    """Returns an untrained VGG-like network of nine convolutions that shrinks by the given pooling alone.

    Four stages of two convolutions end in `pool`, which must halve the map; a ninth convolution and the mean over
    the map follow (after Simonyan and Zisserman 2015, with batch normalisation).

    Args:
        pool: Makes one downsampling layer, for example `partial(nn.AvgPool2d, 2)` for the average-pooled twin.

    Example:
        >>> net = vgg(partial(nn.AvgPool2d, 2)).eval()
        >>> tuple(net(torch.zeros(1, 3, 37, 50)).shape)
        (1, 10)
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, width in enumerate((16, 32, 48, 64), start=1):
        block = _convolution(channels, width, 1) | _convolution(width, width, 2) | {"pool": pool()}
        layers[f"stage{stage}"] = nn.Sequential(OrderedDict(block))
        channels = width
    layers["stage5"] = nn.Sequential(OrderedDict(_convolution(channels, channels, 1)))
    layers["average"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(channels, len(CLASSES))
    return DemoNet(layers)


def _convolution(channels: int, width: int, number: int) -> dict[str, nn.Module]:
    return {
        f"conv{number}": nn.Conv2d(channels, width, 3, padding=1, bias=False),
        f"norm{number}": nn.BatchNorm2d(width),
        f"relu{number}": nn.ReLU(),
    }


class _Residual(nn.Module):
    """Two convolutions and a shortcut, (N, C, H, W) -> (N, width, ⌈H/2⌉, ⌈W/2⌉); both ways shrink by their stride."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.shortcut = nn.Conv2d(channels, width, 1, stride=2, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(y)) + self.shortcut_norm(self.shortcut(x)))


def resnet() -> DemoNet:
    """Returns an untrained ResNet-like network that shrinks by strided convolutions alone.

    As many convolutions (nine), stages and channels as `vgg` has, with a strided 1x1 shortcut around each stage (after
    He et al. 2016).

    Example:
        >>> tuple(resnet().eval()(torch.zeros(1, 3, 37, 50)).shape)
        (1, 10)
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(OrderedDict(_convolution(3, 16, 1))))
    channels = 16
    for stage, width in enumerate((16, 32, 48, 64), start=1):
        layers[f"stage{stage}"] = _Residual(channels, width)
        channels = width
    layers["average"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(channels, len(CLASSES))
    return DemoNet(layers)


def vit() -> DemoNet:
    """Returns an untrained small vision transformer: timm's, with patches of 8 pixels and the mean over tokens.

    Four blocks of 96 channels and three heads, no class token (after Beyer et al. 2022, "Better plain ViT baselines for
    ImageNet-1k"). Sizes that are no multiple of 8 are padded with zeros; position embeddings are interpolated.

    Example:
        >>> tuple(vit().eval()(torch.zeros(1, 3, 37, 50)).shape)
        (1, 10)
    """
    from timm.models.vision_transformer import VisionTransformer

    body = VisionTransformer(
        img_size=64, patch_size=8, num_classes=len(CLASSES), embed_dim=96, depth=4, num_heads=3, mlp_ratio=2,
        class_token=False, global_pool="avg", dynamic_img_size=True, dynamic_img_pad=True,
    )  # fmt: skip
    return DemoNet(OrderedDict(vit=body))


BUILDERS: dict[str, Callable[[], DemoNet]] = {
    "resnet_stride": resnet,
    "vgg_avg": partial(vgg, partial(nn.AvgPool2d, 2)),
    "vgg_max": vgg,
    "vit": vit,
}
"""Name of each embedded network -> how to build it, untrained."""


def names() -> list[str]:
    """Returns the names of the embedded networks."""
    return sorted(name for name in BUILDERS if (_WEIGHTS / f"{name}.safetensors").is_file())


def load(name: str) -> DemoNet:
    """Returns an embedded network with its trained weights, in eval mode, float32, on the CPU.

    Args:
        name: One of `names()`.

    Raises:
        ValueError: There is no network of that name.

    Example:
        >>> from gradspec.demo.pictures import pictures
        >>> net, test = load("vgg_max"), pictures(10)
        >>> predicted = net(net.preprocess(test.images)).argmax(1)
        >>> bool((predicted == test.labels).sum() >= 8)
        True
    """
    if name not in names():
        raise ValueError(f"no embedded network is called {name!r}; there are: {', '.join(names()) or 'none'}")
    return load_file(_WEIGHTS / f"{name}.safetensors", BUILDERS[name])


def load_file(path: Path, build: Callable[[], DemoNet]) -> DemoNet:
    """Returns the network that `build` makes, in eval mode, with the weights and the spec in a safetensors file."""
    with safe_open(path, framework="pt") as file:
        net = build()
        net.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a dict)
        net.spec = json.loads(file.metadata()["spec"])
    return net.eval()
