"""Checkerboard share and band ratios against plain loops over the full spectrum, and by hand."""

import math

import numpy as np
import pytest
import torch

from gradspec.spectra import Signature, checkerboard_share, signature, white_checkerboard_share


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (12, 20), (7, 9)])
@pytest.mark.parametrize("within", [0.0, 0.5, 2.0])
def test_checkerboard_share_is_a_loop_over_all_bins(size, within):
    height, width = size
    maps, n = noise(3, 2, *size), min(size)
    power = np.abs(np.fft.fft2(maps.numpy())) ** 2
    near, others = np.zeros(3), power.sum((1, 2, 3)) - power[..., 0, 0].sum(1)
    bins = 0
    for i in range(height):
        for j in range(width):
            u = abs((i if 2 * i <= height else i - height) * n / height)
            v = abs((j if 2 * j <= width else j - width) * n / width)
            gaps = [math.hypot(a - u, b - v) for a, b in ((n / 2, 0), (0, n / 2), (n / 2, n / 2))]
            if min(gaps) <= within + 1e-9 and (i or j):
                near += power[:, :, i, j].sum(1)
                bins += 1
    np.testing.assert_allclose(checkerboard_share(maps, within), near / others, rtol=1e-10, atol=1e-15)
    assert white_checkerboard_share(*size, within) == pytest.approx(bins / (height * width - 1))


def test_checkerboard_share_of_stripes_and_nothing():
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 16, 16)
    maps = torch.cat([stripes, stripes.mT, torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    np.testing.assert_allclose(checkerboard_share(maps, 0), [1, 1, math.nan, math.nan])
    assert checkerboard_share(noise(64, 32, 32)).mean() == pytest.approx(white_checkerboard_share(32, 32), rel=0.1)


def test_log_ratio_and_its_error():
    found = signature(noise(40, 3, 32, 32))
    ratio, se = found.log_ratio(slice(14, 17), slice(6, 11))
    assert abs(ratio) < 4 * se < 0.1  # white noise is flat
    kept = [np.delete(found.per_image, i, 0).mean(0) for i in range(found.n)]
    left_out = np.array([np.log10(mean[14:17].mean() / mean[6:11].mean()) for mean in kept])
    jackknife = math.sqrt((found.n - 1) / found.n * np.square(left_out - left_out.mean()).sum())
    assert se == pytest.approx(jackknife, rel=0.02)


def test_log_ratio_where_there_is_none():
    rings = np.zeros((2, 9))
    rings[:, 1:4] = 1
    found = Signature(16, 16, rings, np.array([0.1, 0.2]))
    assert all(map(math.isnan, found.log_ratio(slice(7, 9), slice(1, 3))))
    nothing = Signature(16, 16, rings, np.full(2, math.nan))
    assert all(map(math.isnan, nothing.log_ratio(slice(1, 2), slice(2, 3))))
