"""The report of a made-up run: everything is on the page, nothing comes from outside, what is missing is said."""

import base64
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import report as command
from wam.evaluation import report_media
from wam.evaluation.page import Html, join, table, tag
from wam.evaluation.record import RunRecord, percent, summary_table, wrap
from wam.evaluation.report import write_report


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and collects headings, links, sources and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.headings, self.addresses, self.text, self.media = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attrs):
        if name not in ("img", "meta"):
            self.open.append(name)
        for key, value in attrs:
            if key in ("src", "href"):
                (self.media if value.startswith("data:") else self.addresses).append(value)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(complete_run):
    return write_report(complete_run)


@pytest.fixture
def run(complete_run, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(complete_run, tmp_path / "demo", ignore=shutil.ignore_patterns("report"))


@pytest.fixture
def small_run(run):
    """The same without learning curves and imagined windows: quick to write."""
    (run / "metrics.jsonl").unlink()
    for path in (run / "eval").glob("dynamics_*"):
        path.unlink()
    return run


def test_the_page_holds_every_part(written):
    page, said = read(written), written.read_text()
    assert page.headings == [
        "Verdict",
        "Closed loop",
        "With and without imagination",
        "Episodes in policy mode",
        "Episodes in joint mode",
        "World model",
        "Imagined under given actions: expert data",
        "Imagined under given actions: play data",
        "Inverse dynamics",
        "Self-consistency",
        "Open loop",
        "Open-loop error by dimension: expert, sawyer_metaworld",
        "Training",
        "Data",
        "Run",
        "Wall time by phase",
        "Versions",
        "Config",
    ]
    for text in ("The dynamics obey", "swapped", "0123456789ab+", "7 min 11 s", "3.11.9", "trained 2030-01-02"):
        assert text in said
    assert "in this run" not in said  # nothing is reported missing
    assert "config.train.steps" in said  # 3000 asked for, 2000 used


def test_the_page_needs_nothing_from_outside_and_is_small(written):
    page = read(written)
    assert all(re.fullmatch(r"#[a-z-]+", address) for address in page.addresses)
    said = re.sub(r"data:image/[\w+]+;base64,[\w+/=]+", "", written.read_text())
    assert "http" not in said
    assert "url(" not in said
    assert "<script" not in said
    assert written.stat().st_size < 12_000_000


def test_names_are_escaped(written):
    assert "<now>" not in written.read_text()
    assert "reach <now> & then stop" in "".join(read(written).text)


def test_videos_loop_side_by_side(written):
    videos = [
        image
        for uri in read(written).media
        if uri.startswith("data:image/webp")
        and getattr(image := Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), "n_frames", 1) > 1
    ]
    sizes = sorted({image.size for image in videos})
    gap = report_media.GAP
    assert sizes == [(48, 48), (96 + gap, 48), (144 + 2 * gap, 48)]  # episode; real, imagined; real, true, shuffled
    assert len(videos) == 3 + 3 + 6 + 6
    assert all(image.info["loop"] == 0 for image in videos)


def test_the_page_is_the_same_when_written_again(written):
    before = written.read_bytes()
    assert write_report(written.parents[1]).read_bytes() == before


def test_what_is_missing_is_said(run):
    shutil.rmtree(run / "eval")
    for name in ("mixture.json", "metrics.jsonl", "phases.json"):
        (run / name).unlink()
    (run / "config.json").write_text("{}")
    (run / "metrics.json").write_text("{}")
    said = "".join(read(write_report(run)).text)
    for part in ("closed-loop evaluation", "forward dynamics", "inverse dynamics", "verdicts", "learning curves"):
        assert re.search(rf"No [\w -]*{part}", said), part
    for part in ("mixture", "wall times", "versions", "training figures"):
        assert re.search(rf"No [\w -]*{part}", said), part
    assert summary_table(RunRecord.read(run)) == ""


def test_a_missing_mode_is_said_in_one_line(small_run):
    metrics = json.loads((small_run / "metrics.json").read_text())
    for name in ("joint", "random"):
        del metrics["closed_loop"][name]
    metrics["closed_loop"]["swapped_instruction"]["tasks"] = {}
    (small_run / "metrics.json").write_text(json.dumps(metrics))
    for path in (small_run / "eval").glob("episode_joint_*"):
        path.unlink()
    page = read(write_report(small_run))
    assert "No joint evaluation in this run." in page.text
    assert "No random evaluation in this run." in page.text
    assert "None recorded in this run." in page.text


