"""Comparisons against single audits, hand counts and the jackknife; the causal arm on networks cut open by hand."""

from __future__ import annotations

import copy
import itertools
import json
import math
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradspec.surgery
from gradspec.auditing import audit
from gradspec.causality import agreement, paired_difference, reason_of
from gradspec.comparison import Comparison, OtherPictures, compare
from gradspec.runs import packed, unpacked
from gradspec.spectra import Signature
from gradspec.surgery import Change, NothingToSwap, Record, average_pooled, records
from gradspec.targets import label_probability

HOSTILE = ["<script>alert(1)</script>", "../../up", "a/b", "NA", "x" * 300, "Twin", "twin", 'über, "quoted"\n']


def small_net(seed: int = 0, classes: int = 5) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.4
    net.double().eval()[9].bias.data -= net(X).mean(0).detach()  # so that it names several classes
    return net


def some_pictures(n: int = 6, height: int = 33, width: int = 40) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


X, LABELS = some_pictures(), torch.tensor([0, 3, 1, 4, 2, 0])
SWAPPED = ["2", "3", "5"]
FAILS = "The network fails on pictures (3, 33, 40): "


@pytest.fixture(scope="module")
def compared() -> Comparison:
    net = small_net()
    models = {"trained": net, "avgpool": average_pooled(net, inputs=X), "other": small_net(4)}
    return compare(models, (X, LABELS), batch_size=4, progress=False)


@pytest.fixture(scope="module")
def effects(compared) -> pd.DataFrame:
    return compared.causal(progress=False)


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


# ---- the same pictures and labels for all ------------------------------------------------------


def test_each_audit_is_the_one_made_alone(compared):
    net = small_net()
    alone = {"trained": net, "avgpool": average_pooled(net, inputs=X)[0], "other": small_net(4)}
    assert list(compared.audits) == list(alone) and compared.missing == {}
    for name, model in alone.items():
        single = audit(model, (X, LABELS), progress=False)
        pd.testing.assert_frame_equal(compared.audits[name].table, single.table, rtol=1e-7)
        part = compared.table[compared.table["variant"] == name].drop(columns="variant").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, compared.audits[name].table)
        ranked = compared.culprits("type")
        ranked = ranked[ranked["variant"] == name].drop(columns="variant").reset_index(drop=True)
        pd.testing.assert_frame_equal(ranked, single.culprits("type"), rtol=1e-7)
    assert list(compared.table.columns[:2]) == ["variant", "call"] and compared.spec["labelled"] is True


class Loader:
    """Batches of pictures made as they are asked for; counts how many of them live at once."""

    def __init__(self, images: torch.Tensor = X, order=None, ids=None) -> None:
        self.images, self.orders, self.ids = images, order or (lambda n: list(range(len(images)))), ids
        self.most, self.passes, self.skipped = 0, 0, {}

    def __iter__(self):
        order, alive = self.orders(self.passes), weakref.WeakSet()
        self.passes += 1
        for first in range(0, len(order), 2):
            some = order[first : first + 2]
            batch = self.images[some].clone()
            alive.add(batch)
            self.most = max(self.most, len(alive))
            yield (batch, None) if self.ids is None else (batch, None, [self.ids[i] for i in some])
            del batch


@pytest.mark.parametrize("data", ["tensor", "batches", "loader", "torch loader"])
def test_labels_not_given_are_the_first_models_predictions_for_all(data):
    net, other = small_net(), small_net(4)
    given = {
        "tensor": X,
        "batches": [X[:3], X[3:]],
        "loader": Loader(),
        "torch loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=4),
    }[data]
    found = compare({"a": net, "b": other}, given, progress=False)
    labels = net(X).argmax(1)
    assert (other(X).argmax(1) != labels).any()  # so that it matters whose they are
    for name, model in (("a", net), ("b", other)):
        spec = found.audits[name].spec
        assert spec["labels"] == labels.tolist() and spec["labelled"] is False
        pd.testing.assert_frame_equal(found.audits[name].table, audit(model, (X, labels), progress=False).table)
    assert found.spec["labelled"] is False and found.drift["accuracy"].isna().all()


def test_a_loader_is_never_held_in_memory():
    loader = Loader(some_pictures(12))
    loader.skipped = {"torn.jpg": "cannot be read"}
    found = compare({"a": small_net(), "b": small_net(4)}, loader, progress=False)
    assert loader.passes == 2 and loader.most <= 3  # the one made, the one in work, the one that a loop still names
    assert [single.spec["skipped"] for single in found.audits.values()] == [loader.skipped] * 2


def test_larger_batches_than_the_default_reach_every_variant():
    sizes = []
    net, other = small_net(), small_net(4)
    for model in (net, other):
        model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    compare({"a": net, "b": other}, some_pictures(11), batch_size=10, progress=False)
    assert sizes == [10, 1, 10, 1]


def test_an_iterator_is_refused_before_any_work():
    net, seen = small_net(), []
    net.register_forward_pre_hook(lambda *_: seen.append(1))
    batches = [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])]
    with pytest.raises(TypeError, match=r"gone through once per variant, got an iterator \(list_iterator\)"):
        compare({"a": net, "b": net}, iter(batches), progress=False)
    assert not seen
    alone = compare({"a": net}, iter(batches), progress=False)  # one pass is all that one variant takes
    assert alone.audits["a"].spec["labels"] == LABELS.tolist()
    with pytest.raises(TypeError, match="got an iterator"):
        alone.causal(progress=False)


