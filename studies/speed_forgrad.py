"""What FORGrad costs: maps at thirty cutoffs beside one map, and the race for a cutoff beside the whole grid.

    python studies/speed_forgrad.py --nets ../shared/nets --images ../shared/images

Maps: Saliency of ResNet50 at 224 px, the plain map, and one explanation filtered at thirty cutoffs, in turn; the ratio
of medians. Race: eight pairs of network and method, one of an untrained network, one flat (the transformer's). The
grid scores every cutoff on all pictures; the race spends at most a quarter of its forwards. What the race chose is
judged on the grid's own scores: by how much F, paired over pictures, falls short of the grid's best, in errors of that
difference; for several orders of the pictures. Writes figures/speed_forgrad.csv and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from study import commit

import gradspec as gs
from gradspec import attributions as a
from gradspec.attributions import Attribution
from gradspec.cutoffs import cutoff_grid
from gradspec.forgrad import maps_of

PAIRS: list[tuple[str, Attribution]] = [
    ("demo:vgg_max", a.Saliency()),
    ("demo:vgg_max", a.GradientInput()),
    ("demo:vgg_avg", a.GuidedBackprop()),
    ("demo:resnet_stride", a.IntegratedGradients(steps=20)),
    ("demo:vit", a.Saliency()),
    ("demo:vgg_max, untrained", a.Saliency()),
    ("tiny_darknet", a.Saliency()),
    ("tiny_darknet", a.GradientInput()),
]
SEEDS = range(3)
CUTOFFS = 30
ROUNDS = 7


def network(name: str, nets: Path) -> Any:
    """Returns one of the networks."""
    if name.startswith("demo:"):
        return gs.load_model(name.partition(",")[0], "none" if "untrained" in name else "default")
    return gs.load_model(f"{nets / name}.py:load", str(nets / f"{name}.safetensors"))


def pictures(name: str, net: Any, args: argparse.Namespace) -> Any:
    """Returns pictures and labels: generated ones of the embedded networks, photographs spread over the classes."""
    if name.startswith("demo:"):
        found = gs.demo.pictures(args.pictures, seed=11)
        return net.preprocess(found.images), found.labels
    folder = gs.load_images(args.images, net, batch_size=16)
    return folder.subset(range(0, len(folder), max(1, len(folder) // args.pictures))[: args.pictures])


def maps(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the times of one map and of thirty filtered ones, in turn."""
    import torchvision

    net: Any = torchvision.models.resnet50().eval()
    net.mean, net.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x, y = torch.randn(8, 3, 224, 224), torch.arange(8)
    engine = gs.Engine(net)
    cutoffs = cutoff_grid(224, 224, points=CUTOFFS)[1:]
    forms: dict[str, dict[str, Any]] = {
        "one map": {"map": a.Saliency()},
        "thirty cutoffs, on the attribution": {f"{c}": gs.FORGrad(a.Saliency(), c) for c in cutoffs},
        "thirty cutoffs, on the gradient": {f"{c}": gs.FORGrad(a.Saliency(), c, where="gradient") for c in cutoffs},
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(args.rounds + 1):
        for name, form in forms.items():
            began = time.perf_counter()
            maps_of(engine, form, x, y)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: {"seconds": value, "ratio": value / medians["one map"]} for name, value in medians.items()}


def raced(name: str, method: Attribution, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each order of the pictures: the race beside the grid."""
    net = network(name, args.nets)
    data, engine = pictures(name, net, args), gs.Engine(net, precision=args.precision)
    grid = gs.fit_cutoff(engine, method, data)
    values: Any = grid.per_image[grid.names].dropna()
    name_of = dict(zip(grid.cutoffs, grid.names, strict=True))
    means = values.mean()
    rows = []
    for seed in SEEDS:
        race = gs.fit_cutoff(engine, method, data, search="race", seed=seed)
        deficit = values[name_of[grid.cutoff]] - values[name_of[race.cutoff]]
        short, error = float(deficit.mean()), float(deficit.sem())
        rows.append({
            "network": name, "method": type(method).__name__, "seed": seed, "flat": grid.flat, "n": len(values),
            "grid cutoff": grid.cutoff, "one se": grid.one_se, "F no filter": means.iloc[0], "F best": means.max(),
            "race cutoff": race.cutoff, "F falls short": short, "se": error, "within one se": short <= error,
            "grid forwards": grid.forwards, "race forwards": race.forwards, "share": race.forwards / grid.forwards,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of scores")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures")
    args = parser.parse_args(argv)
    warnings.simplefilter("always")
    load, began = os.getloadavg()[0], time.perf_counter()
    found = maps(args)
    print(found, flush=True)
    rows = [row for name, method in PAIRS for row in raced(name, method, args)]
    args.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(args.out / "speed_forgrad.csv", index=False, float_format="%.4g")
    about = {
        "study": "speed_forgrad", "maps": found, "pictures": args.pictures, "precision": args.precision,
        "load_before": round(load, 2), "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - began),
        "commit": commit(), "versions": {"gradspec": gs.__version__, "torch": torch.__version__},
    }  # fmt: skip
    (args.out / "speed_forgrad.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
