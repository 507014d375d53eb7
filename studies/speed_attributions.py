"""What the attributions and metrics cost: time against the bare loop, and against other libraries.

    python studies/speed_attributions.py --model FILE.py:factory --weights FILE --images FOLDER

The floor is the loop that one would write first, over the network as it was loaded, at the batch size at which it is
fastest: for white-box methods forward and input gradient, for gray-box ones forward and the gradient at the last
spatial layer, for black-box methods and metrics forward passes, as many as the method takes. Ours runs with an engine
that is kept (what making it takes stands apart) and is measured in turn with the floor, in one run; ratios are of
medians. The same work by captum (with its defaults, and tuned), pytorch-grad-cam, torch-cam and Quantus, where they are
installed and have it. Black-box budgets are small: time goes with the passes, which are stated.

Numbers: each method's maps with the engine's copy against those as loaded, the largest difference over the largest
value; beside it the same between one thread and two, as loaded. Writes figures/speed_attributions.csv, .json and .png.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from study import commit
from torch import Tensor, nn

import gradspec as gs
from gradspec import attributions as a
from gradspec import metrics as m
from gradspec.attributions import Attribution

Work = Callable[[], Any]
ROUNDS = 3
PEERS = {"captum": "o", "captum tuned": "s", "grad-cam": "^", "torch-cam": "v", "Quantus": "P"}  # and their markers
STEPS = 12  # of the curves: Quantus wants a number that divides the pixels


@dataclass(frozen=True, eq=False)
class Case:
    """A network, pictures x (N, 3, H, W) and their labels y (N,)."""

    net: nn.Module
    x: Tensor
    y: Tensor

    def first(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns the first n pictures and labels."""
        return self.x[:n], self.y[:n]


@dataclass(frozen=True, eq=False)
class Subject:
    """Something to be measured: how many pictures, on which floor it stands, and how an engine does it."""

    name: str
    floor: str
    pictures: int
    passes: int
    run: Callable[[nn.Module | gs.Engine, Tensor, Tensor], Any]


def attribution(method: Attribution, floor: str, pictures: int, height: int, width: int) -> Subject:
    """Returns an attribution as a subject."""
    return Subject(type(method).__name__, floor, pictures, method.passes(height, width), method)


def subjects(height: int, width: int) -> list[Subject]:
    """Returns the thirteen methods, the trio and the metrics, with budgets for minutes on a laptop."""
    trio = [a.SmoothGrad(samples=16), a.VarGrad(samples=16), a.SquareGrad(samples=16)]
    white = [(method, 32) for method in (a.Saliency(), a.GuidedBackprop(), a.GradientInput())]
    white += [(method, 4) for method in (a.IntegratedGradients(steps=16), *trio)]
    gray = [(method, 32) for method in (a.GradCAM(), a.GradCAMPlusPlus())]
    black = [a.Occlusion(patch=32, stride=32), a.RISE(masks=64), a.Sobol(grid=4, designs=4), a.HSIC(designs=64)]
    found = [attribution(method, "gradient", n, height, width) for method, n in white]
    found.append(Subject("trio together", "gradient", 4, 16, lambda net, x, y: a.together(trio, net, x, y)))
    found += [attribution(method, "layer gradient", n, height, width) for method, n in gray]
    found += [attribution(method, "forward", 1, height, width) for method in black]
    for metric in (m.Deletion(steps=STEPS), m.Insertion(), m.Faithfulness(), m.MuFidelity(subsets=60)):
        found.append(_metric(metric, height, width))
    stability, saliency = m.Stability(samples=8), a.Saliency()

    def stable(net: nn.Module | gs.Engine, x: Tensor, y: Tensor) -> Tensor:
        return stability(net, x, y, None, attribution=saliency)

    found.append(Subject("Stability of Saliency", "gradient", 4, 9, stable))
    return found


def _metric(metric: Any, height: int, width: int) -> Subject:
    maps = torch.rand(16, height, width, generator=torch.Generator().manual_seed(1))
    name, passes = type(metric).__name__, metric.passes(height, width)
    return Subject(
        name, "forward", 4 if passes < 50 else 1, passes, lambda net, x, y: metric(net, x, y, maps[: len(x)])
    )


# ---- the floors ----------------------------------------------------------------------------------