@pytest.mark.parametrize(
    "order",
    [
        lambda n: [0, 1, 2, 3, 4, 5] if n == 0 else [1, 0, 2, 3, 4, 5],
        lambda n: [0, 1, 2, 3, 4, 5] if n == 0 else [0, 1, 2, 3, 5, 4],
        lambda n: [0, 1, 2, 3, 4, 5] if n == 0 else [0, 1, 2, 3],
        lambda n: [0, 1, 2, 3] if n == 0 else [0, 1, 2, 3, 4, 5],
        lambda n: [0, 0, 1, 2] if n == 0 else [0, 1, 0, 2],
    ],
    ids=["shuffled", "late", "fewer", "more", "twice"],
)
@pytest.mark.parametrize("ids", [None, "abcdef"])
def test_other_pictures_the_second_time_are_refused(order, ids):
    with pytest.raises(ValueError, match="same pictures in the same order every time"):
        compare({"a": small_net(), "b": small_net(4)}, Loader(order=order, ids=ids), progress=False)


def test_a_picture_may_come_twice():
    found = compare({"a": small_net(), "b": small_net(4)}, Loader(order=lambda n: [0, 0, 0, 1]), progress=False)
    assert found.audits["a"].pictures == found.audits["b"].pictures and len(set(found.audits["a"].pictures)) == 4


def test_audits_of_other_pictures_are_no_comparison(compared):
    other = {"trained": compared.audits["trained"], "x": audit(small_net(), X.flip(0), progress=False)}
    with pytest.raises(ValueError, match="same pictures in one order, got others in 'x'"):
        Comparison(other, {}, {}, None, compared.spec)
    with pytest.raises(ValueError, match="at least one variant"):
        Comparison({}, {}, {}, None, compared.spec)


# ---- variants ----------------------------------------------------------------------------------


def test_settings_reach_every_audit():
    models = {"a": small_net(), "b": small_net(4)}
    found = compare(models, X, layers="max pooling", target=label_probability, channels=4, seed=3, progress=False)
    for name, model in models.items():
        labels = torch.tensor(found.audits[name].spec["labels"])
        settings = {"layers": "max pooling", "target": label_probability, "channels": 4, "seed": 3}
        single = audit(model, (X, labels), progress=False, **settings)
        pd.testing.assert_frame_equal(found.audits[name].table, single.table)
    assert found.spec["target"] == "label_probability" and (found.spec["channels"], found.spec["seed"]) == (4, 3)


def test_a_variant_without_such_calls_has_no_culprits():
    models = {"a": small_net(), "b": average_pooled(small_net(), inputs=X)}
    found = compare(models, X, layers=lambda call: call.type == "max pooling", progress=False)
    ranked = found.culprits()
    pd.testing.assert_frame_equal(ranked.drop(columns="variant"), found.audits["a"].culprits())  # of the same types
    assert ranked["variant"].tolist() == ["a", "a"] and ranked["call"].tolist() == ["5", "2"]
    bare = compare(models, X, layers="input", progress=False).culprits("type")
    assert len(bare) == 0 and list(bare.columns) == ["variant", *found.audits["a"].culprits("type").columns]


def test_records_travel_with_their_variants():
    net = small_net()
    pooled, record = average_pooled(net, inputs=X)
    foreign = Record("retrained", {"epochs": 3})
    models = {"a": net, "pair": (pooled, record), "bare": pooled, "told": (net, foreign), "both": (pooled, foreign)}
    found = compare(models, X[:1], layers="input", progress=False)
    assert records(pooled) == (record,)
    assert found.records == {
        "a": (), "pair": (record,), "bare": (record,), "told": (foreign,), "both": (record, foreign)}  # fmt: skip


def test_a_variant_that_fails_is_kept_with_its_reason():
    models = {"a": small_net(), "few": small_net(classes=3), "odd": Failing(KeyError("fc")), "b": small_net(4)}
    with pytest.warns(UserWarning) as told:
        found = compare(models, (X, LABELS), progress=False)
    assert [str(w.message) for w in told] == [f"Variant {n!r} is left out: {r}" for n, r in found.missing.items()]
    assert told[0].filename == __file__
    few = "Expected labels from 0 to 2, got 0 to 4; number them as the model's classes."
    assert found.missing == {"few": few, "odd": "KeyError: 'fc'"}
    assert list(found.audits) == ["a", "b"] and found.spec["variants"] == list(models)
    assert found.drift["variant"].tolist() == list(models) and found.drift["n"].tolist() == [6, 0, 0, 6]
    rows = found.drift.set_index("variant")
    assert rows["note"].to_dict() == {"a": "", "b": ""} | found.missing
    assert rows.loc["few"].drop(["n", "note"]).isna().all() and rows.loc["b"].drop("note").notna().all()
    assert "few missing, odd missing" in repr(found)


