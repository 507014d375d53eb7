"""Max-pooling and strides swapped for average pooling or for blurs (SPEC §3)."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, fx, nn

from gradspec.surgery.calls import AdaptiveMax, MaxPool, identities
from gradspec.surgery.copies import with_trial
from gradspec.surgery.pooling import Average, Blur, Kernel, Order
from gradspec.surgery.record import Change, NothingToSwap, Record, finish
from gradspec.surgery.sites import PATCH, Site, Survey, example_pictures, survey
from gradspec.surgery.swaps import Swap, UnknownCall, swap

Kind = Literal["max", "stride", "patch"]
Names = str | Sequence[str] | None

_TYPES: dict[Kind, str] = {"max": "max pooling", "stride": "strided convolution", "patch": "patch embedding"}


def average_pooled(
    model: nn.Module, *, kernel: Kernel = "same", only: Names = None, except_: Names = None,
    kinds: Sequence[Kind] = ("max", "stride"), inputs: Tensor | None = None,
) -> tuple[nn.Module, Record]:  # fmt: skip
    """Returns a copy of the network with average pooling for every max-pooling and strided convolution, and its record.

    Every map keeps its size, state_dict its keys (paper §4.3; SPEC §3). Max-pooling becomes the mean over its own
    windows; a strided convolution the same convolution at stride 1, then the mean over stride x stride. Functional
    operators, TF's same padding and weight-standardised convolutions are swapped as well. Left, and listed in the
    record: patch embeddings (kernel = stride ≥ 4 at the input) unless asked for, max-pooling that returns indices,
    transposed convolutions, patch merging, slices with a step, interpolation and more (docs/surgery.md). Modules that
    the forward pass in eval mode does not call (auxiliary heads) stay as they are.

    The weights stay, so the network computes something else: compare its accuracy before its gradients.

    Args:
        model: Any network; untouched.
        kernel: Side of the means in place of max-pooling: "same" as its own, a number, or "multiple_of_stride", whose
            gradient has no checkerboard (a mean over 3 x 3 at stride 2 alternates between one and two windows); never
            less than the stride.
        only: Calls to swap: names as in an audit, or patterns. A name means that call alone (":max_pool2d" leaves
            ":max_pool2d#1"); the exact name of a patch embedding asks for it.
        except_: Calls to leave, likewise.
        kinds: "max", "stride", "patch" (patch embeddings).
        inputs: Pictures (N, C, H, W) to find the operators with. None: noise of the size that the model states, or 224
            pixels a side.

    Raises:
        NothingToSwap: No operator matches; with the nearest names.
        TypeError: For compiled, replicated or TorchScript models.
        ValueError: The network does not run on `inputs`; an argument that is none of those above.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(288, 10))
        >>> pooled, record = average_pooled(net, inputs=torch.rand(1, 3, 26, 26))
        >>> [f"{change.name}: {change.after}" for change in record.changes]
        ['0: stride 1, then mean over 2 x 2', '1: mean over 2 x 2, stride 2']
    """
    if kernel not in ("same", "multiple_of_stride") and not (isinstance(kernel, int) and kernel >= 1):
        raise ValueError(f'Expected kernel="same", "multiple_of_stride" or a number of 1 or more, got {kernel!r}.')
    return _operated(model, Average(kernel), "average_pooled", {"kernel": kernel}, only, except_, kinds, inputs)


def blur_pooled(
    model: nn.Module, *, order: Order = "blur", only: Names = None, except_: Names = None,
    kinds: Sequence[Kind] = ("max", "stride"), inputs: Tensor | None = None,
) -> tuple[nn.Module, Record]:  # fmt: skip
    """Returns a copy of the network with a low-pass filter before every stride, and its record (SPEC §3).

    Args:
        model: Any network; untouched.
        order: "blur": max-pooling becomes blur and stride. "maxblur": max-pooling or convolution at stride 1, then blur
            and stride (Zhang 2019). "blurmax": blur, then the max-pooling. In the first and the last the blur of a
            strided convolution stands before it. The filter for stride s has 2s − 1 binomial taps.
        only: As for `average_pooled`, and so are except_, kinds and inputs. Max-pooling without a stride is left.
        except_: Calls to leave.
        kinds: "max", "stride", "patch".
        inputs: Pictures (N, C, H, W) to find the operators with.

    Raises:
        NothingToSwap: No operator matches; with the nearest names.
        TypeError: For compiled, replicated or TorchScript models.
        ValueError: The network does not run on `inputs`; an argument that is none of those above.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(1152, 10))
        >>> blur_pooled(net, order="maxblur", inputs=torch.rand(1, 3, 26, 26))[1].changes[0].after
        'stride 1, then blur 3 x 3, stride 2'
    """
    if order not in ("blur", "maxblur", "blurmax"):
        raise ValueError(f'Expected order="blur", "maxblur" or "blurmax", got {order!r}.')
    return _operated(model, Blur(order), "blur_pooled", {"order": order}, only, except_, kinds, inputs)


# ---- the surgery -------------------------------------------------------------------------------


def _operated(
    model: nn.Module, replacement: Average | Blur, surgery: str, settings: dict[str, Any], only: Names, except_: Names,
    kinds: Sequence[Kind], inputs: Tensor | None,
) -> tuple[nn.Module, Record]:  # fmt: skip
    """The copy with the replacement at every selected operator, checked on the graph of another one."""
    choice = _Choice(_patterns(only, "only"), _patterns(except_, "except_"), _kinds(kinds))
    new, trial, twins = with_trial(model)
    pictures = example_pictures(trial, inputs)
    try:
        before = survey(trial, pictures)
    except ValueError as error:
        hint = " Give pictures that it takes as `inputs`." if inputs is None and error.__cause__ else ""
        raise ValueError(f"{str(error).rstrip('.')}.{hint}") from error
    choice.require_matches(before)
    known = {name for site in before.sites for name in site.names}
    reasons = {site: choice.reason(site, known) or _unswappable(site, replacement, twins) for site in before.sites}
    chosen = [site for site, reason in reasons.items() if not reason]
    if not chosen:
        raise NothingToSwap(_nothing(model, before, reasons))
    changes = tuple(_change(site, replacement) for site in chosen)
    _swap(before, chosen, replacement, {site.module: site.module for site in chosen})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownCall)  # the notes say it
        after = survey(trial, pictures)
    notes = _checked(after, before, reasons, replacement)
    _swap(before, chosen, replacement, twins)
    settings |= choice.settings() | {"input_shape": list(pictures.shape[1:])}
    return finish(new, Record(surgery, settings, changes, _left(before, reasons, replacement), notes))


def _change(site: Site, replacement: Average | Blur) -> Change:
    calls = tuple(site.names) if len(site.names) > 1 else ()
    return Change(site.names[0], site.type, str(site.call), replacement.words(site.call), calls)


def _left(before: Survey, reasons: dict[Site, str], replacement: Average | Blur) -> dict[str, str]:
    kept = {site: reason for site, reason in reasons.items() if reason}
    if isinstance(replacement, Blur):  # to which a maximum that shrinks no map is nothing
        kept = {site: reason for site, reason in kept.items() if not _is_dense(site)}
    return before.others | {name: reason for site, reason in kept.items() for name in site.names}


def _is_dense(site: Site) -> bool:
    return not isinstance(site.call, AdaptiveMax) and max(site.call.stride) == 1


def _checked(after: Survey, before: Survey, reasons: dict[Site, str], replacement: Average | Blur) -> tuple[str, ...]:
    """What the operated network's own graph says against the surgery or the record: nothing, or notes."""
    assert after.shapes == before.shapes, f"the surgery changed the output's shape to {after.shapes}"
    notes = []
    if before.finite and not after.finite:
        notes.append("The output holds NaN or infinite values after the surgery.")
    kept = sum(len(site.names) for site, reason in reasons.items() if reason)
    more = sum(len(site.names) for site in after.sites) - kept
    if more > 0 and not isinstance(replacement, Blur):  # blurs have strides themselves
        notes.append(f"{more} downsampling operators are still called after the surgery: the network's path varies.")
    if before.untold:
        where = f"{before.untold[0]!r}" + f" and {len(before.untold) - 1} more" * (len(before.untold) > 1)
        notes.append(f"The map's layout cannot be told behind {where}: a linear layer that shrinks it is not listed.")
    return tuple(notes)


