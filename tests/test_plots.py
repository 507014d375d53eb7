"""What the figures show equals what the audit holds: data, places, colours that are not alone, and hostile names."""

from __future__ import annotations

import io
import types
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from gradspec import plots
from gradspec.plots._style import LOOKS, elide
from gradspec.plots.profile import _merged_order, _trunk
from gradspec.spectra import Signature

Layer = tuple[str, str, int, int]  # call, type, size at its input, size at its output
SMALL: list[Layer] = [
    ("conv1", "convolution", 32, 32),
    ("relu1", "activation", 32, 32),
    ("pool", "max pooling", 32, 16),
    ("conv2", "strided convolution", 16, 8),
    ("merge", "linear", 8, 4),  # no pooling by its type, but it halves the map
    ("head", "linear", 1, 1),
]
IMAGES = 5


def stand_in(layers: list[Layer] = SMALL, seed: int = 0, input_size: int | None = None) -> Any:
    """Return an object with the fields of an Audit, filled with seeded numbers."""
    rng = np.random.default_rng(seed)
    size = input_size or layers[0][2]
    rows, signatures, examples, power = [], {}, {}, []
    points = [("input", "input", "input", size)]
    points += [(call, kind, at, n) for call, kind, i, o in layers for at, n in (("output", o), ("input", i))]
    for call, kind, at, n in points:
        slope, se = (rng.normal(-1, 0.3), rng.uniform(0.05, 0.1)) if n >= 4 else (np.nan, np.nan)
        note = "" if n >= 4 else "fewer than three rings"
        row = {"call": call, "operator": kind, "type": kind, "point": at, "channels": 3, "height": n, "width": n}
        row |= {"stage": round(np.log2(size / n)), "slope_nyquist": slope, "se_nyquist": se, "n": IMAGES, "note": note}
        rows.append(row)
        if not note:
            signatures[call, at] = random_signature(n, n, rng)
            examples[call, at] = example(n, n, rng)
        power += [{"call": call, "type": kind, "new_power": rng.normal(0.1, 0.2)} for _ in range(IMAGES)]
    pictures = tuple(f"picture {i}" for i in range(IMAGES))
    audit = types.SimpleNamespace(table=pd.DataFrame(rows), signatures=signatures, examples=examples, pictures=pictures)
    audit.spec = {"model": "torchvision:resnet18", "target": "label_logit"}
    audit.culprits = lambda by="call": ranking(pd.DataFrame(power), by)
    return audit


def random_signature(height: int, width: int, rng: np.random.Generator) -> Signature:
    rings = min(height, width) // 2 + 1
    return Signature(height, width, rng.lognormal(size=(IMAGES, rings)), rng.uniform(0.1, 0.9, IMAGES))


def example(height: int, width: int, rng: np.random.Generator) -> Any:
    maps = rng.normal(size=(2, height, width)).astype(np.float32)
    spectrum = np.log10(np.abs(np.fft.fftshift(np.fft.fft2(maps), axes=(-2, -1)))).mean(0)
    return types.SimpleNamespace(maps=maps, spectrum=spectrum)


def ranking(power: pd.DataFrame, by: str) -> pd.DataFrame:
    power = power[power["call"] != "input"]
    table = power.groupby([by] if by == "type" else ["call", "type"])["new_power"].agg(["mean", "sem", "count"])
    table = table.rename(columns={"mean": "new_power", "sem": "se", "count": "n"}).reset_index()
    if by == "type":
        table["calls"] = [power.loc[power["type"] == kind, "call"].nunique() for kind in table["type"]]
    return table.sort_values("new_power", ascending=False, ignore_index=True)


def in_flow(audit: Any) -> pd.DataFrame:
    """Return the drawable rows as the gradient meets them, written out the slow way."""
    rows = [row for _, row in audit.table.iterrows()]
    calls = list(dict.fromkeys(row["call"] for row in rows))
    flow = [row for call in calls[::-1] for at in ("output", "input") for row in rows
            if (row["call"], row["point"], row["note"]) == (call, at, "")]  # fmt: skip
    return pd.DataFrame(flow)


def lines(figure: Figure, gid: str) -> list[Any]:
    return [line for ax in figure.axes for line in ax.lines if line.get_gid() == gid]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts() if text.get_text()]


def tick_names(figure: Figure) -> dict[str, float]:
    ax = figure.axes[0]
    return {label.get_text(): x for label, x in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)}


# ---------------------------------------------------------------------------------------------------- slope profile
def test_the_profile_is_the_table_from_prediction_to_input() -> None:
    audit = stand_in()
    (line,) = lines(plots.slope_profile(audit), "slope")
    expected = in_flow(audit)
    assert len(expected) == 11  # 6 calls at 2 points and the input, less the head's 2
    np.testing.assert_array_equal(line.get_ydata(), expected["slope_nyquist"])
    np.testing.assert_array_equal(line.get_xdata(), np.arange(11))
    assert expected["call"].iloc[0] == "merge"
    assert expected["call"].iloc[-1] == "input"


