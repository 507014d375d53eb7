"""Taylor test: how well a filtered gradient still predicts the network's output (paper §4.2, fig. 4A and A.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gradspec._checks import check_cutoff, check_positive, check_whole
from gradspec._showing import figure_of, html_of
from gradspec.attributions.words import text_of
from gradspec.controls.maps import SPREAD, random_blob
from gradspec.controls.runs import labelled, name_of
from gradspec.data import Data
from gradspec.engine import Engine, Pictures
from gradspec.forgrad import low_passes
from gradspec.fourier import FilterShape, low_pass_mask
from gradspec.randomness import generator
from gradspec.surgery.copies import copied
from gradspec.targets import Target, label_logit

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["residual", "unfiltered", "mirrored"]

RADII = tuple(10 ** (k / 2) for k in range(-6, 4))  # 0.001 to 32: float64 sees residuals of all of them
NO_FILTER = "no filter"
CONTROLS = ("zero", "permuted", "uniform", "Gaussian")


@dataclass(frozen=True, eq=False)
class Taylor:
    """How far first-order predictions miss, by gradient and radius; made by `taylor`.

    Attributes:
        table: One row per picture, gradient and radius: `picture`, `label`, `score` f(x), `gradient` ("no filter",
            "σ = 10", or one of the four controls), `cutoff` (cycles/image; NaN where there is none), `radius` (in
            `spec["units"]`), `residual`: root mean square over ε of ζ = f(x+ε) − f(x) − ⟨ε, ∇_σ f⟩, `mirrored`: the
            same of f(x+ε) − f(x) + ⟨ε, ∇_σ f⟩, and `linear`: what the residual is, over all ε, where f is linear,
            r·‖∇f − ∇_σ f‖/√d, which knows nothing of the network but ∇f.
        spec: Model, target, settings, units, as plain JSON.
    """

    table: pd.DataFrame
    spec: dict[str, Any]

    def values(self, form: Form = "unfiltered") -> pd.DataFrame:
        """Returns the table with a column `value`: the residual or one of its two ratios, for each picture.

        Args:
            form: "residual"; "unfiltered": over the residual of the gradient without a filter (§4.2); "mirrored": over
                that of the opposite gradient (A.2), 1 for one that says nothing, 0 for one that says all. NaN where
                both parts are 0.

        Raises:
            ValueError: For another form.
        """
        if form not in get_args(Form):
            raise ValueError(f"Expected form 'residual', 'unfiltered' or 'mirrored', got {form!r}.")
        table = self.table
        if form == "unfiltered":
            keys = ["picture", "radius"]
            base = table[table["gradient"] == NO_FILTER].set_index(keys)["residual"]
            base = base[~base.index.duplicated()]  # a picture that is there twice
            below: Any = base.reindex(table.set_index(keys).index).to_numpy()
        else:
            below = table["mirrored"].to_numpy() if form == "mirrored" else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            return table.assign(value=table["residual"].to_numpy() / below)

    def summary(self, form: Form = "unfiltered") -> pd.DataFrame:
        """Returns, by gradient and radius, the mean over pictures of log10 of `values`, `se` and their number `n`.

        The logarithm because values span decades; pictures with a value of 0, NaN or infinity are left out of n.
        """
        found = self.values(form)
        with np.errstate(divide="ignore"):
            logs = np.log10(found["value"].to_numpy())
        found = found.assign(log10=np.where(np.isfinite(logs), logs, np.nan))
        groups = found.groupby(["gradient", "cutoff", "radius"], sort=False, dropna=False)["log10"]
        return groups.agg(log10="mean", se="sem", n="count").reset_index()

    def plot(self) -> Any:
        """Returns how far first-order predictions miss, by radius (`gradspec.plots.taylor`)."""
        return figure_of("controls.taylor", self)

    def __repr__(self) -> str:
        pictures = self.table["picture"].nunique()
        return f"Taylor({self.spec['model']}, {pictures} pictures)"

    def _repr_html_(self) -> str:
        alt = "Residual of first-order predictions and its ratios by radius, a curve for each gradient."
        return html_of(self, self.summary(), alt)


class _Plan(NamedTuple):
    cutoffs: tuple[float | None, ...] | None  # None: by the picture's size
    radii: Tensor  # (R,) float64
    draws: int
    target: Target
    shape: FilterShape
    controls: bool
    seed: int


def taylor(
    model: nn.Module | Engine,
    data: Data,
    *,
    cutoffs: Sequence[float | None] | None = None,
    radii: Sequence[float] = RADII,
    draws: int = 16,
    target: Target = label_logit,
    shape: FilterShape = "disk",
    controls: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Taylor:
    """Returns how far f(x) + ⟨ε, ∇_σ f(x)⟩ misses f(x + ε), for filtered gradients and for such without information.

    ε is uniform on the sphere of each radius, in as many directions as `draws`, the same for all gradients and radii;
    the scores f(x + ε) do not depend on σ and are computed once. All in float64, on a copy of the network: in float32
    the rounding of f hides residuals of small radii. In float64 it is some 1e-15 of the score.

    What the test can show: to first order the mean of ζ² over directions is r²·‖∇f − g‖²/d for any g in the place of
    the gradient, with d values in a picture. So a filtered gradient misses by the root of the power that the filter
    takes, relative to the zero gradient, which it never exceeds; gradients of equal norm and no relation by √2. Only
    where a radius leaves the linear part does the network itself speak.

    Args:
        model: A classifier, or an `Engine` made of one; not changed.
        data: (images, labels), images alone (labels = the model's prediction), or batches (images, labels[, ids]).
        cutoffs: σ in cycles/image; no filter is always among them. None: 1/2, 1/4, ... 1/32 of the shorter side.
        radii: ‖ε‖ over all of a picture's values, of pixels in 0..1 where the model says its std, else of its input.
        draws: Directions per picture.
        target: f, (logits (N, K), labels (N,)) -> (N,).
        shape: Of the filter.
        controls: Also the zero gradient; the gradient with its pixels permuted; uniform noise between its least and
            largest value (supplement C); a Gaussian at a random place in all channels, of the gradient's norm (A.2).
        seed: Of directions and controls, which depend on it and on the picture's id.
        batch_size: Pictures per pass; None: by their size.
        device: Where to work; None: where the model is. It must know float64.
        progress: Show a bar with the remaining time on stderr, if that is a terminal.

    Raises:
        TypeError: For what is no network, and data of another form.
        ValueError: For radii and cutoffs that are none, fewer than one draw, pictures that do not fit.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        >>> net.mean, net.std = (0.0,), (1.0,)
        >>> found = taylor(net, (torch.rand(2, 3, 4, 4), torch.tensor([0, 1])), cutoffs=[1], radii=[0.1], draws=4)
        >>> bool(found.table[found.table["gradient"] == "no filter"]["residual"].max() < 1e-14)  # the network is linear
        True
    """
    plan = _plan(cutoffs, radii, draws, target, shape, controls, seed)
    net = model.model if isinstance(model, Engine) else model
    engine = Engine(copied(net).double(), batch_size=batch_size, device=device, progress=progress)
    passes = 2 + len(plan.radii) * draws  # the gradient's and f(x)
    frames = []
    with labelled(engine, data, "Taylor test", passes) as batches:
        for batch in batches:
            for pictures in engine.groups(*batch):
                frames.append(_frame(pictures, plan, _measured(engine, pictures, plan)))
    import pandas as pd

    return Taylor(pd.concat(frames, ignore_index=True), _spec(net, engine, plan))


def _plan(
    cutoffs: Sequence[float | None] | None, radii: Sequence[float], draws: int, target: Target, shape: FilterShape,
    controls: bool, seed: int,
) -> _Plan:  # fmt: skip
    check_whole(draws=draws)
    low_pass_mask(1, 1, None, shape)  # raises
    if len(radii) == 0:
        raise ValueError("Expected at least one radius, got none.")
    for radius in radii:
        check_positive(radius=radius)
    asked = None if cutoffs is None else tuple(dict.fromkeys([None, *map(check_cutoff, cutoffs)]))
    return _Plan(asked, torch.tensor(sorted(set(radii)), dtype=torch.float64), draws, target, shape, controls, seed)


class _Found(NamedTuple):
    """Of one group of pictures: f(x) (N,), names and cutoffs of K gradients, residuals of three kinds (N, K, R)."""

    scores: Tensor
    gradients: list[tuple[str, float]]
    residuals: Tensor
    mirrored: Tensor
    linear: Tensor


def _measured(engine: Engine, pictures: Pictures, plan: _Plan) -> _Found:
    scores, changes = _changes(engine, pictures, plan)
    drawn = engine.gradients(pictures, 1, lambda i, j: pictures.images[i], plan.target)
    gradients = torch.cat([found.gradients for found in drawn])
    scale = engine.scale(pictures.images.shape[1])
    keys: list[tuple[str, float]] = []
    residuals, mirrored, linear = [], [], []
    for gradient, change, name in zip(gradients, changes, pictures.ids, strict=True):
        candidates = dict(_candidates(gradient, plan, name))
        keys = list(candidates)
        steps = torch.stack([_direction(plan.seed, name, k, gradient.shape) for k in range(plan.draws)]).to(gradient)
        stack = torch.stack(list(candidates.values()))
        slopes = stack.flatten(1) @ (scale * steps).flatten(1).T  # (K, D)
        predicted = plan.radii.to(slopes)[:, None] * slopes[:, None]  # (K, R, D)
        residuals.append((change - predicted).square().mean(2).sqrt())
        mirrored.append((change + predicted).square().mean(2).sqrt())
        distances = (scale * (gradient - stack)).flatten(1).square().mean(1).sqrt()  # (K,)
        linear.append(distances[:, None] * plan.radii.to(distances))
    return _Found(scores, keys, torch.stack(residuals), torch.stack(mirrored), torch.stack(linear))


def _changes(engine: Engine, pictures: Pictures, plan: _Plan) -> tuple[Tensor, Tensor]:
    """f(x) (N,) and f(x + ε) − f(x) for each radius and direction (N, R, D)."""
    images, scale = pictures.images, engine.scale(pictures.images.shape[1])
    zero = torch.zeros(1, dtype=torch.float64)
    reach = torch.cat([zero, plan.radii.repeat_interleave(plan.draws)]).to(images)  # the first is the picture itself

    def make(i: Tensor, j: Tensor) -> Tensor:
        which = ((j - 1) % plan.draws).tolist()
        steps = [_direction(plan.seed, pictures.ids[a], k, images.shape[1:])
                 for a, k in zip(i.tolist(), which, strict=True)]  # fmt: skip
        return images[i] + reach[j, None, None, None] * scale * torch.stack(steps).to(images)

    scores = engine.scores(pictures, len(reach), make, plan.target)
    changes = (scores[:, 1:] - scores[:, :1]).unflatten(1, (len(plan.radii), plan.draws))
    return scores[:, 0], changes


def _direction(seed: int, name: str, index: int, shape: Sequence[int]) -> Tensor:
    """One direction (C, H, W), float64, uniform on the unit sphere."""
    step = torch.randn(*shape, dtype=torch.float64, generator=generator(seed, "Taylor direction", name, index))
    return step / step.norm()


def _candidates(gradient: Tensor, plan: _Plan, name: str) -> Iterator[tuple[tuple[str, float], Tensor]]:
    """What stands in the gradient's (C, H, W) place, by its name and cutoff."""
    height, width = gradient.shape[-2:]
    asked = plan.cutoffs or (None, *(min(height, width) / 2**k for k in range(1, 6)))
    for cutoff, found in zip(asked, low_passes(gradient, asked, plan.shape), strict=True):
        yield ((NO_FILTER, math.nan) if cutoff is None else (f"σ = {cutoff:g}", cutoff)), found
    if not plan.controls:
        return
    order = torch.randperm(height * width, generator=generator(plan.seed, "Taylor permuted", name))
    noise = torch.rand(gradient.shape, dtype=torch.float64, generator=generator(plan.seed, "Taylor uniform", name))
    blob = random_blob(height, width, SPREAD, plan.seed, name).to(gradient).expand_as(gradient)
    low, high = gradient.min(), gradient.max()
    made = (
        torch.zeros_like(gradient),
        gradient.flatten(1)[:, order.to(gradient.device)].view_as(gradient),
        low + (high - low) * noise.to(gradient),
        blob * (gradient.norm() / blob.norm()),
    )
    for control, found in zip(CONTROLS, made, strict=True):
        yield (control, math.nan), found


def _frame(pictures: Pictures, plan: _Plan, found: _Found) -> pd.DataFrame:
    import pandas as pd

    n, kinds, radii = found.residuals.shape
    each = kinds * radii
    names, cutoffs = zip(*found.gradients, strict=True)
    return pd.DataFrame(
        {
            "picture": np.repeat(np.array(pictures.ids, dtype=object), each),
            "label": np.repeat(pictures.labels.cpu().numpy(), each),
            "score": np.repeat(found.scores.cpu().numpy(), each),
            "gradient": np.tile(np.repeat(np.array(names, dtype=object), radii), n),
            "cutoff": np.tile(np.repeat(np.array(cutoffs, dtype=float), radii), n),
            "radius": np.tile(plan.radii.numpy(), n * kinds),
            "residual": found.residuals.flatten().cpu().numpy(),
            "mirrored": found.mirrored.flatten().cpu().numpy(),
            "linear": found.linear.flatten().cpu().numpy(),
        }
    )


def _spec(net: nn.Module, engine: Engine, plan: _Plan) -> dict[str, Any]:
    return {
        "control": "taylor",
        "model": name_of(net),
        "target": text_of(plan.target),
        "cutoffs": None if plan.cutoffs is None else list(plan.cutoffs),
        "radii": plan.radii.tolist(),
        "units": engine.units,
        "draws": plan.draws,
        "shape": plan.shape,
        "seed": plan.seed,
        "precision": "float64",
    }
