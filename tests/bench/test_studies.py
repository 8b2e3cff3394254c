"""The studies at their quick sizes: claims hold, figures can be read, the same seed gives the same values."""

import itertools
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from nntk.bench import studies
from nntk.bench.cli import app as cli
from nntk.bench.measure import environment
from nntk.bench.results import tables
from nntk.bench.studies import Setting, Study, StudyFigure
from nntk.bench.studies import run as study_runs
from nntk.bench.studies.analysis import drawing, ridge
from nntk.bench.studies.analysis.claims import Claim, interval
from nntk.bench.studies.analysis.rows import Rows

CPU = torch.device("cpu")
NAMES = tuple(studies.STUDIES)
RESULTS = Path(__file__).parents[2] / "results" / "studies"


# All tests of a study run on one worker, which runs the study once; that takes minutes for all of them.
every_study = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=(pytest.mark.contract, pytest.mark.xdist_group(f"study {name}"))) for name in NAMES],
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return a function that runs a quick study once and returns its folder."""
    folder = tmp_path_factory.mktemp("studies")

    def run_once(name):
        study = folder / "quick" / name
        if not (study / "README.md").exists():
            assert cli.main(["study", name, "--quick", "--threads", "1", "--output", str(folder)]) == 0, "contradicted"
        return study

    return run_once


def content(folder):
    """Return the content of the JSON in a study's folder."""
    return json.loads((folder / f"{folder.name}.json").read_text())


@every_study
def test_the_quick_study_contradicts_no_claim(name, quick):
    """Each has an interval over seeds; the page says it, with every figure in both formats."""
    folder = quick(name)
    result, page = content(folder), (folder / "README.md").read_text()
    assert result["status"] == "complete" and len(result["claims"]) >= 3
    for claim in result["claims"]:
        assert claim["verdict"] != "contradicted" and len(claim["values"]) == result["settings"]["seeds"] >= 2
        assert claim["low"] <= claim["mean"] <= claim["high"] and claim["sentence"] in page
    for drawn in folder.glob("*.svg"):
        assert f"]({drawn.name})" in page and drawn.with_suffix(".png").stat().st_size > 10_000
    assert page.count("![") == len(list(folder.glob("*.svg"))) >= 1


@every_study
def test_the_same_seed_gives_the_same_values(name, quick):
    """The values are equal to the bit on a second run, and within rounding on another number of threads."""
    before = [row for row in content(quick(name))["rows"] if row["seed"] == 0]
    for threads, tolerance in ((1, 0.0), (2, 1e-6)) if name in ("dimension", "limit") else ((1, 0.0),):
        torch.set_num_threads(threads)
        assert disagreements(before, replicate(studies.load(name)), tolerance) == []


def replicate(study):
    """Rows of the first seed, as a file has them."""
    result = [item for item in study.replicate(Setting(study.quick, CPU, 0)) if not isinstance(item, str)]
    return json.loads(json.dumps([study_runs.prepare_row(row, 0) for row in result]))


def disagreements(before, after, tolerance):
    """Keys whose values differ by more than a relative tolerance; times do not count, and rounding only by its size."""
    assert [set(row) for row in before] == [set(row) for row in after]
    result = []
    for old, new in zip(before, after, strict=True):
        for key in old:
            allowed = 3 if key.endswith("_rounding") and tolerance else tolerance
            numbers = isinstance(old[key], float | list)
            if key.endswith("_s") or old[key] == new[key]:
                continue
            scale = np.abs(np.array(old[key])).max() if numbers else 1.0
            # However small an error is, it is a difference of float64 numbers near one.
            rounding = 1e-15 if key.endswith("error") and tolerance else 0.0
            if not numbers or not np.allclose(old[key], new[key], rtol=0, atol=allowed * scale + rounding):
                result.append((key, old[key], new[key]))
    return result


@every_study
def test_figures_can_be_read(name, quick):
    """No panel is empty or without labels, and no label lies on another."""
    rows = Rows(content(quick(name))["rows"])
    with drawing.styled(name):
        for drawn in studies.load(name).figures(rows):
            assert_readable(drawn.figure)


