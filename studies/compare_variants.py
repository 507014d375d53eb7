"""Compares a network with its variants: slope of the input gradient, what each computes, the causal arm, figures.

    python studies/compare_variants.py --model nets/resnet_pq.py:load --weights nets/resnet50.safetensors \
        --images photos --name resnet50

Writes to figures/: variants_NAME.csv (a row per variant), variants_NAME_causal.csv, variants_NAME.json (settings,
versions, what surgery left, seconds) and four pictures. The photographs themselves are not in any of them.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from study import commit

import gradspec as gs
from gradspec import plots
from gradspec.data import Data
from gradspec.variants import check_variant, variant

ROOT = Path(__file__).parents[1]
VARIANTS = (
    "trained", "untrained", "avgpool", "avgpool-wide", "avgpool-max", "avgpool-stride", "avgpool+recalibrated",
    "blurpool", "maxblurpool", "blurmax",
)  # fmt: skip
DRAWN = ("trained", "untrained", "avgpool")  # as in the paper's figures A.3 to A.8


def arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:vgg_max", help="as for `gradspec audit`")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--images", type=Path, help="folder of labelled pictures; without it: generated ones")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--no-causal", action="store_true")
    parser.add_argument("--name", default="vgg_max")
    parser.add_argument("--out", type=Path, default=ROOT / "figures")
    return parser.parse_args()


def pictures(options: argparse.Namespace, model: Any) -> Data:
    """Returns labelled pictures as the network takes them."""
    if options.images:
        return gs.load_images(options.images, model, options.limit, seed=options.seed)
    shown = gs.demo.pictures(options.limit, 64, options.seed)
    return model.preprocess(shown.images), shown.labels


def main() -> None:
    """Compares, and writes tables and pictures."""
    options, began = arguments(), time.perf_counter()
    for name in options.variants:
        check_variant(name)
    model = gs.load_model(options.model, options.weights)
    data = pictures(options, model)
    models = {name: variant(model, name, data, options.seed) for name in options.variants}
    found = gs.compare(models, data, seed=options.seed)
    if not options.no_causal:
        found.causal()
    write(found, options, time.perf_counter() - began)
    print(found.drift.to_string(index=False))


def write(found: gs.Comparison, options: argparse.Namespace, seconds: float) -> None:
    """Writes what the study's docstring lists."""
    stem = options.out / f"variants_{options.name}"
    options.out.mkdir(parents=True, exist_ok=True)
    found.drift.round(5).to_csv(f"{stem}.csv", index=False)
    shown = {name: found.audits[name] for name in DRAWN if name in found.audits} or found.audits
    figures = {"profile": plots.slope_profile(shown), "gradients": plots.gradient_pictures(shown)}
    figures["drift"] = plots.drift(found)
    if found.effects is not None:
        found.effects.round(5).to_csv(f"{stem}_causal.csv", index=False)
        figures["causal"] = plots.causal(found)
    for name, figure in figures.items():
        _, svg = plots.save(figure, f"{stem}_{name}")
        svg.unlink()  # the repository keeps one form
    sidecar = {
        "script": "studies/compare_variants.py",
        "model": Path(options.model).name,
        "variants": list(options.variants),
        "left": {name: [record.as_dict()["left"] for record in found.records[name]] for name in found.records},
        "agreement": None if found.effects is None else found.agreement().to_dict("records"),
        "pictures": len(found.spec["variants"]) and len(next(iter(found.audits.values())).pictures),
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit(),
    }
    Path(f"{stem}.json").write_text(json.dumps(sidecar, indent=1) + "\n")


if __name__ == "__main__":
    main()
