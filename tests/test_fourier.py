"""Frequency grid, rings and low-pass filters against loops over the bins of a plain complex FFT, and by their laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradspec._checks import check_images, check_labels
from gradspec.fourier import (
    column_counts,
    frequency_radius,
    identity_radius,
    low_pass,
    low_pass_mask,
    ring_index,
    ring_radii,
)

SIZES = [(32, 32), (31, 31), (31, 48), (48, 31), (1, 7), (6, 1), (2, 2), (9, 40)]
SHAPES = ["disk", "square", "gaussian", "butterworth"]
laws = settings(deadline=None, max_examples=60)  # no deadline: cores are shared


def plain_frequencies(height, width):
    """(u', v') of every bin, by the definition: signed whole cycles, then n / H and n / W."""
    n = min(height, width)
    signed = lambda index, size: index if 2 * index < size else index - size  # noqa: E731
    return [
        [(n * signed(i, height) / height, n * signed(j, width) / width) for j in range(width)] for i in range(height)
    ]


def plain_gain(u, v, cutoff, shape):
    r = math.sqrt(u * u + v * v)
    if shape == "disk":
        return float(r <= cutoff + 1e-9)
    if shape == "square":
        return float(max(abs(u), abs(v)) <= cutoff + 1e-9)
    if cutoff == 0:
        return float(r == 0)
    return math.exp(-0.5 * (r / cutoff) ** 2) if shape == "gaussian" else math.sqrt(1 / (1 + (r / cutoff) ** 4))


def plain_low_pass(image, cutoff, shape):
    spectrum = np.fft.fft2(image)
    for i, row in enumerate(plain_frequencies(*image.shape)):
        for j, (u, v) in enumerate(row):
            spectrum[i, j] *= plain_gain(u, v, cutoff, shape)
    filtered = np.fft.ifft2(spectrum)
    assert abs(filtered.imag).max() < 1e-12  # a symmetric mask leaves a real map
    return filtered.real


@st.composite
def filters(draw):
    """A float64 map of any size, a cutoff that may lie on a bin, and a hard mask."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    cutoff = draw(st.one_of(st.integers(0, 18).map(float), st.floats(0, 18)))
    seed = draw(st.integers(0, 999))
    image = np.random.default_rng(seed).standard_normal((2, height, width))
    return torch.from_numpy(image), cutoff, draw(st.sampled_from(["disk", "square"]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_low_pass_equals_plain_complex_fft(size, shape):
    image = np.random.default_rng(0).standard_normal(size)
    for cutoff in (0, 1, 2.5, 5, 13):
        got = low_pass(torch.from_numpy(image), cutoff, shape).numpy()
        assert abs(got - plain_low_pass(image, cutoff, shape)).max() < 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_grid_equals_loops(size):
    height, width = size
    plain = np.array([[math.hypot(u, v) for u, v in row] for row in plain_frequencies(*size)])
    radius, rings = frequency_radius(*size), ring_index(*size)
    assert radius.dtype == torch.float64 and abs(radius.numpy() - plain).max() < 1e-12
    members = {}
    for i in range(height):
        for j in range(width):
            k = math.floor(plain[i, j] + 0.5 + 1e-9)
            assert rings[i, j] == (k if k <= min(size) // 2 else -1)
            members.setdefault(k, []).append(plain[i, j])
    means = [np.mean(members[k]) for k in range(min(size) // 2 + 1)]
    np.testing.assert_allclose(ring_radii(*size).numpy(), means, atol=1e-12)
    half = width // 2 + 1
    assert torch.equal(frequency_radius(*size, half=True), radius[:, :half])
    assert torch.equal(ring_index(*size, half=True), rings[:, :half])
    for shape in SHAPES:
        assert torch.equal(low_pass_mask(*size, 2.5, shape, half=True), low_pass_mask(*size, 2.5, shape)[:, :half])


def test_frequencies_are_exact():
    # 224 px: 224 * fftfreq in float32 is off by 1e-6 and drops boundary bins of whole radii
    u = torch.arange(-112, 112)
    inside = int(((u[:, None] ** 2 + u[None] ** 2) <= 15**2).sum())
    assert inside == 709  # Gauss' circle problem at r = 15
    assert low_pass_mask(224, 224, 15).sum() == 709
    assert frequency_radius(224, 224)[:, 0].tolist() == [*range(113), *range(111, 0, -1)]
    # a bin on the boundary is kept however the cutoff was rounded: 1e-9 of slack
    for shape in ("disk", "square"):
        assert low_pass_mask(8, 8, 3 - 5e-10, shape)[3, 0] == 1 and low_pass_mask(8, 8, 3 - 2e-9, shape)[3, 0] == 0
    for number in (np.float32(3), np.int64(3), np.float64(3)):  # a sweep over a numpy array
        assert torch.equal(low_pass_mask(8, 8, number), low_pass_mask(8, 8, 3))
        assert torch.equal(low_pass_mask(48, 31, number / 3 * 2, "square"), low_pass_mask(48, 31, 2, "square"))
    assert ring_index(3, 18)[0, :10].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, -1]  # v' = v / 6; 1/2 is ring 1, 3/2 none


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 48])
def test_column_counts_restore_sums_over_the_full_grid(width):
    power = np.abs(np.fft.fft2(np.random.default_rng(width).standard_normal((5, width)))) ** 2
    counted = (power[:, : width // 2 + 1] * column_counts(width).numpy()).sum()
    assert math.isclose(counted, power.sum(), rel_tol=1e-12)
    assert column_counts(width).sum() == width


@laws
@given(filters(), st.floats(-3, 3))
def test_hard_masks_are_linear_idempotent_projections(case, factor):
    image, cutoff, shape = case
    filtered = low_pass(image, cutoff, shape)
    assert filtered.shape == image.shape and filtered.dtype == image.dtype
    assert torch.allclose(low_pass(filtered, cutoff, shape), filtered, atol=1e-12)
    assert torch.allclose(filtered.mean((1, 2)), image.mean((1, 2)), atol=1e-12)
    x, y = image
    mixed = low_pass(x + factor * y, cutoff, shape)
    assert torch.allclose(mixed, filtered[0] + factor * filtered[1], atol=1e-12)
    assert torch.allclose((filtered[0] * y).sum(), (x * filtered[1]).sum(), atol=1e-10)  # its own adjoint


@laws
@given(filters())
def test_parseval_holds_for_what_a_hard_mask_keeps(case):
    image, cutoff, shape = case
    height, width = image.shape[-2:]
    kept = np.abs(np.fft.fft2(image.numpy())) ** 2 * low_pass_mask(height, width, cutoff, shape).numpy()
    energy = low_pass(image, cutoff, shape).square().sum((1, 2)).numpy()
    np.testing.assert_allclose(energy, kept.sum((1, 2)) / (height * width), rtol=1e-11)


@laws
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["disk", "square"]))
def test_identity_radius_is_the_smallest_that_keeps_every_bin(height, width, shape):
    radius = identity_radius(height, width, shape)
    assert low_pass_mask(height, width, radius, shape).all()
    if radius > 0:
        assert not low_pass_mask(height, width, radius * (1 - 1e-6), shape).all()
    maps = torch.randn(height, width, generator=torch.Generator().manual_seed(0))
    assert low_pass(maps, radius, shape) is maps and low_pass(maps, None, shape) is maps


def test_identity_radius_at_224():
    assert identity_radius(224, 224, "square") == 112
    assert 158 < identity_radius(224, 224, "disk") < 159
    assert identity_radius(224, 224, "gaussian") == math.inf
    maps = torch.randn(224, 224, generator=torch.Generator().manual_seed(0))
    assert low_pass(maps, math.inf, "gaussian") is maps
    assert low_pass_mask(5, 8, math.inf, "butterworth").eq(1).all()


@pytest.mark.parametrize("size", [(31, 31), (16, 33), (1, 9)])
def test_square_mask_is_symmetric(size):
    for cutoff in (1, 3, 7.5):
        mask = low_pass_mask(*size, cutoff, "square")
        mirrored = mask[-torch.arange(size[0])][:, -torch.arange(size[1])]  # bin (-u, -v)
        assert torch.equal(mask, mirrored)
    assert low_pass_mask(31, 31, 3, "square").sum() == 49  # (2 sigma + 1)^2 bins


@pytest.mark.parametrize("shape", SHAPES)
def test_cutoff_zero_keeps_the_mean_alone(shape):
    image = torch.randn(3, 9, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    filtered = low_pass(image, 0, shape)
    assert torch.allclose(filtered, image.mean((1, 2), keepdim=True).expand_as(image), atol=1e-14)


def test_bandwidth_of_smooth_masks():
    size, cutoff = 256, 6  # far from Nyquist, so that the grid cuts almost nothing off
    disk = math.pi * cutoff**2
    gaussian, butterworth = (low_pass_mask(size, size, cutoff, shape) for shape in ("gaussian", "butterworth"))
    assert math.isclose(gaussian.square().sum(), disk, rel_tol=1e-9)  # equal noise bandwidth
    assert math.isclose(butterworth.square().sum(), math.pi / 2 * disk, rel_tol=0.01)
    assert math.isclose(gaussian[cutoff, 0], math.exp(-0.5)) and math.isclose(butterworth[0, cutoff] ** 2, 0.5)
    assert math.isclose(butterworth[0, 2 * cutoff] ** 2, 1 / 17)  # order 2: r^-4 in power


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_filtered_in_float32(dtype):
    image = torch.randn(2, 15, 22, generator=torch.Generator().manual_seed(2)).to(dtype)
    filtered = low_pass(image, 4)
    assert filtered.dtype == dtype
    assert torch.equal(filtered, low_pass(image.float(), 4).to(dtype))


def test_float32_maps_stay_near_float64():
    image = torch.randn(4, 55, 56, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    single = low_pass(image.float(), 9)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), low_pass(image, 9), atol=5e-6)  # some eps of values near 1


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_through_the_filter(shape):
    image = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps: low_pass(maps, 1.5, shape), image)


def test_input_and_cached_state_are_untouched():
    image = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(5))
    before = image.clone()
    with torch.inference_mode():
        low_pass(image, 2)  # must not leave an inference tensor behind for the next call's backward
    strided = image.to(memory_format=torch.channels_last).requires_grad_()
    filtered = low_pass(strided, 2)
    filtered.square().sum().backward()
    assert torch.equal(image, before)
    assert strided.grad is not None and torch.allclose(strided.grad, 2 * filtered, atol=1e-5)  # P'P = P