def assert_readable(figure):
    """Every panel has something in it, and texts are apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        assert axes.has_data() or axes.collections or axes.images, f"empty panel {axes.get_title(loc='left')!r}"
        is_bar = hasattr(axes, "_colorbar")
        assert is_bar or axes.get_xlabel() or axes.get_ylabel(), "a panel says on no axis what it shows"
    boxes = [(text, extent(text, canvas)) for text in texts(figure)]
    inside = figure.bbox
    for text, box in boxes:
        assert box.x0 >= inside.x0 - 1 and box.x1 <= inside.x1 + 1, f"cut off: {text.get_text()!r}"
        assert box.y0 >= inside.y0 - 1 and box.y1 <= inside.y1 + 1, f"cut off: {text.get_text()!r}"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one.get_text()!r} lies on {other.get_text()!r}"


def extent(text, canvas):
    """Return the extent of a text in pixels."""
    return text.get_window_extent(canvas.get_renderer())


def texts(figure):
    """Titles, labels, ticks in view, legends and notes."""
    result = [*figure.texts, *[text for legend in figure.legends for text in legend.get_texts()]]
    for axes in figure.axes:
        result += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        if axes.get_legend():
            result += axes.get_legend().get_texts()
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            result += [
                label
                for place, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
                if low <= place <= high
            ]
    return [text for text in result if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", NAMES)
def test_the_published_study_supports_its_claims(name):
    """Claims and page follow from the rows in its file, and every claim is supported by them."""
    folder, study = RESULTS / name, studies.load(name)
    result = content(folder)
    claims = study.claims(Rows(result["rows"]))
    assert result["status"] == "complete" and not result["quick"] and not result["uncommitted_changes"]
    assert [(claim.sentence, claim.verdict) for claim in claims] == [
        (claim["sentence"], "supported") for claim in result["claims"]
    ]
    with drawing.styled(name):
        captions = [(drawn.name, drawn.caption) for drawn in study.figures(Rows(result["rows"]))]
    assert (folder / "README.md").read_text() == study_runs.page(study, result, claims, captions)
    assert all((folder / f"{name}.{ending}").exists() for name, _ in captions for ending in ("svg", "png"))


def test_the_gallery_shows_what_the_studies_found():
    """Four figures with their commands, one of them where the nonlocal kernel loses; every number is a claim's."""
    gallery = (RESULTS / "README.md").read_text().partition("## Gallery")[2].partition("\n## ")[0]
    shown = re.findall(r"`nntk-bench study (\w+)`\n\n!\[[^]]+\]\(((\w+)/\w+\.png)\)", gallery)
    assert len(shown) == 4 and "Where it loses" in gallery
    assert all(name == folder and (RESULTS / path).exists() for name, path, folder in shown)
    readme = (RESULTS.parent.parent / "README.md").read_text()
    summary = readme.partition("where does it lose?")[2].partition("\n## ")[0]
    assert "loses" in summary and "`nntk-bench study targets`)\n\n![" in summary
    result = {number for name in NAMES for claim in content(RESULTS / name)["claims"] for number in mean_of(claim)}
    for text in (gallery, summary):
        numbers = set(re.findall(r"(?<![\w.])\d+\.\d+(?:e-?\d+)?|\d+e-\d+", text))
        assert numbers and numbers <= result, numbers - result


def mean_of(claim):
    """The mean as the sentence has it: in front of its interval."""
    return re.findall(r"(\S+) \[", claim["sentence"])


