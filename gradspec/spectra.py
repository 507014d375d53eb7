"""Fourier signature, power/frequency slope, high-frequency share and complexity of maps (paper §3, supplement B).

Results are float64 numpy arrays, whatever the device and precision of the maps.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from gradspec._checks import check_maps
from gradspec.fourier import SLACK, column_counts, frequency_radius, ring_index, ring_radii

Scale = Literal["log-linear", "log-log", "linear"]
Coder = Literal["png", "jpeg"]

BLOCK = 2**20  # values transformed at once: spectra of this size stay in cache, larger ones only cost memory
POOR_FIT = 0.5  # r² below which a slope says little: read the share
FEWEST_RINGS = 3  # beside DC; two points are always on a line


class Fit(NamedTuple):
    """A least-squares line through a signature; NaN with a `reason` where none can be drawn."""

    slope: float  # log-linear: log10 units per cycle/image; log-log: the exponent; linear: amplitude per cycle/image
    intercept: float
    r2: float
    se: float  # of the slope, over images
    rings: int
    reason: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Signature:
    """The Fourier signature of N images' maps of one size, with its standard error over images (paper §3, fig. 2).

    An image counts where its maps are neither zero nor constant, that is where its high share is a number: there is
    nothing beyond DC (but rounding noise) in the others. All means, errors and fits are over images that count.

    Attributes:
        height: H in pixels.
        width: W in pixels.
        per_image: ring amplitudes of each image, channels averaged, (N, K) with K = floor(min(H, W) / 2) + 1.
        high_shares: share of each image's power at r > n/4 over all power but DC, (N,); NaN where there is none
            (`power_share` decides).

    Raises:
        ValueError: arrays whose shapes do not belong together, negative or non-finite amplitudes.

    Example:
        >>> rings = 10 ** (-0.1 * ring_radii(16, 16).numpy())
        >>> signature = Signature(16, 16, np.stack([rings, 3 * rings]), np.array([0.1, 0.3]))
        >>> signature.n, round(signature.slope, 6), round(signature.slope_nyquist, 6), round(signature.high_share, 6)
        (2, -0.1, -0.8, 0.2)
    """

    height: int
    width: int
    per_image: np.ndarray
    high_shares: np.ndarray

    def __post_init__(self) -> None:
        per_image, shares = np.asarray(self.per_image, np.float64), np.asarray(self.high_shares, np.float64)
        object.__setattr__(self, "per_image", per_image)
        object.__setattr__(self, "high_shares", shares)
        rings = min(self.height, self.width) // 2 + 1
        if (
            per_image.ndim != 2
            or len(per_image) == 0
            or per_image.shape[1] != rings
            or shares.shape != per_image.shape[:1]
        ):
            raise ValueError(
                f"Expected per_image (N, {rings}) and high_shares (N,) for {self.height} x {self.width} maps, "
                f"got {per_image.shape} and {shares.shape}."
            )
        if not (np.isfinite(per_image).all() and (per_image >= 0).all()):
            raise ValueError(
                "Expected finite amplitudes of 0 or more in per_image, got NaN, infinite or negative ones."
            )

    @cached_property
    def counted(self) -> np.ndarray:
        """Which images count, bool (N,)."""
        return np.isfinite(self.high_shares)

    @property
    def n(self) -> int:
        """Number of images that count."""
        return int(self.counted.sum())

    @property
    def zeros(self) -> int:
        """Number of images whose maps are zero everywhere."""
        return int((~self.counted & ~self.per_image.any(1)).sum())

    @property
    def constants(self) -> int:
        """Number of images that are not zero, but constant up to rounding."""
        return len(self.per_image) - self.n - self.zeros

    @cached_property
    def radius(self) -> np.ndarray:
        """Mean radius of each ring in cycles/image, (K,)."""
        return ring_radii(self.height, self.width).numpy()

    @cached_property
    def amplitude(self) -> np.ndarray:
        """Mean amplitude of each ring over images, (K,)."""
        return _mean(self.per_image[self.counted])

    @cached_property
    def se(self) -> np.ndarray:
        """Standard error of `amplitude` over images, (K,); NaN for one image."""
        return _standard_error(self.per_image[self.counted])

    @cached_property
    def _line(self) -> Fit:
        return self.fit()

    @property
    def slope(self) -> float:
        """Power/frequency slope: change of log10 amplitude per cycle/image, the paper's; compare within one size."""
        return self._line.slope

    @property
    def slope_se(self) -> float:
        """Standard error of `slope` over images; NaN for one image."""
        return self._line.se

    @property
    def slope_nyquist(self) -> float:
        """Change of log10 amplitude from DC to Nyquist, n/2 cycles/image; comparable between sizes."""
        return self._line.slope * min(self.height, self.width) / 2

    @property
    def slope_nyquist_se(self) -> float:
        """Standard error of `slope_nyquist` over images; NaN for one image."""
        return self._line.se * min(self.height, self.width) / 2

    @property
    def r2(self) -> float:
        """Share of the rings' variance in log10 amplitude that the line explains; NaN where there is none."""
        return self._line.r2

    @property
    def reason(self) -> str:
        """Why the slope is NaN, or an empty string."""
        return self._line.reason

    @cached_property
    def high_share(self) -> float:
        """Share of power at r > n/4 over all power but DC, corners included, mean over images."""
        return float(_mean(self.high_shares[self.counted]))

    @cached_property
    def high_share_se(self) -> float:
        """Standard error of `high_share` and of `excess` over images; NaN for one image."""
        return float(_standard_error(self.high_shares[self.counted]))

    @cached_property
    def white_share(self) -> float:
        """The expected high-frequency share of white noise on the same grid."""
        return white_share(self.height, self.width)

    @property
    def excess(self) -> float:
        """`high_share` less `white_share`: 0 for white noise, positive where high frequencies dominate."""
        return self.high_share - self.white_share

    def fit(self, scale: Scale = "log-linear") -> Fit:
        """Returns the least-squares line through the rings of the mean signature, DC left out.

        The standard error is the delta method's: the slope is sum_k w_k y_k with fixed weights w, so image i moves
        it by sum_k w_k A_ik / (A_k ln 10) for y = log10 A, and by sum_k w_k A_ik for y = A.

        Args:
            scale: "log-linear": log10 amplitude against radius in cycles/image; "log-log": against log10 radius
                (the slope is an exponent); "linear": amplitude against radius.

        Raises:
            ValueError: unknown scale.
        """
        if scale not in get_args(Scale):
            raise ValueError(f"Expected a scale of {', '.join(get_args(Scale))}, got {scale!r}.")
        mean = self.amplitude[1:]
        reason = self._obstacle(scale)
        if reason:
            return Fit(math.nan, math.nan, math.nan, math.nan, len(mean), reason)
        x = np.log10(self.radius[1:]) if scale == "log-log" else self.radius[1:]
        y = mean if scale == "linear" else np.log10(mean)
        weights = _slope_weights(x)
        slope = float(weights @ y)
        intercept = float(y.mean() - slope * x.mean())
        unexplained, spread = np.square(y - slope * x - intercept).sum(), np.square(y - y.mean()).sum()
        relative = self.per_image[self.counted, 1:] / (1.0 if scale == "linear" else mean * math.log(10))
        se = float(_standard_error(relative @ weights))
        return Fit(slope, intercept, float(1 - unexplained / spread) if spread else math.nan, se, len(mean))

    def slope_influences(self) -> np.ndarray:
        """Returns how far each image moves `slope_nyquist` (delta method), (N,), mean 0; NaN where it does not count.

        Their standard deviation over sqrt(n) is `slope_nyquist_se`; that of the differences of two signatures of the
        same images is the standard error of the difference of their slopes. All NaN where there is no slope.

        Example:
            >>> rings = 10 ** (-0.1 * ring_radii(16, 16).numpy())
            >>> twins = Signature(16, 16, np.stack([rings, 3 * rings]), np.array([0.1, 0.3]))
            >>> bool(abs(twins.slope_influences()).max() < 1e-12)  # both fall alike: neither moves the slope
            True
        """
        influences = np.full(len(self.per_image), math.nan)
        if not self.reason:
            relative = self.per_image[self.counted, 1:] / (self.amplitude[1:] * math.log(10))
            influences[self.counted] = relative @ _slope_weights(self.radius[1:]) * min(self.height, self.width) / 2
        return influences

    def log_ratio(self, band: slice, to: slice) -> tuple[float, float]:
        """Returns log10 of the mean amplitude of one band of rings over another's, and its standard error over images.

        Above 0 where the signature is higher in `band`; white noise gives 0. NaN where a band has no amplitude.

        Args:
            band: rings k of the numerator, whose radius is about k cycles/image.
            to: rings of the denominator.

        Example:
            >>> rings = 10 ** (-0.1 * ring_radii(16, 16).numpy())
            >>> falling = Signature(16, 16, np.stack([rings, 3 * rings]), np.array([0.1, 0.3]))
            >>> ratio, se = falling.log_ratio(slice(8, 9), slice(4, 5))  # radii 7.98 and 4.08: 3.9 cycles/image apart
            >>> round(ratio, 3), round(se, 3)
            (-0.39, 0.0)
        """
        sums = [self.per_image[self.counted, part].sum(1) for part in (band, to)]
        if not all(part.any() for part in sums):
            return math.nan, math.nan
        rings = np.arange(len(self.radius))
        means = [part.mean() for part in sums]
        counts = [len(rings[part]) for part in (band, to)]
        influences = sums[0] / means[0] - sums[1] / means[1]
        ratio = (means[0] / counts[0]) / (means[1] / counts[1])
        return math.log10(ratio), float(_standard_error(influences)) / math.log(10)

    def slopes_per_image(self) -> np.ndarray:
        """Returns the log-linear slope of each image's own signature per cycle/image, (N,); NaN where there is none."""
        slopes = np.full(len(self.per_image), math.nan)
        usable = self.counted & (self.per_image[:, 1:] > 0).all(1)
        if len(self.radius) > FEWEST_RINGS:
            slopes[usable] = np.log10(self.per_image[usable, 1:]) @ _slope_weights(self.radius[1:])
        return slopes

    def _obstacle(self, scale: Scale) -> str:
        rings = len(self.radius) - 1
        if self.zeros == len(self.per_image):
            return f"zero in all {self.zeros} image(s)"
        if rings < FEWEST_RINGS:
            return f"{rings} ring(s) beside DC at {self.height} x {self.width}, a slope takes {FEWEST_RINGS}"
        if self.n == 0:
            zeros = f" or zero ({self.zeros})" if self.zeros else ""
            return f"constant in {self.constants} image(s){zeros}: only rounding noise beside DC"
        empty = int((self.amplitude[1:] == 0).sum())
        if empty and scale != "linear":
            return f"amplitude zero in {empty} of {rings} rings, which has no logarithm"
        return ""

    def __repr__(self) -> str:
        images = f"n={self.n}" + (f" of {len(self.per_image)}" if self.n < len(self.per_image) else "")
        slope = f"slope {self.slope_nyquist:.3f} ± {self.slope_nyquist_se:.3f} per Nyquist"
        share = f"high share {self.high_share:.3f} ± {self.high_share_se:.3f} (white {self.white_share:.3f})"
        return f"Signature({self.height} x {self.width}, {images}, {self.reason or slope}, {share})"


