"""Reports: tables, plots, and a page that a browser opens without a network."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nntk.bench import report
from nntk.bench.report import content, markdown, plots
from nntk.bench.results.schema import ResultsError

MEASURED = Path(__file__).parents[2] / "results" / "cpu-amd-epyc"
QUICK = MEASURED / "quick-20261124-000917-434510.json"
ROOFS = [
    {"name": "copy", "unit": "bytes", "per_second": 4.1e12},
    {"name": "fp32", "unit": "flops", "per_second": 5.1e13},
    {"name": "tf32", "unit": "flops", "per_second": 4.1e14},
    {"name": "bf16", "unit": "flops", "per_second": 4.3e14},
]
SETTING = {"M": "samples", "N": "inputs", "d": "parameters", "C": "outputs"}
EXPONENTS = {"M": 1.0, "N": 2.0, "d": 0.5, "C": 0.0}


def op_rows():
    """Seven ops at two shapes, and one that failed."""
    names = ("perturb.layer", "assemble", "fixed_weights", "attention", "local_ntk", "philox", "weights_$x$")
    for number, name in enumerate(names):
        for size in (256, 4096):
            flops, traffic = 2.0 * size**3, 4.0 * size**2 * (1 + 40 * number)
            roof = min(4.1e12 * flops / traffic, 4.1e14)
            yield {
                "case": f"{name} {size}",
                "op": name,
                "shape": f"[{size}, {size}]",
                "flops": flops,
                "bytes": traffic,
                "roof": "copy" if roof < 4.1e14 else "tf32",
                "roof_share": 0.8,
                "median_s": flops / roof / 0.8,
            }
    yield {"case": "wrong 64", "op": "wrong", "median_s": 1e-9, "speed_up": 77.0, "failure": "error 3e-01 > 1e-05"}


def scaling_rows():
    """Exact powers along every axis, by two methods."""
    for axis, exponent in EXPONENTS.items():
        for case, factor in (("nntk gaussian", 1.0), ("local NTK, structured", 3.0)):
            for value in (64, 256, 1024):
                yield {
                    "case": case,
                    "axis": axis,
                    "value": value,
                    SETTING[axis]: value,
                    "median_s": factor * 1e-5 * value**exponent,
                    "peak_bytes": 2**28 * factor,
                }
            yield {"case": f"{case}, fit over {axis}", "axis": axis, "exponent": exponent}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A run with roofs, ops, scaling, and a failure."""
    path = tmp_path_factory.mktemp("runs") / "gpu.json"
    facts = json.loads(QUICK.read_text())
    facts |= {"suite": "gpu <&>", "status": "failed", "uncommitted_changes": True, "roofs": ROOFS}
    rows = [("ops", row) for row in op_rows()] + [("scaling", row) for row in scaling_rows()]
    facts["rows"] = [{"section": section, "elapsed_s": 1.0, **row} for section, row in rows]
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture(scope="module")
def written(synthetic, tmp_path_factory):
    """The folder of a report of both runs."""
    folder = tmp_path_factory.mktemp("report")
    assert report.run([synthetic, QUICK], folder, Console(file=StringIO())) == 0
    return folder


@pytest.fixture(scope="module")
def drawn(written):
    """The roots of all plots, by name, in the order of the report."""
    names = re.findall(r"\(plots/([^)]+)\.svg\)", (written / "report.md").read_text())
    return {name: ElementTree.parse(written / "plots" / f"{name}.svg").getroot() for name in names}


def texts(plot):
    """Return the texts of a plot, with their distances from its top."""
    return {element.text: float(element.get("y")) for element in plot.iter() if element.tag.endswith("}text")}


def test_every_plot_there_are_rows_for_and_no_other(drawn, synthetic, tmp_path):
    """Nothing is empty, nothing is missing."""
    assert list(drawn) == [
        "run-1-ops-roofline",
        "run-1-scaling-scaling-displacements",
        "run-1-scaling-scaling-inputs",
        "run-1-scaling-scaling-parameters",
        "run-1-scaling-scaling-outputs",
        "run-2-difference-accuracy-error-of-differences",
        "run-2-difference-throughput-speed-up",
        "run-2-kernel-throughput-speed-up",
        "run-2-kernel-accuracy-over-gamma-error-over-gamma",
        "run-2-kernel-accuracy-over-samples-error-over-samples",
    ]
    facts = json.loads(synthetic.read_text())
    del facts["roofs"]
    facts["rows"] = [row for row in facts["rows"] if row["section"] == "ops" or row.get("value") == 64]
    (bare := tmp_path / "bare.json").write_text(json.dumps(facts))
    assert plots.plots(content.read(bare)) == []


def test_every_plot_has_a_title_units_and_a_legend(drawn):
    """On every panel, and in letters that can be selected and searched."""
    for name, plot in drawn.items():
        ids = [element.get("id", "") for element in plot.iter()]
        panels = sum(bool(re.search(r"-axes_\d+$", one)) for one in ids)
        labels = [text for text in texts(plot) if re.search(r"\([\w/, -]+\)$", text) or text == "case"]
        assert sum("-legend_" in one for one in ids) == panels, name
        assert len(labels) == 1 + panels, (name, labels)
        titles = [text for text in texts(plot) if text == plot.get("aria-label") or re.match(r"(Time|Memory) ", text)]
        assert len(titles) == panels, name