@pytest.mark.parametrize("rank", [6, 40], ids=["singular", "full rank"])
def test_the_ridge_is_that_of_leaving_each_input_out(rank):
    """Its error is that of as many fits without one input each, to kernels of any rank."""
    generator = np.random.default_rng(0)
    result, y = generator.normal(size=(30, rank)), generator.normal(size=(20, 2))
    features = ridge.root(torch.tensor(result @ result.T))
    found_value, shared = ridge.fit(features, y, 20), ridge.fit(features, y, 20, shared=True)
    unit = np.square(features[:20]).sum(1).mean()
    for target in range(2):
        left_out = []
        for n in range(20):
            rest = np.delete(np.arange(20), n)
            model = Ridge(found_value.alpha[target] * unit).fit(features[rest], y[rest, target])
            left_out.append(model.predict(features[[n]])[0])
        assert np.allclose(found_value.left_out[:, target], left_out)
        assert found_value.loo[target] == pytest.approx(np.mean((left_out - y[:, target]) ** 2))
    assert shared.alpha[0] == shared.alpha[1] and shared.loo.mean() >= 0.999 * found_value.loo.mean()


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """It is 95 % for normal values; the interval of ratios is that of their logarithms."""
    generator = np.random.default_rng(0)
    result = [interval(generator.normal(1, 2, 5)) for _ in range(4000)]
    held = np.mean([one.low <= 1 <= one.high for one in result])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)
    ratio = interval([0.5, 2.0], ratio=True)
    assert ratio.mean == pytest.approx(1) and ratio.low * ratio.high == pytest.approx(1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0, 10, "supported"), (2, 10, "open"), (0, 2, "open"), (3, 10, "contradicted"), (-1, 0.5, "contradicted")],
)
def test_a_claim_is_judged_by_its_whole_interval(low, high, verdict):
    """Supported inside the range, contradicted outside, else open; the sentence has the numbers."""
    claim = Claim("mean", "It is {}.", [1.9, 2.0, 2.1], low, high, ".2f")
    assert claim.verdict == verdict and claim.sentence == "It is 2.00 [1.75, 2.25]."


@pytest.mark.parametrize(
    ("values", "ratio", "message"),
    [([1.0], False, "two at least"), ([1.0, math.nan], False, "finite"), ([1.0, 0.0], True, "finite and positive")],
)
def test_an_interval_that_cannot_be_is_an_error(values, ratio, message):
    """It says what the values are."""
    with pytest.raises(ValueError, match=message):
        interval(values, ratio)


def test_rows_must_be_one_a_seed():
    """Else a mean over seeds would count some twice."""
    rows = Rows([{"table": "a", "seed": seed, "gamma": gamma, "y": seed} for seed in (0, 1) for gamma in (0.1, 1.0)])
    assert rows.values("y", gamma=0.1).tolist() == [0, 1] and rows.band("gamma", "y").mean.tolist() == [0.5, 0.5]
    for settings in ({}, {"gamma": 3}):
        with pytest.raises(ValueError, match="one row a seed"):
            rows.values("y", **settings)


@dataclass(frozen=True)
class Size:
    seeds: int = 4


@pytest.fixture
def study(monkeypatch):
    """A study of the names of its seeds, in sources that are committed; ``made`` is which were computed."""
    monkeypatch.setattr(environment, "describe", lambda device: FACTS)
    result = []

    def rows(setting):
        yield "a number"
        result.append(setting.seed)
        if setting.seed in stop:
            raise stop.pop(setting.seed)
        yield {"table": "numbers", "place": "here", "y": float(setting.seed), "curve": [1 / 3]}

    def figures(rows):
        figure, (axes,) = drawing.panels(1, 1)
        drawing.entitle(axes, "Numbers", "seed (number)", "y (number)")
        axes.plot([row["y"] for row in rows])
        yield StudyFigure("numbers", "Numbers of seeds. Nothing else.", figure)

    stop = {}
    found_value = Study("seeds", "Seeds", "None.", Size(), Size(2), rows, small_mean, figures)
    return found_value, result, stop


def small_mean(rows):
    """The claim of the study of seeds."""
    return [Claim("mean", "The mean is {}.", rows.values("y"), 0, 10)]


FACTS = {
    "device": {"kind": "cpu", "name": "a CPU", "threads": 1},
    "versions": {"torch": "2"},
    "commit": "abc",
    "uncommitted_changes": False,
    "stream_version": 1,
}


