"""All thirteen attributions on one network: faithfulness, μFidelity, stability, localisation, passes and time.

    python studies/score_methods.py --model demo:vgg_max --name methods_demo
    python studies/score_methods.py --model ../shared/nets/tiny_darknet.py:load --weights ... --images ... \
        --reduced --few 16 --name methods_tiny_darknet

Without a folder of pictures: the embedded generated ones, whose object masks give the pointing game and relevance mass.
Maps and metrics are those of `gradspec.presets.default()`; with --reduced the black-box methods get fewer passes, which
the table states. Stability explains twenty noisy copies of each picture: of the black-box methods on 4 pictures, of
those with many gradients on --few, of the others on all. Each number is a mean with its standard error over pictures.
Beside the methods stand three controls that do not know the network: a centred Gaussian, a random Gaussian of the same
width for each picture, and white noise. Writes figures/NAME.csv, NAME.json and NAME.png, a sheet of maps.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from study import REDUCED, commit
from torch import Tensor

import gradspec as gs
from gradspec import metrics as m
from gradspec.attributions import Attribution
from gradspec.controls import centre_prior
from gradspec.controls.maps import gaussian_blob
from gradspec.images import pixels_of
from gradspec.randomness import generator

SCORES = {"deletion": m.Deletion(), "insertion": m.Insertion(), "faithfulness": m.Faithfulness(), "mu": m.MuFidelity()}
SPREAD = 0.15  # of the Gaussians, of the shorter side
BLACK_STABILITY = 4  # pictures


class Case(NamedTuple):
    """Pictures x (N, C, H, W), labels y (N,), ids, object masks (N, H, W) or None."""

    x: Tensor
    y: Tensor
    ids: list[str]
    masks: Tensor | None


def load(args: argparse.Namespace, net: Any) -> Case:
    """Returns the pictures: of a folder, or generated ones with their masks."""
    if args.images is None:
        pictures = gs.demo.pictures(args.limit, seed=args.seed)
        ids = [f"demo{args.seed}-{i}" for i in range(args.limit)]
        return Case(net.preprocess(pictures.images), pictures.labels, ids, pictures.masks)
    folder = gs.load_images(args.images, net, batch_size=1)
    every = max(1, len(folder) // args.limit)  # spread over the classes
    batches = list(islice(folder.subset(range(0, len(folder), every)), args.limit))
    x, y = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:2])
    return Case(x, y, [name for batch in batches for name in batch[2]], None)


def methods(reduced: bool) -> dict[str, Attribution]:
    """Returns the thirteen, the black-box ones with fewer passes where `reduced`."""
    return {name: REDUCED.get(name, method) if reduced else method for name, method in _default().items()}


def _default() -> dict[str, Attribution]:
    return dict(gs.presets.default().attributions)


def controls(case: Case) -> dict[str, Tensor]:
    """Returns maps (N, H, W) that do not know the network."""
    height, width = case.x.shape[-2:]
    places = [torch.rand(2, generator=generator(0, "blob", name)).tolist() for name in case.ids]
    noise = [torch.rand(height, width, generator=generator(0, "white", name)) for name in case.ids]
    blobs = [gaussian_blob(height, width, (r * (height - 1), c * (width - 1)), SPREAD) for r, c in places]
    return {
        "centred Gaussian": centre_prior(SPREAD)(None, case.x, case.y),
        "random Gaussian": torch.stack(blobs).float(),
        "white noise": torch.stack(noise),
    }


def mean(name: str, values: Tensor) -> dict[str, float | int]:
    """Returns the mean over scored pictures, its standard error and their number."""
    known = values[values.isfinite()].double()
    error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else float("nan")
    return {name: float(known.mean()), f"{name} se": error, f"{name} n": len(known)}


def scored(engine: gs.Engine, case: Case, maps: Tensor) -> dict[str, Any]:
    """Returns the metrics of maps of all pictures."""
    row: dict[str, Any] = {}
    for name, metric in SCORES.items():
        if name != "faithfulness":
            row[name] = metric(engine, case.x, case.y, maps, ids=case.ids)
    row["faithfulness"] = row["insertion"] - row["deletion"]
    if case.masks is not None:
        row["pointing"] = m.PointingGame()(None, case.x, case.y, maps, masks=case.masks)
        row["mass"] = m.RelevanceMass()(None, case.x, case.y, maps, masks=case.masks)
    return {key: value for name, values in row.items() for key, value in mean(name, values).items()}


def explained(engine: gs.Engine, method: Attribution, case: Case) -> tuple[Tensor, dict[str, Any]]:
    """Returns a method's maps, and its passes per picture and seconds per 100 explanations."""
    forwards, backwards, began = engine.forwards, engine.backwards, time.perf_counter()
    maps = method(engine, case.x, case.y, ids=case.ids)
    n, seconds = len(case.x), time.perf_counter() - began
    return maps, {
        "forwards": (engine.forwards - forwards) / n,
        "backwards": (engine.backwards - backwards) / n,
        "seconds per 100": 100 * seconds / n,
    }


