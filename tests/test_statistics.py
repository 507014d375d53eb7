"""Bayes factors against closed forms, the paper's table and another library; bootstrap intervals by their laws."""

import math
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import quad

from gradspec.statistics import BayesFactor, Paired, bic_bf10, bootstrap_interval, jzs_bf10, paired

METHODS = ("Saliency", "GuidedBackprop", "GradInput", "IntGrad", "SmoothGrad", "VarGrad", "SquareGrad")
TABLE_5 = {  # faithfulness of the paper's table 5, (before, after), in the order of METHODS
    "ResNet50": ((0.18, 0.31, 0.20, 0.24, 0.23, 0.36, 0.36), (0.27, 0.34, 0.26, 0.31, 0.37, 0.35, 0.36)),
    "ConvNeXt": ((-0.01, -0.02, 0.05, 0.11, 0.02, -0.09, -0.02), (0.06, 0.06, 0.06, 0.07, 0.05, 0.01, 0.05)),
    "ViT": ((0.09, 0.05, 0.16, 0.19, 0.11, 0.16, 0.17), (0.10, 0.10, 0.16, 0.21, 0.17, 0.14, 0.16)),
}


@pytest.fixture
def table_5():
    rows = [
        (model, method, stage, values[method])
        for model, stages in TABLE_5.items()
        for stage, numbers in zip(("before", "after"), stages, strict=True)
        for values in [dict(zip(METHODS, numbers, strict=True))]
        for method in METHODS
    ]
    return pd.DataFrame(rows, columns=["model", "method", "stage", "value"])


def differences_of(table):
    wide = table.pivot(index=["model", "method"], columns="stage", values="value")
    return (wide["after"] - wide["before"]).to_numpy()


# ---- the paper's table -----------------------------------------------------------------------------


def test_models_as_fixed_blocks_on_table_5(table_5):
    found = bic_bf10(table_5)
    assert found.bf10 == pytest.approx(7.57, abs=0.005)
    assert (found.n, found.k, found.missing) == (42, (9, 10), 0)  # 1 + 2 models + 6 methods
    assert "value ~ model + method as fixed blocks, + stage" in found.design and "42" in found.design
    assert found.verdict == "substantial"


def test_cells_as_subjects_on_table_5(table_5):
    found = bic_bf10(table_5, within=True)
    assert found.bf10 == pytest.approx(76.1, abs=0.05)
    assert found.n == 21 and found.verdict == "strong" and "n = 21 × 1" in found.design


def test_the_paired_factor_on_table_5(table_5):
    found = jzs_bf10(differences_of(table_5))
    assert found.bf10 == pytest.approx(37.24, abs=0.005)
    assert (found.n, found.k) == (21, (0, 1)) and "0.707" in found.design


def test_the_same_numbers_in_any_order_and_units(table_5):
    shuffled = table_5.sample(frac=1, random_state=0)
    scaled = shuffled.assign(value=3 - 20 * shuffled["value"])
    for other in (shuffled, scaled):
        assert bic_bf10(other).log10 == pytest.approx(bic_bf10(table_5).log10, rel=1e-9)
        assert bic_bf10(other, within=True).log10 == pytest.approx(bic_bf10(table_5, within=True).log10, rel=1e-9)


# ---- BIC -------------------------------------------------------------------------------------------


def test_the_bic_by_hand():
    """Rows 1, 2 and 3, 6: SSE0 = 0.5 + 4.5, of which the stage explains 4 · 1², so BF10 = 5^(n/2) / √n."""
    table = pd.DataFrame({"method": list("aabb"), "stage": [0, 1, 0, 1], "value": [1.0, 2.0, 3.0, 6.0]})
    found = bic_bf10(table, blocks=["method"])
    assert found.bf10 == pytest.approx(5**2 / 4**0.5) and (found.n, found.k) == (4, (2, 3))
    found = bic_bf10(table, blocks=["method"], within=True)
    assert found.bf10 == pytest.approx(5 / 2**0.5) and found.n == 2


