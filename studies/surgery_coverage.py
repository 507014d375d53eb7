"""Which downsampling operators surgery swaps, and which it leaves, over architectures of torchvision and timm.

Untrained networks on small pictures with odd sides where they allow it. Every row was checked without gradspec's
knowledge of the network: on the autograd graph no max-pooling and no strided convolution is left but what the record
lists, every module's output keeps its shape, the original's state_dict loads, and, where all that was swapped is a
call of torch.nn.functional, the output equals that of the original with those functions replaced by slow ones.
Writes figures/surgery_coverage.csv and .json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torchvision
from study import commit
from torch import Tensor, nn
from torch.nn import functional as F

import gradspec as gs
from gradspec.surgery import NothingToSwap, Record, average_pooled, blur_pooled

ORDERS = ("blur", "maxblur", "blurmax")
ODD, EVEN, SMALL = (51, 67), (64, 96), (64, 64)
SQUARE: dict[str, Any] = {"img_size": 64}
NETS: dict[str, dict[str, tuple[tuple[int, int], dict[str, Any]]]] = {  # library, architecture: sides, arguments
    "torchvision": {
        **dict.fromkeys((
            "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s", "mnasnet0_5",
            "mnasnet0_75", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
            "regnet_x_800mf", "regnet_y_400mf", "regnet_y_800mf", "resnet18", "resnet34", "resnet50",
            "resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "swin_t",
            "swin_v2_t", "vgg11", "wide_resnet50_2",
        ), (ODD, {})),
        "alexnet": ((71, 95), {}),
        "googlenet": (ODD, {"aux_logits": False, "init_weights": False}),
        "inception_v3": ((75, 95), {"aux_logits": False, "init_weights": False}),
        "vit_b_16": (SMALL, {"image_size": 64}),
    },
    "timm": {
        **dict.fromkeys((
            "convnextv2_atto", "cs3darknet_focus_s", "cspresnet50", "davit_tiny", "densenetblur121d", "dpn48b",
            "edgenext_xx_small", "efficientnet_lite0", "efficientvit_b0", "ese_vovnet19b_slim_dw", "fasternet_t0",
            "fastvit_t8", "focalnet_tiny_srf", "ghostnet_050", "hgnetv2_b0", "inception_next_atto",
            "legacy_seresnet18", "legacy_xception", "lowformer_b0", "mobileone_s1", "nf_regnet_b0", "nfnet_l0",
            "poolformer_s12", "regnety_002", "repvgg_a0", "repvit_m1", "res2next50", "resnest14d", "resnet10t",
            "resnetv2_50x1_bit", "rexnet_100", "selecsls42", "skresnet18",
            "starnet_s050", "test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet",
            "tf_efficientnet_b0", "tf_efficientnetv2_b0", "tf_mixnet_s", "tf_mobilenetv3_small_minimal_100",
            "xception41p",
        ), (ODD, {})),
        **dict.fromkeys((
            "csatv2", "dla46x_c", "mobilevit_xxs", "pvt_v2_b0", "resnetaa50", "resnetblur18", "tiny_vit_5m_224",
            "tresnet_m", "twins_svt_small",
        ), (EVEN, {})),
        **dict.fromkeys((
            "coat_tiny", "coatnet_pico_rw_224", "efficientformerv2_s0", "hiera_tiny_224", "maxvit_rmlp_pico_rw_256",
            "mvitv2_tiny", "nest_tiny", "pit_ti_224", "sequencer2d_s", "swinv2_cr_tiny_224", "visformer_tiny",
            "volo_d1_224",
        ), (SMALL, SQUARE)),
        "cait_xxs24_224": (SMALL, {"img_size": 64, "depth": 3}),
        "convmixer_768_32": ((35, 49), {}),
        "deit_tiny_patch16_224": (SMALL, {"img_size": 64, "depth": 3}),
        "efficientformer_l1": ((224, 224), {}),
        "efficientvit_m0": ((96, 96), {"img_size": 96}),
        "gcvit_xxtiny": (EVEN, {"img_size": EVEN}),
        "halonet_h1": ((256, 256), {}),
        "hrnet_w18_small": ((63, 93), {}),
        "inception_resnet_v2": ((75, 95), {}),
        "inception_v4": ((75, 95), {}),
        "levit_128s": ((96, 96), {"img_size": 96}),
        "mixer_s32_224": (SMALL, SQUARE),
        "pnasnet5large": ((75, 95), {}),
        "swin_tiny_patch4_window7_224": ((64, 128), {"img_size": (64, 128), "window_size": 4}),
        "tnt_s_patch16_224": (SMALL, {"img_size": 64, "depth": 2}),
        "vit_tiny_r_s16_p8_224": ((96, 96), {"img_size": 96, "depth": 2}),
        "xcit_nano_12_p8_224": (EVEN, {"depth": 2}),
    },
}  # fmt: skip
FEW = {  # small ones of many kinds, for the fast test
    "torchvision": ("googlenet", "shufflenet_v2_x0_5", "squeezenet1_1"),
    "timm": (
        "levit_128s", "pit_ti_224", "test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet",
        "tf_mobilenetv3_small_minimal_100", "vit_tiny_r_s16_p8_224",
    ),
}  # fmt: skip


def network(library: str, name: str) -> tuple[nn.Module, Tensor]:
    """Returns an untrained network in eval mode, and a noise picture for it.

    BatchNorm's statistics are those of noise, and no weight is zero: with the statistics of a new build, 0 and 1, and
    residual branches that end in zeros, what goes into a deep network hardly comes out of it.
    """
    torch.manual_seed(0)
    sides, arguments = NETS[library][name]
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    model = make(name, **arguments).eval()
    for key, p in model.named_parameters():
        if not p.any() and not key.endswith("bias"):
            nn.init.normal_(p, std=0.02) if p.ndim > 1 else nn.init.ones_(p)
    x = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(1))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
    return model, x[:1]


# ---- the autograd graph --------------------------------------------------------------------------


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def picture_nodes(model: nn.Module, x: Tensor) -> tuple[list[Any], Tensor]:
    """Returns the autograd nodes between a picture and the output, and the output."""
    leaf = x.clone().requires_grad_()
    output = first(model(leaf))
    depends: dict[Any, bool] = {}
    todo: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while todo:
        node, ready = todo.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        if ready:
            depends[node] = getattr(node, "variable", None) is leaf or any(depends[child] for child in children)
        elif node not in depends:
            depends[node] = False
            todo += [(node, True), *((child, False) for child in children)]
    return [node for node, yes in depends.items() if yes], output.detach()


def shape(edge: tuple[Any, int]) -> tuple[int, ...]:
    """Returns the shape of the tensor that an edge of the graph stands for; () where there is none."""
    return tuple(edge[0]._input_metadata[edge[1]].shape) if edge[0] is not None else ()


def owners(node: Any, names: dict[int, str]) -> set[str]:
    """Returns the modules whose parameters a convolution's weight is computed from."""
    todo, seen, found = [node.next_functions[1][0]], set(), set()
    while todo:
        at = todo.pop()
        if at is None or at in seen:
            continue
        seen.add(at)
        if hasattr(at, "variable") and id(at.variable) in names:
            found.add(names[id(at.variable)].rpartition(".")[0])
        todo += [child for child, _ in at.next_functions]
    return found


