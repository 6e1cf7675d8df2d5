"""The one document that leaves the room: a run told in a single HTML file that asks nobody for anything.

No script, no font, no picture from elsewhere: a Content-Security-Policy in the file forbids every request, names that
come from data are escaped (`core.presentation.report.markup`), and paper gets a light A4 version of the same page.
"""

import datetime
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.presentation.report import about, case_pages, explained, findings, lesions, limits
from core.presentation.report.charts import hatches
from core.presentation.report.markup import Html, join, tag
from core.presentation.report.source import Source, source_of
from core.presentation.report.style import STYLE
from core.runs.run_record import Run
from data.errors import BadInput
from data.whole_files import clear_litter, write_whole

GENERATOR = "Dicescope report"
_NO_BASE = "; base-uri 'none'"
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'{_NO_BASE}"
_LOOKED_AT = 2000
"""Characters at the beginning of a file in which a report says that it is one."""

Section = tuple[str, str, Html]


def report_html(run: Run, diagnosis: Mapping[str, Any] | None, *, share: bool = False) -> str:
    """The report of an evaluated run as one HTML document; with its diagnosis it also says why Dice is what it is.

    `share`: nobody is named in it, nor a folder, machine or person (`core.runs.sharing`).
    BadInput when the run is not evaluated, or when the diagnosis is of another run.
    """
    source = source_of(run, diagnosis, share=share)
    sections = [s for s in (*_explained(source), *_results(source), *_about(source)) if s[2]]
    head = tag(
        "head",
        tag("meta", attributes={"charset": "utf-8"}),
        tag("meta", attributes={"http-equiv": "Content-Security-Policy", "content": POLICY}),
        tag("meta", attributes={"name": "generator", "content": GENERATOR}),
        tag("meta", attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", attributes={"name": "referrer", "content": "no-referrer"}),
        tag("title", f"{source.title} · Dicescope report"),
        tag("style", Html(STYLE)),
    )
    body = tag("body", hatches(), tag("main", _header(source), *_body(sections), _footer(source)))
    document = "<!doctype html>\n" + tag("html", head, body, attributes={"lang": "en"}).text + "\n"
    return document if source.veil is None else source.veil.document(document)


def write_report(
    run: Run, diagnosis: Mapping[str, Any] | None, path: Path, *, overwrite: bool = False, share: bool = False
) -> Path:
    """Write the report to `path`, whole or not at all; an older report there is replaced.

    BadInput when another file is there already, unless `overwrite`; EnvironmentProblem when it cannot be written.
    """
    check_place(path, run, overwrite)
    text = report_html(run, diagnosis, share=share)
    clear_litter(path.parent)
    write_whole(path, text.encode())
    return path


def check_place(path: Path, run: Run, overwrite: bool = False) -> None:
    """BadInput when a report may not be written to `path`: a folder, a file that is none, or a place among runs."""
    if path.is_dir():
        raise BadInput(f"{path} is a directory. Give the name of a file, such as {path / (run.run_id + '.html')}.")
    if path.exists() and not overwrite and not is_report(path):
        raise BadInput(
            f"{path} is there already and is not a report. Give another name, or say that it may be replaced "
            "(--overwrite)."
        )
    runs, place = run.directory.parent.resolve(), path.absolute().resolve()
    if place.is_relative_to(runs) and not is_report(path):
        first = runs / place.relative_to(runs).parts[0]
        if first.name.startswith(".") or (first / "run.json").exists():
            raise BadInput(f"{path} lies among the files of a run, which are not replaced. Give a name elsewhere.")


def framed(document: str) -> str:
    """The same document for the srcdoc of a frame, whose links would otherwise lead to the page around it."""
    policy, own = (html.escape(text) for text in (POLICY, POLICY.removesuffix(_NO_BASE)))
    return document.replace(policy, own, 1).replace("<head>", '<head><base href="about:srcdoc">', 1)


def is_report(path: Path) -> bool:
    """Whether a file says at its beginning that it is a report of ours."""
    try:
        with path.open(encoding="utf-8") as file:
            return f'content="{GENERATOR}"' in file.read(_LOOKED_AT)
    except (OSError, UnicodeDecodeError):
        return False


def _explained(source: Source) -> list[Section]:
    found = source.diagnosis
    if found is None:
        return []
    stored = join(
        [limits.post_processing(found.get("post_processing")), limits.detection_limits(found.get("detection_limits"))]
    )
    return [
        ("ladder", "Where the Dice is lost", explained.ladder_section(found)),
        ("errors", "Which voxels cost it", explained.error_section(found)),
        ("gains", "What would raise it", explained.gain_section(found)),
        ("causes", "Known causes", explained.cause_section(found)),
        ("decisions", "Two distributions instead of a threshold", explained.decision_section(found)),
        ("limits", "Post-processing and detection limits", stored),
    ]


def _results(source: Source) -> list[Section]:
    found = source.diagnosis
    on_lesions = join(
        [
            findings.lesion_recall(source),
            *([lesions.strata_section(found), lesions.lesion_section(found)] if found is not None else []),
        ]
    )
    return [
        ("cases", "Best and worst cases", case_pages.cases(source)),
        ("subjects", "Subject by subject", findings.subjects(source)),
        ("lesions", "Lesions", on_lesions),
        ("protocols", "Results under every threshold", findings.protocols(source)),
        ("healthy", "Healthy scans", findings.healthy_scans(source)),
        ("layers", "Layer sets", findings.layers(source)),
    ]


def _about(source: Source) -> list[Section]:
    return [
        ("data", "Data", about.data(source)),
        ("method", "Method", about.method(source)),
        ("commands", "Make it again", about.commands(source)),
        ("notes", "To hold against it", about.notes(source)),
        ("words", "Words", about.glossary(source)),
    ]


def _header(source: Source) -> Html:
    run = source.run
    commit = run.record.get("git_commit")
    words = [
        run.run_id,
        f"cohort {source.cohort}",
        f"run of {_day(run.record['created'])}",
        f"report of {_day(datetime.datetime.now(datetime.UTC).isoformat())}",
        f"commit {commit[:10]}" if commit else None,
    ]
    return join(
        [
            tag(
                "header",
                tag("p", "Dicescope report", kind="brand"),
                tag("h1", source.title),
                tag("p", *(tag("span", word) for word in words if word), kind="meta"),
                tag("p", f"Numbers: {source.conditions}.", kind="meta"),
            ),
            findings.hero(source),
            findings.tiles(source),
        ]
    )


def _body(sections: list[Section]) -> list[Html]:
    links = [
        tag("a", tag("i", str(n)), title, attributes={"href": f"#{name}"})
        for n, (name, title, _) in enumerate(sections, 1)
    ]
    told = [
        tag("section", tag("h2", tag("i", str(n)), title), content, attributes={"id": name})
        for n, (name, title, content) in enumerate(sections, 1)
    ]
    return [tag("nav", *links, attributes={"aria-label": "Contents"}), *told]


def _footer(source: Source) -> Html:
    return tag(
        "footer",
        f"Run {source.run.run_id}, written by Dicescope. One file, no request to anywhere; print it to PDF with the "
        "browser.",
    )


def _day(moment: str) -> str:
    day = datetime.datetime.fromisoformat(moment)
    return f"{day.day} {day:%B %Y}"
