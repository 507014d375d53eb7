"""What an audit costs: time and peak memory against the plain pass, and against storing every gradient.

    python studies/speed_audit.py

The floor is the forward pass and the gradient at the input of the same batch. Beside it, in one run and in turn:
`gs.audit` (every operator, both points, exact), and, once, the naive way: tensor hooks that store the gradient at every
module's output, then numpy's complex FFT of each. Times are medians; beside them is the ratio of the fastest passes,
which a busy neighbour on the cores disturbs least. Peak memory is the growth of the resident set during one pass, each
in a process of its own. Writes figures/speed_audit.csv, .png and .json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gradspec as gs

NETS: dict[str, tuple[str, int]] = {  # name: (specification, pictures' side)
    "ResNet50": ("torchvision:resnet50", 224),
    "VGG16": ("torchvision:vgg16", 224),
    "ViT-B/16": ("vit_base_patch16_224", 224),
    "ConvNeXt-T": ("torchvision:convnext_tiny", 224),
    "Inception-v3": ("torchvision:inception_v3", 299),
}
WAYS = ("floor", "audit", "naive")


def floor(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward pass and input gradient, nothing else."""
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(net(leaf).gather(1, y[:, None]).sum(), leaf)


def audited(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """The audit as a user calls it, tables included."""
    gs.audit(net, (x, y), batch_size=len(x), progress=False)


def naive(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Every module's output gradient stored, then numpy's FFT: what one writes first."""
    stored: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: object) -> None:
        if isinstance(out, Tensor) and out.requires_grad and out.ndim >= 3:
            out.register_hook(lambda g: stored.append(g.detach()))

    leaves = [m for m in net.modules() if next(m.children(), None) is None]
    handles = [m.register_forward_hook(keep) for m in leaves]
    floor(net, x, y)
    for handle in handles:
        handle.remove()
    for gradient in stored:
        maps = gradient.numpy() if gradient.ndim == 4 else _token_maps(gradient)
        np.abs(np.fft.fft2(maps)).mean(1)


def _token_maps(tokens: Tensor) -> np.ndarray:
    side = int((tokens.shape[1]) ** 0.5)  # ViT-B at 224 px: 14 x 14 and the class token
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side)).numpy()


PASSES: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {"floor": floor, "audit": audited, "naive": naive}


def prepared(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Returns the untrained network and a batch of noise."""
    spec, side = NETS[name]
    net = gs.load_model(spec, weights="none").requires_grad_(False)
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return net, x, torch.zeros(batch, dtype=torch.long)


def times(name: str, batch: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each way, measured in turn after one round of warming up."""
    net, x, y = prepared(name, batch)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(rounds + 1):
        for way in WAYS if round_ == rounds else WAYS[:2]:
            began = time.perf_counter()
            PASSES[way](net, x, y)
            if round_:
                seconds[way].append(time.perf_counter() - began)
    return seconds


def memory(name: str, batch: int, way: str) -> float:
    """Returns the peak growth of the resident set in one pass, MiB, measured in a fresh process."""
    command = [sys.executable, __file__, "--measure-memory", name, way, "--batch", str(batch)]
    command += ["--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _measure_memory(name: str, way: str, batch: int) -> float:
    net, x, y = prepared(name, batch)
    floor(net, x[:1], y[:1])  # libraries loaded, kernels chosen
    if way == "audit":
        gs.audit(net, x[:1], progress=False)
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def read(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    before = read("VmRSS")
    PASSES[way](net, x, y)
    return (read("VmHWM") - before) / 1024


def figure(rows: list[dict[str, object]], path: Path) -> None:
    """Bars of both ratios for each network."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 3.6), layout="constrained")
    axes = fig.subplots(1, 2)
    for ax, what, title in zip(axes, ("time", "memory"), ("time", "peak memory of the pass"), strict=True):
        for i, (way, colour, hatch) in enumerate((("audit", "#0072B2", ""), ("naive", "#E69F00", "//"))):
            values = [float(str(row[f"{what}_{way}_ratio"])) for row in rows]
            bars = ax.bar(np.arange(len(rows)) + 0.4 * i - 0.2, values, 0.38, label=way, color=colour, hatch=hatch)
            ax.bar_label(bars, fmt="%.2f", fontsize=8)
        ax.axhline(1, color="black", lw=1)
        ax.set_xticks(range(len(rows)), [str(row["net"]) for row in rows], rotation=20, fontsize=8)
        ax.set_title(f"{title} / forward + input gradient", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    fig.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures")
    parser.add_argument("--measure-memory", nargs=2, metavar=("NET", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        print(_measure_memory(args.measure_memory[0], args.measure_memory[1], args.batch))
        return
    load, rows = os.getloadavg()[0], []
    for name in args.nets:
        seconds = times(name, args.batch, args.rounds)
        mebibytes = {way: memory(name, args.batch, way) for way in WAYS}
        median = {way: statistics.median(values) for way, values in seconds.items()}
        row: dict[str, object] = {"net": name, "batch": args.batch, "floor_s": round(median["floor"], 3)}
        row |= {f"time_{way}_ratio": round(median[way] / median["floor"], 2) for way in WAYS[1:]}
        row |= {"time_audit_fastest_ratio": round(min(seconds["audit"]) / min(seconds["floor"]), 2)}
        row |= {"floor_MiB": round(mebibytes["floor"])}
        row |= {f"memory_{way}_ratio": round(mebibytes[way] / mebibytes["floor"], 2) for way in WAYS[1:]}
        rows.append(row)
        print(row, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "speed_audit.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figure(rows, args.out / "speed_audit.png")
    about = {
        "study": "speed_audit", "rounds": args.rounds, "threads": args.threads, "load_before": round(load, 2),
        "torch": torch.__version__, "python": platform.python_version(), "gradspec": gs.__version__,
        "mkldnn": torch.backends.mkldnn.is_available(), "cpu": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    (args.out / "speed_audit.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
