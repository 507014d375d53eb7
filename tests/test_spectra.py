"""Signature, slope, shares and complexity against plain loops, simulated spectra with known slopes, and by hand."""

import io
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import gradspec.spectra
from gradspec.fourier import frequency_radius, low_pass
from gradspec.spectra import (
    Signature,
    high_share,
    kolmogorov_complexity,
    laplacian_complexity,
    log_spectrum,
    rounding_floor,
    signature,
    white_share,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_radius(height, width):
    n = min(height, width)
    signed = lambda index, size: index if 2 * index < size else index - size  # noqa: E731
    return [
        [math.hypot(n * signed(i, height) / height, n * signed(j, width) / width) for j in range(width)]
        for i in range(height)
    ]


def plain_signature(maps, above=None):
    """Ring means (N, K), shares (N,), mean radii (K,) of (N, C, H, W) from complex FFTs, bin by bin."""
    count, channels, height, width = maps.shape
    n = min(height, width)
    above = n / 4 if above is None else above
    radius = plain_radius(height, width)
    per_image, shares = np.zeros((count, n // 2 + 1)), np.zeros(count)
    members = [[] for _ in range(n // 2 + 1)]
    for i in range(height):
        for j in range(width):
            k = math.floor(radius[i][j] + 0.5 + 1e-9)
            if k < len(members):
                members[k].append((i, j))
    for image in range(count):
        spectra = [np.fft.fft2(maps[image, channel]) for channel in range(channels)]
        amplitude = sum(abs(spectrum) for spectrum in spectra) / channels
        for k, bins in enumerate(members):
            per_image[image, k] = np.mean([amplitude[i, j] for i, j in bins])
        high = total = 0.0
        for i in range(height):
            for j in range(width):
                power = sum(abs(spectrum[i, j]) ** 2 for spectrum in spectra) if i or j else 0.0
                total += power
                high += power if radius[i][j] > above + 1e-9 else 0.0
        shares[image] = high / total
    return per_image, shares, np.array([np.mean([radius[i][j] for i, j in bins]) for bins in members])


def with_amplitude(amplitude, count=1, seed=0):
    """Real float64 maps (count, H, W) with exactly this amplitude at every bin and random phases."""
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal((count, *amplitude.shape)))
    return torch.from_numpy(np.fft.ifft2(noise / abs(noise) * amplitude).real)


@pytest.mark.parametrize("size", [(32, 32), (31, 31), (31, 48), (48, 31), (7, 20)])
def test_signature_equals_plain_complex_fft(size):
    maps = normal(3, 2, *size, seed=1) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None, None] + 0.5
    result = signature(maps)
    per_image, shares, radii = plain_signature(maps.numpy())
    np.testing.assert_allclose(result.per_image, per_image, rtol=1e-12)
    np.testing.assert_allclose(result.high_shares, shares, rtol=1e-12)
    np.testing.assert_allclose(result.radius, radii, rtol=1e-12)
    amplitude = per_image.mean(0)
    np.testing.assert_allclose(result.amplitude, amplitude, rtol=1e-12)
    np.testing.assert_allclose(result.se, per_image.std(0, ddof=1) / math.sqrt(3), rtol=1e-10)
    slope, intercept = np.polyfit(radii[1:], np.log10(amplitude[1:]), 1)
    fit = result.fit()
    np.testing.assert_allclose([fit.slope, fit.intercept], [slope, intercept], rtol=1e-9)
    assert (result.slope, result.r2, fit.rings) == (fit.slope, fit.r2, min(size) // 2)
    assert math.isclose(fit.r2, np.corrcoef(radii[1:], np.log10(amplitude[1:]))[0, 1] ** 2, rel_tol=1e-9)
    assert math.isclose(result.slope_nyquist, slope * min(size) / 2, rel_tol=1e-9)
    assert math.isclose(result.high_share, shares.mean(), rel_tol=1e-12)
    assert math.isclose(result.high_share_se, shares.std(ddof=1) / math.sqrt(3), rel_tol=1e-9)
    for above in (1.0, 2.3, 9.0):
        _, shares, _ = plain_signature(maps.numpy(), above)
        np.testing.assert_allclose(high_share(maps, above), shares, rtol=1e-12, atol=1e-15)


def test_four_by_four_by_hand():
    # cos(pi j / 2) + 3: amplitude 4 * 4 / 2 = 8 at v = +1 and -1, 48 at DC. Ring 1 has 8 bins (four at r = 1, four at
    # sqrt 2), so its mean is 2 * 8 / 8; n/4 = 1, so r = 1 is not high.
    wave = torch.cos(torch.arange(4).double() * torch.pi / 2).expand(1, 4, 4) + 3
    result = signature(wave)
    np.testing.assert_allclose(result.per_image, [[48, 2, 0]], atol=1e-12)
    np.testing.assert_allclose(result.radius, [0, (1 + math.sqrt(2)) / 2, (2 * 2 + 4 * math.sqrt(5)) / 6], atol=1e-12)
    np.testing.assert_allclose(result.high_shares, [0], atol=1e-12)
    assert math.isnan(result.slope) and result.reason == "2 ring(s) beside DC at 4 x 4, a slope takes 3"
    # +-1 checkerboard: all power in the corner u = v = 2, beyond the rings, but high
    checkers = (-1.0) ** (torch.arange(4)[:, None] + torch.arange(4)).double()[None]
    result = signature(checkers)
    np.testing.assert_allclose(result.per_image, 0, atol=1e-12)
    np.testing.assert_allclose(result.high_shares, [1], atol=1e-12)
    # of 15 bins beside DC the four at r = 1 are low
    assert result.white_share == white_share(4, 4) == 11 / 15
    assert math.isclose(result.excess, 4 / 15) and (result.n, result.zeros) == (
        1,
        0,
    )  # counts, though its rings are empty


def test_channels_are_averaged_in_amplitude_and_summed_in_power():
    low = torch.cos(torch.arange(16).double() * torch.pi / 8).expand(16, 16)  # r = 1
    high = 2 * torch.cos(torch.arange(16).double() * torch.pi * 6 / 8).expand(16, 16)  # r = 6
    both = signature(torch.stack([low, high])[None])
    alone = [signature(low[None]), signature(high[None])]
    np.testing.assert_allclose(both.per_image, (alone[0].per_image + alone[1].per_image) / 2, atol=1e-12)
    np.testing.assert_allclose(both.high_shares, [4 / 5], atol=1e-12)  # power 1 against 4, not the shares' mean 1/2
    opposite = signature(torch.stack([low, -low])[None])
    np.testing.assert_allclose(opposite.per_image, alone[0].per_image, atol=1e-12)  # their mean map would be zero
    five_dims = normal(2, 3, 4, 8, 9)
    np.testing.assert_array_equal(signature(five_dims).per_image, signature(five_dims.flatten(1, 2)).per_image)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [(31, 31), (32, 32), (31, 48), (48, 48), (64, 64), (65, 80), (112, 112), (224, 224)])
def test_log_log_fit_recovers_a_power_law(size, exponent):
    radius = frequency_radius(*size).numpy()
    maps = with_amplitude(np.where(radius == 0, 1, radius).clip(1e-9) ** -exponent, count=2)
    # a ring's mean amplitude is not the amplitude at its mean radius: a bias of the innermost rings
    assert abs(signature(maps).fit("log-log").slope + exponent) < (0.06 if min(size) <= 48 else 0.02)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("size", [(31, 31), (32, 32), (31, 48), (64, 64), (101, 101)])
def test_default_fit_recovers_an_exponential(size, rate):
    maps = with_amplitude(10 ** (-rate * frequency_radius(*size).numpy()), count=2)
    result = signature(maps)
    assert abs(result.slope + rate) < 0.01 * max(rate, 0.01)  # one per cent of itself, far within 0.01
    assert abs(result.slope_nyquist + rate * min(size) / 2) < 0.01
    np.testing.assert_allclose(result.slopes_per_image(), result.slope, atol=1e-9)


def test_linear_fit_recovers_a_line():
    rings = 5 - 0.25 * signature(normal(1, 20, 20)).radius
    fit = Signature(20, 20, np.stack([rings, 3 * rings]), np.array([0.5, 0.5])).fit("linear")
    assert math.isclose(fit.slope, -0.5) and math.isclose(fit.intercept, 10) and math.isclose(fit.r2, 1)
    assert math.isclose(fit.se, 0.25)  # slopes -0.25 and -0.75: standard deviation 0.3536 over sqrt 2


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (31, 48), (1, 12), (2, 2), (1, 2)])
def test_white_share_counts_bins(size):
    radius = [r for row in plain_radius(*size) for r in row][1:]
    for above in (None, 0.0, 1.5, 100.0):
        limit = min(size) / 4 if above is None else above
        assert white_share(*size, above) == sum(r > limit + 1e-9 for r in radius) / len(radius)
    assert white_share(*size, -1) == 1  # DC stays out
    assert math.isnan(white_share(1, 1))


def test_white_share_of_large_maps():
    assert abs(white_share(224, 224) - (1 - math.pi / 16)) < 1e-3
    assert abs(white_share(223, 223) - (1 - math.pi / 16)) < 1e-3
    assert abs(white_share(112, 112, above=56) - (1 - math.pi / 4)) < 5e-3  # corners alone (SPEC, new power)


@pytest.mark.parametrize("size", [(16, 16), (15, 21), (28, 28)])
def test_white_noise_has_no_excess_and_no_slope(size):
    result = signature(normal(400, *size, seed=7))
    assert abs(result.excess) < 4 * result.high_share_se < 0.02
    assert abs(result.slope_nyquist) < 4 * result.slope_nyquist_se < 0.05
    # the spread of a share of M of B unit-exponential bins, half of them free
    bins = size[0] * size[1] - 1
    share = result.white_share
    assert math.isclose(result.high_shares.std(), math.sqrt(2 * share * (1 - share) / (bins + 2)), rel_tol=0.15)


@pytest.mark.parametrize("scale", ["log-linear", "log-log", "linear"])
def test_slope_error_agrees_with_the_jackknife(scale):
    radius = frequency_radius(24, 24).numpy()
    maps = low_pass(normal(150, 2, 24, 24, seed=3), 6, "gaussian") + 0.05 * with_amplitude(radius, 150)[:, None]
    maps = maps * torch.rand(150, 1, 1, 1, generator=torch.Generator().manual_seed(4))  # images of unequal weight
    result = signature(maps)

    def without(image):
        keep = np.arange(150) != image
        return Signature(24, 24, result.per_image[keep], result.high_shares[keep]).fit(scale).slope

    slopes = np.array([without(image) for image in range(150)])
    jackknife = math.sqrt(149 / 150 * np.square(slopes - slopes.mean()).sum())
    tolerance = 1e-9 if scale == "linear" else 0.02  # linear in the mean: identical; else to first order in 1/N
    assert math.isclose(result.fit(scale).se, jackknife, rel_tol=tolerance)
    if scale == "log-linear":
        assert math.isclose(result.slope_nyquist_se, 12 * result.slope_se)
        each = np.array([signature(maps[i : i + 1]).slope for i in range(5)])
        np.testing.assert_allclose(result.slopes_per_image()[:5], each, rtol=1e-9)


def test_slope_influences_agree_with_the_jackknife_and_pair():
    """What each image adds to the slope, against leaving it out; the error of a difference of slopes likewise."""
    rng = np.random.default_rng(5)
    common, rings = rng.lognormal(0, 0.3, (40, 1)) * np.linspace(0, 1, 13), np.exp(-np.arange(13) / 6)
    shares = np.full(40, 0.5)
    shares[7] = math.nan  # does not count
    ours, other = (
        Signature(24, 25, scale * rings * np.exp(common + 0.1 * rng.standard_normal((40, 13))), shares)
        for scale in (1.0, 30.0)
    )
    counted = np.flatnonzero(ours.counted)

    def without(signature, image):
        kept = counted[counted != image]
        return Signature(24, 25, signature.per_image[kept], signature.high_shares[kept]).slope_nyquist

    influences = ours.slope_influences()
    assert np.isnan(influences[7]) and abs(influences[counted].sum()) < 1e-9
    left_out = np.array([38 * (ours.slope_nyquist - without(ours, image)) for image in counted])
    np.testing.assert_allclose(influences[counted], left_out, atol=0.05 * np.abs(left_out).max())
    assert influences[counted].std(ddof=1) / math.sqrt(39) == pytest.approx(ours.slope_nyquist_se, rel=1e-9)
    gaps = np.array([without(ours, image) - without(other, image) for image in counted])
    jackknife = math.sqrt(38 / 39 * np.square(gaps - gaps.mean()).sum())
    paired = (influences - other.slope_influences())[counted].std(ddof=1) / math.sqrt(39)
    assert paired == pytest.approx(jackknife, rel=0.05)
    assert paired < 0.6 * math.hypot(ours.slope_nyquist_se, other.slope_nyquist_se)  # what pairing is for
    assert np.isnan(Signature(24, 25, np.zeros((2, 13)), np.full(2, math.nan)).slope_influences()).all()


def test_one_image_has_a_slope_but_no_error():
    result = signature(normal(1, 3, 12, 12))
    assert result.n == 1 and math.isfinite(result.slope) and math.isfinite(result.high_share)
    assert np.isnan(result.se).all() and math.isnan(result.slope_se) and math.isnan(result.high_share_se)


@pytest.mark.parametrize("dtype", DTYPES)
def test_precision(dtype):
    maps = normal(2, 3, 30, 41, seed=5, dtype=dtype)
    result, exact = signature(maps), signature(maps.double())
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6  # float32 transform
    np.testing.assert_allclose(result.per_image, exact.per_image, rtol=tolerance)
    np.testing.assert_allclose(result.high_shares, exact.high_shares, rtol=tolerance)
    assert result.per_image.dtype == result.high_shares.dtype == np.float64


@pytest.mark.parametrize("factor", [1e-38, 1e-25, 1e-6, 1e25, 1e37])
def test_squares_neither_underflow_nor_overflow(factor):
    maps = normal(3, 2, 32, 32, seed=6, dtype=torch.float32)
    result, scaled = signature(maps), signature(maps * factor)
    np.testing.assert_allclose(scaled.per_image / factor, result.per_image, rtol=1e-5)
    np.testing.assert_allclose(scaled.high_shares, result.high_shares, rtol=1e-5)
    assert math.isclose(scaled.slope, result.slope, rel_tol=1e-3, abs_tol=1e-6) and scaled.reason == ""
    np.testing.assert_allclose(log_spectrum(maps * factor) - math.log10(factor), log_spectrum(maps), atol=1e-3)
    np.testing.assert_allclose(laplacian_complexity(maps * factor), laplacian_complexity(maps), rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 300))