def floor(case: Case, kind: str, passes: int, batch: int) -> None:
    """Does so many passes over the network as loaded, and nothing else."""
    for start in range(0, passes, batch):
        rows = torch.arange(start, min(start + batch, passes)) % len(case.x)
        _pass(case, kind, case.x[rows], case.y[rows])


def _pass(case: Case, kind: str, x: Tensor, y: Tensor) -> None:
    if kind == "forward":
        with torch.no_grad():
            case.net(x).softmax(1)
        return
    kept: list[Any] = []
    handle = _last_layer(case.net).register_forward_hook(lambda module, args, out: kept.append(out))
    leaf = x.clone().requires_grad_()
    try:
        score = case.net(leaf).gather(1, y[:, None]).sum()
    finally:
        handle.remove()
    torch.autograd.grad(score, leaf if kind == "gradient" else kept[-1])


def _last_layer(net: nn.Module) -> nn.Module:
    return net.get_submodule("layer4")


def best_batch(case: Case, kind: str) -> int:
    """Returns the batch size at which the floor is fastest, of 8, 16 and 32."""
    took = {}
    for batch in (8, 16, 32):
        floor(case, kind, batch, batch)
        took[batch] = min(_seconds(lambda batch=batch: floor(case, kind, 32, batch)) for _ in range(2))
    return min(took, key=lambda batch: took[batch])


# ---- other libraries -----------------------------------------------------------------------------


def peers(case: Case) -> dict[str, dict[str, Work]]:
    """Returns, for our name of a subject, the same work by each library that is installed."""
    found: dict[str, dict[str, Work]] = {}
    for library in (_captum, _grad_cam, _torch_cam, _quantus):
        with contextlib.suppress(ImportError):
            for subject, name, work in library(case):
                found.setdefault(subject, {})[name] = work
    return found


def _captum(case: Case) -> list[tuple[str, str, Work]]:
    from captum import attr

    net, (many, many_labels), (few, labels), (one, its) = case.net, case.first(32), case.first(4), case.first(1)
    smooth = attr.NoiseTunnel(attr.Saliency(net))
    window: Any = {"sliding_window_shapes": (3, 32, 32), "strides": (3, 32, 32), "target": its}
    path: Any = {"target": labels, "n_steps": 16, "method": "riemann_trapezoid"}

    def tunnel(kind: str, **more: Any) -> Work:
        settings: Any = {"nt_type": kind, "nt_samples": 16, "stdevs": 0.1, "abs": False, "target": labels}
        return lambda: smooth.attribute(few, **settings, **more)

    works: list[tuple[str, str, Work]] = [
        ("Saliency", "captum", lambda: attr.Saliency(net).attribute(many, target=many_labels)),
        ("GradientInput", "captum", lambda: attr.InputXGradient(net).attribute(many, target=many_labels)),
        ("GuidedBackprop", "captum", lambda: attr.GuidedBackprop(net).attribute(many, target=many_labels)),
        ("IntegratedGradients", "captum", lambda: attr.IntegratedGradients(net).attribute(few, **path)),
        (
            "IntegratedGradients", "captum tuned",
            lambda: attr.IntegratedGradients(net).attribute(few, **path, internal_batch_size=16),
        ),
        ("GradCAM", "captum", lambda: attr.LayerGradCam(net, _last_layer(net)).attribute(many, target=many_labels)),
        ("Occlusion", "captum", lambda: attr.Occlusion(net).attribute(one, **window)),
        ("Occlusion", "captum tuned", lambda: attr.Occlusion(net).attribute(one, **window, perturbations_per_eval=16)),
    ]  # fmt: skip
    for name, kind in (("SmoothGrad", "smoothgrad"), ("VarGrad", "vargrad"), ("SquareGrad", "smoothgrad_sq")):
        works += [(name, "captum", tunnel(kind)), (name, "captum tuned", tunnel(kind, nt_samples_batch_size=4))]
    return works


