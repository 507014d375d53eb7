"""The cutoff that results from the spectra of an audit: where the gradient stops falling as a smooth network's does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gradspec.spectra import Signature

if TYPE_CHECKING:
    from gradspec.results import Audit

ERRORS = 2.0  # paired standard errors by which a ring must lie above the twin's
LEAST = math.log10(2)  # and by how much: more than half of the amplitude is then what the twin has not
ALMOST = 0.9  # share of the rings from the departure on that must lie above: one ring may dip
LOW = 1 / 16  # of Nyquist: rings whose mean is set to the twin's
FEWEST = 8  # rings beside DC in which a knee is sought
SLOWER = 0.5  # of the slope before a knee that the slope behind it may have at most


class SpectralCutoff(float):
    """A cutoff in cycles/image that was read off the spectra, itself a number: NaN where there is none.

    Attributes:
        how: By what it was found: "twin" or "knee".
        reason: Why there is none, or "".
        rings: How many rings it was sought in.
        n: Pictures.

    Example:
        >>> found = SpectralCutoff(11.5, how="knee", rings=112, n=100)
        >>> found + 1, found.cutoff, SpectralCutoff(None, how="knee", reason="no knee").cutoff
        (12.5, 11.5, None)
    """

    how: str
    reason: str
    rings: int
    n: int

    def __new__(cls, cutoff: float | None, *, how: str, reason: str = "", rings: int = 0, n: int = 0) -> SpectralCutoff:
        """Returns the number, NaN for None."""
        found = super().__new__(cls, math.nan if cutoff is None else cutoff)
        found.how, found.rings, found.n = how, rings, n
        found.reason = reason or ("no reason given" if found.cutoff is None else "")
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.cutoff, self.how, self.reason, self.rings, self.n)

    @property
    def cutoff(self) -> float | None:
        """In cycles/image; None where there is none, with the reason."""
        return None if math.isnan(self) else float(self)

    def __repr__(self) -> str:
        found = f"none: {self.reason}" if self.cutoff is None else f"{float(self):g} cycles/image"
        return f"SpectralCutoff({found}, by the {self.how}, {self.n} pictures)"


def _made(cutoff: float | None, how: str, reason: str, rings: int, n: int) -> SpectralCutoff:
    return SpectralCutoff(cutoff, how=how, reason=reason, rings=rings, n=n)


def cutoff_from(audit: Audit, twin: Audit | None = None) -> SpectralCutoff:
    """Returns the cutoff that results from an audit's spectrum at the network's input, without a pass (SPEC §5).

    With a twin, the audit of the same network with average pooling on the same pictures: both signatures are taken as
    log10 amplitude of each picture, less its mean over the lowest rings (up to 1/16 of Nyquist, two at least). A ring
    lies above where the mean difference over pictures is more than two paired standard errors and more than log10 2:
    over half of the amplitude is then what pooling has added. The signature leaves the twin's at the ring k that parts
    the rings into those that do not lie above and those that do with the fewest exceptions, of equals the lowest; from
    there on nine of ten must lie above. The cutoff is k − ½, the edge of that ring: what agrees is kept.

    Without one, the knee of the log10 signature against the radius, from its highest ring on: the break of two lines
    that are joined there and fit it best by least squares. It counts where the fall slows down to less than half and
    the two lines fit better than a power law, which has no scale, by the BIC. At a knee at radius r, r is the cutoff.

    Args:
        audit: Of the network.
        twin: Of its average-pooled twin (`surgery.average_pooled`).

    Raises:
        ValueError: For audits without the gradient at the input, of other sizes, targets or pictures.

    Example:
        >>> from gradspec.results import Audit
        >>> radius = np.arange(17.0)
        >>> falling = 10 ** (-0.2 * np.minimum(radius, 6))
        >>> signature = Signature(32, 32, np.stack([falling, 2 * falling]), np.array([0.1, 0.1]))
        >>> audit = Audit(None, {("input", "input"): signature}, None, {}, {}, ("a", "b"), {})
        >>> cutoff_from(audit).how, abs(cutoff_from(audit) - 6) < 0.5
        ('knee', True)
    """
    signature = _signature(audit)
    if twin is None:
        return _knee(signature)
    _check_twin(audit, twin)
    here, there = _common(audit, twin)
    return _departure(signature.per_image[here], _signature(twin).per_image[there])


# ---- against a twin ------------------------------------------------------------------------------


def _departure(ours: np.ndarray, theirs: np.ndarray) -> SpectralCutoff:
    """Where one set of rings (N, K) leaves the other, of the same pictures."""
    usable = (ours[:, 1:] > 0).all(1) & (theirs[:, 1:] > 0).all(1)
    n, rings = int(usable.sum()), ours.shape[1] - 1
    about: dict[str, Any] = {"how": "twin", "rings": rings, "n": n}
    lowest = max(2, round(LOW * rings))
    if n < 2 or rings <= lowest:
        reason = f"{n} picture(s) with {rings} ring(s) beside DC, it takes 2 and {lowest + 1}"
        return SpectralCutoff(None, reason=reason, **about)
    difference = np.log10(ours[usable, 1:]) - np.log10(theirs[usable, 1:])
    difference -= difference[:, :lowest].mean(1, keepdims=True)
    mean, error = difference.mean(0), difference.std(0, ddof=1) / math.sqrt(n)
    above = (mean > ERRORS * error) & (mean > LEAST)
    first = _parted(above)
    if first == rings or above[first:].mean() < ALMOST:
        share = f"{int(above.sum())} of {rings} rings above it"
        return SpectralCutoff(None, reason=f"the signature does not leave the twin's ({share})", **about)
    if first == 0:
        return SpectralCutoff(None, reason="the signature lies above the twin's from the first ring on", **about)
    return SpectralCutoff(first + 0.5, **about)  # above[0] is ring 1, whose outer edge is 1.5


def _parted(above: np.ndarray) -> int:
    """The place k at which most of above[k:] are true and most of above[:k] are not: the fewest exceptions."""
    before = np.concatenate([[0], above.cumsum()])
    after = np.concatenate([(~above)[::-1].cumsum()[::-1], [0]])
    return int((before + after).argmin())


def _common(audit: Audit, twin: Audit) -> tuple[list[int], list[int]]:
    """Places of the pictures that both have."""
    places = {name: k for k, name in enumerate(twin.pictures)}
    both = [(k, places[name]) for k, name in enumerate(audit.pictures) if name in places]
    if not both:
        raise ValueError("Expected a twin audited on the same pictures, got none in common.")
    return [k for k, _ in both], [k for _, k in both]


def _check_twin(audit: Audit, twin: Audit) -> None:
    sizes = [(_signature(each).height, _signature(each).width) for each in (audit, twin)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"Expected a twin audited on pictures of the same size, {sizes[0]}, got {sizes[1]}.")
    targets = [each.spec.get("target") for each in (audit, twin)]
    if targets[0] != targets[1]:
        raise ValueError(f"Expected a twin audited with the same target, {targets[0]}, got {targets[1]}.")


def _signature(audit: Audit) -> Signature:
    if ("input", "input") not in audit.signatures:
        raise ValueError("Expected an audit with the gradient at the network's input, got one without.")
    return audit.signatures["input", "input"]


# ---- by itself -----------------------------------------------------------------------------------


def _knee(signature: Signature) -> SpectralCutoff:
    radius, rings = signature.radius[1:], len(signature.radius) - 1
    about: dict[str, Any] = {"how": "knee", "rings": rings, "n": signature.n}
    if signature.reason or rings < FEWEST:
        reason = signature.reason or f"{rings} rings beside DC, a knee takes {FEWEST}"
        return SpectralCutoff(None, reason=reason, **about)
    logs = np.log10(signature.amplitude[1:])
    top = int(logs.argmax())
    radius, logs = radius[top:], logs[top:]
    if len(logs) < FEWEST:
        return SpectralCutoff(None, reason=f"no knee: it is highest at ring {top + 1} of {rings}", **about)
    error, at, before, after = _two_lines(radius, logs)
    if not before < 0 or after < SLOWER * before:
        return SpectralCutoff(None, reason=_shape(before, after), **about)
    power = _squares(np.stack([np.ones(len(logs)), np.log(radius)], 1), logs)[0]
    if _bic(error, len(logs), 4) >= _bic(power, len(logs), 2):
        return SpectralCutoff(None, reason="no knee: a power law, which has no scale, fits as well", **about)
    return SpectralCutoff(at, **about)


def _shape(before: float, after: float) -> str:
    return f"no knee: slope {before:.3g} before and {after:.3g} behind the best break, per cycle/image"


def _two_lines(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Squared error, break and both slopes of the two joined lines that fit best, with breaks tried on a fine grid."""
    found = []
    for at in np.arange(x[1], x[-2], 0.25):
        columns = np.stack([np.ones_like(x), x, np.maximum(x - at, 0)], 1)
        error, (_, slope, bend) = _squares(columns, y)
        found.append((error, float(at), float(slope), float(slope + bend)))
    return min(found)


def _squares(columns: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of squared errors and weights of least squares."""
    weights = np.linalg.lstsq(columns, y, rcond=None)[0]
    return float(np.square(y - columns @ weights).sum()), weights


def _bic(squares: float, n: int, free: int) -> float:
    return n * math.log(max(squares, 1e-24) / n) + free * math.log(n)  # rounding, where the fit is exact
