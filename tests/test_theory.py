"""Supplement A: what holds, held against simulation; what does not, shown not to."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest

from gradspec.controls.theory import (
    band_limit,
    bernstein_bound,
    convergence,
    degrees_of_freedom,
    kept_noise,
    kept_share,
    printed_bound,
    printed_ratio,
    recovery,
    simulated_deviations,
)
from gradspec.fourier import identity_radius, low_pass, low_pass_mask

SIZES = [(8, 8), (7, 7), (9, 6), (12, 7)]


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- A.2 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", ["square", "disk"])
def test_error_is_kept_noise_and_lost_gradient_at_any_cutoff(size, shape):
    gradient, error = noise(2, *size), noise(2, *size, seed=1)
    for cutoff in (0, 1, 1.5, 2, 3, 100):
        found = recovery(gradient, error, cutoff, shape)
        assert torch.allclose(found.error, found.kept + found.lost, rtol=1e-10)
        assert bool((found.kept <= found.noise + 1e-12).all())
        direct = (low_pass(gradient + error, cutoff, shape) - gradient).square().sum((1, 2))
        assert torch.allclose(found.error, direct)
    assert torch.allclose(found.error, found.noise) and float(found.lost.max()) < 1e-20  # the last kept everything


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", ["square", "disk"])
def test_from_the_band_limit_on_the_error_is_noise_alone(size, shape):
    gradient = low_pass(noise(*size), 1.6, shape)
    limit = band_limit(gradient, shape)
    assert 0.5 < limit <= 1.6
    at, below = (recovery(gradient, noise(*size, seed=2), cutoff, shape) for cutoff in (limit, limit - 0.01))
    assert torch.allclose(at.error, at.kept) and at.kept < at.noise and below.lost > 1e-3
    assert band_limit(noise(*size), shape) == pytest.approx(identity_radius(*size, shape))


def test_the_band_limit_of_known_waves():
    wave = torch.cos(torch.arange(9, dtype=torch.float64) * 2 * math.pi * 2 / 9)
    assert band_limit(wave.expand(9, 9)) == 2 and band_limit(torch.ones(5, 4)) == 0 == band_limit(torch.zeros(5, 4))
    both = torch.stack([wave.expand(9, 9), torch.ones(9, 9)])
    assert band_limit(both, "disk") == 2
    tall = torch.cos(torch.arange(12, dtype=torch.float64) * 2 * math.pi * 3 / 12)[:, None].expand(12, 6)
    assert band_limit(tall) == 1.5  # three cycles along the longer of two sides


def test_recovery_says_what_it_does_not_take():
    with pytest.raises(ValueError, match="hard mask"):
        recovery(noise(4, 4), noise(4, 4), 1, "gaussian")
    with pytest.raises(ValueError, match="noise as the gradient is"):
        recovery(noise(4, 4), noise(4, 5), 1)


# ---- A.3 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "cutoff", "shape"), [
    ((8, 8), 0, "square"), ((8, 8), 1, "square"), ((8, 8), 4, "disk"),  # 4 is Nyquist: bins that are their own mirrors
    ((7, 7), 2, "square"), ((9, 6), 2, "disk"), ((12, 7), 1.5, "square"), ((4, 4), 2, "disk"), ((2, 6), 1, "disk"),
    ((32, 32), 5, "square"),
])  # fmt: skip
def test_the_share_of_white_noise_kept_is_beta(size, cutoff, shape):
    found = kept_noise(*size, cutoff, shape, draws=4000, seed=1)
    assert kstest(found.shares, found.exact.cdf).pvalue > 0.01
    bins = degrees_of_freedom(low_pass_mask(*size, cutoff, shape))
    assert found.exact.args == (bins / 2, (size[0] * size[1] - bins) / 2)


def test_the_test_would_see_a_wrong_number_of_degrees():
    """Nyquist's bins counted twice, or DC, is seen: the agreement above says something."""
    from scipy.stats import beta

    found = kept_noise(8, 8, 4, "disk", draws=4000, seed=1)
    bins = degrees_of_freedom(low_pass_mask(8, 8, 4, "disk"))
    for wrong in (bins - 2, bins + 2, 2 * bins - 1 if 2 * bins - 1 < 64 else bins + 4):
        assert kstest(found.shares, beta(wrong / 2, (64 - wrong) / 2).cdf).pvalue < 1e-6


def test_degrees_of_freedom_are_the_rank_of_the_filter():
    for size, cutoff, shape in [((4, 4), 2, "disk"), ((5, 4), 1, "square"), ((3, 6), 1.5, "disk")]:
        pixels = size[0] * size[1]
        basis = torch.eye(pixels, dtype=torch.float64).view(pixels, *size)
        matrix = low_pass(basis, cutoff, shape).flatten(1)
        assert torch.linalg.matrix_rank(matrix, atol=1e-9) == degrees_of_freedom(low_pass_mask(*size, cutoff, shape))


