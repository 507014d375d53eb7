"""Trains an embedded network of `gradspec.demo` on generated pictures and writes its weights and a sidecar.

    python studies/train_embedded.py --net vgg_max        # likewise vgg_avg, resnet_stride
    python studies/train_embedded.py --net vit --rate 1e-3 --steps 9000 --half

No picture is seen twice: step s trains on the pictures s·B … (s+1)·B − 1 of one fixed sequence, the same for every
network, and the accuracy is measured on another sequence. The seed sets the initial weights alone.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from study import ROOT, commit
from torch import nn
from tqdm import trange

from gradspec.demo.nets import BUILDERS, DemoNet, load_file
from gradspec.demo.pictures import CLASSES, pictures

SIZE = 64
# Far from the small seeds that users draw: the pictures of seeds 0, 1, 2, ... stay unseen.
TRAIN_SEED, TEST_SEED = 1_000_003, 1_000_033


def initialised(name: str, seed: int) -> DemoNet:
    """Returns the untrained network with the initial weights of a seed; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name]()


def train(net: DemoNet, steps: int, *, batch: int = 64, rate: float = 4e-3, size: int = SIZE) -> list[float]:
    """Trains the network in place (AdamW, one cycle, cross-entropy); returns the loss of each step."""
    net.train().to(memory_format=torch.channels_last)  # a third faster on the CPU
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    losses = []
    progress = trange(steps, desc="training", mininterval=5)
    for step in progress:
        shown = pictures(batch, size, TRAIN_SEED, start=step * batch)
        inputs = net.preprocess(shown.images).to(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(net(inputs), shown.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
    net.eval()
    return losses


@torch.no_grad()
def accuracies(net: DemoNet, count: int, size: int = SIZE) -> list[float]:
    """Returns the share of each class's unseen pictures that the network names right, over `count` pictures in all."""
    right, seen = torch.zeros(len(CLASSES)), torch.zeros(len(CLASSES))
    for start in range(0, count, 100):
        shown = pictures(min(100, count - start), size, TEST_SEED, start=start)
        hit = net(net.preprocess(shown.images)).argmax(1) == shown.labels
        right += torch.bincount(shown.labels, hit.float(), len(CLASSES))
        seen += torch.bincount(shown.labels, minlength=len(CLASSES))
    return (right / seen).tolist()


def save(net: DemoNet, path: Path, spec: dict[str, Any], *, half: bool = False) -> None:
    """Writes the weights, in float32 or rounded to float16, and the spec as their metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
    if half:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    save_file(tensors, path, {"format": "pt", "spec": json.dumps(spec)})
    path.chmod(0o644)  # safetensors writes files that only their owner can read, and the package carries the mode along


def arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(BUILDERS), default="vgg_max")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate of the cycle")
    parser.add_argument("--test", type=int, default=5000, help="number of unseen pictures")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "gradspec" / "demo" / "weights")
    parser.add_argument("--figures", type=Path, default=ROOT / "figures")
    return parser.parse_args()


def main() -> None:
    """Trains, saves, and measures what was saved."""
    options = arguments()
    torch.set_num_threads(options.threads)
    net, begin = initialised(options.net, options.seed), time.perf_counter()
    losses = train(net, options.steps, batch=options.batch, rate=options.rate)
    seconds = time.perf_counter() - begin
    per_class = accuracies(net, options.test)
    spec = {
        "name": options.net,
        "script": "studies/train_embedded.py",
        "size": SIZE,
        "accuracy": round(float(np.mean(per_class)), 4),
        "test_pictures": options.test,
        "train_pictures": options.steps * options.batch,
        "seed": options.seed,
        "steps": options.steps,
        "batch": options.batch,
        "rate": options.rate,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    path = options.out / f"{options.net}.safetensors"
    save(net, path, spec, half=options.half)
    stored = load_file(path, BUILDERS[options.net])
    sidecar = spec | {
        "per_class": dict(zip(CLASSES, (round(share, 4) for share in per_class), strict=True)),
        "accuracy_at_size": {
            str(size): round(float(np.mean(accuracies(stored, 1000, size))), 4) for size in (48, 64, 96, 128)
        },
        "picture_seeds": {"train": TRAIN_SEED, "test": TEST_SEED},
        "loss": [round(float(np.mean(losses[i : i + 50])), 4) for i in range(0, len(losses), 50)],
        "seconds": round(seconds, 1),
        "threads": options.threads,
        "bytes": path.stat().st_size,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": commit(),
    }
    options.figures.mkdir(parents=True, exist_ok=True)
    (options.figures / f"train_embedded_{options.net}.json").write_text(json.dumps(sidecar, indent=1) + "\n")
    print(f"{path}: accuracy {spec['accuracy']:.2%} on {options.test} unseen pictures, {seconds:.0f} s of training")


if __name__ == "__main__":
    main()