def test_results_do_not_depend_on_the_batch(height, width, block):
    maps = normal(5, 2, height, width, seed=8)
    whole = signature(maps)
    singles = [signature(image[None]) for image in maps]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradspec.spectra, "BLOCK", block)
        blocked = signature(maps)
        spectrum = log_spectrum(maps)
    np.testing.assert_allclose(whole.per_image, np.concatenate([s.per_image for s in singles]), rtol=1e-12)
    np.testing.assert_allclose(whole.high_shares, np.concatenate([s.high_shares for s in singles]), rtol=1e-12)
    np.testing.assert_allclose(blocked.per_image, whole.per_image, rtol=1e-12)
    np.testing.assert_allclose(spectrum, log_spectrum(maps), atol=1e-12)


def test_strided_and_attached_maps():
    maps = normal(2, 3, 10, 11).requires_grad_()
    strided = maps.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(signature(strided).per_image, signature(maps.detach()).per_image, rtol=1e-12)
    with torch.inference_mode():
        assert math.isfinite(signature(normal(2, 10, 11)).slope)
    assert maps.grad is None


def test_zero_maps_are_counted_but_not_averaged():
    maps = normal(4, 2, 16, 16)
    maps[1] = 0
    result, rest = signature(maps), signature(maps[[0, 2, 3]])
    assert (result.n, result.zeros, result.constants) == (3, 1, 0)
    assert result.slope == rest.slope and result.slope_se == rest.slope_se and result.high_share == rest.high_share
    np.testing.assert_array_equal(result.amplitude, rest.amplitude)
    np.testing.assert_array_equal(result.se, rest.se)
    assert result.high_share_se == rest.high_share_se
    assert np.isnan(result.high_shares[1]) and np.isnan(result.slopes_per_image()[1])
    assert np.isnan(high_share(maps)).tolist() == [False, True, False, False]
    np.testing.assert_allclose(log_spectrum(maps), log_spectrum(maps[[0, 2, 3]]), atol=1e-12)
    nothing = signature(torch.zeros(2, 16, 16))
    assert (nothing.n, nothing.zeros, nothing.reason) == (0, 2, "zero in all 2 image(s)")
    assert np.isnan([nothing.slope, nothing.slope_se, nothing.r2, nothing.high_share, nothing.excess]).all()
    assert np.isnan(nothing.amplitude).all() and np.isnan(log_spectrum(torch.zeros(2, 16, 16))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_maps_have_no_spectrum(dtype):
    generator = torch.Generator().manual_seed(0)
    for height, width in [(7, 7), (12, 12), (14, 9), (56, 56), (224, 224), (1, 9), (1, 1)]:
        values = torch.randn(4, 8, 1, 1, generator=generator, dtype=torch.float64)
        flat = values.expand(4, 8, height, width)
        # one rounding of each value beside the transform's own
        noisy = flat * (1 + (torch.rand(4, 8, height, width, generator=generator) - 0.5) * torch.finfo(dtype).eps)
        for maps in (flat.to(dtype), noisy.to(dtype)):
            result = signature(maps)
            assert (result.n, result.zeros, result.constants) == (0, 0, 4)
            assert np.isnan(result.high_shares).all() and math.isnan(result.slope) and result.reason
            assert np.isnan(laplacian_complexity(maps)).all()
    assert "constant in 4 image(s)" in signature(torch.ones(4, 8, 8, dtype=dtype)).reason
    mixed = torch.ones(3, 8, 8, dtype=dtype)
    mixed[0] = 0
    assert signature(mixed).reason == "constant in 2 image(s) or zero (1): only rounding noise beside DC"


@pytest.mark.parametrize(("dtype", "depth"), [(torch.float32, 1e-4), (torch.float64, 1e-12), (torch.float16, 0.02)])
def test_weak_waves_on_a_large_mean_are_no_rounding(dtype, depth):
    wave = 1 + depth * math.sqrt(2) * torch.cos(torch.arange(28).double() * torch.pi / 14 * 10)  # r = 10 > 28 / 4
    assert rounding_floor(dtype, 28, 28) < depth
    assert signature(wave.expand(1, 28, 28).to(dtype)).high_share > 0.85


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_maps_that_are_not_finite_are_refused_by_index(value, monkeypatch):
    monkeypatch.setattr(gradspec.spectra, "BLOCK", 1)  # image by image
    maps = normal(3, 2, 8, 8)
    maps[1, 1, 2, 3] = value
    for function in (signature, high_share, log_spectrum):
        with pytest.raises(ValueError, match="NaN or infinite values in image 1"):
            function(maps)
    for function in (laplacian_complexity, kolmogorov_complexity):
        with pytest.raises(ValueError, match="NaN or infinite values in map 3"):
            function(maps)


@pytest.mark.parametrize("size", [(1, 17), (16, 1), (1, 2), (2, 3), (5, 5)])
def test_thin_and_small_maps_have_shares_but_no_slope(size):
    maps = normal(3, 2, *size)
    result = signature(maps)
    per_image, shares, _ = plain_signature(maps.numpy())
    np.testing.assert_allclose(result.per_image, per_image, rtol=1e-11)
    np.testing.assert_allclose(result.high_shares, shares, rtol=1e-11)
    assert result.n == 3 and math.isnan(result.slope) and np.isnan(result.slopes_per_image()).all()
    assert result.reason == f"{min(size) // 2} ring(s) beside DC at {size[0]} x {size[1]}, a slope takes 3"
    assert signature(normal(3, 2, 6, 7)).reason == ""  # three rings


def test_empty_rings_have_no_logarithm():
    rings = np.array([[3.0, 1.0, 2.0, 0.0, 1.0], [3.0, 1.0, 2.0, 0.0, 1.0]])
    result = Signature(8, 8, rings, np.array([0.5, 0.5]))
    assert result.reason == "amplitude zero in 1 of 4 rings, which has no logarithm" and math.isnan(result.slope)
    assert math.isnan(result.fit("log-log").slope) and math.isfinite(result.fit("linear").slope)
    assert np.isnan(result.slopes_per_image()).all()


def test_signature_from_accumulated_arrays():
    whole = signature(normal(6, 3, 14, 14))
    built = Signature(14, 14, whole.per_image, whole.high_shares)
    assert built.slope == whole.slope and built.slope_se == whole.slope_se and built.excess == whole.excess
    text = repr(built)
    for part in (
        "14 x 14",
        "n=6",
        f"{built.slope_nyquist:.3f} ± {built.slope_nyquist_se:.3f}",
        f"{built.high_share:.3f}",
    ):
        assert part in text
    assert "n=1 of 2" in repr(signature(torch.cat([normal(1, 8, 8), torch.zeros(1, 8, 8)])))
    assert "zero in all 2 image(s)" in repr(signature(torch.zeros(2, 8, 8)))
    with pytest.raises(ValueError, match=r"per_image \(N, 8\).*got \(6, 8\) and \(5,\)"):
        Signature(14, 14, whole.per_image, whole.high_shares[:5])
    with pytest.raises(ValueError, match=r"per_image \(N, 9\)"):
        Signature(16, 16, whole.per_image, whole.high_shares)
    with pytest.raises(ValueError, match="finite amplitudes"):
        Signature(14, 14, -whole.per_image, whole.high_shares)
    with pytest.raises(ValueError, match="log-linear, log-log, linear, got 'log'"):
        whole.fit("log")


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (9, 14), (14, 9), (1, 6), (5, 1), (2, 2)])
def test_log_spectrum_equals_plain_complex_fft(size):
    maps = normal(3, 2, *size)
    plain = np.log10(np.abs(np.fft.fft2(maps.numpy())).mean(1)).mean(0)
    np.testing.assert_allclose(log_spectrum(maps), np.fft.fftshift(plain), atol=1e-11)


