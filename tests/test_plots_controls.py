"""The controls' figures show what their results hold."""

import numpy as np
import pandas as pd
import pytest
import torch

from gradspec.controls import MetricBias, Sanity, Taylor
from gradspec.controls.theory import convergence, kept_noise, recovery
from gradspec.plots import controls as plots

METHODS = ["Saliency", "_$\\bad{ name that is far longer than any legend has room for"]


def lines(ax, gid):
    """The data of the lines that go by an id, in order."""
    return [line for line in ax.lines if line.get_gid() == gid]


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def taylor_result(exact=False):
    draw = np.random.default_rng(0)
    rows = []
    for picture in "abc":
        for gradient, cutoff in [("no filter", np.nan), ("σ = 8", 8.0), ("σ = 2", 2.0), ("zero", np.nan),
                                 ("permuted", np.nan)]:  # fmt: skip
            for radius in (0.1, 1.0, 10.0):
                residual, mirrored = (0.0, 0.0) if exact else draw.lognormal(size=2) * radius
                rows.append((picture, 0, 1.0, gradient, cutoff, radius, residual, mirrored))
    columns = ["picture", "label", "score", "gradient", "cutoff", "radius", "residual", "mirrored"]
    return Taylor(pd.DataFrame(rows, columns=columns), {"model": "net", "units": "pixels", "draws": 4})


def sanity_result(stages=(1, 2, 3)):
    draw = np.random.default_rng(1)
    rows = [
        (picture, 0, name, stage, f"layer{stage}" if stage else "other picture", stage / 3, *draw.uniform(-1, 1, 3))
        for name in METHODS for stage in (0, *stages) for picture in "ab"
    ]  # fmt: skip
    columns = ["picture", "label", "attribution", "stage", "layer", "share", "spearman", "spearman_abs", "ssim"]
    return Sanity(pd.DataFrame(rows, columns=columns), {"model": "net"})


def bias_result(pictures=8):
    draw = np.random.default_rng(2)
    rows = [
        (str(picture), 0, metric, name, 0, draw.normal(k, 0.1))
        for metric in ("F", "μF") for k, name in enumerate(["random low", "random high", "Saliency"])
        for picture in range(pictures)
    ]  # fmt: skip
    columns = ["picture", "label", "metric", "map", "draw", "value"]
    spec = {"model": "net", "higher_is_better": {"F": True, "μF": True}}
    return MetricBias(pd.DataFrame(rows, columns=columns), spec)