def test_device_follows_the_maps():
    assert low_pass(torch.empty(2, 9, 7, device="meta"), 2).device.type == "meta"
    assert frequency_radius(4, 5, device="meta").device.type == "meta"
    with torch.device("meta"):  # a user's default device is not where small tables are made
        image = torch.ones(4, 5, device="cpu")
        assert low_pass(image, 1).device.type == "cpu"
        assert ring_radii(4, 5).device.type == "cpu" and column_counts(5).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(32, 32), (31, 31), (31, 48)])
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_equals_cpu(size, shape):
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    filtered = low_pass(image.cuda(), 5, shape)
    assert filtered.is_cuda and torch.allclose(filtered.cpu(), low_pass(image, 5, shape), atol=1e-12)
    assert low_pass(image.cuda().half(), 5, shape).dtype == torch.float16


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: low_pass(torch.ones(4), 1), ValueError, r"Expected maps \(..., H, W\).*got shape \(4,\)"),
        (lambda: low_pass(torch.ones(0, 4, 4), 1), ValueError, "at least one value"),
        (lambda: low_pass(torch.ones(4, 4, dtype=torch.int64), 1), TypeError, "floating-point maps.*int64"),
        (lambda: low_pass(np.ones((4, 4)), 1), TypeError, "ndarray.*torch.as_tensor"),
        (lambda: low_pass(torch.ones(4, 4), -1), ValueError, "0 cycles/image or more.*got -1"),
        (lambda: low_pass(torch.ones(4, 4), math.nan), ValueError, "got nan"),
        (lambda: low_pass(torch.ones(4, 4), "5"), TypeError, "number of cycles/image.*got str"),
        (lambda: low_pass(torch.ones(4, 4), 1, "disc"), ValueError, "disk, square, gaussian, butterworth, got 'disc'"),
        (lambda: check_images(torch.ones(3, 4, 4)), ValueError, r"\(N, C, H, W\).*\(3, 4, 4\); .* images\[None\]"),
        (
            lambda: check_images(torch.ones(1, 3, 4, 4, dtype=torch.uint8)),
            TypeError,
            "uint8; convert with images.float",
        ),
        (lambda: check_images(torch.tensor([1.0, math.inf]).view(2, 1, 1, 1)), ValueError, r"1 image\(s\) \(index 1\)"),
        (lambda: check_labels(torch.tensor([0.0, 1.0]), 2), TypeError, "float32; convert them with labels.long"),
        (lambda: check_labels([0, 1], 2), TypeError, "list; convert them with torch.as_tensor"),
        (lambda: check_labels(torch.tensor([0, 1]), 3), ValueError, r"tensor of 3 integer.*one per image.*\(2,\)"),
        (lambda: check_labels(torch.tensor([0, 10]), 2, 10), ValueError, "from 0 to 9, got 0 to 10"),
        (lambda: check_labels(torch.tensor([-1, 3]), 2), ValueError, "from 0 up, got -1 to 3"),
        (lambda: frequency_radius(0, 4), ValueError, "at least 1 x 1 pixel, got 0 x 4"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_right_images_and_labels_pass():
    check_images(torch.ones(2, 3, 4, 5, dtype=torch.float16))
    check_labels(torch.tensor([0, 9]), 2, 10)
    check_labels(torch.tensor([70000], dtype=torch.int32), 1)