def test_what_was_stopped_goes_on(study, tmp_path, monkeypatch, capsys):
    """With the seeds that are missing; until its end it replaces nothing, and of other sources it begins anew."""
    study, result, stop = study
    partial = tmp_path / "seeds" / "seeds.partial.json"

    def run(quick=False, seed=0):
        result.clear()
        return study_runs.run(study, quick, CPU, seed, tmp_path, tables.standard_console()), list(result)

    def stopped(wrong=KeyboardInterrupt):
        stop[2] = wrong()
        with pytest.raises(wrong):
            run()
        assert "stopped: 2 seeds are in" in capsys.readouterr().out

    assert run() == (0, [0, 1, 2, 3]) and not partial.exists()
    for wrong in (KeyboardInterrupt, RuntimeError):
        before = content(tmp_path / "seeds")
        stopped(wrong)
        found_value = json.loads(partial.read_text())
        assert (
            found_value["finished"] == [0, 1]
            and len(found_value["rows"]) == 2
            and content(tmp_path / "seeds") == before
        )
        assert run() == (0, [2, 3]) and not partial.exists()
        assert content(tmp_path / "seeds")["rows"] == before["rows"]
    assert run() == (0, [0, 1, 2, 3]), "what is complete is not gone on with"
    for other, seeds, why in (({"quick": True}, [0, 1], "settings.seeds"), ({"seed": 1}, [1, 2, 3, 4], "seed")):
        stopped()
        assert run(**other) == (0, seeds)
        said = capsys.readouterr().out
        assert "begins anew" in said and why in said
    stopped()
    monkeypatch.setattr(environment, "describe", lambda device: {**FACTS, "commit": "def"})
    assert run() == (0, [0, 1, 2, 3]) and "commit" in capsys.readouterr().out


def test_what_cannot_be_drawn_keeps_its_rows(study, tmp_path, capsys):
    """And says how to go on."""
    study, *_ = study
    broken = replace(study, claims=lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study_runs.run(broken, True, CPU, 0, tmp_path, tables.standard_console())
    assert "--redraw" in capsys.readouterr().out
    assert study_runs.redraw(study, tmp_path, tables.standard_console()) == 0


@pytest.mark.parametrize("value", [math.nan, [1.0, math.inf]])
def test_a_row_that_is_not_finite_is_an_error(value):
    """It is named."""
    with pytest.raises(ValueError, match=r"y of table 'numbers', seed 3, must be finite"):
        study_runs.prepare_row({"table": "numbers", "y": value}, 3)


def test_a_claim_has_a_value_for_each_seed(study, tmp_path):
    """One that leaves a seed out is an error."""
    study, *_ = study
    short = replace(study, claims=lambda rows: [Claim("short", "{}", [1.0, 2.0, 3.0])])
    with pytest.raises(ValueError, match="claims must have 2 values, one a seed; 'short' have not"):
        study_runs.run(short, True, CPU, 0, tmp_path, tables.standard_console())


def test_what_a_study_writes(study, tmp_path):
    """Rows as JSON and CSV, the page, and figures whose bytes are the same when drawn again."""
    study, result, _ = study
    assert study_runs.run(study, True, CPU, 5, tmp_path, tables.standard_console()) == 0 and result == [5, 6]
    folder = tmp_path / "seeds"
    assert (folder / "numbers.csv").read_text() == "seed,place,y\n5,here,5.0\n6,here,6.0\n"
    assert content(folder)["rows"][0]["curve"] == [0.333333]
    page = (folder / "README.md").read_text()
    assert "`nntk-bench study seeds --quick --seed 5`" in page and "![Numbers of seeds](numbers.svg)" in page
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert study_runs.redraw(study, tmp_path, tables.standard_console()) == 0 and result == [5, 6]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_contradicted_claim_is_an_exit_status(study, tmp_path):
    """And the page says so."""
    study, *_ = study
    assert study_runs.run(study, True, CPU, 100, tmp_path, tables.standard_console()) == 1
    assert "(This run contradicts it.)" in (tmp_path / "seeds" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study"], "argument NAME: must be of targets, .* or all; got none"),
        (["study", "target"], "argument NAME: must be of targets, .* or all; got target"),
        (["study", "limit", "--redraw"], "limit.json: there is no such file"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    """On standard error, with status 2."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("nntk-bench study: error: ")
    assert re.search(message, error)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9, "study": "limit"}'])
def test_a_file_that_is_no_study_is_an_error(text, tmp_path):
    """It is named."""
    path = tmp_path / "limit.json"
    path.write_text(text)
    with pytest.raises(study_runs.StudyError, match=r"limit\.json: no "):
        study_runs.read(path)


def test_the_list(capsys):
    """A line a study."""
    assert cli.main(["study", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)