def test_the_first_variant_raises_as_it_is():
    with pytest.raises(KeyError, match="fc"):
        compare({"odd": Failing(KeyError("fc")), "b": small_net()}, X, progress=False)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        compare({"a": small_net(), "odd": Failing(KeyboardInterrupt())}, X, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("models", "error", "says"),
    [
        ({}, ValueError, "at least one model"),
        ([small_net()], TypeError, "mapping {name: model}, got list"),
        ({3: small_net()}, TypeError, "text that is not empty, got 3"),
        ({" ": small_net()}, TypeError, "text that is not empty, got ' '"),
        ({"a": "resnet50"}, TypeError, "as variant 'a', got str"),
        ({"a": small_net(), "b": (small_net(), "swapped")}, TypeError, "as variant 'b', got Sequential, str"),
        ({"a": ()}, TypeError, "as variant 'a', got tuple"),
    ],
)
def test_bad_models_are_answered_in_a_sentence(models, error, says):
    with pytest.raises(error, match=says):
        compare(models, X, progress=False)


def test_the_models_are_left_as_they_were():
    net, other = small_net(), small_net(4).train()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (net, other)]
    compare({"a": net, "b": other}, X, progress=False).causal(progress=False)
    for model, state in zip((net, other), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(p.grad is None for p in model.parameters())
    assert other.training and not net.training and records(net) == ()


# ---- drift -------------------------------------------------------------------------------------


def test_drift_counted_by_hand(compared):
    models = [small_net(), average_pooled(small_net(), inputs=X)[0], small_net(4)]
    logits = [model(X).detach().numpy() for model in models]
    labels = LABELS.numpy()
    known = []
    for found in logits:
        right = [int(row.argmax() == label) for row, label in zip(found, labels, strict=True)]
        accuracy = sum(right) / 6
        agree = sum(row.argmax() == old.argmax() for row, old in zip(found, logits[0], strict=True)) / 6
        probability = np.mean([scipy.special.softmax(row)[label] for row, label in zip(found, labels, strict=True)])
        known.append([accuracy, math.sqrt(accuracy * (1 - accuracy) / 5), agree, probability])
    drift = compared.drift
    assert drift["variant"].tolist() == ["trained", "avgpool", "other"] and drift["n"].tolist() == [6, 6, 6]
    np.testing.assert_allclose(drift[["accuracy", "se", "agreement", "label_probability"]], known, rtol=1e-9)
    assert len({row[0] for row in known}) > 1 and known[0][2] == 1 > known[2][2]  # the case tells them apart
    np.testing.assert_allclose(drift["probability_change"], [row[3] - known[0][3] for row in known], atol=1e-12)
    for row, (name, found) in zip(drift.itertuples(), compared.audits.items(), strict=True):
        assert (row.variant, row.slope_nyquist, row.se_nyquist) == (name, *found.input_slope)
        assert row.high_share == found.signatures["input", "input"].high_share


def test_one_picture_has_no_standard_error():
    drift = compare({"a": small_net()}, (X[:1], LABELS[:1]), progress=False).drift
    assert drift["n"][0] == 1 and math.isnan(drift["se"][0]) and math.isnan(drift["se_nyquist"][0])
    assert drift["accuracy"][0] in (0.0, 1.0)


# ---- paired differences ------------------------------------------------------------------------


def pair_of_signatures(n: int = 30) -> tuple[Signature, Signature]:
    """Two signatures of the same pictures, one picture counting in the one and another in the other alone."""
    rng = np.random.default_rng(3)
    own = rng.lognormal(0, 0.4, (n, 1)) * np.exp(-np.outer(rng.uniform(0.1, 0.4, n), np.arange(11)))
    shares = rng.uniform(0.2, 0.4, n)
    signatures = []
    for tilt, left in ((0.0, 4), (-0.3, 9)):
        rings = own * np.exp(tilt * np.arange(11)) * rng.lognormal(0, 0.03, (n, 11))
        high = shares + tilt / 3 + rng.normal(0, 0.01, n)
        rings[left], high[left] = 0, math.nan
        signatures.append(Signature(20, 23, rings, high))
    return signatures[1], signatures[0]


def test_paired_difference_against_the_jackknife():
    new, old = pair_of_signatures()
    both = [i for i in range(30) if i not in (4, 9)]

    def gap(kept):
        slopes = [Signature(20, 23, s.per_image[kept], s.high_shares[kept]).slope_nyquist for s in (new, old)]
        return slopes[0] - slopes[1]

    left_out = np.array([gap([k for k in both if k != i]) for i in both])
    found = paired_difference(new, old)
    assert found.n == 28 and found.slope_nyquist == pytest.approx(gap(both), rel=1e-12)
    jackknife = math.sqrt(27 / 28 * np.square(left_out - left_out.mean()).sum())
    assert found.se_nyquist == pytest.approx(jackknife, rel=0.05)
    assert found.se_nyquist < 0.5 * math.hypot(new.slope_nyquist_se, old.slope_nyquist_se)
    shares = (new.high_shares - old.high_shares)[both]
    assert (found.high_share, found.se_share) == pytest.approx((shares.mean(), scipy.stats.sem(shares)), rel=1e-12)


def test_paired_difference_of_few_pictures():
    new, old = pair_of_signatures()
    one = [Signature(20, 23, s.per_image[:1], s.high_shares[:1]) for s in (new, old)]
    found = paired_difference(*one)
    assert found.n == 1 and found.slope_nyquist == one[0].slope_nyquist - one[1].slope_nyquist
    assert math.isnan(found.se_nyquist) and math.isnan(found.se_share)
    none = [Signature(20, 23, s.per_image[[i]], s.high_shares[[i]]) for s, i in ((new, 0), (old, 4))]
    assert paired_difference(*none).n == 0 and math.isnan(paired_difference(*none).slope_nyquist)


# ---- the causal arm ----------------------------------------------------------------------------


def by_hand(swapped: set[str]) -> nn.Sequential:
    """The small network with average pooling put in by hand."""
    net = small_net()
    if "2" in swapped:
        net[2] = nn.AvgPool2d(2)
    if "5" in swapped:
        net[5] = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    if "3" in swapped:
        dense = copy.deepcopy(net[3])
        dense.stride = (1, 1)
        net[3] = nn.Sequential(dense, nn.AvgPool2d(2, ceil_mode=True))
    return net


def test_arms_equal_networks_cut_open_by_hand(compared, effects):
    def measured(swapped):
        return audit(by_hand(set(swapped)), (X, LABELS), progress=False).signatures["input", "input"]

    new_power = compared.audits["trained"].culprits().set_index("call")["new_power"]
    none, everything = measured([]), measured(SWAPPED)
    expected = [("", "none", none, None), ("", "all", everything, none)]
    for name in SWAPPED:
        expected += [(name, "one", measured([name]), none)]
        expected += [(name, "all but one", measured(set(SWAPPED) - {name}), everything)]
    assert len(effects) == len(expected) == 8
    for row, (call, arm, signature, base) in zip(effects.itertuples(), expected, strict=True):
        assert (row.call, row.arm, row.note) == (call, arm, "")
        own = (signature.slope_nyquist, signature.slope_nyquist_se, signature.high_share, signature.high_share_se)
        assert (row.slope_nyquist, row.se_nyquist, row.high_share, row.se_share) == pytest.approx(own, rel=1e-9)
        changes = (row.change, row.se_change, row.share_change, row.se_share_change)
        if base is None:
            assert np.isnan(changes).all()
        else:
            assert changes == pytest.approx(paired_difference(signature, base)[:4], rel=1e-6)
            assert row.change == pytest.approx(row.slope_nyquist - base.slope_nyquist, rel=1e-9)
        known = new_power[call] if call else math.nan
        assert row.new_power == pytest.approx(known, nan_ok=True)
    types = ["max pooling", "strided convolution", "max pooling"]
    assert effects["type"].tolist() == ["", "", *np.repeat(types, 2)]


def test_the_causal_table_is_made_once_and_kept(compared, effects):
    assert compared.effects is effects and compared.causal(progress=False) is effects
    record = Record.from_dict(compared.spec["causal"]["surgery"])
    assert [change.name for change in record.changes] == SWAPPED and compared.spec["causal"]["only"] is None


def test_a_selection_takes_those_operators_alone(compared, effects):
    found = compare({"a": small_net()}, (X, LABELS), progress=False)
    some = found.causal(only="[25]", progress=False)
    assert some["call"].tolist() == ["", "", "2", "2", "5", "5"]
    kept = effects[effects["call"] != "3"].reset_index(drop=True)  # "all" is all operators all the same
    pd.testing.assert_frame_equal(some, kept, rtol=1e-6)
    assert found.causal(only=["[25]"], progress=False) is some
    assert found.causal(progress=False)["call"].nunique() == 4 and found.spec["causal"]["only"] is None
    with pytest.raises(NothingToSwap, match="9"):
        found.causal(only="9", progress=False)


def test_all_but_the_only_operator_is_none():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(1), nn.LazyLinear(3))
    net = net.double().eval()
    net(X)
    table = compare({"a": net}, X, progress=False).causal(progress=False).set_index("arm")
    assert table.loc["all but one", "slope_nyquist"] == table.loc["none", "slope_nyquist"]
    assert table.loc["one", "slope_nyquist"] == table.loc["all", "slope_nyquist"]
    assert table.loc["all but one", "change"] == pytest.approx(-table.loc["all", "change"], rel=1e-12)
    assert table.loc["all but one", "se_change"] == pytest.approx(table.loc["all", "se_change"], rel=1e-12)


