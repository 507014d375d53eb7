"""What takes the place of max-pooling and strided convolution, at the same output size (SPEC §3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gradspec.surgery.calls import AdaptiveMax, Downsampling, MaxPool, Pair, StridedConvolution, by, one

Kernel = Literal["same", "multiple_of_stride"] | int
Order = Literal["blur", "maxblur", "blurmax"]


@dataclass(frozen=True)
class Average:
    """Average pooling in place of max-pooling and strides (paper §4.3).

    Max-pooling becomes the mean over windows that start where its own do, padding not counted; a strided convolution
    the same convolution at stride 1, then the mean over stride x stride outputs.

    Args:
        kernel: Side of the means in place of max-pooling, never less than the stride: "same" as the max-pooling's (the
            paper's), "multiple_of_stride" the smallest multiple of the stride that is not less (windows of one size
            then overlap everywhere alike: no checkerboard in the gradient), or a number (also never so small that a
            window would lie in the padding).
    """

    kernel: Kernel = "same"

    def __call__(self, call: Downsampling) -> Tensor:  # noqa: D102 (what a Replacement does)
        if isinstance(call, MaxPool):
            return mean_pool(call, self._side(call))
        if isinstance(call, AdaptiveMax):
            if call.dim:
                return call.x.mean(call.dim, keepdim=call.keepdim)
            return F.adaptive_avg_pool2d(call.x, call.output_size)
        return F.avg_pool2d(call.at_stride(1), call.stride, call.stride, ceil_mode=True)

    def _side(self, call: MaxPool) -> Pair:
        return tuple(map(self._length, call.reach, call.stride, call.before))  # type: ignore[return-value]

    def _length(self, reach: int, stride: int, before: int) -> int:
        if self.kernel == "same":
            return max(reach, stride)
        if self.kernel == "multiple_of_stride":
            return stride * math.ceil(reach / stride)
        return max(self.kernel, stride, before + 1)

    def words(self, call: Downsampling) -> str:
        """Returns what the call becomes."""
        if isinstance(call, MaxPool):
            return f"mean over {by(self._side(call))}, stride {one(call.stride)}"
        if isinstance(call, AdaptiveMax):
            return str(call).replace("maximum", "mean").replace("max-pooling", "average pooling")
        return f"stride 1, then mean over {by(call.stride)}"


@dataclass(frozen=True)
class Blur:
    """A binomial low-pass filter before the stride, in one of three orders (Zhang 2019; Zou et al. 2020).

    | order | max-pooling becomes | a strided convolution becomes |
    |---|---|---|
    | blur | blur, stride | blur, then as before |
    | maxblur (Zhang 2019) | max-pooling at stride 1, blur, stride | convolution at stride 1, blur, stride |
    | blurmax | blur, then as before | blur, then as before |

    The filter for stride s has 2s − 1 taps, [1, 2, 1] / 4 at stride 2; edges are mirrored. A blur before a convolution
    and one after it are the same but at the edges.
    """

    order: Order = "blur"

    def __call__(self, call: Downsampling) -> Tensor:  # noqa: D102 (what a Replacement does)
        assert not isinstance(call, AdaptiveMax), "it has no stride"
        taps = _taps(call)
        if isinstance(call, StridedConvolution) and self.order != "maxblur":
            return call.at_stride(call.stride, blur(call.x, taps))
        if isinstance(call, StridedConvolution):
            dense = call.at_stride(1)
            height, width = (math.ceil(n / s) for n, s in zip(dense.shape[-2:], call.stride, strict=True))
            return blur(dense, taps, call.stride, size=(height, width))
        if self.order == "blurmax":
            return call.at(blur(call.x, taps))
        if self.order == "maxblur":
            return blur(dense_max(call), taps, call.stride, size=call.size)
        return blur(call.x, taps, call.stride, call.middle, call.size)

    def words(self, call: Downsampling) -> str:
        """Returns what the call becomes."""
        assert not isinstance(call, AdaptiveMax), "it has no stride"
        blurred, stride = f"blur {by(_taps(call))}", f"stride {one(call.stride)}"
        if self.order == "maxblur":
            return f"stride 1, then {blurred}, {stride}"
        if self.order == "blur" and isinstance(call, MaxPool):
            return f"{blurred}, {stride}"
        return f"{blurred}, then as before"


def _taps(call: MaxPool | StridedConvolution) -> Pair:
    return 2 * call.stride[0] - 1, 2 * call.stride[1] - 1


# ---- the operators -----------------------------------------------------------------------------


def mean_pool(call: MaxPool, kernel: Pair) -> Tensor:
    """Returns the mean over windows of another size that start where the max-pooling's do; padding is not counted."""
    if kernel == call.reach and not any(call.border):  # torch's windows are the very same
        return F.avg_pool2d(call.x, kernel, call.stride, call.padding, call.ceil_mode, count_include_pad=False)
    inside = call.x.new_ones((1,) * (call.x.ndim - 2) + call.x.shape[-2:])
    sums, counts = (F.avg_pool2d(_covered(call, x, kernel, 0), kernel, call.stride) for x in (call.x, inside))
    return sums / counts