def _grad_cam(case: Case) -> list[tuple[str, str, Work]]:
    import pytorch_grad_cam as cams  # pyright: ignore[reportMissingImports]
    from pytorch_grad_cam.utils.model_targets import (  # pyright: ignore[reportMissingImports]
        ClassifierOutputTarget,
    )

    x, y = case.first(32)
    targets = [ClassifierOutputTarget(label) for label in y.tolist()]

    def work(kind: Any) -> Work:
        def run() -> None:
            with kind(case.net, [_last_layer(case.net)]) as cam:
                cam(x.clone().requires_grad_(), targets)  # the weights need no gradient

        return run

    return [("GradCAM", "grad-cam", work(cams.GradCAM)), ("GradCAMPlusPlus", "grad-cam", work(cams.GradCAMPlusPlus))]


def _torch_cam(case: Case) -> list[tuple[str, str, Work]]:
    from torchcam import methods  # pyright: ignore[reportMissingImports]

    x, y = case.first(32)

    def work(kind: Any) -> Work:
        def run() -> None:
            with kind(case.net, "layer4") as cam:
                cam(y.tolist(), case.net(x.clone().requires_grad_()))

        return run

    return [("GradCAM", "torch-cam", work(methods.GradCAM)), ("GradCAMPlusPlus", "torch-cam", work(methods.GradCAMpp))]