def test_degrees_of_freedom_refuse_masks_of_no_real_map():
    lonely = torch.zeros(4, 4)
    lonely[0, 1] = 1
    with pytest.raises(ValueError, match="also"):
        degrees_of_freedom(lonely)
    with pytest.raises(ValueError, match="zeros and ones"):
        degrees_of_freedom(low_pass_mask(4, 4, 1, "gaussian"))


@pytest.mark.parametrize(("size", "cutoff"), [((8, 8), 1), ((16, 16), 3), ((32, 32), 5), ((64, 64), 10)])
@pytest.mark.parametrize("version", ["statement", "proof"])
def test_as_printed_the_ratio_is_not_what_is_simulated(size, cutoff, version):
    found = kept_noise(*size, cutoff, draws=2000, seed=3)
    assert kstest(1 / found.shares, found.printed(version).cdf).pvalue < 1e-6
    assert kstest(found.shares, found.exact.cdf).pvalue > 0.01


def test_the_two_printed_versions_are_those_of_the_supplement():
    statement, proof = printed_ratio(16, 16, 3), printed_ratio(16, 16, 3, "proof")
    assert statement.args == (512, 36) and proof.args == (256, 36)
    assert statement.kwds["scale"] == proof.kwds["scale"] == 256 / 36
    with pytest.raises(ValueError, match="'statement' or 'proof'"):
        printed_ratio(16, 16, 3, "both")
    with pytest.raises(ValueError, match="cutoff above 0"):
        printed_ratio(16, 16, 0)


def test_a_filter_that_takes_nothing_has_no_distribution():
    with pytest.raises(ValueError, match="takes something"):
        kept_share(8, 8, 4)
    with pytest.raises(ValueError, match="draws as a whole number"):
        kept_noise(8, 8, 1, draws=0)
    with pytest.raises(ValueError, match="hard mask"):
        kept_noise(8, 8, 1, "gaussian")


def test_simulations_are_the_same_whatever_fits_in_memory(monkeypatch):
    whole = kept_noise(8, 8, 1, draws=10, seed=2).shares
    monkeypatch.setattr("gradspec.controls.theory.white_noise.BATCH", 64 * 3)
    assert torch.allclose(kept_noise(8, 8, 1, draws=10, seed=2).shares, whole)


# ---- A.4 -----------------------------------------------------------------------------------------


def test_the_printed_bound_fails_by_280_powers_of_ten():
    """100 draws of ±1, t = 0.1 (SPEC §6)."""
    found = convergence([0.1], 100)
    assert math.log10(found.printed[0]) == pytest.approx(-283, abs=0.5)
    exact = 2 * binom.cdf(45, 100, 0.5)  # a sum of -10 is 45 heads
    assert exact == pytest.approx(0.37, abs=0.005)
    assert found.frequency[0] == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 10_000) ** 0.5)
    assert found.frequency[0] <= found.bernstein[0] == pytest.approx(2 * math.exp(-0.005 / (0.01 + 0.2 / 300)))


@pytest.mark.parametrize(("n", "height", "width"), [(10, 1, 1), (100, 4, 4), (100, 3, 8), (1000, 16, 16)])
def test_matrix_bernstein_holds(n, height, width):
    found = convergence(np.linspace(0, 4 / n**0.5, 30), n, height, width, repeats=4000)
    assert (found.frequency <= found.bernstein).all() and (found.printed < found.frequency).any()
    assert found.frequency[0] == 1 and (np.diff(found.frequency) <= 0).all()


def test_deviations_are_the_spectral_norm_of_a_mean():
    """Entries are independent, so none of k exceeds t with the k-th power of one's probability."""
    one, many = (simulated_deviations(20, k, k + 2, repeats=20_000) for k in (1, 5))
    for t in (0.2, 0.4):
        single = float((one >= t).double().mean())
        assert float((many >= t).double().mean()) == pytest.approx(1 - (1 - single) ** 5, abs=0.03)
    signs = 2.0 * torch.randint(2, (20, 3), generator=torch.Generator().manual_seed(0)) - 1
    mean = torch.stack([torch.cat([torch.diag(row), torch.zeros(3, 2)], 1) for row in signs]).mean(0)
    assert torch.linalg.matrix_norm(mean, 2) == pytest.approx(float(signs.mean(0).abs().max()), abs=1e-6)


def test_both_bounds_are_the_formulas():
    t, n, v, lipschitz = 0.3, 7, 0.2, 1.5
    assert printed_bound(t, n, v, lipschitz, 4, 5) == pytest.approx(9 * math.exp(-(0.09 * 49 / 2) / (0.2 + 0.3)))
    assert bernstein_bound(t, n, v, lipschitz, 4, 5) == pytest.approx(9 * math.exp(-0.045 / (0.2 + 0.9 / 21)))
    assert printed_bound([0.1, 0.2], 3, 1, 1, 1, 1).shape == (2,)