def test_log_spectrum_of_empty_bins_stands_at_the_rounding_level():
    spectrum = log_spectrum(torch.ones(1, 8, 8, dtype=torch.float64))
    assert spectrum[4, 4] == pytest.approx(math.log10(64))
    assert spectrum.min() == pytest.approx(math.log10(64 * torch.finfo(torch.float64).eps))


def test_laplacian_by_hand():
    # three in a row, (1, 0, -1) has variance 2/3; differences to the neighbours: -1, 0, 1; mean square 2/3
    row = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    assert laplacian_complexity(row).item() == pytest.approx(1)
    checkers = (-1.0) ** (torch.arange(100)[:, None] + torch.arange(100))
    # inside (4 * 2)^2, edges (3 * 2)^2, corners (2 * 2)^2
    expected = (98**2 * 64 + 4 * 98 * 36 + 4 * 16) / 100**2
    assert laplacian_complexity(checkers).item() == pytest.approx(expected)
    assert laplacian_complexity(normal(20, 100, 100)).mean() == pytest.approx(20, rel=0.02)  # 4^2 + 4, less at borders


@pytest.mark.parametrize("size", [(17, 17), (9, 14), (1, 8), (5, 2)])
def test_laplacian_equals_scipy(size):
    maps = normal(2, 3, *size)
    plain = [
        [np.square(scipy.ndimage.laplace(m / m.std(), mode="reflect")).mean() for m in image] for image in maps.numpy()
    ]
    np.testing.assert_allclose(laplacian_complexity(maps), plain, rtol=1e-11)
    np.testing.assert_allclose(laplacian_complexity(-3 * maps + 5), plain, rtol=1e-10)  # scale and offset do not count
    assert laplacian_complexity(maps[0, 0]).shape == ()


