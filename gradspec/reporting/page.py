"""The page itself: sections in order, one template, one file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradspec.reporting import evidence, figures, forgrad, provenance
from gradspec.reporting.comparing import comparison_words
from gradspec.reporting.figures import Picture
from gradspec.reporting.notes import caveats, glossary
from gradspec.reporting.subject import Result, Subject, subject_of
from gradspec.reporting.tables import Table
from gradspec.reporting.text import count, plain
from gradspec.reporting.words import Paragraph, audit_words
from gradspec.trials import Trials, failures


@dataclass(frozen=True)
class Part:
    """A piece of a section, in this order: heading, paragraphs, list, figures, tables."""

    heading: str = ""
    paragraphs: Sequence[Paragraph] = ()
    lines: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    parts: Sequence[Part]
    wide: bool = False  # printed across


def report(result: Result, out: str | Path | None = None) -> Path:
    """Returns the path of the HTML page written about a result: one file that works offline and prints.

    Words first, then figures and sortable tables, settings and caveats. The page asks for nothing outside itself, and
    the same result gives the same bytes.

    Args:
        result: An `Audit`, a `Comparison`, a `CutoffFit`, `Scores`, or the folder of a saved one, or of many fits.
        out: The file to write, or a folder for report.html; None: the result's folder. Missing folders are made.

    Raises:
        ValueError: For a folder that holds no result, or a damaged one; without `out` for a result that has no folder.
        TypeError: For anything else than a result or a path.

    Example:
        >>> import tempfile, torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> result = gs.audit(torch.nn.Sequential(*layers).eval(), torch.rand(4, 3, 34, 34), progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(result.save(folder))
        ...     page.name, "<h1>Sequential</h1>" in page.read_text(encoding="utf-8")
        ('report.html', True)
    """
    if out is None and not isinstance(result, (str, Path)):
        raise ValueError(f"Expected out=, the file to write the page to: a {type(result).__name__} has no folder.")
    subject = subject_of(result)
    page = Path(out) if out is not None else Path(str(result))
    if page.is_dir():
        page = page / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    if out is None and page.is_symlink():  # in a folder of somebody else's it may lead to a file of yours
        page.unlink()
    try:
        page.write_text(_html(subject), encoding="utf-8", newline="\n")
    except OSError as error:
        raise ValueError(f"Cannot write {page} ({error.strerror}): name another page with out.") from error
    return page


def _html(subject: Subject | Trials) -> str:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("gradspec.reporting"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = Markup(templates.get_template("sort.js").render())
    return templates.get_template("page.html.jinja").render(
        policy=_policy(script),
        script=script,
        sections=sections(subject) if isinstance(subject, Subject) else trial_sections(subject),
        **(_head(subject) if isinstance(subject, Subject) else _trial_head(subject)),
    )


def _policy(script: str) -> str:
    """A content security policy that allows the page its own style, script and pictures, and no request at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def _head(subject: Subject) -> dict[str, Any]:
    spec, audit = subject.spec, subject.first
    size, created, versions = spec.get("input_shape"), spec.get("created"), spec.get("versions")
    under = [count(len(audit.pictures), "picture")]
    if isinstance(size, list) and len(size) == 3:
        under.append(f"{plain(size[1], 8)} × {plain(size[2], 8)} pixels")
    if subject.drift is not None:
        under.insert(0, count(len(subject.drift), "variant"))
    under += [_date(plain(created, 40))] if created else []
    made = versions.get("gradspec") if isinstance(versions, dict) else None
    kind = "audit" if subject.drift is None else "comparison"
    title = f"{plain(subject.models, 80)} · gradspec {kind}"
    return {
        "kind": kind, "title": title, "models": subject.models, "under": " · ".join(under),
        "version": plain(made or "", 40),
    }  # fmt: skip


def _date(created: str) -> str:
    """A time as an audit records it, 2026-11-21T12:28:07Z, for people."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ", created)
    return f"{found[1]} {found[2]} UTC" if found else created


def sections(subject: Subject) -> list[Section]:
    """Returns the page's sections in order."""
    several = subject.drift is not None
    words = comparison_words(subject) if several else audit_words(subject)
    found = [Section("summary", "Summary", [Part(paragraphs=words)])]
    if several:
        found.append(Section("variants", "Variants", _variants(subject)))
    if subject.effects is not None:
        found.append(
            Section("cause", "Cause", [Part(figures=[figures.causal(subject)], tables=[evidence.effects(subject)])])
        )
    trials = subject.trials
    terms = [Paragraph(*term) for term in (*glossary(subject), *(forgrad.trial_terms() if trials else []))]
    more = forgrad.trial_caveats(trials) if trials else []
    return [
        *found,
        Section("profile-section", "Slope along the depth", [Part(figures=[figures.profile(subject)])]),
        Section(
            "culprits", "Culprits",
            [
                Part(figures=figures.culprits(subject)),
                Part(tables=[evidence.culprits_by_type(subject), evidence.culprits(subject)]),
            ],
        ),
        Section("signatures-section", "Signatures", [Part(figures=[figures.signatures(subject)])]),
        Section("gradients-section", "Pictures of the gradient", [Part(figures=[figures.gradients(subject)])]),
        Section("calls", "All calls", [Part(tables=[evidence.calls(subject)])], wide=True),
        Section("unseen", "Not seen", [Part(tables=[provenance.unseen(subject)])]),
        *([] if trials is None else _forgrad(trials, in_full=False)),
        Section(
            "settings", "Settings and pictures",
            [Part(tables=[provenance.settings(subject), provenance.pictures(subject.first)])],
        ),
        Section("caveats", "Caveats", [Part(lines=[*caveats(subject), *more])]),
        Section("reading", "How to read the numbers", [Part(paragraphs=terms)]),
    ]  # fmt: skip


def _variants(subject: Subject) -> list[Part]:
    """Drift of all, then what surgery did to each."""
    operated = [name for name, records in subject.records.items() if records]
    surgery = [
        Part(
            heading=name,
            lines=[note for record in subject.records[name] for note in record.notes],
            tables=[evidence.changes(subject, name, place)],
        )
        for place, name in enumerate(operated, 1)
    ]
    return [Part(figures=[figures.drift(subject)], tables=[evidence.drift(subject)]), *surgery]


# ---- FORGrad ---------------------------------------------------------------------------------


def _trial_head(trials: Trials) -> dict[str, Any]:
    created, versions = trials.spec.get("created"), trials.spec.get("versions")
    made = versions.get("gradspec") if isinstance(versions, dict) else None
    kind = "evaluation" if trials.scored else "fit"
    under = [count(len(trials.trials), "variant"), count(trials.fitted, "fit")]
    under += [_date(plain(created, 40))] if created else []
    name = forgrad.model_of(trials)
    return {
        "kind": kind, "title": f"{plain(name, 80)} · gradspec {kind}", "models": name, "under": " · ".join(under),
        "version": plain(made or "", 40),
    }  # fmt: skip


def trial_sections(trials: Trials) -> list[Section]:
    """Returns the sections of a page about FORGrad alone, in order."""
    pictures = [provenance.settings_of(trials.spec), forgrad.used_pictures(trials)]
    terms = [Paragraph(*term) for term in forgrad.trial_terms()]
    return [
        Section("summary", "Summary", [Part(paragraphs=forgrad.trial_words(trials))]),
        *_forgrad(trials, in_full=True),
        Section("settings", "Settings and pictures", [Part(tables=pictures)]),
        Section("caveats", "Caveats", [Part(lines=forgrad.trial_caveats(trials))]),
        Section("reading", "How to read the numbers", [Part(paragraphs=terms)]),
    ]


def _forgrad(trials: Trials, *, in_full: bool) -> list[Section]:
    """The fitted cutoffs, and the maps before and after; with words of its own where they are a part of a page."""
    words = [] if in_full else forgrad.trial_words(trials)
    on_gains = [paragraph for paragraph in words if paragraph.title == forgrad.GAINS]
    lost = [forgrad.failures_table(trials)] if failures(trials) else []
    found = []
    if trials.fitted or not trials.scored:
        fitted = Part(
            paragraphs=[paragraph for paragraph in words if paragraph not in on_gains],
            figures=forgrad.curve_figures(trials),
            tables=[forgrad.fits_table(trials), forgrad.spectral_table(trials), *lost],
        )
        found.append(Section("cutoffs", "Fitted cutoffs", [fitted]))
    if trials.scored:
        gained = Part(
            paragraphs=on_gains,
            figures=forgrad.score_figures(trials, in_full=in_full),
            tables=[forgrad.before_after_table(trials), *([] if trials.fitted else lost)],
        )
        found.append(Section("before-after", "Before and after FORGrad", [gained]))
        found.append(Section("scores", "All scores", [Part(tables=[forgrad.scores_table(trials)])], wide=True))
    return found