def stability(engine: gs.Engine, method: Attribution, case: Case, maps: Tensor, pictures: int) -> dict[str, Any]:
    """Returns raw and scale-free stability on the first pictures."""
    part = (tensor[:pictures] for tensor in (case.x, case.y, maps))
    found = m.Stability().distances(engine, *part, ids=case.ids[:pictures], attribution=method)
    return mean("stability", found.raw) | mean("stability scale-free", found.scale_free)


def pictures_for_stability(method: Attribution, case: Case, few: int) -> int:
    """Returns on how many pictures a method's stability is measured."""
    if method.family == "black":
        return BLACK_STABILITY
    return few if method.passes(*case.x.shape[2:]) > 1 else len(case.x)


def settings(method: Attribution) -> str:
    """Returns a method's settings but for functions, as they would be written."""
    fields = ((f.name, getattr(method, f.name)) for f in dataclasses.fields(method))  # pyright: ignore[reportArgumentType]
    return ", ".join(f"{name}={value}" for name, value in fields if not callable(value))


def sheet(case: Case, net: Any, maps: dict[str, Tensor], path: Path, pictures: int = 4) -> None:
    """Draws the first pictures and their maps."""
    pixels = pixels_of(net, case.x[:pictures])
    rows = [
        gs.plots.Shown(pixels[i], [Path(case.ids[i]).name], {name: found[i].numpy() for name, found in maps.items()})
        for i in range(len(pixels))
    ]
    gs.plots.contact_sheet(rows, path.stem).savefig(path)


def main(argv: list[str] | None = None) -> None:
    """Explains, scores, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="demo:vgg_max")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7, help="of the generated pictures")
    parser.add_argument("--reduced", action="store_true", help="fewer passes for black-box methods")
    parser.add_argument("--few", type=int, default=64, help="pictures for the stability of methods of many gradients")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of scores")
    parser.add_argument("--no-controls", action="store_true", help="leave out the maps that know no network")
    parser.add_argument("--only", nargs="+", help="names of methods")
    parser.add_argument("--name", default="methods_demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures")
    args = parser.parse_args(argv)
    warnings.simplefilter("always")
    net = gs.load_model(args.model, args.weights)
    case, engine = load(args, net), gs.Engine(net, precision=args.precision)
    rows: list[dict[str, Any]] = []
    maps: dict[str, Tensor] = {}
    began, load_before = time.perf_counter(), os.getloadavg()[0]
    for name, method in methods(args.reduced).items():
        if args.only and name not in args.only:
            continue
        maps[name], cost = explained(engine, method, case)
        row = {"method": name, "settings": settings(method), **cost, **scored(engine, case, maps[name])}
        row |= stability(engine, method, case, maps[name], pictures_for_stability(method, case, args.few))
        rows.append(row)
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    for name, found in ({} if args.no_controls else controls(case)).items():
        rows.append({"method": f"({name})", "settings": "", **scored(engine, case, found)})
        print(rows[-1], flush=True)
    accuracy = float((engine.predictions(case.x) == case.y).float().mean())
    about = {
        "study": "score_methods", "model": args.model, "pictures": len(case.x), "seed": args.seed,
        "size": list(case.x.shape[1:]), "accuracy": accuracy, "reduced": args.reduced, "few": args.few,
        "object's share of pixels": None if case.masks is None else float(case.masks.float().mean()),
        "precision": args.precision, "form": engine.form, "units": engine.units, "threads": torch.get_num_threads(),
        "load_before": round(load_before, 2), "seconds": round(time.perf_counter() - began), "commit": commit(),
        "versions": {"gradspec": gs.__version__, "torch": torch.__version__},
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(args.out / f"{args.name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    (args.out / f"{args.name}.json").write_text(json.dumps(about, indent=1) + "\n")
    sheet(case, net, maps, args.out / f"{args.name}.png")


if __name__ == "__main__":
    main()