def test_a_patch_embedding_is_taken_out_on_request_and_is_in_no_arm_of_all():
    net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(80, 3)).double().eval()
    found = compare({"a": net}, X, progress=False)
    assert found.causal(progress=False)["call"].tolist() == ["", "", "1", "1"]
    table = found.causal(only=["0", "1"], progress=False).set_index(["call", "arm"])
    pooled = average_pooled(net, only="0", inputs=X)[0]
    slope = audit(pooled, (X, torch.tensor(found.audits["a"].spec["labels"])), progress=False).input_slope[0]
    assert table.loc[("0", "one"), "slope_nyquist"] == pytest.approx(slope, rel=1e-9)
    assert table.loc[("0", "all but one"), "note"] == "swapped on request only, so it is not in the arm of all"
    assert table.loc[("0", "all but one"), ["slope_nyquist", "change"]].isna().all()
    assert table.loc[("1", "all but one"), "slope_nyquist"] == table.loc[("", "none"), "slope_nyquist"]


def test_a_network_without_such_operators_raises():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1140, 3)).double().eval()
    with pytest.raises(NothingToSwap):
        compare({"a": net}, X, progress=False).causal(progress=False)


def test_labels_and_batches_of_the_arms_are_those_of_the_comparison(effects):
    net = small_net()
    found = compare({"a": net}, Loader(), batch_size=1, progress=False)
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    table = found.causal(only="2", batch_size=2, progress=False)
    assert 2 in sizes
    labels = net(X).argmax(1)  # the swapped network would name others
    pooled = by_hand({"2"})
    assert (pooled(X).argmax(1) != labels).any()
    slope = audit(pooled, (X, labels), progress=False).input_slope[0]
    assert table.set_index("arm").loc["one", "slope_nyquist"] == pytest.approx(slope, rel=1e-9)


