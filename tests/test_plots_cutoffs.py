"""The curve of a fitted cutoff: what stands where, of one fit and of several."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gradspec.cutoffs import CutoffFit, SpectralCutoff
from gradspec.cutoffs.result import Round
from gradspec.plots._style import svg_text
from gradspec.plots.cutoffs import cutoff_curves

CUTOFFS = (None, 100.0, 30.0, 10.0, 3.0, 1.0)
NAMES = ["none", "100", "30", "10", "3", "1"]
MEANS = np.array([0.2, 0.28, 0.33, 0.36, 0.3, 0.1])


def fitted(n=40, spread=0.1, means=MEANS, **changes):
    draw = np.random.default_rng(0)
    own = draw.normal(0, spread, (n, 1)) + draw.normal(0, 0.02, (n, 6))
    scores = means + own - own.mean(0)
    ids = [f"p{k}" for k in range(n)]
    table = pd.DataFrame({"picture": ids, "label": 0} | dict(zip(NAMES, scores.T, strict=True)))
    controls = pd.DataFrame(
        {"picture": ids, "no filter": scores[:, 0], "abs only": scores[:, 0], "centre prior": -0.05, "white noise": 0.0}
    )
    fit = CutoffFit(
        CUTOFFS, table, controls, (Round(n, CUTOFFS),), "attribution", "disk", "grid", "Saliency()", "Faithfulness()",
        True, "Net 0", 10, 10, {"model": "some $net_1$"},
    )  # fmt: skip
    return replace(fit, **changes)


def race():
    fit = fitted()
    table = fit.per_image.copy()
    table.loc[10:, ["none", "100", "1"]] = np.nan
    return replace(fit, per_image=table, rounds=(Round(10, CUTOFFS), Round(30, (30.0, 10.0, 3.0))), search="race")


def lines(figure, gid):
    return [line for line in figure.axes[0].lines if (line.get_gid() or "").startswith(gid)]


def words(figure):
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return texts, legend, figure.axes[0].get_xlabel(), figure._supxlabel.get_text()


def test_a_curve_shows_means_and_choices():
    fit = fitted()
    figure = cutoff_curves(fit, spectral=SpectralCutoff(17.5, how="twin"))
    ax = figure.axes[0]
    (line,) = lines(figure, "curve")
    place, mean = line.get_xdata(), line.get_ydata()
    np.testing.assert_allclose(mean, MEANS[::-1])
    np.testing.assert_allclose(place[:5], [1, 3, 10, 30, 100])
    assert ax.get_xscale() == "log" and place[5] > 110 and ax.get_xlim()[1] > place[5]
    ticks = dict(zip([tick.get_text() for tick in ax.get_xticklabels()], ax.get_xticks(), strict=True))
    assert ticks["none"] == place[5] and ticks["10"] == 10
    (best,), (mild,) = lines(figure, "argmax"), lines(figure, "one_se")
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (10, pytest.approx(0.36))
    assert mild.get_xdata()[0] == fit.one_se == 10 and mild.get_markersize() > best.get_markersize()
    assert mild.get_markerfacecolor() == "none"
    (spectral,) = lines(figure, "spectral")
    assert spectral.get_xdata()[0] == 17.5 and "from the spectrum" in words(figure)[1]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(max(MEANS + 1.96 * fit.table["se"]))
    assert ax.get_ylabel() == "Faithfulness, mean over pictures (95 % interval)"


def test_controls_are_lines_across_with_names_that_do_not_touch():
    figure = cutoff_curves(fitted())
    assert sorted(line.get_ydata()[0] for line in lines(figure, "control")) == pytest.approx([-0.05, 0, 0.2, 0.2])
    texts = [text for text in figure.axes[0].texts if text.get_gid() == "control"]
    assert {text.get_text() for text in texts} == {
        "no filter 0.200", "abs only 0.200", "centre prior −0.050", "white noise 0.000"
    }  # fmt: skip
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    styles = [line.get_linestyle() for line in lines(figure, "control")]
    assert all(box.x1 <= figure.bbox.x1 for box in boxes) and styles
    none = replace(fitted(), control_scores=fitted().control_scores[["picture"]])
    assert not lines(cutoff_curves(none), "control")


def test_a_flat_curve_is_said_to_be_flat():
    flat = fitted(means=np.zeros(6))
    label = words(cutoff_curves(flat))[2]
    assert flat.flat and flat.flat_reason in label.replace("\n", " ")  # with n, K, how it is calibrated, and p
    assert max(map(len, label.split("\n"))) <= 80
    several = words(cutoff_curves({"a" * 80: flat, "b": flat}))[2]
    assert "b: The curve is flat" in several and several.replace("\n", " ").count("p = ") == 2
    assert "flat" not in words(cutoff_curves(fitted()))[2]


def test_no_filter_may_be_the_best():
    figure = cutoff_curves(fitted(means=np.add(MEANS, [0.5, 0, 0, 0, 0, 0])))
    assert lines(figure, "argmax")[0].get_xdata()[0] == figure.axes[0].get_xticks()[-1]
    two = fitted()
    two = replace(two, cutoffs=(None, 3.0), rounds=(Round(40, (None, 3.0)),))
    assert [tick.get_text() for tick in cutoff_curves(two).axes[0].get_xticklabels()] == ["3", "none"]


def test_a_race_has_bars_of_its_own():
    fit = race()
    figure = cutoff_curves(fit)
    assert fit.table["n"].tolist() == [10, 10, 40, 40, 40, 10]
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    lengths = [float(segment[1, 1] - segment[0, 1]) for segment in bars]
    np.testing.assert_allclose(lengths, 2 * 1.96 * fit.table["se"][::-1])
    assert words(figure)[3] == "some $net_1$ · 40 selection pictures · filter in the attribution · race"


def test_several_fits_are_told_apart_without_colour():
    fits = {"grid": fitted(), "race": race(), "_third $x$": fitted(means=MEANS + 0.1)}
    figure = cutoff_curves(fits, spectral=math.nan)
    found = lines(figure, "curve")
    assert len({(str(line.get_linestyle()), line.get_marker()) for line in found}) == 3
    assert set(fits) < set(words(figure)[1]) and not lines(figure, "control") and not lines(figure, "spectral")
    assert "_third $x$" in svg_text(figure) and "some $net_1$" in svg_text(figure)
    assert svg_text(cutoff_curves(fits)) == svg_text(cutoff_curves(fits))


def test_what_cannot_be_drawn_together():
    with pytest.raises(ValueError, match="one fit or more, all of one metric, got 0"):
        cutoff_curves({})
    with pytest.raises(ValueError, match=r"got 2 of \['Faithfulness\(\)', 'Deletion\(\)'\]"):
        cutoff_curves({"a": fitted(), "b": fitted(metric="Deletion()")})