def _swap(
    found: Survey, chosen: Sequence[Site], replacement: Average | Blur, modules: dict[nn.Module, nn.Module]
) -> None:
    """Swaps the chosen ones of the operators that were found, in the modules that `modules` says."""
    by_module: dict[nn.Module, list[Site]] = {}
    for site in chosen:
        by_module.setdefault(site.module, []).append(site)
    for module, own in by_module.items():
        words = "; ".join(dict.fromkeys(replacement.words(site.call) for site in own))
        known = frozenset((number, what) for owner, number, what in found.known if owner is module)
        calls = frozenset((site.number, name) for site in own for name in identities(site.call))
        swap(modules[module], Swap(calls, replacement, words, known))


def _unswappable(site: Site, replacement: Average | Blur, twins: dict[nn.Module, nn.Module]) -> str:
    """Why an operator cannot be swapped, or ""."""
    if site.module not in twins:
        return "the network makes its module anew in every forward pass"
    if "forward" in vars(site.module) or isinstance(site.module, fx.GraphModule):
        return "its module's forward is its own, not its class's"
    if isinstance(site.call, MaxPool) and bool(site.call.x.isneginf().any()):
        return "padded with −∞ by another module"
    if isinstance(replacement, Average):
        return ""
    if isinstance(site.call, AdaptiveMax):
        return "an adaptive maximum has no stride to blur for"
    return "has no stride to blur for" if _is_dense(site) else ""