def _quantus(case: Case) -> list[tuple[str, str, Work]]:
    import quantus  # pyright: ignore[reportMissingImports]

    x, y = (tensor.numpy() for tensor in case.first(8))
    maps = torch.rand(8, 1, *case.x.shape[2:], generator=torch.Generator().manual_seed(1)).numpy()

    def work(metric: Any, n: int) -> Work:
        return lambda: metric(
            model=case.net, x_batch=x[:n], y_batch=y[:n], a_batch=maps[:n], device="cpu", batch_size=8, softmax=True
        )

    quiet: Any = {"disable_warnings": True, "display_progressbar": False}
    flipping = quantus.PixelFlipping(features_in_step=x[0].size // STEPS, perturb_baseline="black", **quiet)
    correlation = quantus.FaithfulnessCorrelation(nr_runs=60, subset_size=10_000, perturb_baseline="black", **quiet)
    return [("Deletion", "Quantus", work(flipping, 4)), ("MuFidelity", "Quantus", work(correlation, 1))]


# ---- measuring -----------------------------------------------------------------------------------


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        work()
    return time.perf_counter() - began


def measured(case: Case, subject: Subject, batch: int, others: dict[str, Work], rounds: int, bf16: bool) -> dict:
    """Returns the medians of a subject, its floor and its peers, measured in turn, and the ratios."""
    x, y = case.first(subject.pictures)
    passes = subject.passes * subject.pictures
    engine = gs.Engine(case.net, progress=False)
    ways: dict[str, Work] = {
        "ours": lambda: subject.run(engine, x, y),
        "floor": lambda: floor(case, subject.floor, passes, batch),
    }
    if bf16 and subject.floor == "forward":
        half = gs.Engine(case.net, precision="bf16", progress=False)
        ways["ours bf16"] = lambda: subject.run(half, x, y)
    ways |= others
    took: dict[str, list[float]] = {way: [] for way in ways}
    began = engine.forwards
    for round_ in range(rounds + 1):
        for way, work in ways.items():
            if round_:
                took[way].append(_seconds(work))
            elif way not in others:  # warms up, and makes the engine's copy
                _seconds(work)
    median = {way: statistics.median(values) for way, values in took.items()}
    row = {
        "subject": subject.name, "pictures": subject.pictures, "passes": subject.passes,
        "passes counted": (engine.forwards - began) / (rounds + 1) / subject.pictures,
        "floor": subject.floor, "batch": batch, "floor_s": median["floor"], "ours_s": median["ours"],
        "faster": median["floor"] / median["ours"],
        "faster, fastest": min(took["floor"]) / min(took["ours"]),
    }  # fmt: skip
    if "ours bf16" in median:
        row["faster bf16"] = median["floor"] / median["ours bf16"]
    return row | {f"{way} / ours": median[way] / median["ours"] for way in others}


def differences(case: Case, subject: Subject) -> dict[str, float]:
    """Returns how far the maps (or values) are from those as loaded, and how far those of one thread are from two's."""
    x, y = case.first(2)

    def run(**settings: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = subject.run(gs.Engine(case.net, progress=False, **settings), x, y)
        return (found[0] if isinstance(found, list) else found).double()

    threads = torch.get_num_threads()
    exact, copied = run(as_loaded=True), run()
    torch.set_num_threads(1)
    one = run(as_loaded=True)
    torch.set_num_threads(threads)
    largest = exact.abs().max().clamp(min=1e-30)
    return {
        "difference": float((copied - exact).abs().max() / largest),
        "one thread": float((one - exact).abs().max() / largest),
    }


def faithfulness_in_bf16(case: Case) -> dict[str, float]:
    """Returns how much F of Saliency's maps changes with bfloat16 scores, on all pictures."""
    x, y = case.x, case.y
    maps = a.Saliency()(case.net, x, y)
    exact = m.Faithfulness()(gs.Engine(case.net, progress=False), x, y, maps)
    half = m.Faithfulness()(gs.Engine(case.net, precision="bf16", progress=False), x, y, maps)
    change = (half - exact).double()
    return {
        "pictures": len(x), "F": float(exact.mean()), "F bf16": float(half.mean()),
        "largest change of a picture": float(change.abs().max()), "mean change": float(change.mean()),
    }  # fmt: skip


def figure(rows: list[dict], path: Path) -> None:
    """Draws how many times faster than the floor each subject is, and its peers."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 0.42 * len(rows) + 1.2), layout="constrained")
    ax = fig.subplots()
    for y, row in enumerate(reversed(rows)):
        ax.barh(y, row["faster"], color="#0072B2", height=0.6, label="gradspec" if not y else None)
        if "faster bf16" in row:
            ax.plot(row["faster bf16"], y, "D", color="#56B4E9")
        for name, marker in PEERS.items():
            if f"{name} / ours" in row:
                ax.plot(row["faster"] / row[f"{name} / ours"], y, marker, color="#D55E00", mfc="none")
    ax.plot([], [], "D", color="#56B4E9", label="gradspec, bfloat16")
    for name, marker in PEERS.items():
        ax.plot([], [], marker, color="#D55E00", mfc="none", label=name)
    ax.axvline(1, color="black", lw=1)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.set_yticks(range(len(rows)), [str(row["subject"]) for row in reversed(rows)])
    ax.set_xlabel("times the speed of the bare loop over the network as loaded")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper right")
    fig.savefig(path, dpi=150)


def load(args: argparse.Namespace) -> Case:
    """Returns the network, and photographs where there are some, else noise."""
    net = gs.load_model(args.model, args.weights)
    if args.images:
        batches = islice(gs.load_images(args.images, net, batch_size=8), 4)
        x, y = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:2])
    else:
        x, y = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0)), torch.arange(32)
    return Case(net.requires_grad_(False), x, y)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="torchvision:resnet50", help="a ResNet: the last layer is `layer4`")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--only", nargs="+", help="names of subjects")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--name", default="speed_attributions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures")
    args = parser.parse_args(argv)
    case, before = load(args), os.getloadavg()[0]
    chosen = [s for s in subjects(*case.x.shape[2:]) if not args.only or s.name in args.only]
    batch = {kind: best_batch(case, kind) for kind in sorted({s.floor for s in chosen})}
    others, rows = peers(case), []
    preparing = min(_seconds(lambda: next(gs.Engine(case.net).groups(*case.first(1)))) for _ in range(2))
    for subject in chosen:
        row = measured(case, subject, batch[subject.floor], others.get(subject.name, {}), args.rounds, bf16=True)
        rows.append({**row, **differences(case, subject)})
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    about = {
        "study": "speed_attributions", "model": args.model, "photographs": bool(args.images), "rounds": args.rounds,
        "best batch": batch, "engine made in s": round(preparing, 2), "form": _form(case),
        "faithfulness in bf16": faithfulness_in_bf16(case),
        "threads": torch.get_num_threads(), "load_before": round(before, 2), "commit": commit(),
        "cpu": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version(), "versions": _versions(),
    }  # fmt: skip
    write(rows, about, args.out, args.name)


def _form(case: Case) -> str:
    engine = gs.Engine(case.net)
    engine.predictions(case.x[:1])
    return engine.form


def _versions() -> dict[str, str]:
    found = {"gradspec": gs.__version__}
    for package in ("torch", "captum", "grad-cam", "torchcam", "quantus"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write(rows: list[dict], about: dict, out: Path, name: str) -> None:
    """Writes the table, what it is of, and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(out / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
    (out / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    figure(rows, out / f"{name}.png")


if __name__ == "__main__":
    main()
