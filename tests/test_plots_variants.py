"""What the figures of several variants show equals what their audits and the comparison hold."""

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
from matplotlib.text import Text
from PIL import Image

from gradspec import plots
from gradspec.causality import agreement
from gradspec.plots._labels import spread
from gradspec.plots._style import LOOKS, VARIANTS, legend_above, png_bytes, svg_text, traces
from tests.test_plots import HOSTILE, SMALL, Layer, deep, example, images, in_flow, legend_texts, lines

from tests.test_plots import no_overlap, stand_in, texts, tick_names  # isort: skip

POOLED: list[Layer] = [(call, "average pooling" if kind == "max pooling" else kind, i, o) for call, kind, i, o in SMALL]
SWAPPED: list[Layer] = [
    *SMALL[:3], ("conv2", "convolution", 16, 16), ("conv2:avg_pool2d", "average pooling", 16, 8), *SMALL[4:],
]  # fmt: skip


def many(count: int) -> dict[str, Any]:
    return {f"variant {i}": stand_in(seed=i) for i in range(count)}


def slopes_at_input(audits: dict[str, Any]) -> list[float]:
    return [audit.table.set_index(["call", "point"])["slope_nyquist"]["input", "input"] for audit in audits.values()]


# ------------------------------------------------------------------------------------------------------------ looks
def test_ten_variants_are_told_apart_by_any_of_colour_style_and_marker() -> None:
    first = list(traces(map(str, range(10))).values())
    for attribute in ("colour", "style", "marker"):
        assert len({str(getattr(trace, attribute)) for trace in first}) == 10
    assert len({(t.colour, str(t.style), t.marker) for t in VARIANTS}) == len(VARIANTS) > 1000
    beyond = traces(map(str, range(len(VARIANTS) + 1)))
    assert beyond[str(len(VARIANTS))] == beyond["0"]


def test_a_variant_looks_the_same_in_every_figure() -> None:
    audits = many(3)
    audits["variant 2"].culprits = lambda by: stand_in(seed=2).culprits(by)[:2]
    wanted = [(trace.colour, trace.marker) for trace in traces(audits).values()]
    found = comparison(audits)
    profile = plots.slope_profile(audits)
    assert [line.get_color() for line in lines(profile, "slope")] == [colour for colour, _ in wanted]
    assert [line.get_color() for line in lines(profile, "piece")] == [colour for colour, _ in wanted]
    signatures = plots.signatures(audits).axes[0].get_legend().get_lines()
    assert [matplotlib.colors.to_rgb(line.get_color())[2] > 0.5 for line in signatures] == [True, False, False]
    for figure in (plots.culprits(audits, by="type"), plots.drift(found)):
        marks = [container.lines[0] for container in figure.axes[0].containers]
        assert [(mark.get_color(), mark.get_marker()) for mark in marks] == wanted


def test_a_legend_takes_as_many_columns_as_the_figure_has_room_for() -> None:
    for words, columns in (("name", 5), ("a name of twenty-four l.", 3)):
        figure = Figure(figsize=(8, 2), layout="constrained")
        handle = matplotlib.lines.Line2D([], [])
        legend_above(figure, [[(handle, f"{words}{i}") for i in range(7)]], columns=5)
        figure.draw_without_rendering()
        assert figure.legends[0]._ncols == columns
        box = figure.legends[0].get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.x1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0, 2))