def test_media_beyond_the_budget_are_left_out_and_said(run, monkeypatch):
    monkeypatch.setattr("wam.evaluation.report.MEDIA_BYTES", 100_000)
    path = write_report(run)
    assert sum(len(uri) for uri in read(path).media if uri.startswith("data:image/webp")) <= 100_000
    assert "left out: the page has reached its size limit" in path.read_text()


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda run: (run / "config.json").unlink(), FileNotFoundError, "is no run directory"),
        (lambda run: (run / "metrics.json").unlink(), FileNotFoundError, "python -m experiments.evaluate --checkpoint"),
        (lambda run: (run / "metrics.json").write_text('{"a": '), ValueError, r"metrics.json is damaged \(line 1"),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n{"), ValueError, "line 2 is damaged"),
        (lambda run: (run / "eval/dynamics_play.npz").write_bytes(b"PK"), ValueError, "dynamics_play.npz is damaged"),
    ],
)
def test_unusable_runs_are_named(run, damage, error, said):
    damage(run)
    with pytest.raises(error, match=said):
        write_report(run)
    assert not (run / "report").exists()


def test_summary_table_fits_and_holds_the_results(complete_run):
    text = summary_table(RunRecord.read(complete_run))
    assert max(map(len, text.splitlines())) <= 100
    closed = json.loads((complete_run / "metrics.json").read_text())["closed_loop"]
    row = next(line for line in text.splitlines() if line.startswith("push"))
    names = ("policy", "joint", "swapped_instruction", "blind_replay", "random")
    assert re.split(r" {2,}", row)[1:] == [percent(closed[name]["tasks"]["push"]) for name in names]
    assert "expert, moving region         21.00      18.00" in text
    assert "2,000 steps in 7 min 11 s" in text


def test_wrapped_lines_lose_nothing():
    text = "verdict     " + " ".join(f"word{i}" for i in range(40))
    lines = wrap(text, 60, indent=12)
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert max(map(len, lines)) <= 60
    assert wrap("x" * 50, 20, indent=4)[0] == "x" * 20


def test_markup_escapes_all_but_markup():
    assert tag("p", "a < b", Html("<b>c</b>"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
    assert join(["<", tag("img", src="y")]) == '&lt;<img src="y">'
    assert table(["<h>", "n"], [["a", "1"]], strong=[0]).count("&lt;h&gt;") == 1


def test_imagined_frames_stand_beside_the_moment_they_foresaw():
    frames = np.zeros((5, 1, 1, 3), np.uint8)
    imagined = np.arange(1, 5, dtype=np.uint8).reshape(2, 2, 1, 1, 1).repeat(3, -1)
    seen = report_media.foreseen(
        frames, frame_step=np.array([0, 4, 8, 12, 16]), imagined=imagined, imagined_step=np.array([4.0, 8.0]),
        chunk_step=np.array([0, 8]),
    )  # fmt: skip
    assert seen[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]  # step 8 was foreseen by chunk 0, though chunk 1 begins there


def test_slow_motion():
    assert report_media.slowdown([0.0, 0.2], 2.0) == 10
    assert report_media.slowdown([0.0, 9.0], 2.0) == 1
    assert report_media.slowdown([0.0], 2.0) == 1


def run_command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(command, "_TABLE", type("Flag", (), {"value": "--table" in arguments}))
    command.main(["report", *(a for a in arguments if a != "--table")])


def test_command_writes_prints_and_adds_its_phase(small_run, monkeypatch, capsys):
    run_command(monkeypatch, str(small_run))
    out = capsys.readouterr().out
    assert (small_run / "report" / "index.html").exists()
    assert "all tasks" in out
    assert out.endswith(f"report      {small_run / 'report' / 'index.html'}\n")
    phases = json.loads((small_run / "phases.json").read_text())
    assert list(phases) == ["collect", "train", "evaluate", "report", "total"]
    assert phases["total"] == pytest.approx(712.7 + phases["report"])
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert metrics["phases"] == phases
    assert "closed_loop" in metrics
    command.add_phase(small_run, "report", 5.0)
    assert json.loads((small_run / "phases.json").read_text())["total"] == pytest.approx(717.7)


def test_command_prints_the_table_alone(run, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in run.glob("*.json")}
    run_command(monkeypatch, str(run), "--table")
    assert "all tasks" in capsys.readouterr().out
    assert not (run / "report").exists()
    assert {path: path.read_bytes() for path in run.glob("*.json")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "report: name one run directory"), (["/nowhere"], "report: /nowhere is no run directory")],
)
def test_command_fails_in_one_sentence(arguments, said, monkeypatch):
    with pytest.raises(SystemExit, match=said) as stopped:
        run_command(monkeypatch, *arguments)
    assert "\n" not in str(stopped.value)