def dense_max(call: MaxPool) -> Tensor:
    """Returns the max-pooling at stride 1, of which every stride-th value is its own output."""
    x = _covered(call, call.x, call.reach, -math.inf, least=call.after)
    return F.max_pool2d(x, call.kernel, 1, 0, call.dilation)


def _covered(call: MaxPool, x: Tensor, reach: Pair, value: float, least: Pair | None = None) -> Tensor:
    """The map padded, or cut, to what the call's windows cover when each reaches so far."""
    pads: list[int] = []
    for i in (1, 0):  # the last dimension first, as `pad` wants them
        end = (call.size[i] - 1) * call.stride[i] + reach[i] - x.shape[i - 2] - call.before[i]
        pads += [call.before[i], end if least is None else max(end, least[i])]
    return F.pad(x, pads, value=value)


def blur(x: Tensor, taps: Pair, step: Pair = (1, 1), first: Pair = (0, 0), size: Pair | None = None) -> Tensor:
    """Returns x (..., C, H, W) under a binomial filter, at the pixels first + i · step; edges are mirrored.

    Args:
        x: Maps.
        taps: Height and width of the filter, odd.
        step: Every how manyth pixel is computed, vertically and horizontally.
        first: The first pixel.
        size: Height and width of the output; None: that of x.

    Example:
        >>> blur(torch.tensor([[[0.0, 0, 4, 0, 0]]]), (1, 3))
        tensor([[[0., 1., 2., 1., 0.]]])
    """
    height, width = size or (x.shape[-2], x.shape[-1])
    top, left = (t // 2 - at for t, at in zip(taps, first, strict=True))
    bottom = (height - 1) * step[0] + taps[0] - x.shape[-2] - top
    right = (width - 1) * step[1] + taps[1] - x.shape[-1] - left
    x = F.pad(x, [min(n, 0) for n in (left, right, top, bottom)])  # `pad` mirrors no negative number
    pads = [max(n, 0) for n in (left, right, top, bottom)]
    room = min(x.shape[-2] - max(pads[2:]), x.shape[-1] - max(pads[:2]))
    x = F.pad(x, pads, mode="reflect" if room > 0 else "replicate")  # a map of few pixels has nothing to mirror
    kernel = torch.outer(_binomial(taps[0]), _binomial(taps[1])).to(x)
    return F.conv2d(x, kernel.expand(x.shape[-3], 1, *taps), stride=step, groups=x.shape[-3])


def _binomial(taps: int) -> Tensor:
    weights = torch.tensor([math.comb(taps - 1, i) for i in range(taps)], dtype=torch.float64)
    return weights / weights.sum()