def test_taylor_curves_are_geometric_means():
    result = taylor_result()
    figure = plots.taylor(result)
    for ax, form in zip(figure.axes, ("residual", "unfiltered", "mirrored"), strict=True):
        summary = result.summary(form)
        for name in ("no filter", "σ = 8", "σ = 2", "zero", "permuted"):
            (line,) = lines(ax, name)
            rows = summary[summary["gradient"] == name]
            assert np.allclose(line.get_xdata(), rows["radius"]) and np.allclose(line.get_ydata(), 10 ** rows["log10"])
        assert ax.get_xscale() == ax.get_yscale() == "log"
    styles = {(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(styles) == 5  # never by colour alone
    assert set(texts(figure)) - {""} == {"no filter", "σ = 8", "σ = 2", "zero", "permuted"}
    assert "3 pictures" in figure.get_supxlabel() and "pixels" in figure.axes[0].get_xlabel()


def test_exact_predictions_leave_nothing_to_draw():
    assert "exact" in plots.taylor(taylor_result(exact=True)).texts[0].get_text()


def test_sanity_curves_are_means_with_chance_beside_them():
    result = sanity_result()
    figure, summary = plots.sanity(result), result.summary().set_index(["attribution", "stage"])
    for ax, measure in zip(figure.axes, ("spearman", "spearman_abs", "ssim"), strict=True):
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert labels == ["layer1", "layer2", "layer3", "other picture"]
        for name in METHODS:
            containers = [c for c in ax.containers if c.lines[0].get_gid() == name]
            values = np.concatenate([np.asarray(c.lines[0].get_ydata()) for c in containers])
            assert np.allclose(values, [summary.loc[(name, stage), measure] for stage in (1, 2, 3, 0)])
    assert plots.sanity(sanity_result(())).texts[0].get_text().startswith("Nothing to draw")


def test_bias_bars_are_means_and_differences_are_paired():
    result = bias_result()
    figure = plots.metric_bias(result)
    left, right = figure.axes
    means = result.means().set_index(["map", "metric"])["mean"]
    for name in ("random low", "random high", "Saliency"):
        (bars,) = [c for c in left.containers if c.get_label() == name]
        assert np.allclose([bar.get_width() for bar in bars], [means[name, metric] for metric in ("F", "μF")])
    assert len({bars[0].get_hatch() for bars in left.containers if hasattr(bars, "patches")}) == 3
    summary = result.summary()
    assert np.allclose(right.containers[0].lines[0].get_xdata(), summary["difference"])
    assert [text.get_text() for text in right.texts] == [
        f"BF₁₀ {row.bf10:.2g}, n 8" for row in summary.itertuples()
    ]  # fmt: skip
    assert [label.get_text() for label in left.get_yticklabels()] == ["F", "μF"]


def test_bias_of_a_single_picture_is_drawn_without_an_interval():
    figure = plots.metric_bias(bias_result(1))
    assert [text.get_text() for text in figure.axes[1].texts] == ["n 1", "n 1"]


def test_theory_shows_parts_of_the_error_and_laws_beside_simulations():
    draw = torch.Generator().manual_seed(0)
    gradient, noise = (torch.randn(9, 9, dtype=torch.float64, generator=draw) for _ in range(2))
    recoveries = {cutoff: recovery(gradient, noise, cutoff) for cutoff in (0, 1, 2, 4)}
    kept, found = kept_noise(9, 9, 1, draws=500), convergence([0.05, 0.1, 0.2], 100, repeats=1000)
    figure = plots.theory(recoveries, kept, found)
    left, middle, right = figure.axes
    (error,), (below,), (lost,) = (lines(left, part) for part in ("error", "kept", "lost"))
    assert np.allclose(error.get_ydata(), np.asarray(below.get_ydata()) + lost.get_ydata())
    (law,) = lines(middle, "exact")
    x = np.asarray(law.get_xdata(), dtype=float)
    step = 1e-4  # in ln x
    up, down = x * np.exp(step), x * np.exp(-step)
    decade = np.log(10) / (2 * step)
    assert np.allclose(law.get_ydata(), (kept.exact.cdf(up) - kept.exact.cdf(down)) * decade, rtol=1e-3, atol=1e-6)
    for version in ("statement", "proof"):  # of the share, from that of its inverse
        (printed,) = lines(middle, f"printed, {version}")
        ratio = kept.printed(version)
        assert np.allclose(
            printed.get_ydata(), (ratio.cdf(1 / down) - ratio.cdf(1 / up)) * decade, rtol=1e-3, atol=1e-6
        )
    bars = [patch for patch in middle.patches if patch.get_gid() == "simulated"]
    area = sum(bar.get_height() * np.log10((bar.get_x() + bar.get_width()) / bar.get_x()) for bar in bars)
    assert area == pytest.approx(1)
    assert np.allclose(lines(right, "simulated frequency")[0].get_ydata(), found.frequency)
    assert np.allclose(lines(right, "matrix Bernstein")[0].get_ydata(), np.minimum(found.bernstein, 1))
    assert right.get_yscale() == "log"


@pytest.mark.parametrize("draw", [lambda: plots.sanity(sanity_result()), lambda: plots.metric_bias(bias_result())])
def test_figures_are_written_as_png_and_svg(draw, tmp_path):
    from gradspec.plots import save

    assert all(path.stat().st_size > 1000 for path in save(draw(), tmp_path / "figure"))
