"""A report as one HTML page that needs nothing but itself: no script, no font, no image from elsewhere."""

from collections.abc import Iterator, Sequence
from html import escape

from nntk.bench.report import content
from nntk.bench.report.content import Measurement, Table
from nntk.bench.report.plots import Plot

_STYLE = """\
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1b1f24; --quiet: #59636e; --line: #d9dde2;
  --stripe: #f4f5f6; --bad: #a3280a; --bad-ground: #fdf0ec; --link: #0a5a94 }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #d7dce2; --quiet: #98a2ad; --line: #343a42;
  --stripe: #1c2025; --bad: #ff9a7a; --bad-ground: #33201a; --link: #7cbcf0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.25; margin: 2.6rem 0 .7rem; text-wrap: balance }
h1 { font-size: 1.9rem; margin-top: 0 }
h2 { font-size: 1.45rem; padding-top: 1.2rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.12rem }
p { margin: .5rem 0; max-width: 46rem }
a { color: var(--link) }
nav ul { columns: 2 18rem; padding-left: 1.2rem; margin: .4rem 0 }
.quiet, figcaption { color: var(--quiet); font-size: .9rem }
.warning { color: var(--bad); background: var(--bad-ground); border-left: 4px solid; padding: .5rem .8rem }
.wide { overflow-x: auto; margin: .9rem 0 }
.wide:focus-visible { outline: 2px solid var(--link) }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline;
  white-space: nowrap; overflow-wrap: normal }
thead th { border-bottom: 2px solid var(--quiet); vertical-align: bottom }
tbody th { font-weight: 500; min-width: 7rem }
.failure { white-space: normal; min-width: 10rem }
tbody tr:nth-child(even) { background: var(--stripe) }
.number { text-align: right }
tbody tr.failed { color: var(--bad); background: var(--bad-ground) }
.facts th { color: var(--quiet); width: 9rem }
.facts td { white-space: normal }
figure { margin: 1.4rem 0 }
figure svg { display: block; width: 100%; min-width: 34rem; height: auto; color: var(--ink) }
@media print { body { max-width: none } figure, tr { break-inside: avoid } }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the browser may load: nothing."""


def page(measurements: Sequence[Measurement], plots: Sequence[Sequence[Plot]]) -> str:
    """The whole page.

    Args:
        measurements: The runs.
        plots: Their plots.

    Returns:
        Its text.
    """
    title = measurements[0].title if len(measurements) == 1 else f"{len(measurements)} runs"
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>nntk: {escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n"
    )
    body = "\n".join(_body(measurements, plots))
    return f"{head}<body>\n{body}\n</body>\n</html>\n"


def _body(measurements: Sequence[Measurement], plots: Sequence[Sequence[Plot]]) -> Iterator[str]:
    yield "<header><h1>nntk: results</h1></header>"
    yield from _contents(measurements)
    yield "<main>"
    for number, (measurement, drawn) in enumerate(zip(measurements, plots, strict=True), 1):
        run = measurement.run
        yield f'<h2 id="run-{number}">{escape(measurement.title)}</h2>'
        yield from (f'<p class="warning">{escape(warning)}</p>' for warning in content.warnings(run))
        yield _facts(content.facts(measurement))
        for place, section in enumerate(run.sections, 1):
            made = content.table(run, section["name"])
            yield f'<section aria-labelledby="section-{number}-{place}">'
            yield f'<h3 id="section-{number}-{place}">{escape(made.title)}</h3>'
            if made.caption:
                yield f'<p class="quiet">{escape(made.caption)}</p>'
            yield _table(made) if made.rows else "<p>No row is finished.</p>"
            yield from (_figure(plot) for plot in drawn if plot.section == section["name"])
            yield "</section>"
    yield "</main>"


def _contents(measurements: Sequence[Measurement]) -> Iterator[str]:
    yield '<nav aria-label="Contents">'
    for number, measurement in enumerate(measurements, 1):
        if len(measurements) > 1:
            yield f'<p><a href="#run-{number}">{escape(measurement.title)}</a></p>'
        yield "<ul>"
        for place, section in enumerate(measurement.run.sections, 1):
            title = content.table(measurement.run, section["name"]).title
            yield f'<li><a href="#section-{number}-{place}">{escape(title)}</a></li>'
        yield "</ul>"
    yield "</nav>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts)
    return _wide(f'<table class="facts"><tbody>\n{lines}\n</tbody></table>')


def _table(table: Table) -> str:
    classes = [' class="number"' if number else "" for number in table.numeric]
    if content.FAILURE in table.headers:
        classes[table.headers.index(content.FAILURE)] = ' class="failure"'
    head = "".join(
        f'<th scope="col"{name}>{escape(text)}</th>' for text, name in zip(table.headers, classes, strict=True)
    )
    lines = []
    for row, failed in zip(table.rows, table.failed, strict=True):
        first = f'<th scope="row"{classes[0]}>{escape(row[0])}</th>'
        rest = "".join(f"<td{name}>{escape(text)}</td>" for text, name in zip(row[1:], classes[1:], strict=True))
        mark = ' class="failed"' if failed else ""
        lines.append(f"<tr{mark}>{first}{rest}</tr>")
    body = "\n".join(lines)
    return _wide(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")


def _figure(plot: Plot) -> str:
    return f"<figure>{_wide(plot.svg)}<figcaption>{escape(plot.caption)}</figcaption></figure>"


def _wide(inner: str) -> str:
    """What scrolls by itself where the page is narrow, by keyboard too."""
    return f'<div class="wide" tabindex="0">{inner}</div>'