def test_complexity_falls_with_the_cutoff():
    noise = normal(4, 48, 48)
    smooth = [low_pass(noise, cutoff) for cutoff in (None, 12, 6, 2)]
    for measure in (
        laplacian_complexity,
        kolmogorov_complexity,
        lambda maps: kolmogorov_complexity(maps, "jpeg"),
    ):
        values = np.stack([measure(maps) for maps in smooth])
        assert (np.diff(values, axis=0) < 0).all()


@pytest.mark.parametrize(("coder", "options"), [("png", {"optimize": True}), ("jpeg", {"quality": 75})])
def test_kolmogorov_counts_the_bytes_of_the_stretched_map(coder, options):
    smooth = scipy.ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((96, 130)), 8)
    pixels = np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=coder, **options)
    maps = torch.from_numpy(pixels).double()
    maps += (
        0.8 * (torch.rand(maps.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * ((maps > 0) & (maps < 255))
    )
    assert kolmogorov_complexity(maps, coder).item() == len(file.getvalue())  # nearest of 256 levels
    assert kolmogorov_complexity(2**-30 * maps - 4e-8, coder).item() == len(file.getvalue())  # stretched to 0..255
    assert kolmogorov_complexity(maps.float()[None, None], coder).shape == (1, 1)


def test_kolmogorov_known_sizes():
    noise = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    assert 64 * 64 < kolmogorov_complexity(noise) < 64 * 64 + 200  # random bytes cannot be compressed
    stripes = (torch.arange(64) % 2).float().expand(64, 64)
    assert kolmogorov_complexity(stripes) < 200
    sizes = [kolmogorov_complexity(noise, "jpeg", quality=quality).item() for quality in (10, 50, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 3
    assert np.isnan(kolmogorov_complexity(torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]))).all()
    with pytest.raises(ValueError, match="png, jpeg, got 'webp'"):
        kolmogorov_complexity(noise, "webp")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(32, 32), (31, 31), (31, 48)])
def test_cuda_equals_cpu(size, dtype):
    maps = normal(3, 2, *size, dtype=dtype)
    cpu, cuda = signature(maps), signature(maps.cuda())
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(cuda.per_image, cpu.per_image, rtol=tolerance)
    np.testing.assert_allclose(cuda.high_shares, cpu.high_shares, rtol=tolerance)
    np.testing.assert_allclose(laplacian_complexity(maps.cuda()), laplacian_complexity(maps), rtol=1e-4)
    np.testing.assert_allclose(kolmogorov_complexity(maps.cuda()), kolmogorov_complexity(maps), rtol=0.02)


def test_wrong_shapes_are_refused_in_a_sentence():
    for function in (signature, high_share, log_spectrum):
        with pytest.raises(
            ValueError, match=r"\(N, \.\.\., H, W\).*\(8, 8\); add the images' dimension with maps\[None\]"
        ):
            function(torch.ones(8, 8))
        with pytest.raises(TypeError, match="int64"):
            function(torch.ones(1, 8, 8, dtype=torch.int64))
        with pytest.raises(ValueError, match="at least one value"):
            function(torch.ones(0, 3, 8, 8))