def test_the_same_gain_everywhere_leaves_no_error():
    table = pd.DataFrame({"method": list("aabbcc"), "stage": [0, 1] * 3, "value": [1.0, 1.1, 5.0, 5.1, -2.0, -1.9]})
    found = bic_bf10(table, blocks=["method"])
    assert found.bf10 == found.log10 == math.inf and found.k == (3, 4) and found.verdict == "strong"


@pytest.mark.parametrize("levels", [2, 3])
def test_blocks_against_a_slow_balanced_anova(levels):
    """In a balanced table the sums of squares are sums of squared deviations of means: no dummies needed."""
    draw = np.random.default_rng(0)
    cells = list(product("xyz", "abcd", range(levels)))
    table = pd.DataFrame(cells, columns=["model", "method", "stage"])
    table["value"] = draw.normal(size=len(cells)) + 0.4 * table["stage"] + table["model"].map({"x": 0, "y": 3, "z": -1})
    y, grand = table["value"], table["value"].mean()
    effects = {name: table.groupby(name)["value"].transform("mean") - grand for name in ("model", "method", "stage")}
    sse0 = ((y - grand - effects["model"] - effects["method"]) ** 2).sum()
    sse1 = ((y - grand - effects["model"] - effects["method"] - effects["stage"]) ** 2).sum()
    n = len(cells)
    found = bic_bf10(table)
    delta = n * math.log(sse1 / sse0) + (levels - 1) * math.log(n)
    assert found.log10 == pytest.approx(-delta / 2 / math.log(10), rel=1e-9)
    assert found.k == (6, 5 + levels) and found.n == n
    subject = table.groupby(["model", "method"])["value"].transform("mean")
    inner0 = ((y - subject) ** 2).sum()
    inner1 = ((y - subject - effects["stage"]) ** 2).sum()
    many = 12 * (levels - 1)
    delta = many * math.log(inner1 / inner0) + (levels - 1) * math.log(many)
    found = bic_bf10(table, within=True)
    assert found.log10 == pytest.approx(-delta / 2 / math.log(10), rel=1e-9) and found.n == many


def test_a_cell_that_lacks_a_value_is_left_out_and_counted(table_5):
    holed = table_5.copy()
    holed.loc[3, "value"] = math.nan
    gone = holed.loc[3, ["model", "method"]]
    without = table_5[~((table_5["model"] == gone["model"]) & (table_5["method"] == gone["method"]))]
    for within in (False, True):
        found, expected = bic_bf10(holed, within=within), bic_bf10(without, within=within)
        assert found.missing == 1 and expected.missing == 0
        assert found.log10 == expected.log10 and found.n == expected.n
    dropped = bic_bf10(table_5.drop(index=3))
    assert dropped.missing == 1 and dropped.n == 40


def test_a_bic_of_too_little_is_undefined():
    one = pd.DataFrame({"method": ["a", "a"], "stage": [0, 1], "value": [1.0, 2.0]})
    assert math.isnan(bic_bf10(one, blocks=["method"]).bf10)
    flat = pd.DataFrame({"method": list("aabb"), "stage": [0, 1] * 2, "value": [1.0, 1.0, 2.0, 2.0]})
    assert math.isnan(bic_bf10(flat, blocks=["method"]).bf10)  # nothing to explain
    assert bic_bf10(flat, blocks=["method"]).verdict == "undefined"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns="stage"), "Expected columns"),
        (lambda t: pd.concat([t, t]), "got several"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table_5, change, match):
    with pytest.raises(ValueError, match=match):
        bic_bf10(change(table_5))
    with pytest.raises(ValueError, match="at least one block"):
        bic_bf10(table_5, blocks=[])


# ---- JZS -------------------------------------------------------------------------------------------


