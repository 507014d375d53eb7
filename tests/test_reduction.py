"""The streaming kernel against numpy's complex FFT."""

import numpy as np
import pytest
import torch

from gradspec.fourier import frequency_radius
from gradspec.reduction import joined, reduce_maps, reduce_sums, sum_spectra
from gradspec.spectra import signature

SIZES = [(8, 8), (7, 7), (17, 17), (17, 12), (12, 17), (13, 26), (31, 48), (2, 5), (3, 2), (73, 8)]


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equals_complex_fft(height, width, last):
    maps = noise(3, 5, height, width)
    if last:  # strides of channels last, as tokens and ConvNeXt have them
        maps = maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    radii = (min(height, width) / 4, 1.0, 3.3)
    found, (sums,) = reduce_maps(maps, radii), sum_spectra(maps)
    spectrum = np.abs(np.fft.fft2(maps.numpy()))
    radius = frequency_radius(height, width).numpy()
    power = (spectrum**2).sum(1)
    kept = (3, height, width // 2 + 1)
    np.testing.assert_allclose(sums.amplitude.view(kept), spectrum.sum(1)[..., : kept[2]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sums.power.view(kept), power[..., : kept[2]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.dc, power[:, 0, 0], rtol=1e-9)
    np.testing.assert_allclose(found.others, power.sum((1, 2)) - power[:, 0, 0], rtol=1e-9)
    for i, r in enumerate(radii):
        np.testing.assert_allclose(found.above[i], power[:, radius > r + 1e-9].sum(1), rtol=1e-9)
    np.testing.assert_allclose(found.rings, signature(maps).per_image, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 17])
def test_lower_precision_is_raised_before_the_transform(dtype, size):
    maps = noise(2, 3, size, size, dtype=dtype)
    found, exact = reduce_maps(maps, (4.0,)), reduce_maps(maps.double(), (4.0,))
    np.testing.assert_allclose(found.rings, exact.rings, rtol=1e-5)


def test_any_strides_and_many_chunks(monkeypatch):
    maps = noise(2, 9, 6, 10)
    exact = reduce_maps(maps, (1.5,))
    monkeypatch.setattr("gradspec.reduction._CHUNK", 2 * 60 * 2)  # two channels at a time
    last = maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for other in (maps, last, maps.expand(2, 9, 6, 10)):
        found = reduce_maps(other, (1.5,))
        np.testing.assert_allclose(found.rings, exact.rings, rtol=1e-12)
        np.testing.assert_allclose(found.above, exact.above, rtol=1e-12)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12), (17, 13)])
def test_scaled_channels_take_one_transform(last, height, width):
    maps, scales = noise(3, 5, height, width), [noise(5), 3 * noise(5) - 1]
    if last:
        maps = maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    together = reduce_sums(sum_spectra(maps, scales), (1.5,))
    for found, factor in zip(together, (torch.ones(5), *scales), strict=True):
        exact = reduce_maps((maps * factor.view(5, 1, 1)).contiguous(), (1.5,))
        for name in ("rings", "dc", "others", "above"):
            np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-9)


def test_joined_parts_are_the_spectra_of_their_concatenation():
    a, b = noise(2, 3, 8, 6), 2 * noise(2, 5, 8, 6)
    whole, sums = reduce_maps(torch.cat([a, b], 1), (1.5,)), joined([*sum_spectra(a), *sum_spectra(b)])
    (parts,) = reduce_sums([sums], (1.5,))
    for name in ("rings", "dc", "others", "above"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    assert sums.channels == 8


def test_the_maps_are_not_changed():
    maps = noise(1, 2, 17, 8)
    before = maps.clone()
    reduce_maps(maps, (2.0,))
    assert torch.equal(maps, before)
