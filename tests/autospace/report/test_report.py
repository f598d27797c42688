import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from synthetic_run import make_run

from autospace.cli.report import command
from autospace.report import build_report, plots
from devices.errors import InvalidInputError, UsageError

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = (
    "asked",
    "device",
    "evolution",
    "space",
    "search",
    "candidates",
    "network",
    "training",
    "export",
    "benchmark",
    "kernels",
    "warnings",
    "reproduce",
)


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.hidden = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += " " + data


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are the slow part: only the tests that look at them draw them."""
    if request.node.get_closest_marker("usefixtures") is None:
        monkeypatch.setattr(plots, "_picture", lambda name, draw, size: f'<svg id="{name}"></svg>')


@pytest.fixture
def real_pictures() -> None:
    """Named by tests that need the plots themselves."""


def report(run: Path) -> tuple[str, str]:
    html, markdown = build_report(run)
    return html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """A copy to take files from."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


def change(run: Path, name: str, **values: Any) -> None:
    path = run / name
    document = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.usefixtures("real_pictures")
def test_a_page_of_its_own_with_every_section(run: Path) -> None:
    html, markdown = report(run)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert {*SECTIONS} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links)
    assert all(link[1:] in page.ids for link in page.links)
    for word in ("http:", "https:", "<script", "@import", "<img", "url(/", "file:"):
        assert word not in html
    assert str(run.parent) not in html + markdown
    for words in ("Budget kept", "98.1 %", "digits at 16×16", "tiny at 16×16", "4.6 % to spare"):
        assert words in page.text.replace("\u00a0", " ")
    assert "prefers-color-scheme:dark" in html
    assert "@media print" in html


def test_the_device_shows_the_errors_of_each_family_of_kernels(run: Path) -> None:
    html, markdown = report(run)
    assert "Errors of predicted kernels, their networks left out" in Page(html).text
    assert "pointwise | " in markdown
    assert "of the runs lost their core" in markdown


def test_every_picture_has_a_name(run: Path) -> None:
    html, _ = report(run)
    pictures = html.count("<svg ")
    assert pictures > 15
    assert html.count('role="img" aria-label="') >= pictures
    assert 'aria-label=""' not in html


@pytest.mark.usefixtures("real_pictures")
def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = report(run)
    # Another process has other hash seeds, and nothing drawn before.
    code = "import sys, pathlib, autospace.report as r; r.build_report(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    again = tuple((run / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert first == again


def test_a_failed_budget_is_said_first_and_in_red(tmp_path: Path) -> None:
    html, markdown = report(make_run(tmp_path, kept=False))
    assert markdown.startswith("# ✗ Budget not kept")
    body = html[html.index("<main>") :]
    assert body.index("Budget not kept") < 120
    assert '<header class="verdict failed">' in body
    assert "above the limit of 0.5" in Page(html).text


def test_what_an_evolution_is_allowed_and_what_a_search_is_stand_apart(run: Path) -> None:
    text = Page(report(run)[0]).text
    assert "with a cell in every block, against 1.5 times the limit of 0.5 ms" in text
    assert "Expected latency of the network against the limit of 0.5 ms" in text


def test_a_limit_that_was_missed_outweighs_the_verdict(run: Path) -> None:
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    verdict["limits"][0]["kept"] = False
    change(run, "verdict.json", limits=verdict["limits"])
    assert "# ✗ Budget not kept" in report(run)[1]


def test_stopped_because_no_candidate_keeps_the_limits(run: Path) -> None:
    for name in ("verdict.json", "architecture.json", "benchmark.json", "train.jsonl"):
        (run / name).unlink()
    change(run, "verification.json", chosen=None)
    html, markdown = report(run)
    assert markdown.startswith("# ✗ Budget not kept")
    assert "None of the 4 candidates" in Page(html).text