def test_the_order_of_a_calls_two_rows_in_the_table_does_not_matter() -> None:
    audit, swapped = stand_in(), stand_in()
    swapped.table = swapped.table.iloc[[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11]]
    (one,), (other,) = (lines(plots.slope_profile(each), "slope") for each in (audit, swapped))
    np.testing.assert_array_equal(one.get_ydata(), other.get_ydata())


def test_the_band_is_the_95_percent_interval_of_students_t() -> None:
    audit = stand_in()
    figure = plots.slope_profile(audit)
    (band,) = [part for part in figure.axes[0].collections if part.get_gid() == "band"]
    corners = band.get_paths()[0].vertices
    expected = in_flow(audit)
    for x, (slope, se) in enumerate(zip(expected["slope_nyquist"], expected["se_nyquist"], strict=True)):
        y = corners[corners[:, 0] == x, 1]
        np.testing.assert_allclose([y.min(), y.max()], [slope - 2.776445 * se, slope + 2.776445 * se])  # t, 4 degrees


def test_noted_rows_are_left_out_and_counted_and_a_bare_nan_is_a_gap() -> None:
    audit = stand_in()
    audit.table.loc[audit.table["call"] == "relu1", "note"] = "the gradient is zero"
    audit.table.loc[(audit.table["call"] == "conv2") & (audit.table["point"] == "input"), "slope_nyquist"] = np.nan
    figure = plots.slope_profile(audit)
    (line,) = lines(figure, "slope")
    np.testing.assert_array_equal(line.get_ydata(), in_flow(audit)["slope_nyquist"])
    assert len(line.get_ydata()) == 9
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [3]  # merge out, merge in, conv2 out, conv2 in
    assert "4 points without a slope" in figure.axes[0].get_xlabel()
    assert "relu1" not in tick_names(figure)


def test_a_note_read_back_from_a_csv_file_as_nan_is_no_note() -> None:
    audit = stand_in()
    audit.table["note"] = audit.table["note"].replace("", np.nan)
    assert len(lines(plots.slope_profile(audit), "slope")[0].get_xdata()) == 11


def test_stages_are_parted_between_the_two_points_of_a_downsampling_call() -> None:
    figure = plots.slope_profile(stand_in())
    boundaries = [line.get_xdata()[0] for line in lines(figure, "stage boundary")]
    # merge (4 | 8) conv2 (8 | 16) pool (16 | 32) ...: 8 and 16 are met twice
    assert boundaries == [0.5, 2.5, 4.5]
    labels = [text for text in figure.axes[0].texts if text.get_gid() == "stage label"]
    assert [text.get_text() for text in labels] == ["4×4", "8×8", "16×16", "32×32"]
    assert [text.xy[0] for text in labels] == [0, 1.5, 3.5, 7.5]


