"""The command: its page, its JSON, its exit codes, and one sentence for bad usage."""

import json
import re

import pytest

from data_pipelines.lint.checks import lint
from tests.data_pipelines.lint_faults import broken, surveyed
from tools import dataset_page, lint_dataset

ENTRY = """
from data_pipelines.dataset import Dataset
from tests.data_pipelines.lint_faults import ROBOT, clean

def open_(path, seed=0, black=False):
    memory = clean(seed)
    if black:
        memory.pixels[4]["wrist"][0] = 0
    return memory

tester = Dataset("tester", open_, ROBOT)
"""


@pytest.fixture
def run(tmp_path):
    """run(*arguments) -> (exit code, page or None, findings or None)."""
    (tmp_path / "mine.py").write_text(ENTRY)

    def run(*arguments, dataset=None):
        page, findings = tmp_path / "lint.html", tmp_path / "lint.json"
        for path in (page, findings):
            path.unlink(missing_ok=True)
        named = ["--dataset", dataset or f"{tmp_path / 'mine.py'}:tester", "--path", "here"]
        code = lint_dataset.main([*named, *arguments, "--out", str(page), "--json", str(findings)])
        read = (page.read_text(), json.loads(findings.read_text())) if page.exists() else (None, None)
        return code, *read

    return run


def test_a_clean_data_set_passes(run):
    code, page, findings = run("--fail_on", "note", "--against", "here:seed=1")
    assert code == 0
    assert findings["findings"] == []
    assert "None: every check is content." in page
    assert page.count(">clean</span>") == len(lint_dataset.CHECKS)


def test_a_warning_fails_only_where_warnings_do(run):
    code, page, findings = run("--options", "black=true", "--episodes", "3")
    assert code == 0
    assert [(f["check"], f["severity"]) for f in findings["findings"]] == [("blank frames", "warning")]
    assert run("--options", "black=true", "--episodes", "3", "--fail_on", "warning")[0] == 1
    shown = re.search(r'<section id="findings">.*?</section>', page, re.DOTALL).group()
    assert "camera &#x27;wrist&#x27; shows nothing" in shown
    assert shown.count("data:image/webp") == 1  # the film strip of the episode


def test_an_episode_in_both_splits_fails(run, capsys):
    code, _, findings = run("--against", "here", "--episodes", "1")
    assert code == 1
    assert findings["findings"][0]["numbers"]["shared"] == 8
    assert "8 of 8 episodes are also in memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "dataset", "said"),
    [
        ([], "nobody", "unknown dataset 'nobody'"),
        (["--options", "seed"], None, "'seed' is not KEY=VALUE"),
        (["--options", "speed=3"], None, "unexpected keyword argument 'speed'"),
        (["--against", "here:speed=3"], None, "unexpected keyword argument 'speed'"),
        (["--frames", "1"], None, "--frames must be 2 at least"),
    ],
)
def test_bad_usage_is_one_sentence_and_writes_nothing(run, capsys, arguments, dataset, said):
    try:
        code, page, _ = run(*arguments, dataset=dataset)
    except SystemExit as stop:
        code, page = stop.code, None
    error = capsys.readouterr().err
    assert (code, page) == (2, None)
    assert said in error
    assert "Traceback" not in error


def test_a_store_is_linted_in_place(write_store, episode, tmp_path, capsys):
    train = write_store([episode(f"e{i}", 150, seed=i) for i in range(3)], "train")
    write_store([episode("e1", 150, seed=1), episode("e9", 150, seed=9)], "validation")
    arguments = ["--store", str(train.directory), "--against", str(tmp_path / "validation")]
    assert lint_dataset.main([*arguments, "--out", str(tmp_path / "page.html")]) == 1
    assert "1 of 3 episodes are also in validation: 'e1' = 'e1'" in capsys.readouterr().out
    assert lint_dataset.main(["--store", str(tmp_path / "nowhere")]) == 2
    assert "there is no store at" in capsys.readouterr().err


def test_the_page_holds_the_evidence_of_a_wrong_kind():
    def change(memory):
        for state, action in zip(memory.states, memory.actions, strict=True):
            action[:-1, :2] = state[1:, :2]

    survey = surveyed(broken(change))
    page = lint_dataset.lint_page(survey, lint(survey))
    assert "The command against what it could follow." in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing from outside
    assert len(page) < 5_000_000


def test_options_are_read_as_json_or_text():
    read = dataset_page.parse_options(["split=train", "check_sums=false", "state=[]", "n=3"])
    assert read == {"split": "train", "check_sums": False, "state": [], "n": 3}