def test_an_arm_that_fails_is_a_row_that_says_why(monkeypatch):
    def brittle(model, *, only=None, except_=None, inputs=None):
        if only == ["3"]:
            raise KeyError("torn")
        if except_ == ["5"]:
            return Failing(ValueError("Torn.")), average_pooled(model, except_="5", inputs=inputs)[1]
        return average_pooled(model, only=["2", "5"] if only == ["2"] else only, except_=except_, inputs=inputs)

    monkeypatch.setattr(gradspec.surgery, "average_pooled", brittle)
    found = compare({"a": small_net()}, X, progress=False)
    table = found.causal(progress=False).set_index(["call", "arm"])
    assert table.loc[("3", "one"), "note"] == "KeyError: 'torn'"
    assert table.loc[("5", "all but one"), "note"] == FAILS + "ValueError: Torn."
    assert table.loc[("2", "one"), "note"] == "cannot be swapped apart from 5"
    failed = table["note"] != ""
    assert failed.sum() == 3 and table.loc[failed, ["slope_nyquist", "change", "high_share"]].isna().all(axis=None)
    assert table.loc[~failed, "slope_nyquist"].notna().all() and table["new_power"].notna().sum() == 6
    assert found.agreement()["n"].tolist() == [1, 2]


def test_without_the_arm_of_all_there_is_no_change_against_it(monkeypatch):
    def brittle(model, *, only=None, except_=None, inputs=None):
        swapped, record = average_pooled(model, only=only, except_=except_, inputs=inputs)
        return (swapped if only or except_ else Failing(ValueError("Torn."))), record

    monkeypatch.setattr(gradspec.surgery, "average_pooled", brittle)
    table = compare({"a": small_net()}, X, progress=False).causal(progress=False)
    last = table[table["arm"] == "all but one"]
    assert (
        table["note"][1] == FAILS + "ValueError: Torn."
        and last["change"].isna().all()
        and last["slope_nyquist"].notna().all()
    )
    assert set(last["note"]) == {"no change: the arm with all operators swapped failed"}


def test_pictures_that_change_under_way_end_the_causal_arm():
    loader = Loader(order=lambda n: [0, 1, 2, 3, 4, 5] if n < 3 else [5, 4, 3, 2, 1, 0])
    with pytest.raises(OtherPictures):
        compare({"a": small_net()}, loader, progress=False).causal(progress=False)


def test_a_share_of_pictures_is_told():
    class Deaf(nn.Sequential):
        def forward(self, x):
            return super().forward(x * (x.abs().amax((1, 2, 3), keepdim=True) > 0))  # no gradient at a blank picture

    x = X.clone()
    x[2] = 0
    table = compare({"a": Deaf(*small_net())}, x, progress=False).causal(progress=False)
    assert set(table["note"]) == {"", "change over 5 of 6 pictures"} and table["note"][0] == ""
    assert table["change"][1:].notna().all()


# ---- agreement ---------------------------------------------------------------------------------


def table_of(new_power, one, all_but_one) -> pd.DataFrame:
    rows = [{"call": "", "arm": "none", "new_power": math.nan, "change": math.nan},
            {"call": "", "arm": "all", "new_power": math.nan, "change": -2.0}]  # fmt: skip
    for i, values in enumerate(zip(new_power, one, all_but_one, strict=True)):
        for arm, change in zip(("one", "all but one"), values[1:], strict=True):
            rows.append({"call": str(i), "arm": arm, "new_power": values[0], "change": change})
    return pd.DataFrame(rows)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-50, 50), min_size=3, max_size=12, unique=True), st.floats(0.1, 5.0))
def test_effects_in_the_order_of_the_ranking_agree(powers, scale):
    """A larger culprit whose removal takes more away, and whose presence leaves more: 1, whatever the scales."""
    power = np.array(powers, float)
    taken, left = -np.exp(power / 20) * scale, power**3 * scale
    assert agreement(table_of(power, taken, left))["correlation"].tolist() == pytest.approx([1.0, 1.0])
    assert agreement(table_of(power, -taken, -left))["correlation"].tolist() == pytest.approx([-1.0, -1.0])