def test_a_shortcut_of_another_size_starts_no_stage() -> None:
    layers: list[Layer] = [
        ("a", "convolution", 32, 32),
        ("main", "strided convolution", 32, 16),
        ("b", "convolution", 16, 16),
        ("shortcut", "strided convolution", 32, 16),
        ("add", "addition", 16, 16),
    ]
    figure = plots.slope_profile(stand_in(layers))
    # add 0 1, shortcut 2 (16) 3 (32), b 4 5, main 6 (16) | 7 (32)
    assert [line.get_xdata()[0] for line in lines(figure, "stage boundary")] == [6.5]
    (marks,) = lines(figure, "strided convolution")
    assert list(marks.get_xdata()) == [3, 7]
    (line,), (beside,) = lines(figure, "slope"), lines(figure, "beside")
    assert list(line.get_xdata()) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]  # passes the shortcut's input by
    assert np.flatnonzero(np.isfinite(beside.get_ydata())).tolist() == [3]
    assert beside.get_ydata()[3] == marks.get_ydata()[0]
    assert "of another map size" in legend_texts(figure)
    assert "of another map size" not in legend_texts(plots.slope_profile(stand_in()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_the_trunk_is_the_closest_falling_sequence(stages: list[int]) -> None:
    found = _trunk(np.array(stages))
    falling = np.stack(np.meshgrid(*[sorted(set(stages))] * len(stages))).reshape(len(stages), -1).T
    falling = falling[(np.diff(falling, axis=1) <= 0).all(1)]
    assert (np.diff(found) <= 0).all()
    assert (found != stages).sum() == (falling != stages).sum(1).min()


def test_downsampling_is_marked_where_the_gradient_has_passed_it() -> None:
    audit = stand_in()
    figure = plots.slope_profile(audit)
    slopes = in_flow(audit).set_index(["call", "point"])["slope_nyquist"]
    for kind, call, x in (
        ("max pooling", "pool", 5),
        ("strided convolution", "conv2", 3),
        ("other downsampling", "merge", 1),
    ):
        (marks,) = lines(figure, kind)
        assert list(marks.get_xdata()) == [x]
        assert list(marks.get_ydata()) == [slopes[call, "input"]]
        assert kind in legend_texts(figure)
    assert not lines(figure, "average pooling")
    symbols = [
        lines(figure, kind)[0].get_marker() for kind in ("max pooling", "strided convolution", "other downsampling")
    ]
    assert len(set(symbols)) == 3


def test_patch_merging_is_marked_as_downsampling() -> None:
    layers: list[Layer] = [(call, "patch merging" if call == "merge" else kind, i, o) for call, kind, i, o in SMALL]
    figure = plots.slope_profile(stand_in(layers))
    (marks,) = lines(figure, "patch merging")
    assert list(marks.get_xdata()) == [1]
    assert "other downsampling" not in legend_texts(figure)


def test_a_small_network_names_every_call_in_the_middle_of_its_points() -> None:
    assert tick_names(plots.slope_profile(stand_in())) == {
        "merge": 0.5, "conv2": 2.5, "pool": 4.5, "relu1": 6.5, "conv1": 8.5, "input": 10,
    }  # fmt: skip


def deep() -> list[Layer]:
    blocks = [(f"stage1.{i}.conv", "convolution", 112, 112) for i in range(80)]
    later = [(f"stage2.{i}.conv", "convolution", 28, 28) for i in range(80)]
    return [
        ("stem", "strided convolution", 224, 112), *blocks, ("pool1", "max pooling", 112, 56),
        ("pool2", "max pooling", 56, 28), *later, ("last", "average pooling", 28, 7),
    ]  # fmt: skip


def test_a_large_network_names_its_downsampling_and_a_few_others_without_overlap() -> None:
    crowd: list[Layer] = [(f"pool.{i}", "average pooling", 28, 28) for i in range(60)]
    figure = plots.slope_profile(stand_in([*deep()[:-1], *crowd, deep()[-1]]))
    names = tick_names(figure)
    assert {"stem", "last"} <= set(names)
    assert {"pool1", "pool2"} & set(names)
    assert 8 < len([name for name in names if name.startswith("pool.")]) < 30
    assert 2 <= len([name for name in names if name.endswith(".conv")]) < 12
    places = np.sort([label.get_window_extent().x1 for label in figure.axes[0].get_xticklabels()])
    assert np.diff(places).min() > 9.5 / 72 * figure.dpi  # a line of letters of 8 pt, turned by 60 degrees
    assert no_overlap([text for text in figure.axes[0].texts if text.get_gid() == "stage label"])


def no_overlap(written: list[Text]) -> bool:
    boxes = [text.get_window_extent() for text in written]
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_stage_labels_of_narrow_stages_stand_above_each_other() -> None:
    sizes = (112, 56, 28, 14, 7)
    pools: list[Layer] = [(f"pool{i}", "max pooling", *sizes[i : i + 2]) for i in range(4)]  # two points to a stage
    figure = plots.slope_profile(stand_in([*deep()[:81], *pools]))
    labels = [text for text in figure.axes[0].texts if text.get_gid() == "stage label"]
    assert len(labels) == 6
    assert no_overlap(labels)


def test_variants_share_the_places_of_their_common_calls() -> None:
    trained = stand_in()
    pooled_layers = [*SMALL[:3], ("conv2", "convolution", 16, 16), ("conv2.pool", "average pooling", 16, 8), *SMALL[4:]]
    pooled = stand_in(pooled_layers, seed=1)
    figure = plots.slope_profile({"trained": trained, "_avg $x$": pooled})
    first, second = lines(figure, "slope")
    # merge 0 1, conv2.pool 2 3, conv2 4 5, pool 6 7, ...
    assert list(first.get_xdata()) == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert list(second.get_xdata()) == list(range(13))
    np.testing.assert_array_equal(second.get_ydata(), in_flow(pooled)["slope_nyquist"])
    assert first.get_linestyle() != second.get_linestyle()
    assert {text.get_text().rsplit(" ", 1)[0] for text in figure.axes[0].texts if text.get_gid() == "variant"} == {
        "trained", "_avg $x$",
    }  # fmt: skip
    (circle,) = lines(figure, "average pooling")
    assert circle.get_markerfacecolor() == second.get_color()


def test_a_huge_band_is_cut_before_it_dwarfs_the_line() -> None:
    audit = stand_in()
    whole = plots.slope_profile(audit).axes[0].get_ylim()
    slope, half = in_flow(audit)["slope_nyquist"], 2.776445 * in_flow(audit)["se_nyquist"]
    assert whole[0] < np.percentile(slope - half, 5)
    audit.table.loc[3:6, "se_nyquist"] = 50.0
    low, high = plots.slope_profile(audit).axes[0].get_ylim()
    assert low < slope.min()
    assert high > slope.max()
    assert high - low < 3 * -slope.min()


def test_a_variant_without_any_slope_keeps_the_others_colours() -> None:
    empty = stand_in()
    empty.table["note"] = "the gradient is zero"
    alone = lines(plots.slope_profile({"a": stand_in(), "b": stand_in(seed=1)}), "slope")[1]
    beside = lines(plots.slope_profile({"a": empty, "b": stand_in(seed=1)}), "slope")[1]
    assert alone.get_color() == beside.get_color()
    np.testing.assert_array_equal(alone.get_ydata(), beside.get_ydata())


def test_merged_order_keeps_each_order_it_can() -> None:
    assert _merged_order([list("abd"), list("xacde")]) == list("xacbde")


# ------------------------------------------------------------------------------------------------------- signatures
def shape_of(signature: Signature) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frequency, centred level and its standard error from the definition."""
    kept = slice(1, None)
    level = np.log10(signature.amplitude[kept])
    middle = np.log10(np.exp(np.log(signature.amplitude[kept]).mean()))  # of the geometric mean
    x = signature.radius[kept] / (min(signature.height, signature.width) / 2)
    return x, level - middle, signature.se[kept] / signature.amplitude[kept] / np.log(10)


def test_signature_panels_hold_the_signatures_at_the_inputs() -> None:
    audit = stand_in()
    figure = plots.signatures(audit)
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")}
    assert list(panels) == ["max pooling (1)", "strided convolution (1)", "convolution (1)"]
    for title, call in zip(panels, ("pool", "conv2", "conv1"), strict=True):
        (curve,) = [line for line in panels[title].lines if line.get_gid() == "signature"]
        x, y, se = shape_of(audit.signatures[call, "input"])
        np.testing.assert_allclose(curve.get_xdata(), x)
        np.testing.assert_allclose(curve.get_ydata(), y)
        corners = panels[title].collections[0].get_paths()[0].vertices
        high = [corners[np.isclose(corners[:, 0], at), 1].max() for at in x]
        np.testing.assert_allclose(high, y + se)
    assert len([line for line in panels["max pooling (1)"].lines if line.get_gid() == "reference"]) == 1
    assert not [line for line in panels["convolution (1)"].lines if line.get_gid() == "reference"]
    assert "pool 32×32" in texts(figure)


def test_white_noise_is_flat_at_zero_whatever_its_amplitude() -> None:
    audit = stand_in()
    audit.signatures["pool", "input"] = Signature(32, 32, np.full((IMAGES, 17), 1e-7), np.full(IMAGES, 0.8))
    curve = lines(plots.signatures(audit, kinds=["max pooling"]), "signature")[0]
    np.testing.assert_allclose(curve.get_ydata(), 0, atol=1e-12)


def test_curves_of_a_kind_darken_towards_the_input_and_differ_in_style() -> None:
    layers = [(f"pool{i}", "max pooling", 64 // 2**i, 32 // 2**i) for i in range(4)]
    curves = lines(plots.signatures(stand_in(layers)), "signature")
    lightness = [sum(matplotlib.colors.to_rgb(line.get_color())) for line in curves]
    assert [len(line.get_xdata()) for line in curves] == [4, 8, 16, 32]  # prediction first
    assert lightness == sorted(lightness, reverse=True)
    assert len(set(lightness)) == 4
    assert len({str(line._dash_pattern) for line in curves}) == 4  # type: ignore[attr-defined]


def panel_legend(figure: Figure, title: str) -> list[str]:
    (ax,) = [ax for ax in figure.axes if ax.get_title(loc="left") == title]
    legend = ax.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_up_to_eight_curves_are_named_and_told_apart_outside_the_panel() -> None:
    layers: list[Layer] = [(f"layer{i}.0.downsample.0", "strided convolution", 16, 8) for i in range(9)]
    figure = plots.signatures(stand_in(layers[:8]))
    assert panel_legend(figure, "strided convolution (8)") == [
        f"layer{i}.0.downsample.0 16×16" for i in range(7, -1, -1)
    ]
    curves = lines(figure, "signature")
    assert len({str(line._dash_pattern) for line in curves}) == 8  # type: ignore[attr-defined]
    ax = figure.axes[0]
    box = ax.get_legend().get_window_extent()
    assert box.y1 <= ax.xaxis.label.get_window_extent().y0
    assert box.y0 >= next(t for t in figure.findobj(Text) if "label_logit" in t.get_text()).get_window_extent().y1
    assert panel_legend(plots.signatures(stand_in(layers)), "strided convolution (9)") == []


def test_more_than_twenty_curves_are_drawn_as_median_and_quartiles() -> None:
    def net(count: int) -> list[Layer]:
        later: list[Layer] = [(f"late{i}", "convolution", 16, 16) for i in range(count - 3)]
        early: list[Layer] = [(f"early{i}", "convolution", 32, 32) for i in range(3)]
        return [*early, ("pool", "max pooling", 32, 16), *later]

    assert len(lines(plots.signatures(stand_in(net(20)), kinds=["convolution"]), "signature")) == 20
    audit = stand_in(net(21))
    figure = plots.signatures(audit)
    (median,) = lines(figure, "median")
    grid = median.get_xdata()
    np.testing.assert_allclose(grid, shape_of(audit.signatures["early0", "input"])[0])
    for column in (0, 7, 13):
        curves = [shape_of(audit.signatures[row.call, "input"]) for row in audit.table.itertuples()
                  if (row.type, row.point) == ("convolution", "input")]  # fmt: skip
        levels = [np.interp(grid[column], x, y) for x, y, _ in curves if x[0] <= grid[column] <= x[-1]]
        assert len(levels) == (3 if column == 0 else 21)  # the small maps begin later
        assert median.get_ydata()[column] == pytest.approx(np.median(levels))
    assert panel_legend(figure, "convolution (21)") == ["(21: median, quartiles)"]
    assert panel_legend(figure, "max pooling (1)") == ["pool 32×32", "convolution (21: median, quartiles)"]
    assert len(lines(figure, "reference")) == 1


def test_signatures_without_a_shape_are_left_out() -> None:
    audit = stand_in()
    audit.signatures["conv2", "input"] = Signature(16, 16, np.zeros((IMAGES, 9)), np.full(IMAGES, np.nan))
    audit.table.loc[(audit.table["call"] == "pool"), "note"] = "the gradient is zero"
    assert {ax.get_title(loc="left") for ax in plots.signatures(audit).axes} == {"convolution (1)", ""}


def test_variants_meet_in_the_first_panel_and_then_have_their_own() -> None:
    pooled = stand_in(
        [(call, "average pooling" if kind == "max pooling" else kind, i, o) for call, kind, i, o in SMALL]
    )
    figure = plots.signatures({"trained": stand_in(), "$avg$": pooled})
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:3] == ["downsampling, all variants", "trained", "$avg$"]
    counts = [len([line for line in ax.lines if line.get_gid() == "signature"]) for ax in figure.axes[:3]]
    assert counts == [4, 2, 2]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["trained (2)", "$avg$ (2)"]
    own = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert own == ["strided convolution (1)", "average pooling (1)", "convolution (1)"]


def test_a_mapping_of_one_is_drawn_like_the_audit_itself() -> None:
    audit = stand_in()
    for draw in (plots.slope_profile, plots.signatures):
        one, other = ([line.get_xydata() for line in draw(each).axes[0].lines] for each in (audit, {"a": audit}))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------ gradient pictures
def images(figure: Figure) -> list[AxesImage]:
    return [ax.images[0] for ax in figure.axes if ax.images and len(ax.images[0].get_array().shape) == 2]


def test_a_row_holds_the_first_maps_and_then_the_spectrum() -> None:
    audit = stand_in()
    figure = plots.gradient_pictures(audit, pictures=2)
    flow = list(zip(in_flow(audit)["call"], in_flow(audit)["point"], strict=True))
    assert len(flow) == 11
    shown = images(figure)
    assert len(shown) == 33
    for i, key in enumerate(flow):
        maps, spectrum = audit.examples[key].maps, audit.examples[key].spectrum
        np.testing.assert_array_equal(shown[3 * i].get_array(), maps[0])
        np.testing.assert_array_equal(shown[3 * i + 1].get_array(), maps[1])
        drawn = shown[3 * i + 2].get_array()
        np.testing.assert_allclose(drawn - drawn[0, 0], spectrum - spectrum[0, 0], atol=1e-12)
    assert "pool\nmax pooling, at its input\n32×32" in texts(figure)
    assert "network input\n32×32" in texts(figure)
    heads = [f"picture {i}\nmean over channels" for i in range(2)]
    assert [text for text in texts(figure) if text.startswith("picture ")] == heads
    assert "mean log spectrum,\nall channels, all 5 pictures" in texts(figure)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 31), (32, 48), (7, 5)])
def test_the_spectrum_has_dc_in_the_centre_of_its_axes(height: int, width: int) -> None:
    audit = stand_in(SMALL[:1])
    constant = np.fft.fftshift(np.abs(np.fft.fft2(np.ones((height, width)))))
    audit.examples = {("input", "input"): types.SimpleNamespace(
        maps=np.ones((1, height, width), np.float32), spectrum=np.log10(constant + 1e-3))}  # fmt: skip
    picture = images(plots.gradient_pictures(audit))[1]
    row, column = np.unravel_index(np.argmax(picture.get_array()), (height, width))
    left, right, bottom, top = picture.get_extent()
    assert left + (column + 0.5) * (right - left) / width == pytest.approx(0)
    assert top + (row + 0.5) * (bottom - top) / height == pytest.approx(0)
    assert right - left == pytest.approx(2)  # one full period, in fractions of Nyquist


def test_spectra_share_a_scale_that_ignores_dc_and_shows_the_rest() -> None:
    audit = stand_in()
    for found in audit.examples.values():
        n = len(found.spectrum)
        found.spectrum[n // 2, n // 2] += 40
    spectra = images(plots.gradient_pictures(audit, pictures=1))[1::2]
    limits = {image.get_clim() for image in spectra}
    assert len(limits) == 1
    low, high = limits.pop()
    assert high < 5
    for image in spectra:
        rest = np.delete(image.get_array().ravel(), np.argmax(image.get_array()))
        assert np.mean((rest < low) | (rest > high)) < 0.08  # 4 x 4 maps lose one bin of 15
        assert np.median(np.asarray(rest)) == pytest.approx(0, abs=1e-9)


def test_maps_have_a_symmetric_robust_scale() -> None:
    audit = stand_in(SMALL[:1])
    picture = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    picture[0, 0] = 1e6  # one outlier must not bleach the map
    audit.examples = {("input", "input"): types.SimpleNamespace(maps=picture[None], spectrum=np.zeros((32, 32)))}
    low, high = images(plots.gradient_pictures(audit))[0].get_clim()
    assert low == -high
    assert high == pytest.approx(np.percentile(np.abs(picture), 99))
    assert 0.9 < high < 1.0


def test_zero_sparse_and_broken_maps_are_drawn() -> None:
    audit = stand_in(SMALL[:1])
    sparse = np.zeros((32, 32), np.float32)
    sparse[3, 4] = -0.5
    maps = np.stack([np.zeros((32, 32), np.float32), sparse, np.full((32, 32), np.nan, np.float32)])
    audit.examples = {("input", "input"): types.SimpleNamespace(maps=maps, spectrum=np.full((32, 32), -np.inf))}
    limits = [image.get_clim() for image in images(plots.gradient_pictures(audit))]
    assert limits[:3] == [(-1, 1), (-0.5, 0.5), (-1, 1)]


@pytest.mark.parametrize("size", [224, 112, 31, 300])
def test_a_checkerboard_survives_in_the_saved_picture(size: int, tmp_path) -> None:
    rows, columns = np.indices((size, size))
    board = np.where((rows + columns) % 2, 1, -1).astype(np.float32)
    audit = stand_in(SMALL[:1])
    audit.examples = {("input", "input"): types.SimpleNamespace(maps=board[None], spectrum=np.zeros((size, size)))}
    figure = plots.gradient_pictures(audit)
    with matplotlib.rc_context({"savefig.dpi": 97, "savefig.bbox": "tight"}):  # the caller's, which would resample
        png, _ = plots.save(figure, tmp_path / "board")
    pixels = np.asarray(Image.open(png).convert("RGB")).astype(int)
    box = figure.axes[0].get_window_extent()
    left, top = round(box.x0), pixels.shape[0] - round(box.y1)
    zoom = round(box.width) // size
    assert zoom == max(1, 224 // size)
    inside = pixels[top : top + size * zoom, left : left + size * zoom]
    redder = (inside[..., 0] > inside[..., 2])[zoom // 2 :: zoom, zoom // 2 :: zoom]  # the middle of each map pixel
    expected = board > 0
    np.testing.assert_array_equal(redder[2:-2, 2:-2], expected[2:-2, 2:-2])  # the frame covers the border


def test_points_can_be_chosen_and_are_thinned_by_default() -> None:
    audit = stand_in()
    chosen = plots.gradient_pictures(audit, points=[("input", "input"), ("pool", "output")], pictures=1)
    np.testing.assert_array_equal(images(chosen)[0].get_array(), audit.examples["input", "input"].maps[0])
    np.testing.assert_array_equal(images(chosen)[2].get_array(), audit.examples["pool", "output"].maps[0])
    assert len(images(chosen)) == 4
    thinned = plots.gradient_pictures(audit, limit=3, pictures=1)
    assert len(images(thinned)) == 6
    labels = [text for text in texts(thinned) if "\n" in text and "×" in text]
    assert [label.split("\n")[0] for label in labels] == ["merge", "pool", "network input"]
    assert labels[1].split("\n")[1] == "max pooling, at its input"
    with pytest.raises(ValueError, match="no example at"):
        plots.gradient_pictures(audit, points=[("pool", "middle")])


def test_an_operator_at_the_networks_input_has_no_row_of_its_own() -> None:
    audit = stand_in()
    first = audit.examples["input", "input"]
    audit.examples["conv1", "input"] = types.SimpleNamespace(maps=first.maps.copy(), spectrum=first.spectrum.copy())
    labels = [text for text in texts(plots.gradient_pictures(audit, pictures=1)) if "×" in text]
    assert "conv1\nconvolution, at its output\n32×32" in labels and len(labels) == 10
    assert "conv1\nconvolution, at its input\n32×32" not in labels
    assert labels[-1] == "network input\n32×32"
    chosen = plots.gradient_pictures(audit, points=[("conv1", "input")], pictures=1)
    assert "conv1\nconvolution, at its input\n32×32" in texts(chosen)


# --------------------------------------------------------------------------------------------------------- culprits
@pytest.mark.parametrize("by", ["call", "type"])
def test_bars_are_the_ranking_with_its_standard_errors(by: Any) -> None:
    audit = stand_in()
    expected = audit.culprits(by=by).head(4)
    figure = plots.culprits(audit, by=by, top=4)
    ax = figure.axes[0]
    bars, whiskers = ax.containers
    np.testing.assert_allclose([bar.get_width() for bar in bars], expected["new_power"])
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    np.testing.assert_allclose(middles, range(4))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first is on top
    segments = np.array(whiskers[2][0].get_segments())
    np.testing.assert_allclose(segments[:, 0, 0], expected["new_power"] - expected["se"])
    np.testing.assert_allclose(segments[:, 1, 0], expected["new_power"] + expected["se"])
    names = [label.get_text() for label in ax.get_yticklabels()]
    wanted = (
        expected["call"]
        if by == "call"
        else [f"{a} ({b})" for a, b in zip(expected["type"], expected["calls"], strict=True)]
    )
    assert names == list(wanted)
    assert [(to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in bars] == [
        (to_hex(LOOKS[kind].colour), LOOKS[kind].hatch) for kind in expected["type"]
    ]
    assert sorted(legend_texts(figure)) == sorted(set(expected["type"]))
    (zero,) = lines(figure, "zero")
    assert list(zero.get_xdata()) == [0, 0]


def test_the_direction_is_said_in_words_only_where_it_occurs() -> None:
    audit = stand_in()
    table = audit.culprits()
    audit.culprits = lambda by: table.assign(new_power=[0.3, 0.2, 0.1, 0.0, -0.1, -0.2])
    both, top = plots.culprits(audit), plots.culprits(audit, top=2)
    assert {"adds high frequency →", "← removes it"} <= set(texts(both))
    assert "adds high frequency →" in texts(top)
    assert "← removes it" not in texts(top)
    audit.culprits = lambda by: table.assign(new_power=[np.nan] * 2 + [0.1] * 4, se=np.nan)  # of one image
    assert len(plots.culprits(audit).axes[0].patches) == 4


def test_long_names_that_look_alike_keep_their_own_bars() -> None:
    audit = stand_in()
    table = audit.culprits()
    names = [f"{'a' * 100}{i}{'b' * 100}" for i in range(6)]
    audit.culprits = lambda by: table.assign(call=names)
    ax = plots.culprits(audit).axes[0]
    assert [bar.get_width() for bar in ax.patches] == table["new_power"].tolist()
    assert {label.get_text() for label in ax.get_yticklabels()} == {"a" * 17 + "…" + "b" * 16}


def test_types_are_told_apart_without_colour() -> None:
    common = [kind for kind in LOOKS if kind not in ("input", "other")]
    for index in (0, 1, 2):
        looks = [LOOKS[kind][index] for kind in common[:10]]
        assert len(set(looks)) == 10
    assert {"padding", "patch merging", "transposed convolution"} <= set(common)
    assert len({LOOKS[kind] for kind in common}) == len(common)


# ------------------------------------------------------------------------------------------------ names, state, files
HOSTILE = [
    "$x_1$",
    "$\\frac{$",
    "<b>&amp;",
    "a\\b\\$c",
    "_hidden",
    "x" * 300,
    "tab\there\nand\x00nul",
    "鳥.jpg",
    "\udcff",
]


def hostile() -> Any:
    names = iter(HOSTILE)
    layers = [(f"{next(names)}", kind, i, o) for _, kind, i, o in SMALL]
    audit = stand_in(layers)
    audit.pictures = tuple(HOSTILE[-3:]) + audit.pictures[3:]
    return audit


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_drawn_as_they_are(tmp_path) -> None:
    audit = hostile()
    variants = {"$\\nope$": audit, "_under": stand_in(seed=1), "<script>": stand_in(seed=2)}
    figures = [plots.slope_profile(audit), plots.slope_profile(variants), plots.signatures(audit),
               plots.signatures(variants), plots.gradient_pictures(variants, limit=2, pictures=3),
               plots.culprits(audit), plots.culprits(variants)]  # fmt: skip
    for i, figure in enumerate(figures):
        png, svg = plots.save(figure, tmp_path / str(i))
        with Image.open(png) as picture:
            assert picture.size[0] > 400
        assert "<script>" not in svg.read_text(encoding="utf-8")
    assert {"$x_1$", "$\\frac{$", "<b>&amp;", "a\\b\\$c", "_hidden"} <= set(tick_names(figures[0]))
    assert {"$\\nope$", "_under"} <= {text.rsplit(" ", 1)[0] for text in texts(figures[1])}
    assert "$x_1$" in (tmp_path / "5.svg").read_text(encoding="utf-8")
    for text in figures[0].findobj(Text) + figures[5].findobj(Text):
        assert not text.get_parse_math()


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.integers(3, 40))
def test_elided_names_fit_and_keep_both_ends(name: str, length: int) -> None:
    short = elide(name, length)
    assert len(short) <= length
    assert short.isprintable()
    if name.isprintable():
        assert short == name if len(name) <= length else (short[0], short[-1]) == (name[0], name[-1])


def every(audit: Any) -> list[Figure]:
    return [plots.slope_profile(audit), plots.signatures(audit), plots.gradient_pictures(audit), plots.culprits(audit)]


def test_names_are_cut_at_dots_where_that_keeps_most_of_them() -> None:
    assert elide("features.denseblock4.denselayer16.conv2", 28) == "features…denselayer16.conv2"
    assert elide("a.bb.ccc.dddd", 10) == "a…ccc.dddd"
    assert elide("layer4.0.downsample.0", 18) == "layer4.0.…sample.0"  # at dots: layer4.0…0


def test_every_figure_says_what_it_shows() -> None:
    audit = stand_in()
    for figure in every(audit):
        assert "torchvision:resnet18 · 5 pictures · label_logit" in texts(figure)
    audit.spec["model"] = "/home/me/nets/$x_1$.py:load"
    audit.pictures = audit.pictures[:1]
    variants = {"trained": stand_in(), "$avg$": stand_in(seed=1)}
    for figure, words in (
        (plots.slope_profile(audit), "$x_1$.py:load · 1 picture · label_logit"),
        (plots.slope_profile(variants), "trained, $avg$ · 5 pictures · label_logit"),
        (plots.signatures({**variants, "one": audit}), "trained, $avg$, one · 5, 5, 1 pictures · label_logit"),
    ):
        (text,) = [text for text in figure.findobj(Text) if text.get_text() == words]
        assert not text.get_parse_math()
    audit = stand_in()
    audit.spec = {"model": "x" * 500, "target": "n" * 500}
    for figure in every(audit):
        box = next(text for text in figure.findobj(Text) if "xxx" in text.get_text()).get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.x1


def test_no_pyplot_figure_and_no_setting_is_left_behind(tmp_path) -> None:
    import matplotlib.pyplot as plt

    matplotlib.get_backend()  # settles the one setting that is looked up late
    before, figures = matplotlib.rcParams.copy(), plt.get_fignums()
    for figure in every(stand_in()):
        plots.save(figure, tmp_path / "figure")
    with pytest.raises(ValueError, match="at least 1"):
        plots.culprits(stand_in(), top=0)
    with pytest.raises(ValueError, match="empty mapping"):
        plots.slope_profile({})
    assert matplotlib.rcParams == before
    assert plt.get_fignums() == figures


def test_the_callers_style_does_not_reach_the_figures() -> None:
    def pixels(figure: Figure) -> bytes:
        stream = io.BytesIO()
        figure.savefig(stream, format="rgba", dpi=60)
        return stream.getvalue()

    plain = [pixels(figure) for figure in every(stand_in())]
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "red", "font.size": 30, "xtick.labelsize": 4}):
        assert [pixels(figure) for figure in every(stand_in())] == plain


def test_every_text_can_be_read() -> None:
    for figure in every(stand_in(deep())):
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 8
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 > -0.01
        assert drawn.y0 > -0.01
        assert drawn.x1 < width + 0.01
        assert drawn.y1 < height + 0.01


def test_an_audit_with_nothing_to_draw_says_so() -> None:
    audit = stand_in()
    audit.table["note"] = "the gradient is zero"
    audit.signatures, audit.examples = {}, {}
    table = audit.culprits()
    audit.culprits = lambda by: table.head(0)
    for figure in every(audit):
        assert texts(figure)[0].startswith("Nothing to draw")


def test_one_image_has_no_band_and_no_warning() -> None:
    audit = stand_in()
    audit.table = audit.table.assign(n=1, se_nyquist=np.nan)
    for key, found in audit.signatures.items():
        audit.signatures[key] = Signature(found.height, found.width, found.per_image[:1], found.high_shares[:1])
    assert len(lines(plots.slope_profile(audit), "slope")[0].get_ydata()) == 11
    assert len(lines(plots.signatures(audit), "signature")) == 3


def test_saved_files_are_the_same_bytes_every_time(tmp_path) -> None:
    for attempt in ("a", "b"):
        paths = plots.save(plots.slope_profile(stand_in()), tmp_path / attempt / "deeper" / "slope.v1")
        assert [path.name for path in paths] == ["slope.v1.png", "slope.v1.svg"]
    for suffix in ("png", "svg"):
        one, other = ((tmp_path / attempt / "deeper" / f"slope.v1.{suffix}").read_bytes() for attempt in ("a", "b"))
        assert one == other
    assert b"<dc:date>" not in one
    assert b">conv2<" in one  # words stay words
    png, svg = plots.save(plots.slope_profile(stand_in()), tmp_path / "named.svg")
    assert (png.name, svg.name) == ("named.png", "named.svg")