@dataclass
class Shrinking:
    """What shrinks the map, as the names of the autograd nodes say: no word of gradspec."""

    maxima: int = 0  # 2-D pooling, adaptive ones, maxima over rows and columns
    strided_maxima: int = 0  # of them those that max_pool2d made with a stride
    convolutions: int = 0  # strided ones
    owners: Counter[str] | None = None  # of the strided ones' weights
    interpolations: int = 0
    slices: int = 0  # with a step, along rows or columns of (N, C, H, W)
    unknown: Counter[str] | None = None


AVERAGES = ("AvgPool", "AdaptiveAvg", "MkldnnAdaptiveAvg", "Mean", "LinalgVectorNorm")
MOVES = ("View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "Clone", "Expand", "AsStrided")


def shrinking(nodes: list[Any], model: nn.Module) -> Shrinking:
    """Returns what shrinks the map among some nodes."""
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    found = Shrinking(owners=Counter(), unknown=Counter())
    assert found.owners is not None and found.unknown is not None
    for node in nodes:
        kind, after = node.name(), shape((node, 0))
        before = shape(node.next_functions[0]) if node.next_functions else ()
        maps = len(before) == len(after) == 4
        shrinks = maps and all(a < b for a, b in zip(after[2:], before[2:], strict=True))
        smaller = shrinks and 5 * math.prod(after[2:]) < 3 * math.prod(before[2:])  # more than a convolution's edges
        if "MaxPool" in kind:
            found.maxima += 1
            found.strided_maxima += max(getattr(node, "_saved_stride", None) or (1,)) > 1
        elif kind.startswith(("AmaxBackward", "MaxBackward")):
            dims = node._saved_dim if kind.startswith("Amax") else [node._saved_dim]
            found.maxima += not (maps and {d % 4 for d in dims} == {1})
        elif kind.startswith("ConvolutionBackward"):
            if max(node._saved_stride) > 1 and not node._saved_transposed:
                found.convolutions += 1
                found.owners.update(owners(node, names))
        elif kind.startswith("SliceBackward"):
            found.slices += maps and node._saved_step > 1 and node._saved_dim in (2, 3)
        elif kind.startswith("Upsample"):
            found.interpolations += math.prod(after) < math.prod(before)
        elif smaller and not kind.startswith((*AVERAGES, *MOVES)):
            found.unknown[kind] += 1
    return found


# ---- the swapped functions by hand ---------------------------------------------------------------


def pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return values[0], values[-1]


def mean_by_hand(x: Tensor, starts: Any, lengths: Any, steps: Any, size: Any) -> Tensor:
    """Returns the means over windows (start + i·step, so long), of what is in the map and finite."""
    pads = []
    for axis in (1, 0):
        end = starts[axis] + (size[axis] - 1) * steps[axis] + lengths[axis] - x.shape[axis - 2]
        pads += [-starts[axis], end]
    x = F.pad(x.masked_fill(x.isinf(), math.nan), pads, value=math.nan)
    return x.unfold(-2, lengths[0], steps[0]).unfold(-2, lengths[1], steps[1]).nanmean((-2, -1))


@contextmanager
def averages_by_hand(patches: bool) -> Iterator[None]:
    """Replaces conv2d and the max-pooling functions of torch.nn.functional by what average_pooled makes of them."""
    conv2d, max_pool2d = F.conv2d, F.max_pool2d

    def conv(
        x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:  # fmt: skip
        steps, usual = pair(stride), conv2d(x, weight, bias, stride, padding, dilation, groups)
        at_input = x.shape[1] == 3 and tuple(weight.shape[2:]) == steps and min(steps) >= 4
        if max(steps) == 1 or (at_input and not patches):
            return usual
        dense = conv2d(x, weight, bias, 1, padding, dilation, groups)
        return mean_by_hand(dense, (0, 0), steps, steps, usual.shape[-2:])

    def pool(
        x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        size = max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode).shape[-2:]
        steps, spans = pair(stride or kernel_size), zip(pair(kernel_size), pair(dilation), strict=True)
        lengths = [max(d * (k - 1) + 1, s) for (k, d), s in zip(spans, steps, strict=True)]
        return mean_by_hand(x, [-p for p in pair(padding)], lengths, steps, size)

    with (
        mock.patch.object(F, "conv2d", conv),
        mock.patch.object(F, "max_pool2d", pool),
        mock.patch.object(F, "adaptive_max_pool2d", lambda x, size, indices=False: F.adaptive_avg_pool2d(x, size)),
    ):
        yield


# ---- one network ---------------------------------------------------------------------------------


Shapes = list[tuple[str, tuple[int, ...]]]


def module_shapes(model: nn.Module, x: Tensor) -> Shapes:
    """Returns every module's name and the shape of its output, in order of the calls."""
    seen: Shapes = []
    handles = [
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.append((name, tuple(out.shape))) if isinstance(out, Tensor) else None
        )
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def left_over(record: Record, *words: str) -> int:
    return sum(any(word in reason for word in words) for reason in record.left.values())


def average_problems(found: Shrinking, before: Shrinking, record: Record) -> Iterator[str]:
    """Yields what the graph of an average-pooled network has that its record does not list, and the other way round."""
    assert found.owners is not None and found.unknown is not None
    listed = left_over(record, "maximum")
    if found.maxima != listed:
        yield f"{found.maxima} maxima, {listed} listed"
    listed = left_over(record, "patch embedding", "conv2d")
    if found.convolutions != listed:
        yield f"{found.convolutions} strided convolutions, {listed} listed"
    names = {name.partition(":")[0] for name in record.left}
    if not set(found.owners) <= names:
        yield f"strided convolutions of {sorted(set(found.owners) - names)}"
    if found.slices > (listed := left_over(record, "slice")):
        yield f"{found.slices} slices, {listed} listed"
    if found.interpolations != (listed := left_over(record, "interpolates")):
        yield f"{found.interpolations} interpolations, {listed} listed"
    if len(found.unknown) and not left_over(record, "not known", "cuts patches", "into channels", "by their numbers"):
        yield f"nodes that shrink the map: {dict(found.unknown)}"
    swapped = Counter(change.type for change in record.changes)
    if swapped["strided convolution"] + swapped["patch embedding"] > before.convolutions:
        yield "more convolutions swapped than there are"


def blur_problems(found: Shrinking, before: Shrinking, record: Record, order: str) -> Iterator[str]:
    """Yields where the graph of a blur-pooled network is not what its order says."""
    swapped = Counter(change.type for change in record.changes)
    kept = left_over(record, "returns its positions")
    if order == "blurmax" and (found.maxima, found.strided_maxima) != (before.maxima, before.strided_maxima):
        yield f"{order}: {found.maxima} maxima of {before.maxima}"
    if order != "blurmax" and found.strided_maxima > kept:
        yield f"{order}: {found.strided_maxima} maxima with a stride"
    if order == "blur" and found.maxima > before.maxima - swapped["max pooling"]:
        yield f"{order}: {found.maxima} maxima of {before.maxima}"
    assert found.owners is not None and before.owners is not None
    strided = set(found.owners) & {change.name for change in record.changes}
    if order == "maxblur" and strided:
        yield f"{order}: still strided: {sorted(strided)}"
    if order != "maxblur" and set(found.owners) != set(before.owners):
        yield f"{order}: other strided convolutions than before"


def operated(model: nn.Module, x: Tensor, surgery: Callable[..., Any], **settings: Any) -> tuple[nn.Module, Record]:
    """Returns the operated network and its record; with patch embeddings where there is nothing else."""
    try:
        return surgery(model, inputs=x, **settings)
    except NothingToSwap:
        return surgery(model, inputs=x, kinds=("max", "stride", "patch"), **settings)


def variant_problems(model: nn.Module, shapes: Shapes, new: nn.Module, x: Tensor) -> Iterator[str]:
    """Yields what a variant did not keep."""
    old_state, new_state = model.state_dict(), new.state_dict()
    if [(k, v.shape, v.dtype) for k, v in old_state.items()] != [(k, v.shape, v.dtype) for k, v in new_state.items()]:
        yield "another state_dict"
    new.load_state_dict(old_state, strict=True)
    if module_shapes(new, x) != shapes:
        yield "other shapes of modules' outputs"


def value_problems(model: nn.Module, pooled: nn.Module, x: Tensor, *, patches: bool) -> Iterator[str]:
    """Yields where an average-pooled network's output is not that of the original with other functions; in float64.

    Some untrained networks with their BatchNorm fixed enlarge a rounding in float32 a million times.
    """
    model, pooled, x = model.double(), pooled.double(), x.double()
    with torch.no_grad():
        old, new = first(model(x)), first(pooled(x))
        with averages_by_hand(patches):
            expected = first(model(x))
    effect, error = float((new - old).abs().max()), float((new - expected).abs().max())
    if effect <= 1e-8 * float(old.abs().max()):  # a LayerScale of 1e-5 in each block lets little through
        yield f"hardly an effect: {effect:.1e}"
    if error > 1e-6 * effect:
        yield f"other values than by hand: {error:.1e}, the effect is {effect:.1e}"


def check(library: str, name: str) -> dict[str, Any]:
    """Returns the row of one architecture; `problems` is empty where everything holds."""
    began, (model, x) = time.perf_counter(), network(library, name)
    nodes, logits = picture_nodes(model, x)
    before, shapes, problems = shrinking(nodes, model), module_shapes(model, x), []
    del nodes

    pooled, record = operated(model, x, average_pooled)
    problems += variant_problems(model, shapes, pooled, x)
    nodes, output = picture_nodes(pooled, x)
    problems += average_problems(shrinking(nodes, pooled), before, record)
    problems += [] if output.shape == logits.shape and bool(output.isfinite().all()) else ["output"]
    del nodes
    blurred = {}
    for order in ORDERS:
        try:
            new, blurs = operated(model, x, blur_pooled, order=order)
        except NothingToSwap:
            blurred[order] = 0
            continue
        blurred[order] = len(blurs.changes)
        problems += [f"{order}: {problem}" for problem in variant_problems(model, shapes, new, x)]
        nodes, output = picture_nodes(new, x)
        problems += blur_problems(shrinking(nodes, new), before, blurs, order)
        problems += [] if bool(output.isfinite().all()) else [f"{order}: output"]
        del nodes
    assert len(set(blurred.values())) == 1, blurred
    by_hand = not any(change.before.startswith("maximum") for change in record.changes)
    if by_hand:
        problems += value_problems(model, pooled, x, patches="patch" in record.settings["kinds"])

    swapped = Counter(change.type for change in record.changes)
    return {
        "library": library,
        "architecture": name,
        "height": x.shape[2],
        "width": x.shape[3],
        "max_poolings": swapped["max pooling"],
        "strided_convolutions": swapped["strided convolution"],
        "patch_embeddings": swapped["patch embedding"],
        "blurred": blurred["blur"],
        "left": "; ".join(f"{n} x {reason}" for reason, n in Counter(record.left.values()).items()),
        "by_hand": "equal" if by_hand else "not compared",
        "notes": " ".join(record.notes),
        "problems": "; ".join(problems),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(argv: list[str] | None = None) -> None:
    """Checks, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", help="architectures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = []
    for library, nets in NETS.items():
        for name in nets:
            if args.only is None or name in args.only:
                rows.append(check(library, name))
                print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "surgery_coverage.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    about = {
        "study": "surgery_coverage", "seed": 0, "threads": args.threads,
        "architectures": {library: sum(row["library"] == library for row in rows) for library in NETS},
        "problems": sum(bool(row["problems"]) for row in rows), "seconds": round(sum(row["seconds"] for row in rows)),
        "torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__,
        "python": platform.python_version(), "gradspec": gs.__version__,
        "commit": commit(),
    }  # fmt: skip
    (args.out / "surgery_coverage.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
