"""Supplement A on trial: what its propositions say as printed, what holds instead, and what real gradients are like.

    python studies/propositions.py --model ../shared/nets/tiny_darknet.py:load --weights \
        ../shared/nets/tiny_darknet.safetensors --images ../shared/images --name propositions_tiny_darknet
    python studies/propositions.py --limit 64 --name propositions_vgg_max

Each row of NAME.csv is one statement: where it stands, the quantity, its printed value, the value that holds (exact or
simulated, with its standard error and n), and a verdict: "holds", "fails", or "holds, but" with what is left out.

- A.2, a filter of σ* leaves of the error only the noise inside it: on a synthetic gradient of known band limit and on
  real ones; and the printed proof, which masks the gradient's pixels (brackets inside F, eq. 2 to 8) and chooses σ* by
  another condition (before eq. 8) than the statement.
- A.3, the share of white noise kept: the printed Gammas and Beta primes of statement and proof beside a simulation.
- A.4, SmoothGrad's convergence: the printed bound beside a simulation and the matrix Bernstein inequality.
- The premise of A.2, that there is a σ* below Nyquist at which nothing of the gradient is lost: the band limit of real
  gradients at several tolerances, and how much of their power the cutoffs that FORGrad chooses leave out. A filter
  brings a gradient nearer to the true one if the noise outside of it exceeds what it takes; `break-even` is how many
  times the true gradient's power white noise must have for that, were the measured gradient the true one.

Writes NAME.csv, NAME_premise.csv, NAME.png (`gs.plots.theory`), NAME_premise.png and NAME.json.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import kstest
from study import Study, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec.attributions.white import gradients
from gradspec.controls.theory import band_limit, convergence, kept_noise, printed_ratio, recovery
from gradspec.controls.theory.white_noise import degrees_of_freedom
from gradspec.fourier import identity_radius, low_pass_mask
from gradspec.statistics import bootstrap_interval

LIMIT = 6.0  # cycles/image: σ* of the synthetic gradient
TOLERANCES = (1e-10, 1e-6, 1e-4, 1e-2)
A4 = {"n": 100, "t": 0.1}  # draws of ±1, at one standard deviation of their mean


def row(statement: str, where: str, quantity: str, printed: float, holds: float, verdict: str, **more: Any) -> Any:
    """Returns a row of the table."""
    start = {"statement": statement, "where": where, "quantity": quantity, "printed": printed, "holds": holds}
    return {**start, "verdict": verdict, **more}


def told(right: bool) -> str:
    """Returns the verdict on what was printed."""
    return "holds" if right else "fails"


# ---- A.2 ---------------------------------------------------------------------------------------


def synthetic(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns a gradient with nothing above `LIMIT` (square), and white noise of twice its power (H, W)."""
    draw = torch.Generator().manual_seed(seed)
    signal, noise = torch.randn(2, size, size, dtype=torch.float64, generator=draw).unbind()
    signal = gs.low_pass(signal, LIMIT, "square")
    return signal, noise * (2 * signal.square().sum() / noise.square().sum()).sqrt()


def printed_mask(size: int, cutoff: float) -> Tensor:
    """Returns K^σ as the supplement defines it, centred, which its brackets put on the pixels."""
    near = (torch.arange(size) - size / 2).abs() <= cutoff
    return (near[:, None] & near[None]).double()


