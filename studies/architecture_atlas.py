"""How white is the gradient at the input before any training, architecture by architecture?

    python studies/architecture_atlas.py
    python studies/architecture_atlas.py --models resnet18 resnet50 vgg11 --draws 5

Every network of ARCHITECTURES (timm and torchvision, of all families that take pictures of 224 to 331 pixels) with
untrained weights, --draws times, on generated pictures of its own input size: the units of `gradspec atlas`. Slope and
share of high frequencies of the gradient at the input, and the operators that add most. Then questions that an engineer
would ask of such a table, each with its answer: is it the architecture or the draw of the weights (ICC(1) over
networks), what do anti-aliased twins change, how do the families of downsampling differ, and does size or depth tell.

It writes NAME.csv (a row per network, as `gradspec atlas` ranks them), NAME_draws.csv (a row per network and draw),
NAME_claims.csv, NAME.png and NAME.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from study import Study, parsed, parser

from gradspec import plots
from gradspec.atlas import as_text, ranked
from gradspec.commands.surveying import AtlasCommand, audited

_NAMES = """
resnet18 resnet50 resnet101 resnet50d resnetv2_50 resnetv2_50d_evos resnetaa50 resnetblur50 seresnet50 skresnet18
resnext50_32x4d res2net50_26w_4s resnest26d wide_resnet50_2 ecaresnet26t gcresnet33ts botnet26t_256 halonet26t
convnext_tiny convnextv2_nano convnext_nano_ols inception_next_tiny vit_tiny_patch16_224 vit_small_patch32_224
deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224
xcit_nano_12_p16_224 pit_ti_224 crossvit_tiny_240 levit_128 volo_d1_224 visformer_tiny convit_tiny coat_tiny
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 twins_svt_small pvt_v2_b0 poolformer_s12 mvitv2_tiny
maxvit_tiny_rw_224 coatnet_nano_rw_224 focalnet_tiny_srf davit_tiny hiera_tiny_224 nextvit_small fastvit_t8
edgenext_xx_small mobilevit_xxs mobilevitv2_050 efficientvit_b0 efficientvit_m0 efficientformer_l1 repvit_m0_9
tiny_vit_5m_224 gcvit_xxtiny mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 efficientnet_b0
tf_efficientnetv2_b0 mnasnet_100 mixnet_s fbnetc_100 ghostnet_100 lcnet_050 hardcorenas_a densenet121 densenetblur121d
vgg11 vgg11_bn inception_v3 inception_v4 inception_resnet_v2 xception41 xception71 nasnetalarge dpn68 dla34
hrnet_w18_small regnetx_004 regnety_004 nfnet_f0 dm_nfnet_f0 cspresnet50 cspdarknet53 darknet53 selecsls42b repvgg_a0
tresnet_m vovnet39a ese_vovnet19b_dw rexnet_100 bat_resnext26ts eca_nfnet_l0 hgnet_tiny mixer_s16_224 mixer_b16_224
resmlp_12_224 gmlp_s16_224 convmixer_768_32 sequencer2d_s starnet_s1 rdnet_tiny mambaout_femto torchvision:alexnet
torchvision:vgg16 torchvision:googlenet torchvision:squeezenet1_0 torchvision:shufflenet_v2_x1_0
torchvision:mobilenet_v2 torchvision:resnet18 torchvision:convnext_tiny torchvision:vit_b_32 torchvision:swin_t
torchvision:maxvit_t torchvision:regnet_y_400mf torchvision:efficientnet_b0 torchvision:densenet121
torchvision:mnasnet0_5
"""
ARCHITECTURES = _NAMES.split()
TWINS = (("resnet50", "resnetblur50"), ("resnet50", "resnetaa50"), ("densenet121", "densenetblur121d"))
WHITE = 0.1  # of the slope per Nyquist: what is within it of 0 is counted as white


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    made = parser(__doc__, name="architecture_atlas", limit=8, model="")
    made.add_argument("--models", nargs="+", default=ARCHITECTURES, help="as for `gradspec atlas`, without patterns")
    made.add_argument("--draws", type=int, default=3, help="of the weights of each")
    small = {"models": ["demo:vgg_max", "demo:resnet_stride", "demo:vit"], "limit": 2, "draws": 2}
    return parsed(made, argv, smoke=small, paper={"limit": 64, "draws": 5})


def survey(study: Study) -> tuple[pd.DataFrame, dict[str, str]]:
    """Returns a row for each network and draw, and of networks that fail the reason."""
    args = study.args
    command = AtlasCommand((), limit=args.limit, seed=args.seed, images=args.images)
    rows, failed = [], {}
    for name in args.models:
        for draw in range(args.draws):
            try:
                rows.append(study.unit(f"{name}, draw {draw}", partial(audited, name, draw, command)))
            except Exception as error:  # the others go on
                failed[name] = f"{type(error).__name__}: {error}"
                print(f"{name}: {failed[name]}")
                break
    return pd.concat(rows, ignore_index=True), failed


def claims(entries: Any, table: Any) -> pd.DataFrame:
    """Returns answers: `question`, `answer` in words, `value`, `low`, `high` (95 %), `n`."""
    rows: list[dict[str, Any]] = []

    def answer(question: str, value: float, n: int, words: str, low: float = np.nan, high: float = np.nan) -> None:
        rows.append({"question": question, "value": value, "low": low, "high": high, "n": n, "answer": words})

    known = table[np.isfinite(table["slope_nyquist"]) & (table["r2"] > 0)]
    slopes = known["slope_nyquist"]
    white = (slopes.abs() < WHITE).sum()
    answer("slope at the input, median", slopes.median(), len(known), "per Nyquist; 0 is white noise",
           *slopes.quantile([0.025, 0.975]))  # fmt: skip
    answer("networks within 0.1 of white noise", white / len(known), len(known), f"{white} of {len(known)}")
    answer("share of high frequencies, median", known["high_share"].median(), len(known), "white noise: about 0.80",
           *known["high_share"].quantile([0.025, 0.975]))  # fmt: skip
    for measure in ("slope_nyquist", "high_share"):
        wide: Any = entries[entries["network"].isin(known["network"])].pivot(
            index="network", columns="draw", values=measure
        )
        ordinary = wide[(wide - wide.median().median()).abs().max(axis=1) < 1.0]  # what lies far out would be all of it
        value, low, high = icc(ordinary.to_numpy(float))
        words = (
            f"ICC(1): share of the variance that is the architecture's; {len(wide) - len(ordinary)} far out left out"
        )
        answer(f"architecture or draw, {measure}", value, len(ordinary), words, low, high)
    by_name: Any = entries.pivot(index="draw", columns="network", values="slope_nyquist")
    for plain, smooth in TWINS:
        if {plain, smooth} <= set(by_name):
            change = by_name[smooth] - by_name[plain]
            half = stats.t.ppf(0.975, len(change) - 1) * change.sem() if len(change) > 1 else np.nan
            words = f"{by_name[plain].mean():+.3f} to {by_name[smooth].mean():+.3f}, over draws"
            answer(
                f"{smooth} less {plain}", change.mean(), len(change), words, change.mean() - half, change.mean() + half
            )
    kinds = pd.Series([found[0] if len(found) else "none" for found in known["culprit_types"]], index=known.index)
    for kind, rows_of in known.groupby(kinds):
        if len(rows_of) >= 5:
            words = "median slope of the networks in which it adds most"
            quarters = rows_of["slope_nyquist"].quantile([0.25, 0.75])
            answer(f"adds most: {kind}", rows_of["slope_nyquist"].median(), len(rows_of), words, *quarters)
    for name in ("parameters", "calls"):
        found: Any = stats.spearmanr(known[name], slopes)
        answer(f"slope and {name}", found.statistic, len(known), f"Spearman, p {found.pvalue:.2g}")
    return pd.DataFrame(rows)


def icc(values: np.ndarray) -> tuple[float, float, float]:
    """Returns ICC(1) of values (networks, draws) with its 95 % interval (Shrout and Fleiss 1979).

    Example:
        >>> icc(np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7.0]]))
        (0.1657..., -0.1329..., 0.7225...)
    """
    n, k = values.shape
    if n < 2 or k < 2:
        return np.nan, np.nan, np.nan
    between = k * values.mean(1).var(ddof=1)
    within = values.var(axis=1, ddof=1).mean()
    ratio, free = between / within, (n - 1, n * (k - 1))
    low, high = ratio / stats.f.ppf(0.975, *free), ratio * stats.f.ppf(0.975, *free[::-1])
    one, least, most = ((each - 1) / (each + k - 1) for each in (ratio, low, high))
    return float(one), float(least), float(most)


def main(argv: list[str] | None = None) -> int:
    """Runs the study."""
    study = Study(arguments(argv), __file__)
    entries, failed = survey(study)
    table = ranked(entries)
    study.table(as_text(table))
    left = ("network", "draw", "culprits", "culprit_types", "culprit_power", "stages", "stage_shares")
    numbers: Any = entries[["network", "draw", *[name for name in entries if name not in left]]]
    study.table(numbers, "_draws")
    answers = claims(entries, table)
    study.table(answers, "_claims")
    print(answers.to_string(index=False, float_format="%.3f"))
    study.figure(plots.atlas(table))
    study.finish(networks=len(table), failed=failed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