def test_spread_is_the_nearest_with_gaps_and_bounds(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap, (-100, 100))
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(found[order]) >= gap - 1e-9).all()
    y = np.array(wanted)[order] - gap * np.arange(len(wanted))
    n = len(y)  # isotonic regression by its max-min formula
    slow = [max(min(y[a : b + 1].mean() for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    np.testing.assert_allclose(found[order], slow + gap * np.arange(n), atol=1e-9)
    inside = spread(wanted, gap, (-1, 20))
    assert inside.min() >= -1 and inside.max() <= 20 + 1e-9
    assert (np.diff(inside[order]) >= gap - 1e-9).all()
    assert spread(wanted, gap, (0, 0.1)).min() >= 0  # without room for all
    assert spread([6.0] * 3, 1.0, (0.0, 6.0)).tolist() == [4, 5, 6]


# ---------------------------------------------------------------------------------------------------- slope profile
def test_calls_within_a_module_stand_between_its_output_and_input() -> None:
    audits = {"trained": stand_in(), "swapped": stand_in(SWAPPED, seed=1)}
    figure = plots.slope_profile(audits)
    first, second = lines(figure, "slope")
    # merge 0 1, conv2: output 2, (avg_pool2d in 3, conv2 out 4), input 5, pool 6 7, relu1 8 9, conv1 10 11, input 12
    assert list(first.get_xdata()) == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12]
    assert list(second.get_xdata()) == list(range(13))
    np.testing.assert_array_equal(second.get_ydata(), in_flow(audits["swapped"])["slope_nyquist"])
    assert tick_names(figure)["conv2"] == 3.5
    assert not [name for name in tick_names(figure) if ":" in name]
    assert [line.get_xdata()[0] for line in lines(figure, "stage boundary")][1] == 2.5  # at the module's output
    (circle,) = lines(figure, "average pooling")
    assert list(circle.get_xdata()) == [3]
    # a module that is called again later has no one place: its parts keep their own
    again = stand_in([*SWAPPED, ("conv2:again", "convolution", 4, 4), SMALL[0]], seed=1)
    names = tick_names(plots.slope_profile({"trained": stand_in(), "again": again}))
    assert {"conv2", "conv2:avg_pool2d", "conv2:again"} <= set(names)


def test_a_stage_has_the_size_of_the_first_variant() -> None:
    patches = stand_in([("embed", "patch embedding", 224, 14), ("block", "linear", 14, 14)])
    dense = stand_in(
        [
            ("embed", "convolution", 224, 209),
            ("embed:avg_pool2d", "average pooling", 209, 14),
            ("block", "linear", 14, 14),
        ]
    )
    figure = plots.slope_profile({"trained": patches, "swapped": dense})
    labels = [text.get_text() for text in figure.axes[0].texts if text.get_gid() == "stage label"]
    assert labels == ["14×14", "224×224"]


def test_variants_are_named_at_their_ends_with_the_slope_at_the_input() -> None:
    audits = {"trained": stand_in(), "$avg$": stand_in(POOLED, seed=1), "same": stand_in()}
    audits["none"] = stand_in(seed=5)
    audits["none"].table["note"] = "the gradient is zero"
    audits["none"].table["slope_nyquist"] = np.nan
    figure = plots.slope_profile(audits)
    names = [text for text in figure.axes[0].texts if text.get_gid() == "variant"]
    numbers = [f"{slope:+.2f}".replace("-", "−") for slope in slopes_at_input(audits)[:3]]
    assert [text.get_text() for text in names] == [
        f"trained {numbers[0]}", f"$avg$ {numbers[1]}", f"same {numbers[2]}", "none ",
    ]  # fmt: skip
    heights = [text.get_position()[1] for text in names]
    assert heights[0] > heights[2]  # of equals the first is on top
    assert heights[3] == min(heights)
    assert not any("$" in text and "avg" in text for text in legend_texts(figure))
    ax = figure.axes[0]
    for leader, piece, text, line in zip(
        lines(figure, "leader"), lines(figure, "piece"), names, lines(figure, "slope"), strict=True
    ):
        assert piece.get_ydata()[0] == piece.get_ydata()[1] == text.get_position()[1] == leader.get_ydata()[1]
        assert str(piece._dash_pattern) == str(line._dash_pattern)
        if len(line.get_xdata()):
            end = ax.transAxes.inverted().transform(ax.transData.transform(line.get_xydata()[-1]))
            assert leader.get_ydata()[0] == pytest.approx(end[1])


@pytest.mark.parametrize("count", [12, 40])
def test_names_of_many_variants_stand_clear_inside_the_figure(count: int) -> None:
    audits = {f"{'long name ' * 5}{i}": stand_in(seed=0) for i in range(count)}
    for audit in audits.values():
        audit.table.loc[0, "slope_nyquist"] = -5.0  # all lines end in the lower corner
    figure = plots.slope_profile(audits)
    names = [text for text in figure.axes[0].texts if text.get_gid() == "variant"]
    assert len(names) == count
    assert no_overlap(names)
    boxes = [text.get_window_extent() for text in names]
    assert all(0 <= text.get_position()[1] <= 1 for text in names)
    assert max(box.y1 for box in boxes) < figure.bbox.y1
    assert max(box.x1 for box in boxes) < figure.bbox.x1


def test_dashes_are_not_hidden_by_dots_but_a_lonely_point_is_one() -> None:
    audits = many(2)
    table = audits["variant 0"].table
    row = table.index[(table["call"] == "relu1") & (table["point"] == "output")][0]
    in_order = in_flow(audits["variant 0"])
    around = [in_order.index[list(in_order.index).index(row) + step] for step in (-1, 1)]
    table.loc[around, "slope_nyquist"] = np.nan
    one, other = lines(plots.slope_profile(audits), "slope")
    x = list(in_order.index).index(row)
    assert [one.get_xdata()[i] for i in one.get_markevery()] == [x]
    assert other.get_markevery() == []
    assert len(lines(plots.slope_profile(stand_in()), "slope")[0].get_markevery()) == 11


def test_close_downsampling_calls_are_both_named() -> None:
    layers: list[Layer] = [*deep()[:81], ("pool1", "max pooling", 112, 56), *deep()[83:]]
    layers[0] = ("stem", "strided convolution", 224, 112)
    layers.insert(1, ("second", "max pooling", 112, 56))
    at = next(i for i, layer in enumerate(layers) if layer[0] == "stage2.41.conv")
    swapped = [*layers[: at + 1], ("stage2.41.conv:blur", "average pooling", 28, 28), *layers[at + 1 :]]
    figure = plots.slope_profile({"a": stand_in(layers), "b": stand_in(swapped, seed=1)})
    names = tick_names(figure)
    assert {"stem", "second", "stage2.41.conv"} <= set(names)
    labels = {label.get_text(): label.get_window_extent() for label in figure.axes[0].get_xticklabels()}
    apart = labels["stem"].x1 - labels["second"].x1
    pitch = figure.axes[0].transData.transform([[names["second"], 0], [names["stem"], 0]])[:, 0]
    assert 10 < apart / figure.dpi * 72 < 11
    assert np.diff(pitch)[0] < apart  # at their own places they would overlap


# ------------------------------------------------------------------------------------------------------- signatures
def test_more_than_thirty_curves_of_all_variants_are_their_medians() -> None:
    def net(count: int, seed: int) -> Any:
        return stand_in([(f"pool{i}", "max pooling", 32, 16) for i in range(count)], seed=seed)

    few = plots.signatures({"a": net(15, 0), "b": net(15, 1)})
    assert len([line for line in few.axes[0].lines if line.get_gid() == "signature"]) == 30
    audits = {"a": net(15, 0), "b": net(15, 1), "one": net(1, 2)}
    ax = plots.signatures(audits).axes[0]
    medians = [line for line in ax.lines if line.get_gid() == "median"]
    assert len(medians) == 2 and len([line for line in ax.lines if line.get_gid() == "signature"]) == 1
    for name, line in zip(audits, medians, strict=False):
        levels = [np.log10(audits[name].signatures[f"pool{i}", "input"].amplitude[1:]) for i in range(15)]
        centred = np.stack([level - level.mean() for level in levels])
        np.testing.assert_allclose(line.get_ydata(), np.median(centred, 0))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a (15: median)", "b (15: median)", "one (1)"]


@pytest.mark.parametrize("count", [3, 4, 10])
def test_signatures_of_any_number_of_variants_fit_a_page(count: int) -> None:
    figure = plots.signatures(many(count))
    assert figure.get_size_inches()[0] <= 10
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert len(panels) == count + 1
    lowest = {round(ax.get_position().x0, 3): ax for ax in sorted(panels, key=lambda ax: -ax.get_position().y0)}
    for ax in panels:
        named = any(label.get_visible() and label.get_text() for label in ax.get_xticklabels())
        assert named == (ax in lowest.values()) == bool(ax.get_xlabel())


# ------------------------------------------------------------------------------------------------ gradient pictures
def cells(figure: Figure) -> list[Any]:
    """Return the axes of maps and spectra by row, top first, then from the left."""
    axes = [ax for ax in figure.axes if ax.images]
    return sorted(axes, key=lambda ax: (-round(sum(ax.get_position().intervaly), 3), ax.get_position().x0))


def shown(ax: Any) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def less_median(spectrum: np.ndarray) -> np.ndarray:
    middle = spectrum.shape[0] // 2, spectrum.shape[1] // 2
    rest = np.delete(spectrum.ravel(), np.ravel_multi_index(middle, spectrum.shape))
    return spectrum - np.median(rest)


def test_variants_stand_side_by_side_place_below_place() -> None:
    audits = {"trained": stand_in(), "$avg$": stand_in(POOLED, seed=1), "swapped": stand_in(SWAPPED, seed=2)}
    figure = plots.gradient_pictures(audits, limit=20)
    keys = [
        [("input", "input")] * 3, [("pool", "input")] * 3,
        [("conv2", "input"), ("conv2", "input"), ("conv2:avg_pool2d", "input")], [("merge", "input")] * 3,
    ]  # fmt: skip
    found = cells(figure)
    assert len(found) == 24
    for block, row in enumerate(keys):
        for column, (audit, key) in enumerate(zip(audits.values(), row, strict=True)):
            np.testing.assert_array_equal(shown(found[6 * block + column]), audit.examples[key].maps[0])
            spectrum = less_median(audit.examples[key].spectrum)
            np.testing.assert_allclose(shown(found[6 * block + 3 + column]), spectrum, atol=1e-6)
    written = texts(figure)
    heads = [
        "network input 32×32",
        *(f"at the input of the operator that shrinks maps of {n}×{n}" for n in (32, 16, 8)),
    ]
    assert [text for text in written if text in heads] == heads
    assert written.count("trained") == written.count("$avg$") == 1  # at the network's input, without a call
    assert "trained\npool\nmax pooling" in written and "$avg$\npool\naverage pooling" in written
    assert "swapped\nconv2:avg_pool2d\naverage pooling" in written
    assert len({ax.images[0].get_clim() for ax in found[3:6] + found[-3:]}) == 1  # spectra share a scale
    assert np.ptp([ax.get_position().y0 for ax in found[:3]]) < 1e-9


def test_the_last_operator_of_a_size_stands_for_it() -> None:
    layers: list[Layer] = [
        ("main", "strided convolution", 32, 16), ("shortcut", "strided convolution", 32, 16),
        ("add", "addition", 16, 16), ("late", "max pooling", 16, 8),
    ]  # fmt: skip
    audits = {"a": stand_in(layers, input_size=64), "b": stand_in(layers, seed=1, input_size=64)}
    titles = [text for text in texts(plots.gradient_pictures(audits)) if text.startswith("a\n")]
    assert titles == ["a\nmain\nstrided convolution", "a\nlate\nmax pooling"]  # the gradient meets the shortcut first


def test_an_operator_at_the_networks_input_has_no_block_and_a_lacking_one_leaves_a_gap() -> None:
    audits = {"a": stand_in(SMALL[2:]), "b": stand_in(SMALL[3:], seed=1, input_size=32)}
    audits["a"].examples["pool", "input"] = audits["a"].examples["input", "input"]
    figure = plots.gradient_pictures(audits, limit=20)
    written = texts(figure)
    assert not [text for text in written if "pool" in text]
    assert len(cells(figure)) == 4 * 3  # input, conv2, merge
    del audits["b"].examples["merge", "input"]
    figure = plots.gradient_pictures(audits, limit=20)
    assert len(cells(figure)) == 4 + 4 + 2
    assert "b\n–" in texts(figure)


def test_chosen_points_and_those_that_surgery_put_inside() -> None:
    audits = {"trained": stand_in(), "swapped": stand_in(SWAPPED, seed=1)}
    points = [("conv2", "output"), ("input", "input"), ("conv2", "input")]
    found = cells(plots.gradient_pictures(audits, points=points, pictures=2))
    assert len(found) == 3 * 3 * 2
    for block, keys in enumerate([("conv2", "conv2:avg_pool2d"), ("input", "input"), ("conv2", "conv2")]):
        for column, (call, audit) in enumerate(zip(keys, audits.values(), strict=True)):
            for row in range(2):
                expected = audit.examples[call, points[block][1]].maps[row]
                np.testing.assert_array_equal(shown(found[6 * block + 2 * row + column]), expected)
    with pytest.raises(ValueError, match="no example at"):
        plots.gradient_pictures(audits, points=[("conv", "input")])  # not a part of "conv2"


def test_rows_are_limited_and_the_input_always_shown() -> None:
    audits = many(2)
    sizes = [[shown(ax).shape[0] for ax in cells(plots.gradient_pictures(audits, limit=n))[::2]] for n in (1, 4, 6, 20)]
    assert sizes == [[32, 32], [32, 32, 32, 32], [32, 32, 32, 32, 8, 8], [32, 32, 32, 32, 16, 16, 8, 8]]


@pytest.mark.parametrize(("count", "size", "columns"), [(3, 64, 3), (7, 64, 7), (10, 224, 4), (3, 500, 1), (2, 8, 2)])
def test_a_page_holds_the_variants_at_whole_multiples_of_their_pixels(count: int, size: int, columns: int) -> None:
    audits = {str(i): stand_in([("pool", "max pooling", size, size // 2)], seed=i) for i in range(count)}
    figure = plots.gradient_pictures(audits, points=[("input", "input")])
    width = figure.get_size_inches()[0] * figure.dpi
    assert width <= 1040
    found = cells(figure)
    assert len({round(sum(ax.get_position().intervalx), 4) for ax in found}) == columns
    lefts = sorted({round(ax.get_window_extent().x0) for ax in found if shown(ax).shape == (size, size)})
    assert set(np.diff(lefts)) <= {found[0].get_window_extent().width.round() + 10}
    for ax in found:
        zoom = np.array(ax.get_window_extent().size) / shown(ax).shape
        assert zoom[0] == pytest.approx(round(zoom[0]), abs=1e-6) and zoom[0] >= 1
        assert ax.get_window_extent().width >= 96


def test_a_detail_is_the_heaviest_window_of_all_variants() -> None:
    audits = many(2)
    rng = np.random.default_rng(0)
    for i, audit in enumerate(audits.values()):
        found = example(224, 200, rng)
        found.maps[:, 100 + 60 * i : 120 + 60 * i, 150:160] *= 40 + 2 * i
        found.maps *= 1000 ** (1 - i)  # a variant of large gradients has no more to say
        audit.examples["input", "input"] = found
        audit.table.loc[0, ["height", "width"]] = 224, 200
    figure = plots.gradient_pictures(audits, points=[("input", "input")])
    found = cells(figure)
    maps = [audit.examples["input", "input"].maps[0].astype(float) for audit in audits.values()]
    weight = sum(np.abs(one) / np.abs(one).sum() for one in maps)
    sums = {(y, x): weight[y : y + 32, x : x + 32].sum() for y in range(193) for x in range(169)}
    y, x = max(sums, key=lambda corner: round(sums[corner], 12))
    for column in range(2):
        np.testing.assert_array_equal(shown(found[2 + column]), maps[column][y : y + 32, x : x + 32])
        assert found[2 + column].images[0].get_clim() == found[column].images[0].get_clim()
        (frame,) = found[column].patches
        assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((x - 1, y - 1), 33, 33)
        assert found[2 + column].get_window_extent().width == pytest.approx(224)
    small = plots.gradient_pictures(many(2), points=[("input", "input")])
    assert len(cells(small)) == 4 and not cells(small)[0].patches


def test_checkerboards_of_variants_survive_in_the_saved_picture(tmp_path) -> None:
    rows, columns = np.indices((130, 130))
    board = np.where((rows + columns) % 2, 1, -1).astype(np.float32)
    audits = many(3)
    for audit in audits.values():
        maps = types.SimpleNamespace(maps=board[None], spectrum=np.zeros((130, 130)))
        audit.examples = {("input", "input"): maps}
    figure = plots.gradient_pictures(audits)
    png, _ = plots.save(figure, tmp_path / "board")
    pixels = np.asarray(Image.open(png).convert("RGB")).astype(int)
    for ax, expected in zip(cells(figure)[:6], [board] * 3 + [board[:32, :32]] * 3, strict=True):
        box = ax.get_window_extent()
        zoom = round(box.width) // len(expected)
        left, top = round(box.x0), pixels.shape[0] - round(box.y1)
        inside = pixels[top : top + len(expected) * zoom, left : left + len(expected) * zoom]
        redder = (inside[..., 0] > inside[..., 2])[zoom // 2 :: zoom, zoom // 2 :: zoom]
        clear = np.s_[36:-2, 36:-2] if zoom == 1 else np.s_[2:-2, 2:-2]  # past the frame of the detail
        np.testing.assert_array_equal(redder[clear], expected[clear] > 0)


def test_nulls_of_an_operator_do_not_set_the_scale_of_the_spectra() -> None:
    audits = many(2)
    limits = images(plots.gradient_pictures(audits, limit=4))[1].get_clim()
    found = audits["variant 1"].examples["pool", "input"].spectrum
    found[0], found[:, 0] = -11.0, -11.0  # a mean over 2 x 2 takes out Nyquist
    assert images(plots.gradient_pictures(audits, limit=4))[1].get_clim() == pytest.approx(limits, abs=0.15)


def test_other_pictures_have_no_common_name() -> None:
    audits = many(2)
    assert "picture 0" in texts(plots.gradient_pictures(audits))
    audits["variant 1"].pictures = ("another", *audits["variant 1"].pictures[1:])
    assert "picture 1" in texts(plots.gradient_pictures(audits))


# --------------------------------------------------------------------------------------------------------- culprits
def test_types_of_all_variants_share_a_panel() -> None:
    more = [*SMALL, ("pool2", "max pooling", 32, 16)]
    audits = {"a": stand_in(), "b": stand_in(POOLED, seed=1), "c": stand_in(more, seed=2)}
    figure = plots.culprits(audits, by="type")
    (ax,) = figure.axes
    rankings = {name: audit.culprits(by="type") for name, audit in audits.items()}
    highest = pd.concat(rankings.values()).groupby("type")["new_power"].max().sort_values(ascending=False)
    counts = {"max pooling": "1–2", "linear": "2"}
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        f"{kind} ({counts.get(kind, 1)})" for kind in highest.index
    ]
    ticks = dict(zip(highest.index, ax.get_yticks(), strict=True))
    edges = sorted(ticks.values())
    for (name, ranking), container in zip(rankings.items(), ax.containers, strict=True):
        point, _, (bars,) = container.lines
        np.testing.assert_allclose(point.get_xydata()[:, 0], ranking["new_power"])
        for kind, y in zip(ranking["type"], point.get_ydata(), strict=True):
            assert edges[np.abs(np.array(edges) - y).argmin()] == ticks[kind], name
        ends = np.array(bars.get_segments())[:, :, 0]
        np.testing.assert_allclose(ends, np.stack([ranking["new_power"] - ranking["se"],
                                                   ranking["new_power"] + ranking["se"]], 1))  # fmt: skip
    assert legend_texts(figure) == list(audits)
    every = np.concatenate([container.lines[0].get_ydata() for container in ax.containers])
    assert np.diff(np.sort(every)).min() > 0.09  # no mark on another
    assert len(plots.culprits(audits, by="type", top=2).axes[0].get_yticklabels()) == 2
    assert plots.culprits({"a": audits["a"]}, by="type").axes[0].patches  # bars of a single one


@pytest.mark.parametrize(("count", "across", "bars"), [(2, 2, 6), (3, 3, 6), (7, 3, 6)])
def test_calls_of_variants_are_ranked_in_panels_three_beside_each_other(count: int, across: int, bars: int) -> None:
    audits = many(count)
    figure = plots.culprits(audits)
    assert figure.get_size_inches()[0] <= 10
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in panels] == list(audits)
    assert len({round(ax.get_position().y1, 3) for ax in panels}) == -(-count // across)
    for ax, audit in zip(panels, audits.values(), strict=True):
        ranking = audit.culprits().head(bars)
        np.testing.assert_allclose([bar.get_width() for bar in ax.containers[0]], ranking["new_power"])
        assert [label.get_text() for label in ax.get_yticklabels()] == ranking["call"].tolist()
    names = [ax.xaxis.label for ax in panels if ax.get_xlabel()]
    assert names and no_overlap(names)
    assert all(text.get_window_extent().x0 > 0 and text.get_window_extent().x1 < figure.bbox.x1 for text in names)


def test_many_variants_show_eight_calls_each_unless_asked() -> None:
    audits = {name: stand_in(deep()[60:]) for name in "abc"}
    for top, expected in ((None, 8), (20, 20)):
        assert {len(ax.patches) for ax in plots.culprits(audits, top=top).axes} == {expected}
    assert {len(ax.patches) for ax in plots.culprits(dict(list(audits.items())[:2])).axes} == {15}


# ------------------------------------------------------------------------------------------------------ causal arms
def effects(count: int, seed: int = 0) -> pd.DataFrame:
    """Return a causal table of seeded numbers."""
    rng = np.random.default_rng(seed)
    ends = {"call": "", "type": "", "new_power": np.nan, "note": ""}
    rows = [
        ends | {"arm": "none", "slope_nyquist": -0.4, "se_nyquist": 0.02, "change": np.nan, "se_change": np.nan},
        ends | {"arm": "all", "slope_nyquist": -2.0, "se_nyquist": 0.05, "change": -1.6, "se_change": 0.06},
    ]
    for i in range(count):
        kind, power = ("max pooling", "strided convolution")[i % 2], rng.uniform(0, 0.8)
        for arm, base, sign in (("one", -0.4, -1), ("all but one", -2.0, 1)):
            change = sign * rng.exponential(0.2)
            row = {"call": f"op{i}", "type": kind, "arm": arm, "slope_nyquist": base + change, "change": change}
            rows.append(row | {"se_nyquist": 0.3, "se_change": rng.uniform(0.01, 0.05), "new_power": power, "note": ""})
    return pd.DataFrame(rows)


def comparison(audits: dict[str, Any], table: pd.DataFrame | None = None, **drift: Any) -> Any:
    """Return what stands for a comparison; ``drift``: columns of its drift table."""
    rng = np.random.default_rng(3)
    names = list(audits)
    n = len(names)
    columns = {"variant": names, "n": 40, "accuracy": rng.uniform(0.2, 0.9, n), "se": rng.uniform(0.02, 0.06, n)}
    columns |= {"agreement": [1.0, *rng.uniform(0.2, 0.9, n - 1)], "slope_nyquist": rng.uniform(-2, -0.3, n)}
    columns |= {"se_nyquist": rng.uniform(0.02, 0.1, n), "note": ""}
    return types.SimpleNamespace(audits=audits, effects=table, drift=pd.DataFrame(columns | drift))


def arms(figure: Figure) -> dict[str, tuple[Any, Any, Any]]:
    """Return of each arm the points, the error bars' segments and the ways' segments."""
    ax = figure.axes[0]
    found = {}
    for container in ax.containers:
        point, _, (bars,) = container.lines
        ways = [part for part in ax.collections if part.get_gid() == container.lines[0].get_gid() and part is not bars]
        ends = np.array([path.vertices for path in bars.get_paths() if len(path.vertices) == 2])
        found[point.get_gid()] = point.get_xydata(), ends, [way.get_segments() for way in ways]
    return found


@pytest.mark.parametrize("count", [4, 60])
def test_the_causal_figure_is_the_table_in_the_order_of_new_power(count: int) -> None:
    table = effects(count)
    figure = plots.causal(comparison({"net": stand_in()}, table))
    slope, power = figure.axes
    rows = table[table["arm"] == "one"].sort_values("new_power", ascending=False)
    assert [label.get_text() for label in slope.get_yticklabels()] == rows["call"].tolist()
    np.testing.assert_allclose([bar.get_width() for bar in power.containers[0]], rows["new_power"])
    assert [to_hex(bar.get_facecolor()) for bar in power.containers[0]] == [
        to_hex(LOOKS[t].colour) for t in rows["type"]
    ]
    assert slope.get_ylim()[0] > slope.get_ylim()[1]
    for arm, (base, shift) in {"one": (-0.4, -0.17), "all but one": (-2.0, 0.17)}.items():
        expected = table[table["arm"] == arm].set_index("call").loc[rows["call"]]
        point, bars, (ways,) = arms(figure)[arm]
        np.testing.assert_allclose(point[:, 0], expected["slope_nyquist"])
        np.testing.assert_allclose(point[:, 1], np.arange(count) + shift)
        np.testing.assert_allclose(bars[:, 1, 0] - bars[:, 0, 0], 2 * expected["se_change"])
        for way, to in zip(ways, expected["slope_nyquist"], strict=True):
            np.testing.assert_allclose(way[:, 0], [base, to])
    assert [line.get_xdata()[0] for line in lines(figure, "none") + lines(figure, "all")] == [-0.4, -2.0]
    assert {"none swapped −0.40", "all swapped −2.00"} <= set(texts(figure))
    said = agreement(table).set_index("arm")
    for words, arm in (("this one swapped", "one"), ("all others swapped", "all but one")):
        (line,) = [text for text in legend_texts(figure) if text.startswith(words)]
        assert f"{said['correlation'][arm]:+.2f} (p {said['p'][arm]:.2g})".replace("-", "−") in line


@pytest.mark.parametrize(("none", "everything"), [(-0.4, -2.0), (-2.0, -0.4), (-1.0, -1.01), (-1.01, -1.0)])
def test_base_names_of_the_causal_lines_stand_clear(none: float, everything: float) -> None:
    table = effects(4)
    for arm, slope in (("none", none), ("all", everything)):
        table.loc[table["arm"] == arm, "slope_nyquist"] = slope
    figure = plots.causal(comparison({"net": stand_in()}, table))
    names = [text for text in figure.axes[0].texts if "swapped" in text.get_text()]
    assert len(names) == 2 and no_overlap(names)
    assert {text.xy[0] for text in names} == {none, everything}


def test_arms_that_failed_are_missing_with_the_reason_beside_their_operator() -> None:
    table = effects(5)
    ranked = table[table["arm"] == "one"].sort_values("new_power", ascending=False)["call"].tolist()
    failed = {0: {"one": "out of memory"}, 2: {"one": "bound", "all but one": "bound"}, 3: {"all but one": ""}}
    for place, reasons in failed.items():
        for arm, why in reasons.items():
            row = (table["call"] == ranked[place]) & (table["arm"] == arm)
            table.loc[row, ["slope_nyquist", "change", "se_change"]] = np.nan
            table.loc[row, "note"] = why
    table.loc[table["call"] == ranked[4], "new_power"] = np.nan
    figure = plots.causal(comparison({"net": stand_in()}, table))
    one, _, _ = arms(figure)["one"]
    assert np.flatnonzero(np.isnan(one[:, 0])).tolist() == [0, 2]
    notes = {text.get_position()[1]: text.get_text() for text in figure.findobj(Text) if text.get_gid() == "note"}
    assert {place: text for place, text in notes.items() if text} == {
        0: "this one swapped: out of memory", 2: "bound", 3: "all others swapped: no slope",
    }  # fmt: skip
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][-1] == ranked[4]
    assert len(plots.causal(comparison({"net": stand_in()}, effects(5))).axes) == 2  # no room for notes where none is


def test_without_all_swapped_the_slopes_stay_with_their_own_errors() -> None:
    table = effects(4)
    table.loc[table["arm"] == "all", ["slope_nyquist", "se_nyquist"]] = np.nan
    table.loc[table["arm"] == "all", "note"] = "the network $fails$"
    table.loc[table["arm"] == "all but one", ["change", "se_change"]] = np.nan
    figure = plots.causal(comparison({"net": stand_in()}, table))
    point, bars, ways = arms(figure)["all but one"]
    assert np.isfinite(point).all() and ways == []
    np.testing.assert_allclose(bars[:, 1, 0] - bars[:, 0, 0], 2 * 0.3)
    assert not lines(figure, "all")
    assert "all swapped: the network $fails$" in legend_texts(figure)


def test_the_causal_figure_takes_the_first_operators_and_says_so() -> None:
    table = effects(12)
    figure = plots.causal(comparison({"net": stand_in()}, table), top=3)
    best = table[table["arm"] == "one"].nlargest(3, "new_power")["call"].tolist()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == best
    assert "3 of 12 operators" in figure.axes[0].get_xlabel()
    with pytest.raises(ValueError, match="at least 1"):
        plots.causal(comparison({"net": stand_in()}, table), top=0)


def test_a_comparison_without_causal_arms_says_so() -> None:
    for table, words in ((None, "Comparison.causal has not been called"), (effects(0), "no operator was swapped")):
        (text,) = texts(plots.causal(comparison({"net": stand_in()}, table)))
        assert words in text


# ------------------------------------------------------------------------------------------------------------ drift
@pytest.mark.parametrize("labelled", [True, False])
def test_a_point_is_a_variant_with_its_errors(labelled: bool) -> None:
    unlabelled = {} if labelled else {"accuracy": np.nan, "se": np.nan}
    found = comparison(many(5), **unlabelled)
    figure = plots.drift(found)
    (ax,) = figure.axes
    share = found.drift["accuracy" if labelled else "agreement"].to_numpy()
    error = found.drift["se"].to_numpy() if labelled else np.sqrt(share * (1 - share) / 39)
    assert ax.get_ylabel() == ("accuracy" if labelled else "same top-1 class as variant 0")
    for i, container in enumerate(ax.containers):
        point, _, (across, up) = container.lines
        x, dx = found.drift["slope_nyquist"][i], found.drift["se_nyquist"][i]
        assert point.get_xydata().tolist() == [[x, share[i]]]
        np.testing.assert_allclose(across.get_segments()[0][:, 0], [x - dx, x + dx])
        np.testing.assert_allclose(up.get_segments()[0][:, 1], [share[i] - error[i], share[i] + error[i]])
    first = [line.get_xydata()[0] for line in lines(figure, "first")]
    assert first[0][0] == found.drift["slope_nyquist"][0] and first[1][1] == share[0]


def names_of(figure: Figure) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_gid() == "name"]


def test_every_point_is_named_beside_itself_clear_of_all_else() -> None:
    audits = {f"a variant {'+' * i}": stand_in() for i in range(10)}
    place = np.repeat([0.3, 0.31, 0.7, 0.9, 0.9], 2)  # pairs on one spot
    figure = plots.drift(comparison(audits, accuracy=place, slope_nyquist=-1 - place, se=0.01, se_nyquist=0.01))
    names = names_of(figure)
    ax = figure.axes[0]
    assert [text.get_text() for text in names] == list(audits)
    assert [text.xy[0] for text in names] == list(-1 - place)
    assert no_overlap(names)
    spots = ax.transData.transform(np.column_stack([-1 - place, place]))
    for text, spot in zip(names, spots, strict=True):
        box = text.get_window_extent()
        gap = np.maximum([box.x0 - spot[0], box.y0 - spot[1]], [spot[0] - box.x1, spot[1] - box.y1]).clip(0)
        assert 0 < np.hypot(*gap) < 100 / 72 * figure.dpi
        assert not any(box.contains(*other) for other in spots)
        assert ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1
    far = [text for text in names if np.hypot(*text.get_position()) > 60]
    assert len(lines(figure, "leader")) >= len([text for text in far if text.get_position()[0] > 30])


def test_variants_without_a_point_are_named_below_with_the_reason() -> None:
    audits = many(3)
    found = comparison(audits)
    lacking = pd.DataFrame({"variant": [f"blur{i} $x$" for i in range(6)], "n": 0, "note": "does not apply"})
    found.drift = pd.concat([found.drift, lacking], ignore_index=True)
    found.drift.loc[1, ["slope_nyquist", "note"]] = np.nan, "the gradient is zero"
    figure = plots.drift(found)
    below = figure.axes[0].get_xlabel().split("\n")
    assert below[2:] == [
        "not drawn: variant 1: the gradient is zero", *(f"not drawn: blur{i} $x$: does not apply" for i in range(3)),
        "and 3 more",
    ]  # fmt: skip
    assert [text.get_text() for text in names_of(figure)] == ["variant 0", "variant 2"]
    colours = [container.lines[0].get_color() for container in figure.axes[0].containers]
    assert colours == [trace.colour for trace in traces(audits).values()]  # as in the other figures
    found.drift["slope_nyquist"] = np.nan
    assert texts(plots.drift(found))[0].startswith("Nothing to draw")


def test_white_noise_is_marked_where_it_is_near() -> None:
    near, far = (plots.drift(comparison(many(2), slope_nyquist=slopes)) for slopes in ([-0.6, -0.35], [-2.1, -2.0]))
    assert [line.get_xdata()[0] for line in lines(near, "white noise")] == [0]
    assert not lines(far, "white noise")
    assert far.axes[0].get_xlim()[1] < -1.5


# ------------------------------------------------------------------------------------------------ names, state, files
def new_figures(audits: dict[str, Any]) -> list[Figure]:
    found = comparison(audits, effects(6))
    figures = plots.slope_profile(audits), plots.gradient_pictures(audits, limit=2), plots.culprits(audits, by="type")
    return [*figures, plots.causal(found), plots.drift(found)]


def test_figures_of_hostile_names_are_drawn_and_saved(tmp_path) -> None:
    chosen = [HOSTILE[0], HOSTILE[4], HOSTILE[5], HOSTILE[7], HOSTILE[8], ' d="0.123456" <script>']
    audits = {name: stand_in(seed=i) for i, name in enumerate(chosen)}
    for (name, audit), call in zip(audits.items(), HOSTILE[:6], strict=True):
        audit.table["call"] = [call if each == "pool" else each for each in audit.table["call"]]
        audit.examples[call, "input"] = audit.examples.pop(("pool", "input"))
        audit.spec["model"] = name
    table, names = effects(6), {f"op{i}": name for i, name in enumerate(HOSTILE[:6])}
    table["call"] = [names.get(call, call) for call in table["call"]]
    table.loc[2, ["slope_nyquist", "note"]] = np.nan, "$\\frac{$ <b>"
    found = comparison({name: audit for name, audit in audits.items() if name != "\udcff"}, table)  # no table holds it
    figures = [plots.slope_profile(audits), plots.gradient_pictures(audits, limit=3), plots.culprits(audits, "type"),
               plots.culprits(audits), plots.causal(found), plots.drift(found)]  # fmt: skip
    for i, figure in enumerate(figures):
        png, svg = plots.save(figure, tmp_path / str(i))
        drawn = svg.read_text(encoding="utf-8")
        assert "<script>" not in drawn and "$x_1$" in drawn
        assert ('d="0.123456"' in drawn) == (i != 4)  # a name keeps its digits; the causal arms are of the first alone
        assert png.stat().st_size > 1000
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


def test_figures_of_variants_fit_a_page_and_can_be_read() -> None:
    for figure in new_figures(many(5)):
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 8
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert width <= 10
        assert drawn.x0 > -0.01 and drawn.y0 > -0.01
        assert drawn.x1 < width + 0.01 and drawn.y1 < height + 0.01


def pixels(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="rgba", dpi=60)
    return stream.getvalue()


def test_figures_of_variants_leave_no_state_and_take_no_style() -> None:
    import matplotlib.pyplot as plt

    matplotlib.get_backend()
    before, figures = matplotlib.rcParams.copy(), plt.get_fignums()
    audits = many(2)
    plain = [pixels(figure) for figure in new_figures(audits)]
    assert matplotlib.rcParams == before
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "red", "font.size": 30, "xtick.labelsize": 4}):
        assert [pixels(figure) for figure in new_figures(audits)] == plain
    assert plt.get_fignums() == figures


def test_svg_files_are_small_and_the_same_every_time() -> None:
    audits = {f"variant {i}": stand_in(deep(), seed=i) for i in range(3)}
    assert all(len(svg_text(draw(audits))) < 400_000 for draw in (plots.slope_profile, plots.culprits))
    text = svg_text(plots.signatures(audits))
    assert len(text) < 400_000
    found = comparison(many(3), effects(60))
    for draw in (plots.causal, plots.drift):
        text = svg_text(draw(found))
        assert len(text) < 200_000
        assert text == svg_text(draw(found))
    png, other = (png_bytes(plots.gradient_pictures(many(3), limit=3)) for _ in range(2))
    assert png == other


@pytest.mark.parametrize("kind", LOOKS)
def test_no_hatch_is_heavy(kind: str) -> None:
    figure = Figure(figsize=(1, 1))
    figure.add_artist(matplotlib.patches.Rectangle((0, 0), 1, 1, facecolor="red", hatch=LOOKS[kind].hatch))
    assert len(svg_text(figure)) < 60_000


def test_a_comparison_is_drawn_like_its_audits() -> None:
    audits = many(2)
    one, other = (plots.slope_profile(each) for each in (audits, comparison(audits)))
    np.testing.assert_array_equal(lines(one, "slope")[1].get_xydata(), lines(other, "slope")[1].get_xydata())