# ---- which operators ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """What the caller asked for."""

    only: list[str] | None
    except_: list[str] | None
    kinds: tuple[Kind, ...]

    def reason(self, site: Site, known: Container[str]) -> str:
        """Why an operator is left, or ""; `known`: the names of all of them."""
        if self.only is not None and not any(_selects(pattern, site, known) for pattern in self.only):
            return "not selected"
        if any(_selects(pattern, site, known) for pattern in self.except_ or []):
            return "not selected"
        if site.type == PATCH and set(_forms(site.names)) & set(self.only or []):
            return ""
        if site.type not in {_TYPES[kind] for kind in self.kinds}:
            return (
                'a patch embedding: swapped by its name or with kinds "patch"' if site.type == PATCH else "not selected"
            )
        return ""

    def require_matches(self, found: Survey) -> None:
        """Raises where a name or pattern matches no operator that could be swapped."""
        names = _forms(name for site in found.sites for name in site.names)
        for pattern in (*(self.only or []), *(self.except_ or [])):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                left = found.others.get(pattern)
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
                why = f"{pattern!r} cannot be swapped: {left}" if left else f"No operator to swap matches {pattern!r}"
                raise NothingToSwap(f"{why}; there are, for example: {', '.join(map(repr, near)) or 'none'}.")

    def settings(self) -> dict[str, Any]:
        return {"only": self.only, "except": self.except_, "kinds": list(self.kinds)}


def _patterns(names: Names, argument: str) -> list[str] | None:
    if names is None:
        return None
    listed: list[Any] = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [names]
    if not all(isinstance(name, str) for name in listed):
        raise TypeError(f"Expected {argument} as calls' names or patterns, one or several, got {names!r}.")
    return listed


def _kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    if isinstance(kinds, str) or not kinds or set(kinds) - set(get_args(Kind)):
        raise ValueError(f'Expected kinds as a tuple of "max", "stride", "patch", got {kinds!r}.')
    return tuple(kinds)


def _selects(pattern: str, site: Site, known: Container[str]) -> bool:
    """Whether a name or pattern means an operator: an exact name means one alone, not its namesakes with numbers."""
    if pattern in known:
        return pattern in site.names
    return any(fnmatch.fnmatchcase(name, pattern) for name in _forms(site.names))


def _forms(names: Iterable[str]) -> list[str]:
    """Each name, and without the number of a second call."""
    return list(dict.fromkeys(form for name in names for form in (name, name.partition("#")[0])))


def _nothing(model: nn.Module, found: Survey, reasons: dict[Site, str]) -> str:
    """The sentence for a surgery without an operator to change."""
    why = {name: reason for site, reason in reasons.items() for name in site.names} | found.others
    told = sorted(why.items(), key=lambda item: item[1] == "not selected")  # the other reasons first
    said = "; ".join(f"{name}: {reason}" for name, reason in told[:4])
    return f"{type(model).__name__} has no operator that this surgery swaps" + (f" ({said})." if said else ".")