def test_legends_have_the_fitted_exponents(drawn):
    """The exponents of exact powers are exact."""
    assert plots.fit([64.0, 256.0, 1024.0], [3e-6 * value**1.5 for value in (64, 256, 1024)]) == pytest.approx(
        (1.5, 3e-6)
    )
    for plot, (axis, exponent) in zip(list(drawn.values())[1:5], EXPONENTS.items(), strict=True):
        for case in ("nntk gaussian", "local NTK, structured"):
            said = {text.partition("∝")[2] for text in texts(plot) if text.startswith(f"{case} ∝")}
            assert said == {f" {axis}^{exponent:.2f}", f" {axis}^0.00"}


def test_roofs_are_labelled_apart(drawn):
    """Two roofs of nearly the same height, and the copy with its bandwidth; a name is no formula."""
    heights = texts(drawn["run-1-ops-roofline"])
    assert {"copy 4.10 TB/s", "weights_$x$", "roof fp32, 51.0 TFLOP/s"} <= set(heights)
    assert heights["tf32"] - heights["bf16"] > 9 and heights["fp32"] - heights["tf32"] > 9


def test_ids_are_unique_and_references_stay_on_the_page(written):
    """Also across the plots, which one page holds together."""
    page = (written / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 100
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {next(filter(None, names)) for names in used} <= set(ids)


class Structure(HTMLParser):
    """Tags that are open, and attributes by which a browser loads something."""

    def __init__(self):
        super().__init__()
        self.open, self.loading, self.names = [], [], set()

    def handle_starttag(self, tag, attrs):
        """Note what is opened and loaded."""
        self.names.add(tag)
        if tag not in {"meta", "link"}:
            self.open.append(tag)
        values = dict(attrs)
        self.loading += [values[name] for name in ("src", "href", "xlink:href", "data", "srcset") if name in values]

    def handle_startendtag(self, tag, attrs):
        """Note what is loaded."""
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        """Hold it to what was opened last."""
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(written):
    """Every tag is closed; references are to the page itself; there is no script."""
    text = (written / "report.html").read_text()
    page = Structure()
    page.feed(text)
    assert page.open == [] and not page.names & {"script", "iframe", "img", "object", "image"}
    assert all(address.startswith(("#", "data:")) for address in page.loading)
    assert "@import" not in text and "@font-face" not in text and "<!-- " not in text
    assert '<html lang="en">' in text and "<title>nntk: 2 runs</title>" in text and "gpu &lt;&amp;&gt;" in text


def test_every_committed_run_has_a_report(tmp_path):
    """A report can be made of a run of each schema in results/."""
    runs = sorted(MEASURED.glob("*.json"))
    assert report.run(runs, tmp_path, Console(file=StringIO())) == 0 and len(runs) > 1


def test_files_are_the_same_each_time(written, synthetic, tmp_path, monkeypatch):
    """Byte for byte, whatever the user's matplotlib is set to; and that stays as it is."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 23.0)
    report.run([synthetic, QUICK], tmp_path, Console(file=StringIO()))
    assert matplotlib.rcParams["font.size"] == 23.0
    first = {path.relative_to(written): path.read_bytes() for path in written.rglob("*.*")}
    assert first == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_markdown_shows_failures_in_words_facts_and_plots(written):
    """No speed in a failed row; what a reader must know; links that lead somewhere."""
    text = (written / "report.md").read_text()
    (failed,) = [line for line in text.splitlines() if line.startswith("| wrong 64")]
    assert "error 3e-01 > 1e-05" in failed and "77" not in failed and "e-09" not in failed and "0.00" not in failed
    assert "with uncommitted changes" in text and "This run is failed" in text and "| time (µs) |" in text
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(links) == 10 and all((written / link).is_file() for link in links)
    for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


def test_a_table_of_one_section():
    """For a README: headers with units, three digits, numbers to the right."""
    run = content.read(QUICK).run
    lines = markdown.table(run, "kernel throughput").splitlines()
    assert lines[0] == "| case | time (ms) | 25 % (ms) | 75 % (ms) | speed-up (×) | error |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[5].startswith("| local NTK, structured | 4.20 | 3.09 | 4.37 | 196 |")
    with pytest.raises(ValueError, match=r"no section 'kernels', it has 'difference accuracy', "):
        markdown.table(run, "kernels")


def test_a_section_may_name_its_columns(tmp_path):
    """As schema 2 does; a section without a row says so."""
    facts = json.loads(QUICK.read_text())
    columns = [{"header": "way", "key": "case", "form": ""}, {"header": "time", "key": "median_s", "form": "seconds"}]
    section = {"name": "a", "title": "Ways", "caption": "Best of *all*.", "columns": columns, "finished": True}
    facts |= {
        "schema": 2,
        "resumed": [],
        "device": {**facts["device"], "selected": "cpu"},
        "sections": [section, {**section, "name": "b", "title": "More", "finished": False}],
        "rows": [{"key": "k", "section": "a", "attempt": 1, "elapsed_s": 1, "case": "x|y", "median_s": 2.5e-5, "z": 1}],
    }
    (path := tmp_path / "run.json").write_text(json.dumps(facts))
    assert markdown.table(content.read(path).run, "a").splitlines()[0::2] == ["| way | time (µs) |", "| x\\|y | 25.0 |"]
    report.run([path], tmp_path / "out", Console(file=StringIO()))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### Ways\n\nBest of \\*all\\*." in text and "Unfinished: 0 rows.\n\nNo row is finished." in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.99951, "1.00"), (9.996, "10.0"), (1234.5, "1,234"), (0.0123, "0.0123"), (1.5e-7, "1.5e-07")],
)
def test_three_digits(value, shown):
    assert content.significant(value) == shown


def test_what_is_no_run_is_named(synthetic, tmp_path):
    """File and key, and nothing is written."""
    wrong = tmp_path / "wrong.json"
    facts = json.loads(synthetic.read_text())
    for roofs, message in (
        ([{"name": "copy", "unit": "bits", "per_second": 1}], r"wrong\.json: roofs\[0\]: must have .*\"bits\""),
        ({}, r"wrong\.json: roofs: must be a list"),
    ):
        wrong.write_text(json.dumps({**facts, "roofs": roofs}))
        with pytest.raises(ResultsError, match=message):
            report.run([synthetic, wrong], tmp_path / "out", Console(file=StringIO()))
    with pytest.raises(ValueError, match=r"absent\.json: No such file"):
        report.run([tmp_path / "absent.json"], tmp_path / "out", Console(file=StringIO()))
    assert not (tmp_path / "out").exists()


class Chromium:
    """A page in a headless browser without a way to the network, driven over its DevTools pipe."""

    START = (
        "import os, sys; name, *pipes = sys.argv[1:4]; [os.dup2(int(pipe), 3 + n) for n, pipe in enumerate(pipes)];"
        "os.execv(name, [name, *sys.argv[4:]])"
    )
    OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--proxy-server=127.0.0.1:9")

    def __init__(self, home):
        ours, theirs = os.pipe(), os.pipe()
        given = (shutil.which("chromium"), str(ours[0]), str(theirs[1]), *self.OPTIONS, f"--user-data-dir={home}")
        with open(home / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.START, *given], pass_fds=(ours[0], theirs[1]), stdout=log, stderr=log
            )
        os.close(ours[0])
        os.close(theirs[1])
        self.commands, self.answers = os.fdopen(ours[1], "wb", buffering=0), os.fdopen(theirs[0], "rb")
        self.events, self.number, self.session, self.rest = [], 0, None, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def receive(self):
        """The next message."""
        while b"\0" not in self.rest:
            more = self.answers.read1(1 << 16)
            assert more, "chromium ended"
            self.rest += more
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def call(self, method, **parameters):
        """The answer to a command; events meanwhile are kept."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        self.commands.write(json.dumps(command).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        return answer["result"]

    def open(self, path, width, scheme):
        """Load a page, and return what the browser said and requested meanwhile."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        named = [(event["method"], event["params"]) for event in self.events]
        said = [
            given
            for name, given in named
            if name in {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
        ]
        return said, [given["request"]["url"] for name, given in named if name == "Network.requestWillBeSent"]

    def ask(self, expression):
        """The value of a piece of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def picture(self, path):
        """Write a screenshot of the whole page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self):
        """End it."""
        for file in (self.commands, self.answers):
            file.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    browser = Chromium(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


CUT_OR_OVERLAPPING = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect(), wrong = [];
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent.trim(), text.getBoundingClientRect()]);
  texts.forEach(([name, box], place) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      wrong.push('cut: ' + name);
    for (const [other, its] of texts.slice(place + 1))
      if (Math.min(box.right, its.right) - Math.max(box.left, its.left) > 1
          && Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top) > 3)
        wrong.push('overlap: ' + name + ' / ' + other);
  });
  return wrong.map(what => svg.getAttribute('aria-label') + ': ' + what);
})
"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it_without_a_complaint(browser, written, width, scheme, tmp_path):
    """Nothing on the console, nothing requested, nothing cut or overlapping, no scrolling sideways."""
    said, requested = browser.open(written / "report.html", width, scheme)
    assert said == [] and [address for address in requested if not address.startswith("data:")] == [
        (written / "report.html").as_uri()
    ]
    assert browser.ask("document.querySelectorAll('figure svg').length") == 10
    assert browser.ask(CUT_OR_OVERLAPPING) == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(253, 253, 252)", "dark": "rgb(21, 24, 28)"}[scheme]
    browser.picture(tmp_path / f"{scheme}.png")
    assert (tmp_path / f"{scheme}.png").stat().st_size > 50_000