@pytest.mark.parametrize("n", [3, 4, 5, 9, 15])
def test_agreement_against_scipy(n):
    rng = np.random.default_rng(n)
    power, one, other = rng.normal(size=(3, n)).round(1)  # with ties
    found = agreement(table_of(power, one, other)).set_index("arm")
    for arm, effect in (("one", -one), ("all but one", other)):
        known = scipy.stats.spearmanr(power, effect)
        assert found.loc[arm, "correlation"] == pytest.approx(known.statistic) and found.loc[arm, "n"] == n
        p = known.pvalue
        if n <= 8:
            every = [abs(scipy.stats.spearmanr(power, order).statistic) for order in itertools.permutations(effect)]
            p = np.mean(np.array(every) > abs(known.statistic) - 1e-9)
        assert found.loc[arm, "p"] == pytest.approx(p, rel=1e-9)


def test_p_of_three_operators_in_order_counts_two_of_six_orders():
    found = agreement(table_of([1, 2, 3], [-1, -2, -3], [3, 2, 1]))
    assert found["correlation"].tolist() == pytest.approx([1, -1]) and found["p"].tolist() == pytest.approx([1 / 3] * 2)


def test_too_few_or_equal_values_have_no_ranking():
    found = agreement(table_of([1, 2], [-1, -2], [1, 2]))
    assert found["note"].tolist() == ["2 operator(s), a ranking takes 3"] * 2 and found["correlation"].isna().all()
    found = agreement(table_of([1, 1, 1, math.nan], [-1, -2, -3, -4], [1, 2, 2, 2]))
    assert found["note"].tolist() == ["all the same: no ranking"] * 2 and found["n"].tolist() == [3, 3]
    found = agreement(table_of([1, 2, 3], [-1, -2, math.nan], [2, 2, 2]))
    assert found["note"].tolist() == ["2 operator(s), a ranking takes 3", "all the same: no ranking"]


def test_the_agreement_of_a_comparison_is_that_of_its_table(compared, effects):
    pd.testing.assert_frame_equal(compared.agreement(), agreement(effects))
    assert compared.agreement()["n"].tolist() == [3, 3]


# ---- files -------------------------------------------------------------------------------------


def test_save_and_load(compared, effects, tmp_path):
    folder = compared.save(tmp_path / "run")
    assert sorted(p.name for p in folder.iterdir()) == ["spec.json", "units"]
    assert len(list(folder.glob("units/*"))) == 2 * 3 + 1  # what was done to each, its audit, the causal table
    loaded = Comparison.load(folder)
    for name in ("table", "drift"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(compared, name))
    pd.testing.assert_frame_equal(loaded.culprits(), compared.culprits())
    pd.testing.assert_frame_equal(loaded.causal(), effects)
    pd.testing.assert_frame_equal(loaded.agreement(), compared.agreement())
    assert loaded.records == compared.records and loaded.missing == {} and repr(loaded) == repr(compared)
    assert loaded.spec == json.loads(json.dumps(compared.spec))
    with pytest.raises(ValueError, match="comes from files, without its models"):
        loaded.causal(only="2")
    again = Comparison.load(loaded.save(tmp_path / "again"))
    pd.testing.assert_frame_equal(again.causal(), effects)


def test_a_part_of_the_causal_table_is_loaded_as_the_part_it_is(tmp_path):
    found = compare({"a": small_net()}, X, progress=False)
    part = found.causal(only="2", progress=False)
    loaded = Comparison.load(found.save(tmp_path / "run"))
    for only in (None, "2", ["2"]):
        pd.testing.assert_frame_equal(loaded.causal(only=only), part)
    with pytest.raises(ValueError, match="without its models"):
        loaded.causal(only="5")


def test_without_the_causal_table_none_is_loaded(tmp_path, compared):
    found = compare({"a": small_net()}, X, layers="input", progress=False)
    folder = compared.save(tmp_path / "run")  # one with the table lay there
    loaded = Comparison.load(found.save(folder))
    assert loaded.effects is None and list(loaded.audits) == ["a"]
    assert len(list(folder.glob("units/*"))) == 2  # nothing of the other is left
    with pytest.raises(ValueError, match="without its models"):
        loaded.causal()
    with pytest.raises(ValueError, match="without its models"):
        loaded.agreement()


def test_any_variant_name_is_saved(tmp_path):
    net = small_net()
    models = dict.fromkeys(HOSTILE, net) | {"torn <b>": Failing(ValueError("<i>torn</i>"))}
    with pytest.warns(UserWarning, match="torn"):
        found = compare(models, X[:2], layers="input", progress=False)
    folder = found.save(tmp_path / "run")
    assert len(list(tmp_path.iterdir())) == 1
    files = [path.name for path in folder.rglob("*.parquet") if path.parent == folder / "units"]
    assert len({name.lower() for name in files}) == 2 * len(HOSTILE) + 1 and max(map(len, files)) < 110
    loaded = Comparison.load(folder)
    assert list(loaded.audits) == HOSTILE and loaded.missing == {"torn <b>": FAILS + "ValueError: <i>torn</i>"}
    assert loaded.drift["variant"].tolist() == list(models)
    page = loaded._repr_html_()
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page and "&lt;script&gt;" in page


def damage(folder, change):
    spec = json.loads((folder / "spec.json").read_text())
    change(spec)
    (folder / "spec.json").write_text(json.dumps(spec))