def jzs_by_quad(t, n, r):
    """Rouder et al. 2009, eq. 1 as it is printed, with Ng for Ngr²."""

    def integrand(g):
        a = 1 + n * g * r**2
        return (
            a**-0.5 * (1 + t**2 / (a * (n - 1))) ** (-n / 2) * (2 * math.pi) ** -0.5 * g**-1.5 * math.exp(-1 / (2 * g))
        )

    top = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-11, limit=500)[0] for a, b in ((0, 1), (1, math.inf)))
    return top / (1 + t**2 / (n - 1)) ** (-n / 2)


def with_t(t, n, seed=0):
    values = np.random.default_rng(seed).normal(size=n)
    values = (values - values.mean()) / values.std(ddof=1)
    return values + t / math.sqrt(n)


@pytest.mark.parametrize("n", [2, 3, 10, 64])
@pytest.mark.parametrize("t", [0.0, 0.5, -2.0, 5.0])
@pytest.mark.parametrize("r", [0.5, math.sqrt(2) / 2, 1.0])
def test_the_jzs_factor_is_rouders_integral(t, n, r):
    assert float(jzs_bf10(with_t(t, n), r)) == pytest.approx(jzs_by_quad(t, n, r), rel=1e-8)


def test_the_jzs_factor_of_pingouin():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pingouin = pytest.importorskip("pingouin")
    for t, n in product((0.3, 1.7, 3.9), (5, 21, 200)):
        expected = float(pingouin.bayesfactor_ttest(t, n, paired=True))
        assert float(jzs_bf10(with_t(t, n))) == pytest.approx(expected, rel=5e-4)  # its quad is no better


def test_the_jzs_factor_does_not_overflow():
    found = jzs_bf10(with_t(200.0, 1280))
    assert 500 < found.log10 < 1280 and found.bf10 == math.inf and found.verdict == "strong"
    assert 0 < jzs_bf10(with_t(1e6, 5)).log10 < math.inf


def test_laws_of_the_jzs_factor():
    values = with_t(2.3, 30)
    one = jzs_bf10(values)
    assert jzs_bf10(-7 * values).log10 == pytest.approx(one.log10, rel=1e-9)  # sign and units
    assert jzs_bf10([*values, math.nan, math.inf]).log10 == one.log10
    assert jzs_bf10([*values, math.nan, math.inf]).missing == 2
    assert jzs_bf10(torch.tensor(values)).log10 == one.log10
    growing = [jzs_bf10(with_t(t, 30)).log10 for t in (0, 1, 2, 3, 4)]
    assert (
        growing == sorted(growing) and growing[0] < math.log10(0.5) and jzs_bf10(with_t(0, 30)).verdict == "no effect"
    )


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [math.nan, math.nan, 1.0]])
def test_a_jzs_factor_of_too_little_is_undefined(values):
    assert math.isnan(float(jzs_bf10(values)))


def test_a_width_that_is_none_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        jzs_bf10([1.0, 2.0], 0)


@pytest.mark.parametrize(
    ("factor", "word"),
    [
        (10, "strong"),
        (9.9, "substantial"),
        (5, "substantial"),
        (4.9, "undecided"),
        (0.5, "undecided"),
        (0.4, "no effect"),
    ],
)
def test_the_papers_words(factor, word):
    assert BayesFactor(math.log10(factor) + 1e-12, "", 1, (0, 1)).verdict == word


# ---- intervals -------------------------------------------------------------------------------------


def test_the_percentile_interval_of_two_values_by_hand():
    """The mean of two draws of 0 and 1 is 0, ½ or 1 with odds 1 : 2 : 1; 2.5 % and 97.5 % lie in the outer ones."""
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_bca_against_efrons_formula():
    """Efron 1987 with the jackknife's acceleration, from the same resamples."""
    from scipy.stats import norm

    values = np.random.default_rng(3).exponential(size=40)
    n, samples = len(values), 4000
    draws = values[np.random.default_rng(1).integers(0, n, (samples, n))].mean(1)
    below = (np.mean(draws < values.mean()) + np.mean(draws <= values.mean())) / 2
    bias = norm.ppf(below)
    jack = (values.sum() - values) / (n - 1)
    away = jack.mean() - jack
    speed = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = [norm.cdf(bias + (bias + z) / (1 - speed * (bias + z))) for z in norm.ppf([0.025, 0.975])]
    expected = np.quantile(draws, ends)
    found = bootstrap_interval(values, samples=samples, seed=1)
    np.testing.assert_allclose(found, expected, atol=0.03 * values.std())  # other resamples
    plain = np.quantile(draws, [0.025, 0.975])
    assert found[1] > plain[1] and expected[1] > plain[1]  # skewed to the right


