"""Results of parts of the pictures, joined, against results of all at once; and the tables that hold them in files."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradspec as gs
from gradspec import results
from gradspec.attributions import GradientInput, Occlusion, Saliency
from gradspec.cutoffs.fit import tried_cutoffs
from gradspec.cutoffs.result import CutoffFit
from gradspec.cutoffs.result import joined as joined_fits
from gradspec.evaluation import Scores, evaluate, joined, stacked
from gradspec.metrics import Deletion, Faithfulness
from gradspec.runs import Span, Store, as_arrays, as_rows, names, packed, spans, unit_name, unpacked

N = 11
SPANS = spans(N, 4)  # 4, 4 and 3 pictures
COUNTED = ["attribution", "arm", "forwards", "backwards", "n"]


class Gated(nn.Module):
    """A small network with a branch that only bright pictures take: in dark ones its gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2)
        self.gated, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x.mean((1, 2, 3), keepdim=True) > 0.5).to(x.dtype)
        held = self.pool(torch.relu(self.first(x)))
        held = held + bright * self.gated(bright * held)
        return self.head(torch.relu(self.second(held)).mean((2, 3)))


def pictures(dark: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Eleven pictures of 25 x 33 pixels with their labels; the dark ones do not pass the gate."""
    x = 0.4 + 0.6 * torch.rand(N, 3, 25, 33, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x[list(dark)] *= 0.5
    return x, torch.arange(N) % 4


def shards(data: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
    x, labels = data
    ids = [f"p{k}.png" for k in range(N)]
    return [(ids[a:b], x[a:b], labels[a:b]) for a, b in SPANS]


def whole_of(data: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    return [(*data, [f"p{k}.png" for k in range(N)])]


def read_again(result, kind):
    """The result as it comes back from a unit's file."""
    return kind.from_unit(*unpacked(as_read(result.to_unit())))


def as_read(table: pd.DataFrame) -> pd.DataFrame:
    from io import BytesIO

    file = BytesIO()
    table.to_parquet(file, index=False, compression="zstd")
    return pd.read_parquet(file)


# ---- audits --------------------------------------------------------------------------------------


def audits(net: nn.Module, data: tuple[torch.Tensor, torch.Tensor], **options) -> tuple[gs.Audit, gs.Audit]:
    """Of all pictures at once, and of three shards, each of them from its file, joined."""
    every = gs.audit(net, whole_of(data), progress=False, **options)
    parts = [gs.audit(net, [(x, labels, ids)], progress=False, **options) for ids, x, labels in shards(data)]
    return every, results.joined([read_again(part, gs.Audit) for part in parts])


def check_same(found: gs.Audit, whole: gs.Audit) -> None:
    pd.testing.assert_frame_equal(found.table, whole.table, rtol=1e-6, atol=1e-12)
    pd.testing.assert_frame_equal(found.new_power, whole.new_power, rtol=1e-6, atol=1e-12)
    pd.testing.assert_frame_equal(found.culprits(), whole.culprits(), rtol=1e-6, atol=1e-12)
    assert list(found.signatures) == list(whole.signatures) and found.pictures == whole.pictures
    for key, signature in whole.signatures.items():
        np.testing.assert_allclose(found.signatures[key].per_image, signature.per_image, rtol=1e-6, atol=1e-300)
        np.testing.assert_allclose(found.signatures[key].high_shares, signature.high_shares, rtol=1e-6)
    assert found.unseen == whole.unseen and list(found.examples) == list(whole.examples)
    for key, example in whole.examples.items():
        assert found.examples[key].n == example.n
        np.testing.assert_allclose(found.examples[key].maps, example.maps, rtol=1e-5)
        np.testing.assert_allclose(found.examples[key].spectrum, example.spectrum, rtol=1e-5, atol=1e-6)
    timed = {"seconds", "created", "batch_size"}
    assert {k: v for k, v in found.spec.items() if k not in timed | {"label_probability"}} == {
        k: v for k, v in whole.spec.items() if k not in timed | {"label_probability"}
    } | {"skipped": found.spec["skipped"]}
    assert found.spec["label_probability"] == pytest.approx(whole.spec["label_probability"], rel=1e-9)


def test_an_audit_in_shards_is_that_of_all_pictures():
    every, found = audits(Gated().double().eval(), pictures())
    check_same(found, every)
    assert found.spec["labels"] == [k % 4 for k in range(N)] and found.spec["labelled"] is True
    assert found.spec["batch_size"] == 4 and "gated" not in found.unseen
    assert found.table["n"].max() == N and found.examples["input", "input"].n == N


def test_a_call_whose_gradient_is_zero_in_one_shard_alone_is_seen():
    net = Gated().double().eval()
    every, found = audits(net, pictures(dark=(4, 5, 6, 7)))
    check_same(found, every)
    assert "gated" not in found.unseen and found.signatures["gated", "output"].n == N - 4
    alone = gs.audit(net, shards(pictures(dark=(4, 5, 6, 7)))[1][1], progress=False)
    assert "zero for every picture" in alone.unseen["gated"]  # so that there was something to take back
    every, found = audits(net, pictures(dark=tuple(range(N))))
    check_same(found, every)
    assert "zero for every picture" in found.unseen["gated"]


def test_examples_are_the_first_pictures_and_the_mean_of_those_with_a_gradient():
    """Pictures without a gradient at a call count in no shard's mean."""
    net = Gated().double().eval()
    every, found = audits(net, pictures(dark=(0, 1, 2, 3, 8, 9)))
    check_same(found, every)
    first = [key for key in every.examples if key != ("input", "input")]
    assert first and len(found.examples[first[0]].maps) == results.EXAMPLE_PICTURES


def test_infinite_gradients_are_counted_over_the_shards():
    class Overflowing(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held = self.pool(torch.relu(self.first(x)))
            dark = (x.mean((1, 2, 3), keepdim=True) < 0.5).to(x.dtype)
            huge = torch.sqrt(torch.relu(held * (1 - dark)))  # its gradient at 0 is infinite
            return self.head(torch.relu(self.second(held + huge)).mean((2, 3)))

    every, found = audits(Overflowing().double().eval(), pictures(dark=(1, 2, 9)))
    check_same(found, every)
    noted = found.table[found.table["infinite"] > 0]
    assert len(noted) and set(noted["note"]) == {f"NaN or infinite for {n} picture(s)" for n in set(noted["infinite"])}


def test_labels_of_which_some_are_predictions_are_not_labels():
    net, (x, labels) = Gated().double().eval(), pictures()
    known = gs.audit(net, [(x[:4], labels[:4], ["a", "b", "c", "d"])], progress=False)
    guessed = gs.audit(net, [(x[4:8], None, ["e", "f", "g", "h"])], progress=False)
    found = results.joined([known, guessed])
    assert found.spec["labelled"] is False and found.spec["labels"] == labels[:4].tolist() + guessed.spec["predicted"]
    assert results.joined([known, replace(guessed, spec=guessed.spec | {"labelled": True})]).spec["labelled"] is True


def test_skipped_pictures_of_all_shards_are_told():
    net, (x, _) = Gated().double().eval(), pictures()
    parts = [gs.audit(net, x[k : k + 2], layers="pool", progress=False) for k in (0, 2)]
    parts = [replace(part, spec=part.spec | {"skipped": {f"{k}.png": "torn"}}) for k, part in enumerate(parts)]
    assert results.joined(parts).spec["skipped"] == {"0.png": "torn", "1.png": "torn"}


@pytest.mark.parametrize(
    ("options", "named"), [({"seed": 1}, "seed"), ({"layers": "pool"}, "calls"), ({"channels": 2}, "channels")]
)
def test_audits_of_other_settings_are_not_joined(options, named):
    net, (x, _) = Gated().double().eval(), pictures()
    first = gs.audit(net, x[:2], progress=False)
    with pytest.raises(ValueError, match=rf"one network with the same settings, got different \[.*'{named}'"):
        results.joined([first, gs.audit(net, x[2:4], progress=False, **options)])


def test_an_audit_joined_of_none_of_one_and_of_a_picture_twice():
    net, (x, _) = Gated().double().eval(), pictures()
    first = gs.audit(net, x[:3], layers="pool", progress=False)
    with pytest.raises(ValueError, match="audits to join, got none"):
        results.joined([])
    assert results.joined(iter([first])) is first
    with pytest.raises(ValueError, match=rf"Expected each picture in one part, got '{first.pictures[2]}' in two"):
        results.joined([first, gs.audit(net, x[2:4], layers="pool", progress=False)])


# ---- fits ----------------------------------------------------------------------------------------

CUTOFFS = (None, 9.0, 5.0, 2.5)


def flat_where_dark(model, images, labels):
    """Maps that cannot be scored of dark pictures; of the others gradient times input."""
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)
    maps = (gradient * images).sum(1)
    maps[images.mean((1, 2, 3)) < 0.5] = 1.0
    return maps


def tried(net, attribution, data, **options):
    return tried_cutoffs(net, attribution, data, cutoffs=CUTOFFS, metric=Faithfulness(steps=4), progress=False,
                         **options)  # fmt: skip


def fits(attribution, data, **options) -> tuple[CutoffFit, CutoffFit]:
    """Of all pictures by the command's function, and of three shards, each of them from its file, joined."""
    net = Gated().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flat curves, and pictures left out
        whole = gs.fit_cutoff(net, attribution, whole_of(data), cutoffs=CUTOFFS, metric=Faithfulness(steps=4),
                              progress=False, **options)  # fmt: skip
    parts = [tried(net, attribution, [(x, labels, ids)], **options) for ids, x, labels in shards(data)]
    return whole, joined_fits([read_again(part, CutoffFit) for part in parts])


@pytest.mark.parametrize("dark", [(), (4, 5, 6, 7), (0, 9)])
@pytest.mark.parametrize("where", ["attribution", "gradient"])
def test_a_fit_in_shards_is_that_of_all_pictures(dark, where):
    data = pictures(dark, torch.float32)
    method = flat_where_dark if where == "attribution" else Saliency()
    whole, found = fits(method, data, where=where)
    for name in ("per_image", "control_scores", "table", "controls"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
    for name in ("cutoff", "one_se", "argmax", "flat", "flat_reason", "rounds", "unscored", "pictures", "contents",
                 "model", "attribution", "metric", "higher_is_better", "where", "shape", "names"):  # fmt: skip
        assert getattr(found, name) == getattr(whole, name), name
    assert found.unscored == (len(dark) if where == "attribution" else 0) and found.rounds[0].pictures == N
    # what a batch shares, such as the empty picture, each shard passes once
    assert found.backwards == whole.backwards and 0 <= found.forwards - whole.forwards <= 2 * len(SPANS)
    told = {k: v for k, v in found.spec.items() if k not in ("seconds", "created")}
    assert told == {k: v for k, v in whole.spec.items() if k not in ("seconds", "created")}


def test_a_shard_in_which_no_picture_can_be_scored_fits_nothing_alone_and_takes_nothing_from_the_others():
    net, data = Gated().eval(), pictures((4, 5, 6, 7), torch.float32)
    ids, x, labels = shards(data)[1]
    dark = tried(net, flat_where_dark, [(x, labels, ids)])
    assert dark.unscored == 4 and dark.per_image[dark.names].isna().to_numpy().all()
    with pytest.raises(ValueError, match="can be scored"):
        gs.fit_cutoff(net, flat_where_dark, [(x, labels, ids)], cutoffs=CUTOFFS, metric=Faithfulness(steps=4),
                      progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="can be scored"):
        joined_fits([dark]).cutoff  # noqa: B018


def test_fits_that_do_not_belong_together_are_not_joined():
    net, data = Gated().eval(), pictures(dtype=torch.float32)
    (ids, x, labels), other, _ = shards(data)
    first = tried(net, Saliency(), [(x, labels, ids)])

    def second(attribution=None, **options):
        return tried(net, attribution or Saliency(), [(other[1], other[2], other[0])], **options)

    for part, named in (
        (second(GradientInput()), "attribution"),
        (second(shape="gaussian"), "shape"),
        (second(where="gradient"), "where"),
        (tried_cutoffs(net, Saliency(), [(other[1], other[2], other[0])], cutoffs=CUTOFFS[:3],
                       metric=Faithfulness(steps=4), progress=False), "cutoffs"),
        (tried_cutoffs(net, Saliency(), [(other[1], other[2], other[0])], cutoffs=CUTOFFS, metric=Deletion(steps=4),
                       progress=False), "higher_is_better', 'metric"),
        (second().choose("one_se"), "rule"),
        (replace(second(), model="Other 0123"), "model"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"got different \['{named}'\]"):
            joined_fits([first, part])
    with pytest.raises(ValueError, match=r"each picture in one part, got 'p0\.png' in two"):
        joined_fits([first, second(), first])
    with pytest.raises(ValueError, match="fits to join, got none"):
        joined_fits([])
    assert joined_fits([first]) is first
    races = [tried(net, Saliency(), [(x, y, i)], search="race", budget=1.0) for i, x, y in shards(data)[:2]]
    with pytest.raises(ValueError, match="fits by a grid"):
        joined_fits(races)


# ---- scores --------------------------------------------------------------------------------------

METHODS = {"Saliency": Saliency(), "flat": flat_where_dark, "Occlusion": Occlusion(patch=9, stride=9)}
METRICS = {"Faithfulness": Faithfulness(steps=4), "Deletion": Deletion(steps=4)}
FITS = {"Saliency": 5.0, "Occlusion": 2.5}


def scores(data, methods=None, controls=True, fitted=FITS, metrics=METRICS, examples=0, **options) -> Scores:
    methods = METHODS if methods is None else methods
    fitted = {name: cutoff for name, cutoff in fitted.items() if name in methods}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maps without a score, and what is left out
        return evaluate(Gated().eval(), data, methods, metrics, fits=fitted, controls=controls, examples=examples,
                        progress=False, **options)  # fmt: skip


def in_units(data, methods, examples=2) -> Scores:
    """By method and shard, each from its file, joined over shards and then stacked; the controls come last."""
    rows = []
    for chosen, controls in [*(({name: method}, False) for name, method in methods.items()), ({}, True)]:
        parts = [scores([(x, y, ids)], chosen, controls, examples=examples * (ids[0] == "p0.png"))
                 for ids, x, y in shards(data)]  # fmt: skip
        rows.append(joined([read_again(part, Scores) for part in parts]))
    return stacked(rows)


@pytest.mark.parametrize("dark", [(), (4, 5, 6, 7)])
def test_scores_by_method_and_shard_are_those_of_one_evaluation(dark):
    data = pictures(dark, torch.float32)
    whole, found = scores(whole_of(data), examples=2), in_units(data, METHODS)
    rows = ["attribution", "arm", "metric"]
    assert list(found.table.groupby(rows, sort=False).size()) == list(whole.table.groupby(rows, sort=False).size())
    pd.testing.assert_frame_equal(
        found.table.sort_values(rows, kind="stable", ignore_index=True),  # metrics come batch by batch
        whole.table.sort_values(rows, kind="stable", ignore_index=True), rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    assert found.table["value"].isna().sum() == 2 * len(dark)  # two metrics of one method
    pd.testing.assert_frame_equal(found.spectra, whole.spectra, rtol=1e-4)
    timed = ["seconds per 100", "filter per 100"]
    pd.testing.assert_frame_equal(
        found.summary().drop(columns=timed), whole.summary().drop(columns=timed), rtol=1e-5, atol=1e-6
    )
    for metric in METRICS:
        for against in ("none", "abs", "centre prior"):
            pd.testing.assert_frame_equal(found.gains(metric, against), whole.gains(metric, against), rtol=1e-4)
    pd.testing.assert_frame_equal(found.ranking(list(METRICS)), whole.ranking(list(METRICS)), rtol=1e-4)
    pd.testing.assert_frame_equal(found.costs.filter(COUNTED), whole.costs.filter(COUNTED), check_dtype=False)
    assert (found.costs["seconds per 100"] >= found.costs["filter per 100"]).all()
    assert found.accuracy == whole.accuracy and found.pictures == whole.pictures and found.missing == ()
    assert [shown.picture for shown in found.examples] == ["p0.png", "p1.png"]
    for one, other in zip(found.examples, whole.examples, strict=True):
        assert list(one.maps) == list(other.maps) and (one.label, one.predicted) == (other.label, other.predicted)
        assert all(np.allclose(one.maps[key], other.maps[key], rtol=1e-4, atol=1e-6) for key in other.maps)
        assert np.array_equal(one.pixels, other.pixels)
    for name in ("rows", "pictures", "labelled", "accuracy", "selection", "metrics", "seed", "model"):
        assert found.spec[name] == whole.spec[name], name


def test_costs_stay_numbers_beside_the_controls_that_have_none():
    ids, x, y = shards(pictures(dtype=torch.float32))[0]
    method, controls = scores([(x, y, ids)], {"Saliency": Saliency()}, False), scores([(x, y, ids)], {})
    assert stacked([method, controls]).costs.dtypes.to_dict() == method.costs.dtypes.to_dict()


def test_what_was_left_out_in_one_unit_is_told_with_how_many_were_scored_before():
    """A metric that cannot be had in the second shard leaves the others' scores, and its own of the other shards."""

    def picky(model, images, labels, maps):
        if images.mean((1, 2, 3)).min() < 0.5:
            raise ValueError("Too dark.")
        return maps.mean((1, 2))

    data, metrics = pictures((5,), torch.float32), {"Deletion": Deletion(steps=4), "picky": picky}
    parts = {
        name: [scores([(x, y, ids)], {name: METHODS[name]}, False, metrics=metrics) for ids, x, y in shards(data)]
        for name in ("Saliency", "Occlusion")
    }
    found = stacked([joined([read_again(part, Scores) for part in found]) for found in parts.values()])
    assert {tuple(one)[2:] for one in found.missing} == {("picky", 4, "Too dark.")}
    assert {(one.attribution, one.arm) for one in found.missing} == {
        (name, arm) for name in parts for arm in ("none", "abs", "forgrad")
    }
    seen = [f"p{k}.png" for k in (0, 1, 2, 3, 8, 9, 10)]
    for name in parts:
        for arm in ("none", "abs", "forgrad"):
            assert found.values(name, arm, "picky").index.tolist() == seen
            assert found.values(name, arm, "Deletion").index.tolist() == [f"p{k}.png" for k in range(N)]
    summary = found.summary().set_index("name")
    assert summary["picky n"]["Saliency*"] == 7 and summary["Deletion n"]["Saliency*"] == N
    assert "Too dark." in summary["note"]["Saliency*"]


def test_costs_of_shards_are_weighed_by_their_pictures():
    data = pictures(dtype=torch.float32)
    parts = [scores([(x, y, ids)], {"Saliency": Saliency()}, False) for ids, x, y in shards(data)]
    parts = [replace(part, costs=part.costs.assign(**{"seconds per 100": float(k)})) for k, part in enumerate(parts)]
    assert joined(parts).costs["seconds per 100"].tolist() == pytest.approx([(4 * 0 + 4 * 1 + 3 * 2) / N] * 3)
    rights = [part.accuracy * len(part.pictures) for part in parts]
    assert joined(parts).accuracy == pytest.approx(sum(rights) / N)


def test_accuracy_is_of_the_labelled_pictures_alone():
    x, labels = pictures(dtype=torch.float32)
    known, bare = scores([(x[:4], labels[:4], list("abcd"))], {}), scores([(x[4:8], None, list("efgh"))], {})
    assert math.isnan(bare.accuracy) and joined([bare, known]).accuracy == known.accuracy
    assert math.isnan(joined([bare]).accuracy) and joined([known, bare]).spec["labelled"] == 4


def test_scores_that_do_not_belong_together_are_neither_joined_nor_stacked():
    data = pictures(dtype=torch.float32)
    (ids, x, y), (others, u, v), _ = shards(data)
    first, one = scores([(x, y, ids)], {"Saliency": Saliency()}), {"Saliency": Saliency()}
    for part, named in (
        (scores([(u, v, others)], one, seed=1), "'seed', 'rows'"),  # random controls are of the seed
        (scores([(u, v, others)], one, False), "'rows'"),
        (scores([(u, v, others)], one, fitted={"Saliency": 6.0}), "'rows'"),
        (scores([(u, v, others)], one, metrics={"Deletion": Deletion(steps=4)}), "'metrics'"),
    ):
        with pytest.raises(ValueError, match=rf"one network with the same settings, got different \[{named}\]"):
            joined([first, part])
    with pytest.raises(ValueError, match=r"Expected each picture in one part, got 'p0\.png' in two"):
        joined([first, scores([(u, v, others)], one), first])
    other = {"Occlusion": METHODS["Occlusion"]}
    for part, named in (
        (scores([(x, y, ids)], other, False, seed=1), "'seed'"),
        (scores([(x[:3], y[:3], ids[:3])], other, False), "'pictures'"),
        (scores([(x, y, ids)], other, False, metrics={"Deletion": Deletion(steps=4)}), "'metrics'"),
    ):
        with pytest.raises(ValueError, match=rf"on the same pictures, got different \[{named}\]"):
            stacked([first, part])
    with pytest.raises(ValueError, match=r"each attribution in one part, got \('centre prior', 'control'\) in two"):
        stacked([first, scores([(x, y, ids)], other)])
    for function in (joined, stacked):
        with pytest.raises(ValueError, match="got none"):
            function([])
    assert stacked([first]) is first


def test_scores_of_other_pictures_of_the_same_number_are_not_stacked():
    data = pictures(dtype=torch.float32)
    (ids, x, y), (others, u, v), _ = shards(data)
    first = scores([(x, y, ids)], {"Saliency": Saliency()})
    with pytest.raises(ValueError, match="pictures"):
        stacked([first, scores([(u, v, others)], {"Occlusion": METHODS["Occlusion"]}, False)])


# ---- units ---------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 40))
def test_spans_hold_every_picture_once_and_in_order(count, size):
    found = spans(count, size)
    assert [k for span in found for k in range(*span)] == list(range(count))
    assert all(span.stop - span.start == size for span in found[:-1]) and len({*map(str, found)}) == len(found)


def test_the_units_of_a_run_are_those_of_its_spans_and_of_a_result_one():
    spec = {"pictures_per_unit": 4, "selected": list("abcdefghijk"), "pictures": ["a"]}
    wanted = [unit_name("fit", "trained", "Saliency", span=span) for span in (Span(0, 4), Span(4, 8), Span(8, 11))]
    assert names(spec, "fit", "trained", "Saliency", pictures="selected") == wanted
    assert wanted[2] == "fit, trained, Saliency, pictures 8 to 10"
    assert names(spec, "audit", pictures="pictures") == ["audit, pictures 0 to 0"]
    assert names(spec, "audit", pictures="nowhere") == [] and names({}, "audit", "a", pictures="x") == ["audit, a"]


# ---- tables in one -------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LISTS = st.lists(st.floats(allow_nan=True, width=64), max_size=4)
KINDS = {
    "int64": st.integers(-(2**53), 2**53),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float64": st.floats(),
    "float32": st.floats(width=32),
    "bool": st.booleans(),
    "str": TEXT,
    "object": LISTS,
}


@st.composite
def several(draw):
    """Tables by name; columns of one name are of one kind in all of them, in any order, with any number of rows."""
    known = draw(st.dictionaries(TEXT.filter(lambda name: name != "part"), st.sampled_from(list(KINDS)), max_size=6))
    tables = {}
    for name in draw(st.lists(TEXT, max_size=3, unique=True)):
        columns = draw(st.permutations(list(known)))[: draw(st.integers(0, len(known)))]
        rows = draw(st.integers(0, 3)) if columns else 0
        cells = {column: draw(st.lists(KINDS[known[column]], min_size=rows, max_size=rows)) for column in columns}
        tables[name] = pd.DataFrame(
            {column: pd.Series(values, dtype=known[column]) for column, values in cells.items()}
        )
    return tables


@settings(deadline=None, max_examples=60)
@given(several(), st.dictionaries(TEXT, st.none() | TEXT | st.integers() | st.lists(st.booleans()), max_size=3))
def test_what_is_packed_is_unpacked_from_its_file(tables, about):
    found, told = unpacked(as_read(packed(tables, about)))
    assert list(found) == list(tables) and told == about
    for name, table in tables.items():
        assert list(found[name].columns) == list(table.columns) and len(found[name]) == len(table)
        assert found[name].dtypes.to_dict() == table.dtypes.to_dict()
        for column, kind in table.dtypes.items():
            one, other = found[name][column], table[column]
            if str(kind) == "object":
                for values, expected in zip(one, other, strict=True):
                    np.testing.assert_array_equal(np.asarray(values, float), np.asarray(expected, float))
            else:
                pd.testing.assert_series_equal(one, other, check_exact=True)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(TEXT, st.lists(st.integers(0, 4), max_size=4), max_size=4))
def test_arrays_come_back_from_their_rows_with_their_shapes(shapes):
    arrays = {
        name: np.random.default_rng(k).normal(size=shape).astype(np.float32)
        for k, (name, shape) in enumerate(shapes.items())
    }
    found = as_arrays(unpacked(as_read(packed({"arrays": as_rows(arrays)}, {})))[0]["arrays"])
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape and found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def test_arrays_of_other_numbers_are_kept_as_float32():
    rows = as_rows({"a": np.array([[0.1, 1e30], [math.nan, -math.inf]]), "b": np.arange(3), "c": np.array(2.0)})
    found = as_arrays(rows)
    np.testing.assert_array_equal(found["a"], np.array([[0.1, 1e30], [math.nan, -math.inf]], np.float32))
    assert found["b"].tolist() == [0, 1, 2] and found["c"].shape == () and found["c"] == 2


def test_what_json_has_no_words_for_is_refused():
    for about in ({"a": math.nan}, {"a": [math.inf]}):
        with pytest.raises(ValueError, match="JSON"):
            packed({}, about)
    with pytest.raises(TypeError, match="not JSON serializable"):
        packed({}, {"a": object()})


def test_a_table_that_has_a_column_part_of_its_own_is_refused():
    with pytest.raises(ValueError, match="'part'"):
        packed({"a": pd.DataFrame({"part": ["engine"]})}, {})


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"about": {}},
        {"columns": {"a": {"n": "int64"}}},
        {"about": {}, "columns": 3},
        {"about": {}, "columns": ["a"]},
        {"about": {}, "columns": {"a": 3}},
        {"about": {}, "columns": {"a": {"n": 3}}},
        {"about": {}, "columns": {"a": {"n": "int65"}}},
        {"about": {}, "columns": {"a": {"n": {"b": {}}}}},
        {"about": {}, "columns": {"a": {"word": "int64"}}},
        {"about": {}, "columns": {"a": {"other": "str"}}},
    ],
)
def test_a_table_that_was_made_otherwise_is_refused(tmp_path, attrs):
    table = packed({"a": pd.DataFrame({"n": [1], "word": ["x"]})}, {})
    table.attrs = attrs
    with pytest.raises(ValueError, match="expected the tables of a unit, got something else"):
        unpacked(as_read(table))
    store = Store(tmp_path)
    store.write("one", table)
    with pytest.raises(ValueError, match=rf"Cannot read .*{store.path('one').name}: ValueError: expected the tables"):
        store.result("one", lambda parts, about: parts)