def a2(size: int, seed: int) -> pd.DataFrame:
    """Returns A.2's statement and the lines of its proof, of the synthetic gradient."""
    signal, noise = synthetic(size, seed)
    found = recovery(signal, noise, LIMIT)
    below = recovery(signal, noise, LIMIT / 2)
    power = float(signal.square().sum())
    pixels = ((signal + noise) * printed_mask(size, LIMIT) - signal).square().sum()
    left = [gs.low_pass(signal, cutoff, "square").square().sum() for cutoff in range(size // 2 + 1)]
    emptied = sum(bool(value <= 1e-12 * power) for value in left)
    one = {"n": 1}
    return pd.DataFrame(
        [
            row("A.2", "definition of σ*", "band limit of a gradient made with 6 cycles/image", LIMIT,
                band_limit(signal), told(band_limit(signal) == LIMIT), **one),
            row("A.2", "eq. 1", "error at σ* over the noise kept there", 1, float(found.error / found.kept),
                told(math.isclose(found.error, found.kept, rel_tol=1e-9)), **one),
            row("A.2", "eq. 1", "error at σ* over the noise's power: at most 1", 1, float(found.error / found.noise),
                told(bool(found.error <= found.noise)), **one),
            row("A.2", "below σ*, of which nothing is said", "error at σ*/2 over the noise kept there", 1,
                float(below.error / below.kept), "holds, but for σ ≥ σ* alone: what is lost is error too", **one),
            row("A.2", "proof, eq. 2 to 8 as printed (the mask inside F)", "error over the noise kept in frequency", 1,
                float(pixels / found.kept), told(math.isclose(pixels, found.kept, rel_tol=1e-6)), **one),
            row("A.2", "proof, before eq. 8: σ* = inf{σ: ‖F(∇f ⊙ K̄) − F(∇f)‖ = 0}, the mask read in frequency",
                "whole σ up to Nyquist that fulfil it", 1, emptied, told(emptied >= 1), n=len(left)),
            row("A.2", "proof, before eq. 8, the same", "share of the gradient's power that its norm is, at σ*", 0,
                float(left[int(LIMIT)] / power), told(bool(left[int(LIMIT)] <= 1e-12 * power)), **one),
        ]
    )  # fmt: skip


# ---- A.3 ---------------------------------------------------------------------------------------


def a3(size: int, cutoff: float, draws: int, seed: int) -> pd.DataFrame:
    """Returns the printed laws of A.3 beside a simulation and Beta(M/2, (HW − M)/2); noise of variance 1."""
    found, pixels, box = kept_noise(size, size, cutoff, draws=draws, seed=seed), size * size, cutoff**2
    ratios, share = 1 / found.shares.numpy(), found.shares.numpy()
    real = degrees_of_freedom(low_pass_mask(size, size, cutoff, "square"))
    noise = torch.randn(draws, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    power = torch.fft.fft2(noise).abs().square()
    sums = {
        "whole": power.sum((1, 2)).numpy(),
        "kept": (power * low_pass_mask(size, size, cutoff, "square")).sum((1, 2)).numpy(),
    }
    exact = found.exact
    laws = {
        ("whole", "statement"): (2 * pixels, pixels), ("whole", "proof"): (pixels, pixels),
        ("kept", "statement"): (8 * box, 4 * box), ("kept", "proof"): (4 * box, 4 * box),
    }  # fmt: skip
    about = {"n": draws}
    rows = [
        row("A.3", "mask", "bins of K^σ", 4 * box, real, told(real == 4 * box), **about),
        row("A.3", "eq. 11", "real numbers in F(ε) of a real map", 2 * pixels, pixels, told(False), **about),
    ]
    scaled = sums["whole"] / (pixels / 2) ** 0.5
    rows.append(row("A.3", "eq. 11, which divides by a standard deviation where χ² has the variance",
                    "mean of ‖F(ε)‖² / (ς√(WH/2)), of χ² with 2WH", 2 * pixels, scaled.mean(), told(False),
                    se=scaled.std(ddof=1) / draws**0.5, **about))  # fmt: skip
    for (part, version), (k, theta) in laws.items():
        values = sums[part]
        mean, shape, se = values.mean(), values.mean() ** 2 / values.var(ddof=1), values.std(ddof=1) / draws**0.5
        own = "‖F(ε)‖²" if part == "whole" else "‖F(ε) ⊙ K‖²"
        rows.append(row("A.3", version, f"mean of {own}, kθ", k * theta, mean, told(abs(k * theta - mean) < 3 * se),
                        se=se, **about))  # fmt: skip
        spread = shape * (2 / draws) ** 0.5
        rows.append(row("A.3", version, f"shape k of {own}", k, shape, told(abs(k - shape) < 3 * spread), se=spread,
                        **about))  # fmt: skip
    error = ratios.std(ddof=1) / draws**0.5
    for version in ("statement", "proof"):
        law = printed_ratio(size, size, cutoff, version)
        right = kstest(ratios, law.cdf).pvalue > 0.001
        rows.append(row("A.3", version, "mean of R = ‖F(ε)‖² / ‖F(ε) ⊙ K‖²", law.mean(), ratios.mean(), told(right),
                        se=error, p=kstest(ratios, law.cdf).pvalue, **about))  # fmt: skip
    p = kstest(share, exact.cdf).pvalue
    together = float(np.corrcoef(sums["whole"], sums["kept"])[0, 1])
    rows += [
        row("A.3", "independence of the two norms, which a Beta prime takes for granted", "their correlation", 0,
            together, told(abs(together) < 3 / draws**0.5), se=draws**-0.5, **about),
        row("A.3", "as it should read: share ~ Beta(M/2, (HW − M)/2)", "mean share kept", exact.mean(), share.mean(),
            told(p > 0.001), se=share.std(ddof=1) / draws**0.5, p=p, **about),
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(setting=f"{size} x {size}, σ = {cutoff:g}")


# ---- A.4 ---------------------------------------------------------------------------------------


def a4(repeats: int, seed: int) -> pd.DataFrame:
    """Returns A.4's bound at t = 1/√n beside the simulated frequency and the matrix Bernstein bound."""
    quantity = "norm of a centred sample is at most, in L"
    rows = [row("A.4", "eq. 12 takes L where eq. 13 has 2L", quantity, 1, 2, told(False))]
    for size in (1, 8):
        found = convergence([A4["t"]], A4["n"], size, size, repeats=repeats, seed=seed)
        often, printed, bernstein = (float(v[0]) for v in (found.frequency, found.printed, found.bernstein))
        about = {"se": (often * (1 - often) / repeats) ** 0.5, "n": repeats}
        about["setting"] = f"{size} x {size} diagonal signs, mean of {A4['n']}, t = {A4['t']:g}"
        quantity = "P(‖SG − E SG‖ ≥ t) is at most"
        rows.append(row("A.4", "eq. 12", quantity, printed, often, told(often <= printed), **about))
        rows.append(row("A.4", "as it should read: V + 2Lt/(3n), without n² (Tropp 6.1.1)", quantity, bernstein, often,
                        told(often <= bernstein), **about))  # fmt: skip
    return pd.DataFrame(rows)


# ---- the premise -------------------------------------------------------------------------------


def gradients_of(engine: gs.Engine, batch: Any) -> Tensor:
    """Returns the gradient of each picture's logit at each channel of the input (N, C, H, W), float64."""
    images, labels, ids = batch
    wanted = engine.predictions(images) if labels is None else labels
    groups = engine.groups(images, wanted, ids)
    return torch.cat([gradients(engine, pictures, gs.label_logit) for pictures in groups]).double()


def premise(engine: gs.Engine, pictures: Any, cutoffs: list[float]) -> pd.DataFrame:
    """Returns band limits and the share of power that each cutoff leaves out, a row for each picture."""
    rows = []
    for batch in pictures:
        found = gradients_of(engine, batch)
        for name, gradient in zip(batch[2], found, strict=True):
            one: dict[str, Any] = {"picture": name, "size": gradient.shape[-1]}
            one |= {f"limit {t:g}": band_limit(gradient, "square", t) for t in TOLERANCES}
            whole = gradient.square().sum()
            for cutoff in cutoffs:
                lost = recovery(gradient, torch.zeros_like(gradient), cutoff, "disk").lost.sum()
                one[f"lost {cutoff:g}"] = float(lost / whole)
            rows.append(one)
    return pd.DataFrame(rows)


def premise_summary(table: pd.DataFrame, cutoffs: list[float], height: int, width: int) -> pd.DataFrame:
    """Returns for each cutoff the mean share of power left out, its interval, white noise's, and the break-even."""
    rows = []
    for cutoff in cutoffs:
        values = table[f"lost {cutoff:g}"].to_numpy()
        white = 1 - float(low_pass_mask(height, width, cutoff).mean())
        low, high = bootstrap_interval(values)
        rows.append({"cutoff": cutoff, "lost": values.mean(), "se": values.std(ddof=1) / len(values) ** 0.5})
        rows[-1] |= {"low": low, "high": high, "n": len(values), "white noise": white}
        rows[-1]["break-even"] = float((values / white).mean()) if white > 0 else math.nan
    return pd.DataFrame(rows)


def premise_rows(table: pd.DataFrame, lost: pd.DataFrame, fitted: list[float], nyquist: float) -> pd.DataFrame:
    """Returns the premise's rows of the main table."""
    rows = []
    for tolerance in TOLERANCES:
        limits = table[f"limit {tolerance:g}"]
        full = limits >= nyquist
        rows.append(row("A.2", f"premise: σ* below Nyquist, amplitudes under {tolerance:g} of the largest for 0",
                        "σ* of real gradients over Nyquist, mean", math.nan, limits.mean() / nyquist,
                        "fails" if full.all() else f"fails for {int(full.sum())} of {len(full)}",
                        se=limits.sem() / nyquist, n=len(limits)))  # fmt: skip
    for cutoff in fitted:
        one: Any = lost.set_index("cutoff").loc[cutoff]
        rows.append(row("A.2", f"premise: nothing is lost, at σ = {cutoff:g}", "share of real gradients' power lost", 0,
                        one["lost"], told(bool(one["high"] < 1e-6)), se=one["se"], n=int(one["n"])))  # fmt: skip
    return pd.DataFrame(rows)


def draw_premise(lost: pd.DataFrame, fitted: list[float], title: str) -> Figure:
    """Returns the share of the gradients' power that a cutoff leaves out, beside white noise's."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    reach = np.stack([lost["lost"] - lost["low"], lost["high"] - lost["lost"]]).clip(min=0)
    axis.errorbar(lost["cutoff"], lost["lost"], reach, fmt="o-", capsize=2, label="gradients, 95 % interval")
    axis.plot(lost["cutoff"], lost["white noise"], "s--", color="0.4", label="white noise")
    for k, cutoff in enumerate(fitted):
        axis.axvline(cutoff, color="C3", ls=":", label=None if k else "cutoffs that FORGrad chose, 10 of the paper")
    axis.set(xscale="log", xlabel="cutoff σ in cycles/image (disk)", ylabel="share of the gradient's power left out")
    ticks = [cutoff for cutoff in lost["cutoff"] if cutoff not in fitted]
    axis.set_xticks(ticks, [f"{cutoff:g}" for cutoff in ticks])
    axis.minorticks_off()
    axis.set_ylim(-0.03, 1.03)
    axis.legend(loc="lower left", fontsize=8)
    axis.set_title(title, fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Simulates, measures, prints and writes."""
    made = parser(__doc__, name="propositions", limit=32)
    made.add_argument("--fitted", type=float, nargs="+", default=[1.0, 1.76, 3.08, 10.0], help="cutoffs of the premise")
    made.add_argument("--draws", type=int, default=4000, help="maps of noise")
    made.add_argument("--repeats", type=int, default=100_000, help="of A.4's simulation")
    made.add_argument("--noise", type=int, default=64, help="pixels of a side of A.2's and A.3's maps")
    smoke = {"limit": 4, "draws": 500, "repeats": 10_000, "noise": 32}
    args = parsed(made, argv, smoke=smoke, paper={"limit": 1000})
    study = Study(args, __file__)
    engine = gs.Engine(study.model())
    first = next(iter(study.pictures(engine.model, 1)))[0]
    height, width = first.shape[-2:]
    nyquist = identity_radius(height, width, "square")
    cutoffs = sorted({*(2.0**k for k in range(9) if 2.0**k < nyquist), nyquist, *args.fitted})
    parts = [
        study.unit("A.2", lambda: a2(args.noise, args.seed)),
        study.unit("A.3", lambda: a3(args.noise, 4, args.draws, args.seed)),
        study.unit("A.4", lambda: a4(args.repeats, args.seed)),
    ]
    real = study.unit("premise", lambda: premise(engine, study.pictures(engine.model), cutoffs), engine)
    lost = premise_summary(real, cutoffs, height, width)
    parts.append(premise_rows(real, lost, args.fitted, nyquist))
    table = pd.concat([part.astype({"printed": float, "holds": float}) for part in parts], ignore_index=True)
    study.table(table)
    study.table(lost, "_premise")
    study.figure(drawn(args))
    title = f"{args.name}: {len(real)} pictures of {height}×{width}"
    study.figure(draw_premise(lost, args.fitted, title), "_premise")
    verdicts: Any = table["verdict"].str.split(" ").str[0].str.strip(",")
    study.finish(
        pictures=len(real),
        verdicts=verdicts.value_counts().to_dict(),
        failing=[f"{r.statement}, {r.where}: {r.quantity}" for r in table[verdicts == "fails"].itertuples()],
        lost_at_fitted={f"{c:g}": round(float(lost.set_index("cutoff").loc[c, "lost"]), 4) for c in args.fitted},
    )
    print(table.drop(columns="where").to_string(), lost.to_string(), sep="\n")


def drawn(args: argparse.Namespace) -> Figure:
    """Returns `gs.plots.theory` of the simulations."""
    signal, noise = synthetic(args.noise, args.seed)
    recoveries = {float(cutoff): recovery(signal, noise, cutoff) for cutoff in range(0, args.noise // 2 + 1, 2)}
    kept = kept_noise(args.noise, args.noise, 4, draws=min(args.draws, 2000), seed=args.seed)
    found = convergence(np.linspace(0.02, 0.4, 20).tolist(), A4["n"], repeats=args.repeats, seed=args.seed)
    return gs.plots.theory(recoveries, kept, found)


if __name__ == "__main__":
    main()