def in_units(folder, size=4, pictures=("a",)):
    """As if it were the folder of a run."""
    damage(folder, lambda spec: spec.update(pictures_per_unit=size, pictures=pictures))


def unit(folder, name):
    (file,) = folder.glob(f"units/{name}-????????.parquet")
    return file


def rewrite(file, change):
    parts, about = unpacked(pd.read_parquet(file))
    change(parts, about)
    packed(parts, about).to_parquet(file)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "spec.json").unlink(), r"Expected a comparison in .*no spec\.json"),
        (lambda f: (f / "spec.json").write_text("{torn"), r"Cannot read .*spec\.json"),
        (lambda f: damage(f, lambda s: s.update(kind="audit")), r"Expected a comparison of format 2 .* its spec\.json"),
        (lambda f: damage(f, lambda s: s.update(format=1)), r"Expected a comparison of format 2 .* its spec\.json"),
        (lambda f: damage(f, lambda s: s.pop("variants")), r"Cannot read .*spec\.json: expected .* 'variants'"),
        (lambda f: damage(f, lambda s: s.update(variants=[1])), r"Cannot read .*spec\.json: expected .* 'variants'"),
        (lambda f: damage(f, lambda s: s.update(variants="ab")), r"Cannot read .*spec\.json: expected .* 'variants'"),
        (lambda f: damage(f, lambda s: s.update(variants=[])), r"the audit of at least one variant in .*run, got none"),
        (lambda f: in_units(f, size="4"), r"Cannot read .*spec\.json: expected .* pictures_per_unit above 0, got '4'"),
        (lambda f: in_units(f, size=-1), r"Cannot read .*spec\.json: expected .* pictures_per_unit above 0, got -1"),
        (lambda f: in_units(f, pictures=3), r"Cannot read .*spec\.json: expected a list of names as 'pictures'"),
        (lambda f: unit(f, "causal-arm").write_bytes(b"\xff\xfe\x00"), r"Cannot read .*causal-arm-\w+\.parquet"),
        (lambda f: unit(f, "audit-avgpool").write_bytes(b"torn"), r"Cannot read .*audit-avgpool-\w+\.parquet"),
        (lambda f: unit(f, "variant-other").write_bytes(b"torn"), r"Cannot read .*variant-other-\w+\.parquet"),
        (
            lambda f: rewrite(unit(f, "variant-other"), lambda _, about: about["records"].append({})),
            r"Cannot read .*variant-other",
        ),
        (
            lambda f: rewrite(unit(f, "causal-arm"), lambda parts, _: parts.pop("effects")),
            r"causal.*KeyError: 'effects'",
        ),
        (lambda f: rewrite(unit(f, "audit-other"), lambda parts, _: parts.pop("calls")), r"audit-other.*'calls'"),
    ],
)
def test_damaged_folders_are_named(compared, effects, tmp_path, harm, says):
    folder = compared.save(tmp_path / "run")
    harm(folder)
    with pytest.raises(ValueError, match=says):
        Comparison.load(folder)


def test_a_variant_whose_unit_is_not_there_is_missing(compared, effects, tmp_path):
    """A comparison that was saved is read as a run is that is not done."""
    folder = compared.save(tmp_path / "run")
    unit(folder, "audit-avgpool").unlink()
    loaded = Comparison.load(folder)
    assert list(loaded.audits) == ["trained", "other"] and loaded.missing == {
        "avgpool": "1 of 1 units are not done yet"
    }
    assert loaded.drift["note"].tolist() == ["", "1 of 1 units are not done yet", ""]
    for file in folder.glob("units/audit-*"):
        file.unlink()
    with pytest.raises(
        ValueError, match=r"the audit of at least one variant in .*run, got none: trained: 1 of 1 units"
    ):
        Comparison.load(folder)


def test_no_other_variant_takes_the_place_of_the_reference(compared, tmp_path):
    """All drift is against it: while it is not there nothing is shown, rather than the wrong thing."""
    folder = compared.save(tmp_path / "run")
    unit(folder, "audit-trained").unlink()
    with pytest.raises(ValueError, match=r"the audit of the reference trained in .*run: 1 of 1 units are not done yet"):
        Comparison.load(folder)


def test_a_run_that_may_go_on_is_not_saved_over(compared, tmp_path):
    folder = compared.save(tmp_path / "run")
    in_units(folder)
    before = sorted(path.name for path in folder.glob("units/*"))
    with pytest.raises(ValueError, match=r"run is the folder of a run, which may go on: name another"):
        compared.save(folder)
    assert sorted(path.name for path in folder.glob("units/*")) == before


def test_nothing_is_written_over_something_else(compared, tmp_path):
    for text in ('{"kind": "audit", "format": 2}', "[]", "{", '{"seed": 3}'):
        (tmp_path / "spec.json").write_text(text)
        with pytest.raises(ValueError, match=r"a new folder or one of a comparison, got .* of something else"):
            compared.save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
        assert (tmp_path / "spec.json").read_text() == text


def test_reasons_are_one_line():
    assert reason_of(RuntimeError("out of memory.\nTried 3 GiB")) == "out of memory."
    assert reason_of(ValueError()) == "ValueError: " and reason_of(AttributeError("x")) == "AttributeError: x"


