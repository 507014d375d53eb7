"""Runs the paper's studies, one after the other, at a size that two cores bear in a few hours: `make studies`.

    python studies/all_studies.py --nets ../shared/nets --images ../shared/images
    python studies/all_studies.py --only first_order --list

With folders of networks and photographs the trained networks are studied on photographs, and untrained twins of the
paper's architectures beside them; without, the embedded networks on generated pictures. With --paper the paper's own
networks take their pretrained weights, which are downloaded, and the paper's numbers of pictures and passes. A study
that fails does not stop the others, and each goes on where it stopped when this is run again. Ends with 1 where one
failed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
TRAINED = {  # in a folder of networks: factory and weights
    "tiny_darknet": ("tiny_darknet.py:load", "tiny_darknet.safetensors"),
    "mobilenet_v2": ("mobilenet_v2.py:load", "mobilenet_v2.safetensors"),
    "resnet50_ktb": ("resnet_pq.py:load", "resnet50_ktb.safetensors"),
}
UNTRAINED = {
    "vgg16": "torchvision:vgg16", "resnetv2_50": "resnetv2_50", "convnext_tiny": "convnext_tiny",
    "vit_base": "vit_base_patch16_224", "efficientnet_b0": "efficientnet_b0",
}  # fmt: skip
PAPER = {
    "resnetv2_50": "resnetv2_50", "resnetv2_101": "resnetv2_101", "convnext": "convnext_base",
    "vit": "vit_base_patch16_224", "vgg16": "torchvision:vgg16",
}  # fmt: skip
PAPERS_STUDIES = (
    "layer_slopes", "downsampling_gradients", "anti_aliasing", "first_order", "decision_frequencies", "propositions",
    "method_spectra", "judge_methods", "stability_scale", "metric_bias", "sanity_check", "filtered_maps",
)  # fmt: skip
ONE_PLACE = "--precision bf16 --places attribution"
# study, network ("vgg_max", "vit", ... are embedded), options; networks that need a folder are left out without it
PLAN = (
    ("layer_slopes", "vgg_max", ""),
    ("layer_slopes", "vit", "--patch"),
    ("layer_slopes", "resnet50_ktb", ""),
    ("layer_slopes", "mobilenet_v2", ""),
    *(("layer_slopes", f"{name}_untrained", "") for name in UNTRAINED),
    ("downsampling_gradients", "vgg_max", ""),
    ("downsampling_gradients", "resnet50_ktb", "--limit 12"),
    ("downsampling_gradients", "tiny_darknet", "--limit 16"),
    ("downsampling_gradients", "vgg16_untrained", "--limit 8 --variants untrained untrained+avgpool"),
    ("anti_aliasing", "vgg_max", ""),
    ("anti_aliasing", "tiny_darknet", "--limit 24 --twins"),
    ("first_order", "vgg_max", "--limit 64"),
    ("first_order", "tiny_darknet", "--limit 16"),
    ("first_order", "vit", "--limit 24"),
    ("first_order", "resnet50_ktb", "--limit 4 --draws 4 --radii 0.001 0.1 1 10"),
    ("propositions", "vgg_max", "--limit 64"),
    ("propositions", "tiny_darknet", ""),
    ("decision_frequencies", "vgg_max", "--limit 64"),
    ("decision_frequencies", "tiny_darknet", "--limit 24 --radii 0.0625 0.25 1"),
    ("metric_bias", "vgg_max", "--limit 256 --doses 64"),
    ("metric_bias", "tiny_darknet", "--precision bf16 --limit 100 --doses 24"),
    ("sanity_check", "vgg_max", "--limit 64"),
    ("sanity_check", "tiny_darknet", "--limit 16 --stages 4"),
    ("stability_scale", "vgg_max", "--limit 32"),
    ("stability_scale", "tiny_darknet", "--limit 8"),
    ("method_spectra", "vgg_max", ""),
    ("method_spectra", "tiny_darknet", "--limit 16 --grid-pictures 2"),
    ("method_spectra", "vit", "--limit 32"),
    ("method_spectra", "resnet50_ktb", "--limit 4 --grid-pictures 0"),
    ("filtered_maps", "vgg_max", ""),
    ("filtered_maps", "tiny_darknet", "--limit 12 --cutoff 1.76"),
    ("judge_methods", "vgg_max", "--limit 128 --shard 16"),
    ("judge_methods", "vit", "--limit 64 --cutoffs 9 --shard 16"),
    *(("judge_methods", name, "--limit 40 --cutoffs 9 --shard 16") for name in ("vgg_avg", "resnet_stride")),
    ("judge_methods", "tiny_darknet", "--limit 96 --cutoffs 9 --precision bf16"),
    ("judge_methods", "resnet50_ktb", f"--limit 72 --cutoffs 10 --shard 4 --search race {ONE_PLACE}"),
    ("judge_methods", "mobilenet_v2", f"--limit 48 --cutoffs 8 {ONE_PLACE}"),
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--nets", type=Path, help="folder of trained networks, such as tiny_darknet.py and its weights")
    made.add_argument("--images", type=Path, help="folder of labelled photographs")
    made.add_argument("--out", type=Path, default=HERE.parent / "figures")
    made.add_argument("--only", nargs="+", help="names of studies")
    made.add_argument("--paper", action="store_true", help="the paper's networks, pictures and passes")
    made.add_argument("--smoke", action="store_true", help="the smallest size of each")
    made.add_argument("--list", action="store_true", help="print the commands and do nothing")
    return made.parse_args(argv)


def network(name: str, args: argparse.Namespace) -> list[str] | None:
    """Returns the options that name a network and its pictures; None where it takes a folder that is not given."""
    photographs = ["--images", str(args.images)] if args.images else []
    if name in TRAINED:
        factory, weights = TRAINED[name]
        known = args.nets and args.images
        return (
            ["--model", f"{args.nets}/{factory}", "--weights", f"{args.nets}/{weights}", *photographs]
            if known
            else None
        )
    if name.endswith("_untrained"):
        return ["--model", UNTRAINED[name.removesuffix("_untrained")], "--weights", "none", *photographs]
    return ["--model", f"demo:{name}"]


def commands(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the command of each study."""
    if args.paper:
        photographs = ["--images", str(args.images)] if args.images else []
        for study in PAPERS_STUDIES:
            for name, model in PAPER.items():
                yield [study, "--model", model, *photographs, "--paper", "--name", f"{_stem(study)}_{name}_paper"]
        runs = [f"judge_{name}_paper" for name in PAPER]
        yield ["compare_networks", "--paper", "--name", "compare_networks_paper", "--runs", *runs]
        first, *others = PAPER.values()
        sources = ["--model", first, "--others", *others, *photographs]
        yield ["cutoff_sources", *sources, "--paper", "--name", "cutoff_sources_paper"]
        return
    judged = []
    for study, name, options in PLAN:
        chosen = network(name, args)
        if chosen is None:
            continue
        size = ["--smoke"] if args.smoke else shlex.split(options)
        whole = f"{_stem(study)}_{name}"
        judged += [whole] * (study == "judge_methods")
        yield [study, *chosen, *size, "--name", whole]
    smoke = ["--smoke"] * args.smoke
    yield ["compare_networks", *smoke, "--runs", *judged]
    yield ["cutoff_sources", *(smoke or networks(args))]


def networks(args: argparse.Namespace) -> list[str]:
    """Returns the networks whose cutoffs are compared over kinds of pictures."""
    others = ["demo:vgg_avg", "demo:resnet_stride", "demo:vit"]
    if args.nets and args.images:
        others += [f"{args.nets}/{factory}@{args.nets}/{weights}" for factory, weights in TRAINED.values()]
        others += ["--images", str(args.images), "--precision", "bf16", "--limit", "20"]
    return ["--others", *others]


def _stem(study: str) -> str:
    return study.removesuffix("_methods") if study == "judge_methods" else study


def main(argv: Sequence[str] | None = None) -> None:
    """Runs, and tells what failed."""
    args = arguments(argv)
    failed = []
    for study, *options in commands(args):
        if args.only and study not in args.only:
            continue
        command = [sys.executable, str(HERE / f"{study}.py"), *options, "--out", str(args.out)]
        print(f"{time.strftime('%H:%M:%S')} {shlex.join(command[1:])}", flush=True)
        if not args.list and subprocess.run(command, check=False).returncode:
            failed.append(shlex.join(command[1:]))
    if failed:
        raise SystemExit("failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