def test_the_nearest_network_of_a_missed_budget_is_named_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, kept=False)
    record = json.loads((run / "verification.json").read_text(encoding="utf-8"))
    for entry in record["rounds"]:
        for one in entry["candidates"]:
            one["kept"] = False
    change(run, "verification.json", **record)
    change(run, "verdict.json", accuracy=None, export=None)
    text = Page(report(run)[0]).text
    assert "(nearest)" in text
    assert "None of them keeps every limit" in text
    assert "not trained" in text


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "verdict.json").unlink()
    (run / "verification.json").unlink()
    html, markdown = report(run)
    assert markdown.startswith("# Unfinished")
    assert 'class="verdict open"' in html


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("device.card", "device"),
        ("evolve.jsonl", "evolution"),
        ("space.json", "space"),
        ("search.jsonl", "search"),
        ("verification.json", "candidates"),
        ("architecture.json", "network"),
        ("train.jsonl", "training"),
        ("model.onnx", "export"),
        ("benchmark.json", "benchmark"),
        ("config.toml", "reproduce"),
    ],
)
def test_a_missing_or_broken_file_costs_only_its_section(
    run: Path, name: str, section: str
) -> None:
    (run / name).unlink()
    html, _ = report(run)
    part = html[html.index(f'<section id="{section}"') :]
    part = part[: part.index("</section>")]
    assert f"{name} is not in the run folder" in part
    assert {*SECTIONS} <= set(Page(html).ids)
    if name != "model.onnx":
        (run / name).write_bytes(b'{"cut": [1, 2\xff')
        Page(report(run)[0])
    assert "Budget kept" in report(run)[1]


def test_journals_cut_short_by_a_kill_are_read(run: Path) -> None:
    for name in ("evolve.jsonl", "search.jsonl", "train.jsonl"):
        text = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(text[: len(text) // 2], encoding="utf-8")
    assert "Losses of the stacked cells" in report(run)[0]


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, [[]], [None], {"a": [1]}, True, 1e308])
def test_fields_of_the_wrong_type_break_nothing(run: Path, junk: object) -> None:
    for name in ("verdict.json", "state.json", "verification.json", "benchmark.json"):
        document = json.loads((run / name).read_text(encoding="utf-8"))
        change(run, name, **dict.fromkeys(document, junk))
    for name in ("evolve.jsonl", "search.jsonl", "train.jsonl"):
        first = json.loads((run / name).read_text(encoding="utf-8").splitlines()[0])
        lines = [json.dumps(dict.fromkeys(first, junk)), json.dumps(junk)]
        (run / name).write_text("\n".join(lines), encoding="utf-8")
    Page(report(run)[0])


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, True])
def test_inner_fields_of_the_wrong_type_break_nothing(run: Path, junk: object) -> None:
    def spoiled(value: Any, depth: int) -> Any:
        if depth == 0:
            return junk
        if isinstance(value, dict):
            return {name: spoiled(entry, depth - 1) for name, entry in value.items()}
        return [spoiled(entry, depth - 1) for entry in value] if isinstance(value, list) else value

    whole = {
        name: json.loads((run / name).read_text(encoding="utf-8"))
        for name in ("verdict.json", "state.json", "verification.json", "benchmark.json")
    }
    for depth in (2, 3, 4, 5):
        for name, document in whole.items():
            (run / name).write_text(json.dumps(spoiled(document, depth)), encoding="utf-8")
        Page(report(run)[0])


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.0, 1e18], [-1e-12, 1e-12]])
@pytest.mark.usefixtures("real_pictures")
def test_plots_of_few_equal_or_extreme_values(values: list[float]) -> None:
    places = [float(place) for place in range(len(values))]
    series = plots.Series("a", places, values)
    pictures = [
        plots.lines("a", [series], x_label="x", y_label="y", limit=(1.0, "limit")),
        plots.histogram("b", values, [(1.0, "one")], "x"),
        plots.scatter("c", [plots.Point(v, v, v, v, v > 0) for v in values], (1.0, "limit")),
    ]
    for picture in pictures:
        Page(picture)
        assert "currentColor" in picture
        assert "#0" not in picture.replace("#0000", "")


def test_simulated_is_loud(tmp_path: Path) -> None:
    html, markdown = report(make_run(tmp_path, simulated=True))
    assert "SIMULATED DEVICE" in html
    assert "SIMULATED DEVICE" in markdown


def test_markup_in_texts_is_shown_not_obeyed(run: Path) -> None:
    evil = '<script>alert("x")</script>'
    change(run, "verdict.json", data=evil, warnings=[evil])
    html, _ = report(run)
    assert "<script" not in html
    assert evil in Page(html).text


def test_output_folder_and_wrong_folders(run: Path, tmp_path: Path) -> None:
    html, markdown = build_report(run, tmp_path / "new" / "folder")
    assert html == tmp_path / "new" / "folder" / "report.html"
    assert markdown.is_file()
    assert not (run / "report.html").exists()
    (tmp_path / "empty").mkdir()
    for wrong, words in (
        (tmp_path / "empty", "nothing of a run"),
        (tmp_path / "none", "no such folder"),
        (html, "is a file"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            build_report(wrong)
    with pytest.raises(UsageError, match="is a file"):
        build_report(run, html)


def test_command(run: Path, tmp_path: Path) -> None:
    arguments = [str(run), "-o", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["html"] == str(tmp_path / "out" / "report.html")