def test_the_page_of_a_notebook(compared):
    page = compared._repr_html_()
    assert "Comparison(6 pictures" in page and page.count("<tr") == 4 and "avgpool" in page


def test_progress_is_shown_on_stderr(capsys, monkeypatch):
    class Terminal:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def isatty(self):
            return True

    import sys

    found = compare({"a": small_net()}, X, progress=False)
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    found.causal(only="2", progress=False)
    assert capsys.readouterr().err == ""
    found.causal(only="5", progress=True)
    shown = capsys.readouterr()
    assert "causal: 100%" in shown.err and "3/3" in shown.err and shown.out == ""


def test_changes_are_named_as_the_audit_names_calls(compared, effects):
    calls = set(compared.audits["trained"].table["call"])
    assert set(effects["call"]) - {""} <= calls
    assert isinstance(compared.records["avgpool"][0].changes[0], Change)


def test_layers_that_a_variant_has_not_leave_its_input():
    models = {"max": small_net(), "mean": average_pooled(small_net(), inputs=X)}
    with pytest.warns(UserWarning, match="Variant 'mean' is audited at its input alone: No operator call matches"):
        found = compare(models, X, layers="max pooling", progress=False)
    assert set(found.audits["mean"].table["call"]) == {"input"} and not found.missing
    whole = compare(models, X, progress=False)
    assert found.drift["slope_nyquist"].tolist() == pytest.approx(whole.drift["slope_nyquist"].tolist(), rel=1e-9)


def test_a_variant_whose_audit_at_the_input_fails_too_is_missing():
    few = average_pooled(small_net(classes=3), inputs=X)  # without max-pooling, and LABELS go up to 4
    with pytest.warns(UserWarning) as told:
        found = compare({"max": small_net(), "few": few, "b": small_net(4)}, (X, LABELS), layers="max pooling",
                        progress=False)  # fmt: skip
    reason = "Expected labels from 0 to 2, got 0 to 4; number them as the model's classes."
    assert found.missing == {"few": reason} and list(found.audits) == ["max", "b"]
    said = [str(w.message) for w in told]
    assert said[0].startswith("Variant 'few' is audited at its input alone: No operator call matches 'max pooling'")
    assert said[1:] == [f"Variant 'few' is left out: {reason}"] and {w.filename for w in told} == {__file__}


def test_an_accuracy_of_all_or_none_has_no_error():
    labels = small_net()(X).argmax(1)
    found = compare({"right": small_net(), "again": small_net()}, (X, labels), layers="input", progress=False)
    assert found.drift["accuracy"].tolist() == [1, 1] and found.drift["se"].isna().all()


class Renewed:
    """Batches of the same names whose pictures are drawn anew every time, as by a loader that crops at random."""

    def __init__(self, passes):
        self.passes, self.done = passes, 0

    def __iter__(self):
        self.done += 1
        noise = torch.Generator().manual_seed(min(self.done, self.passes))
        pictures = torch.rand(4, *X.shape[1:], generator=noise, dtype=X.dtype)
        yield pictures, torch.zeros(4, dtype=torch.long), list("abcd")


def test_other_pictures_of_the_same_names_are_refused():
    with pytest.raises(ValueError, match="Expected the same pictures in the same order every time"):
        compare({"a": small_net(), "b": small_net()}, Renewed(9), progress=False)
    assert compare({"a": small_net(), "b": small_net()}, Renewed(1), progress=False).drift["agreement"].tolist() == [
        1,
        1,
    ]
    alone = compare({"a": small_net()}, Renewed(9), progress=False)
    with pytest.raises(ValueError, match="Expected the same pictures in the same order every time"):
        alone.causal(progress=False)


def test_new_power_of_an_operator_is_that_of_all_its_calls():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = torch.nn.MaxPool2d(2)
            self.conv, self.head = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Linear(192, 5)

        def forward(self, x):
            return self.head(self.pool(self.conv(self.pool(x))).flatten(1))

    found = compare({"a": Twice().double()}, torch.rand(3, 3, 32, 32).double(), progress=False)
    power = found.culprits("call").set_index("call")["new_power"]
    row = found.causal(progress=False).set_index(["call", "arm"]).loc[("pool", "one")]
    assert row["new_power"] == pytest.approx(power["pool"] + power["pool#1"])


# ---- a real network ----------------------------------------------------------------------------


def test_what_takes_the_frequencies_out_of_a_trained_resnet50(resnet50_case):
    net, x, labels = resnet50_case
    found = compare({"trained": net}, (x[:4], labels[:4]), layers="maxpool", batch_size=4, progress=False)
    table = found.causal(only="maxpool", progress=False).set_index(["call", "arm"])
    slopes = table["slope_nyquist"]
    assert -0.55 < slopes["", "none"] < -0.30 and slopes["", "all"] < -1.8  # issues 2 and 3
    assert -1.6 < slopes["maxpool", "one"] < -0.8  # max-pooling alone
    assert -1.6 < slopes["maxpool", "all but one"] < -0.8  # strides alone
    assert (table["change"].abs() > 5 * table["se_change"])[1:].all()
    assert table.loc[("maxpool", "one"), "new_power"] > 0.5