def test_intervals_hold_the_mean_about_as_often_as_they_say():
    draw = np.random.default_rng(5)
    hits = 0
    for seed in range(300):
        low, high = bootstrap_interval(draw.normal(size=40), level=0.8, samples=400, seed=seed)
        hits += low <= 0 <= high
    assert 0.73 < hits / 300 < 0.86  # 0.8 with a standard error of 0.023


def test_laws_of_intervals():
    values = np.random.default_rng(0).normal(1.0, 2.0, size=25)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert bootstrap_interval(values) == (low, high)  # the same seed
    assert bootstrap_interval(values, seed=1) != (low, high)
    np.testing.assert_allclose(bootstrap_interval(3 * values + 1), (3 * low + 1, 3 * high + 1), rtol=1e-9)
    assert bootstrap_interval([*values, math.nan]) == (low, high)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("values", [[], [2.0], [math.nan, 1.0]])
def test_no_interval_of_less_than_two(values):
    assert all(map(math.isnan, bootstrap_interval(values)))


def test_an_interval_of_equal_values_is_the_value():
    assert bootstrap_interval([0.1] * 30) == (0.1, 0.1)
    assert bootstrap_interval(np.zeros(3)) == (0.0, 0.0)


def test_one_outlier_among_equals_still_has_an_interval():
    low, high = bootstrap_interval([0.0] * 30 + [1.0])
    assert 0 <= low <= 1 / 31 < high < 0.3


@pytest.mark.parametrize(("settings", "match"), [({"level": 1.0}, "level"), ({"samples": 1}, "samples")])
def test_settings_of_intervals_are_checked(settings, match):
    with pytest.raises(ValueError, match=match):
        bootstrap_interval([1.0, 2.0], **settings)


# ---- pairs -----------------------------------------------------------------------------------------


def test_pairs_by_hand():
    found = paired([3.0, 5.0, 4.0, math.nan, 1.0], torch.tensor([1.0, 2.0, 3.0, 0.0, math.inf]))
    assert isinstance(found, Paired) and (found.n, found.missing) == (3, 2)
    assert found.mean == 2 and found.se == pytest.approx(1 / math.sqrt(3)) and found.effect == pytest.approx(2)
    assert found.bf10 == float(jzs_bf10([2.0, 3.0, 1.0]))
    assert (found.low, found.high) == bootstrap_interval([2.0, 3.0, 1.0])
    assert "3 pictures" in found.design and "percentile" in found.design and found.level == 0.95


def test_pairs_turned_round():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    one, other = paired(a + 0.5, b), paired(b, a + 0.5)
    assert other.mean == pytest.approx(-one.mean) and other.bf10 == pytest.approx(one.bf10)
    assert other.effect == pytest.approx(-one.effect) and "BCa" in one.design


@pytest.mark.parametrize(("n", "mean"), [(0, math.nan), (1, 0.5), (4, 0.5)])
def test_pairs_that_all_differ_alike(n, mean):
    found = paired([1.0] * n, [0.5] * n)
    assert (found.n, found.mean) == (n, pytest.approx(mean, nan_ok=True))
    assert math.isnan(found.bf10) and math.isnan(found.effect)
    assert found.se == (0 if n > 1 else pytest.approx(math.nan, nan_ok=True))
    assert (found.low, found.high) == ((0.5, 0.5) if n > 1 else pytest.approx((math.nan, math.nan), nan_ok=True))


def test_pairs_of_other_numbers_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="one value for each picture"):
        paired(np.zeros((2, 2)), np.zeros((2, 2)))