def signature(maps: Tensor) -> Signature:
    """Returns the Fourier signature of each image and their mean (paper §3; SPEC's choices where it is silent).

    The amplitude |F| of every channel is averaged over channels, then over each ring; the share of power is that of
    all channels together. Float64 maps are transformed in float64, all others in float32. Each image is divided by
    its largest value first, so that squares neither underflow nor overflow; amplitudes are given undivided.

    Args:
        maps: (N, ..., H, W); the first dimension is the images', all others before H and W are channels.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: fewer than three dimensions, no values, NaN or infinite ones.

    Example:
        >>> noise = torch.randn(4, 16, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> result = signature(noise)
        >>> abs(result.slope_nyquist) < 0.02, abs(result.excess) < 0.01
        (True, True)
    """
    check_maps(maps, images=True)
    height, width = maps.shape[-2:]
    blocks = [
        (scale[:, None] * _ring_means(amplitude, height, width), _shares(power, height, width, maps.dtype))
        for amplitude, power, scale in _bins(maps)
    ]
    return Signature(height, width, *(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def high_share(maps: Tensor, above: float | None = None) -> np.ndarray:
    """Returns the share of each image's power at r > `above` over all power but DC, corners included, (N,).

    NaN where an image's maps are zero or constant. Power is summed over all channels of an image.

    Args:
        maps: (N, ..., H, W).
        above: radius in cycles/image, n/4 (half of Nyquist) by default; bins on the radius are low.

    Raises:
        TypeError, ValueError: as `signature`.

    Example:
        >>> wave = torch.cos(torch.arange(8) * torch.pi / 2)  # two cycles/image on n/4 = 2, so it is low
        >>> share = high_share(wave.expand(1, 8, 8)).item(), high_share(wave.expand(1, 8, 8), above=1.9).item()
        >>> [round(value, 6) for value in share]
        [0.0, 1.0]
    """
    check_maps(maps, images=True)
    height, width = maps.shape[-2:]
    return np.concatenate([_shares(power, height, width, maps.dtype, above) for _, power, _ in _bins(maps)])


def white_share(height: int, width: int, above: float | None = None) -> float:
    """Returns the expected share of white noise's power at r > `above`: the share of bins but DC, exact on this grid.

    About 1 - pi/16 = 0.80 for the default radius n/4 of a large square map. NaN for 1 x 1, which has DC alone.

    Example:
        >>> white_share(4, 4) == 11 / 15, abs(white_share(224, 224) - (1 - torch.pi / 16)) < 1e-3
        (True, True)
    """
    radius = frequency_radius(height, width)
    others = radius.numel() - 1
    return _high(radius, height, width, above).sum().item() / others if others else math.nan


def checkerboard_share(maps: Tensor, within: float = 2.0) -> np.ndarray:
    """Returns the share of each image's power near the checkerboards' frequencies over all power but DC, (N,).

    These are Nyquist in rows, in columns and in both: (n/2, 0), (0, n/2), (n/2, n/2), at which alternating rows,
    alternating columns and a checkerboard lie (figs. A.3, A.8). NaN where an image's maps are zero or constant.

    Args:
        maps: (N, ..., H, W).
        within: distance from those frequencies in cycles/image, up to which a bin is near.

    Raises:
        TypeError, ValueError: as `signature`.

    Example:
        >>> board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 8, 8)
        >>> round(checkerboard_share(board).item(), 6), checkerboard_share(board.abs().cumsum(1)).item() < 0.1
        (1.0, True)
    """
    check_maps(maps, images=True)
    height, width = maps.shape[-2:]
    near, others = _checkerboard_weights(height, width, within)
    floor = rounding_floor(maps.dtype, height, width)
    shares = [power_share((p * near).sum(1), (p * others).sum(1), p[:, 0], floor) for _, p, _ in _bins(maps)]
    return np.concatenate(shares)


def white_checkerboard_share(height: int, width: int, within: float = 2.0) -> float:
    """Returns the expected `checkerboard_share` of white noise: the share of bins but DC, exact on this grid.

    Example:
        >>> white_checkerboard_share(16, 16, within=0)  # three bins of 255
        0.011764705882352941
    """
    near, others = _checkerboard_weights(height, width, within)
    return float(near.sum() / others.sum()) if others.any() else math.nan


def rounding_floor(dtype: torch.dtype, height: int, width: int) -> float:
    """Returns the ratio of all amplitude but DC to DC (root of summed squares) up to which rounding explains it.

    A map counts as constant up to this ratio. Two parts: a few roundings of each value to the maps' own `dtype`, whose
    relative error is eps / 2 each and adds to the other bins what it is relative to DC (Parseval); and the transform's
    own error, at most eps log2(H W) times a small constant relative to the norm of the spectrum (Higham 2002,
    theorem 24.2), that is to DC.

    Args:
        dtype: of the maps, before any conversion.
        height: H in pixels.
        width: W in pixels.

    Example:
        >>> rounding_floor(torch.float32, 7, 7) < 1e-5 < rounding_floor(torch.bfloat16, 7, 7) < 0.02
        True
    """
    own, transform = torch.finfo(dtype).eps, torch.finfo(_work_dtype(dtype)).eps
    return 2 * own + 4 * transform * math.log2(max(2, height * width))


def power_share(high: np.ndarray, others: np.ndarray, dc: np.ndarray, floor: float) -> np.ndarray:
    """Returns high / others where the power beside DC is more than rounding noise, NaN elsewhere.

    Args:
        high: power at high radii, (N,).
        others: power of all bins but DC, (N,).
        dc: power of DC, (N,).
        floor: `rounding_floor` of the maps.

    Example:
        >>> power_share(np.array([1.0, 1e-16, 0.0]), np.array([4.0, 1e-16, 0.0]), np.array([1.0, 1.0, 0.0]), 1e-6)
        array([0.25,  nan,  nan])
    """
    real = (others > floor**2 * dc) & (others > 0)
    return np.divide(high, others, out=np.full(np.shape(others), math.nan), where=real)


def log_spectrum(maps: Tensor) -> np.ndarray:
    """Returns the 2-D mean log10 amplitude, (H, W) with DC in the centre, row H // 2 and column W // 2 (fig. A.1).

    The amplitude is averaged over channels, its log10 over images; images that are zero everywhere are left out. Bins
    under the transform's rounding error, eps times the image's largest amplitude, are put there: log10 0 has no mean.

    Args:
        maps: (N, ..., H, W).

    Raises:
        TypeError, ValueError: as `signature`.

    Example:
        >>> spectrum = log_spectrum(torch.cos(torch.arange(8) * torch.pi / 2).expand(1, 8, 8))
        >>> sorted(zip(*(np.unravel_index(np.argsort(spectrum.ravel())[-2:], (8, 8))))) == [(4, 2), (4, 6)]
        True
    """
    check_maps(maps, images=True)
    height, width = maps.shape[-2:]
    eps = torch.finfo(_work_dtype(maps.dtype)).eps
    logs = []
    for amplitude, _, scale in _bins(maps):
        amplitude, scale = amplitude[scale > 0], scale[scale > 0]
        least = eps * amplitude.max(1, initial=0, keepdims=True)
        logs.append(np.log10(np.maximum(amplitude, least)) + np.log10(scale)[:, None])
    half = _mean(np.concatenate(logs)).reshape(height, width // 2 + 1)
    mirrored = half[-np.arange(height)][:, (width - 1) // 2 : 0 : -1]  # bin (-u, -v) has the amplitude of (u, v)
    return np.fft.fftshift(np.concatenate([half, mirrored], axis=1))


def laplacian_complexity(maps: Tensor) -> np.ndarray:
    """Returns the mean squared Laplacian of each map, scaled to unit standard deviation first, (...) (supplement B).

    The Laplacian is the sum of the differences to the four neighbours, at the border to those that exist (edge pixels
    repeated). Away from the border white noise gives 20, a checkerboard 64, the most a map can have. NaN where a map
    is zero or constant.

    Args:
        maps: (..., H, W).

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: fewer than two dimensions, no values, NaN or infinite ones.

    Example:
        >>> laplacian_complexity(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).item()  # each pixel: two differences of 2
        16.0
    """
    check_maps(maps)
    flat, constant = _scaled_maps(maps)
    spread = flat.std((1, 2), correction=0, keepdim=True)
    flat = flat / torch.where(constant[:, None, None], 1, spread)
    down, right = flat.diff(dim=1), flat.diff(dim=2)
    laplacian = torch.zeros_like(flat)
    laplacian[:, :-1] += down
    laplacian[:, 1:] -= down
    laplacian[:, :, :-1] += right
    laplacian[:, :, 1:] -= right
    values = laplacian.square().mean((1, 2)).masked_fill(constant, math.nan)
    return values.double().cpu().numpy().reshape(maps.shape[:-2])


def kolmogorov_complexity(maps: Tensor, coder: Coder = "png", *, quality: int = 75) -> np.ndarray:
    """Returns the bytes of each map compressed as an 8-bit image, (...): an estimate of Kolmogorov's (supplement B).

    Each map is stretched to 0..255 first (its minimum to 0, its maximum to 255). The coder's header is included, so
    compare maps of one size; counts may differ by some bytes between versions of the coders' libraries.
    NaN where a map is zero or constant.

    Args:
        maps: (..., H, W).
        coder: "png" (lossless, strongest compression) or "jpeg".
        quality: of JPEG, 1 to 95; 75 is the coders' own default.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: fewer than two dimensions, no values, NaN or infinite ones, unknown coder.

    Example:
        >>> noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
        >>> ramp = torch.arange(32.0).expand(32, 32)
        >>> bool(kolmogorov_complexity(noise) > 1024 > 5 * kolmogorov_complexity(ramp))
        True
    """
    check_maps(maps)
    if coder not in get_args(Coder):
        raise ValueError(f"Expected a coder of {', '.join(get_args(Coder))}, got {coder!r}.")
    flat, constant = _scaled_maps(maps)
    low, high = flat.amin((1, 2), keepdim=True), flat.amax((1, 2), keepdim=True)
    stretched = 255 * (flat - low) / torch.where(constant[:, None, None], 1, high - low)
    pixels, skipped = stretched.round().to(torch.uint8).cpu().numpy(), constant.tolist()
    sizes = [
        math.nan if skip else _coded_bytes(image, coder, quality) for image, skip in zip(pixels, skipped, strict=True)
    ]
    return np.array(sizes, np.float64).reshape(maps.shape[:-2])


def _coded_bytes(pixels: np.ndarray, coder: Coder, quality: int) -> int:
    from PIL import Image  # here, so that spectra alone do not need Pillow

    options = {"quality": quality} if coder == "jpeg" else {"optimize": True}  # PNG: zlib at its strongest level
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=coder, **options)
    return file.tell()


def _bins(maps: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields blocks of images: channel-mean amplitude and channel-summed power of each rfft bin, (n, B), and the
    images' scales (n,) by which they were divided; float64."""
    maps = maps.detach()
    step = max(1, BLOCK // maps[0].numel())
    for first in range(0, len(maps), step):
        block = maps[first : first + step]
        block = block.reshape(len(block), -1, *maps.shape[-2:]).to(_work_dtype(maps.dtype))  # (n, C, H, W)
        peak = _peaks(block, first, "image")
        spectrum = torch.view_as_real(torch.fft.rfft2(block / torch.where(peak > 0, peak, 1)))
        # in the spectrum's own two parts: half the time of abs, which guards against the overflow that cannot be here
        power = spectrum[..., 0].square().addcmul_(spectrum[..., 1], spectrum[..., 1])
        total = power.sum(1).flatten(1)
        mean = power.sqrt_().mean(1).flatten(1)
        yield _numpy(mean), _numpy(total), _numpy(peak.flatten())


def _peaks(block: Tensor, first: int, what: str) -> Tensor:
    """Largest absolute value of each entry (n, 1, ...); raises where that shows NaN or infinite values."""
    dims = tuple(range(1, block.ndim))
    peak = torch.maximum(block.amax(dims, keepdim=True), -block.amin(dims, keepdim=True))  # no copy, unlike abs
    if not peak.isfinite().all():
        bad = first + int((~peak.flatten().isfinite()).nonzero()[0])
        raise ValueError(f"Expected finite maps, got NaN or infinite values in {what} {bad}; leave it out.")
    return peak


def _scaled_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (M, H, W) in the working precision, each divided by its largest value, and which are constant (M,)."""
    flat = maps.detach().reshape(-1, *maps.shape[-2:]).to(_work_dtype(maps.dtype))
    peak = _peaks(flat, 0, "map")
    flat = flat / torch.where(peak > 0, peak, 1)
    floor = rounding_floor(maps.dtype, *maps.shape[-2:])
    return flat, flat.std((1, 2), correction=0) <= floor * flat.mean((1, 2)).abs()


def _shares(power: np.ndarray, height: int, width: int, dtype: torch.dtype, above: float | None = None) -> np.ndarray:
    """Shares (n,) from the power of rfft bins (n, B)."""
    high, others = _power_weights(height, width, above)
    floor = rounding_floor(dtype, height, width)
    return power_share((power * high).sum(1), (power * others).sum(1), power[:, 0], floor)


def _high(radius: Tensor, height: int, width: int, above: float | None) -> Tensor:
    """Which bins are high; DC never is."""
    above = min(height, width) / 4 if above is None else float(above)
    return radius > max(above, 0) + SLACK


@lru_cache(maxsize=64)
def _power_weights(height: int, width: int, above: float | None) -> tuple[np.ndarray, np.ndarray]:
    """How often each rfft bin (B,) counts in the high power and in all power but DC."""
    counts = np.tile(column_counts(width).numpy(), height)
    high = _high(frequency_radius(height, width, half=True), height, width, above).flatten().numpy()
    return counts * high, counts * (np.arange(len(counts)) > 0)


@lru_cache(maxsize=64)
def _checkerboard_weights(height: int, width: int, within: float) -> tuple[np.ndarray, np.ndarray]:
    """How often each rfft bin (B,) counts near the checkerboards' frequencies and in all power but DC."""
    half, reach = min(height, width) / 2, float(within) + SLACK
    _, others = _power_weights(height, width, None)
    radius = frequency_radius(height, width, half=True)
    rows, columns = radius[:, :1], radius[:1]  # |u'| and |v'|
    gaps = (half - rows, columns), (rows, half - columns), (half - rows, half - columns)
    near = torch.stack([torch.hypot(*pair) <= reach for pair in gaps]).any(0)
    return others * near.flatten().numpy(), others


@lru_cache(maxsize=64)
def _ring_order(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rfft bins sorted by ring (corners left out), the weight of each in its ring's mean, where each ring begins."""
    rings = ring_index(height, width, half=True).flatten().numpy()
    counts = np.tile(column_counts(width).numpy(), height)
    order = np.argsort(rings, kind="stable")[(rings < 0).sum() :]
    sums = np.bincount(rings[order], weights=counts[order])
    return order, counts[order] / sums[rings[order]], np.searchsorted(rings[order], np.arange(len(sums)))


def _ring_means(amplitude: np.ndarray, height: int, width: int) -> np.ndarray:
    order, weights, begins = _ring_order(height, width)
    return np.add.reduceat(amplitude.take(order, axis=1) * weights, begins, axis=1)  # (n, K)


def _slope_weights(x: np.ndarray) -> np.ndarray:
    """w with slope = w @ y for the least-squares line through (x, y)."""
    centred = x - x.mean()
    return centred / np.square(centred).sum()


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(0) if len(values) else np.full(values.shape[1:], math.nan)


def _standard_error(values: np.ndarray) -> np.ndarray:
    n = len(values)
    return values.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.full(values.shape[1:], math.nan)


def _work_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
