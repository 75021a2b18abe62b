"""The documents say what is there: the README's blocks run, its quotations and its links are right."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest

from lab.runs import read_run
from tests.conftest import HOME

README = (HOME / "README.md").read_text()
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


FENCED = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def blocks(text):
    """The fenced python blocks of a page -> [(the line of prose before it, the code)]"""
    return [(FENCED.sub("", text[:match.start()]).rstrip().rpartition("\n")[2], match[1])
            for match in FENCED.finditer(text)]


def test_the_readme_holds_the_two_commands_each_once_and_is_short():
    lines = README.splitlines()
    for command in ("pip install -r requirements.txt && python train.py && python asu.py && python eval.py",
                    "pip install -r requirements.txt && pytest"):
        assert lines.count(command) == 1
    assert len(README.split()) <= 2200


@pages
def test_every_link_and_every_file_of_ours_that_is_named_exists(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link
    for file in re.findall(r"`([\w/.]+\.py)`", text):
        assert (HOME / file).exists() or (page.parent / file).exists(), file


def test_every_test_that_a_page_names_exists():
    code = "".join(file.read_text() for file in (HOME / "tests").glob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", code, re.M))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 5 and named <= tests


def test_what_the_readme_quotes_from_asu_stands_there():
    ours = [line.strip() for line in (HOME / "asu.py").read_text().splitlines()]
    quoted = [code for before, code in blocks(README) if "`asu.py`" in before]
    assert any("for step in" in code for code in quoted)
    for code in quoted:
        at = 0
        for line in filter(str.strip, code.splitlines()):
            assert line.strip() in ours[at:], line
            at = ours.index(line.strip(), at) + 1


@pytest.fixture
def repository(tmp_path):
    """A copy of the code, to be changed as the README says -> (its directory, a function that runs a script there)"""
    for item in [*HOME.glob("*.py"), *(HOME / name for name in ("common", "config", "data", "experiments", "lab"))]:
        if item.is_dir():
            shutil.copytree(item, tmp_path / item.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(item, tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(script, *flags):
        done = subprocess.run([sys.executable, script, "@config/tiny.args", "--out=out", *flags], capture_output=True,
                              text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
    return tmp_path, run


def block(ending):
    """The README's only block that ends so."""
    [code] = [code for _, code in blocks(README) if code.endswith(ending)]
    return code


@pytest.mark.slow
def test_a_loss_is_added_as_the_readme_says(out, repository):
    path, run = repository
    with open(path / "baselines.py", "a") as f:
        f.write("\n\n" + block('LOSSES["unlikelihood"] = unlikelihood\n'))
    run("asu.py", f"--run={out / 'target'}", "--method=unlikelihood", "--epochs=1")
    record = read_run(path / "out/unlikelihood_gd")
    assert record["kind"] == "unlearned" and record["settings"]["method"] == "unlikelihood"
    assert math.isfinite(record["curve"][0]["forget_loss"]) and record["curve"][0]["forget_loss"] > 0


@pytest.mark.slow
def test_a_metric_is_added_as_the_readme_says(out, repository):
    path, run = repository
    code = (path / "eval.py").read_text()
    above_main = block('METRICS["answer_length"] = answer_length\n') + "\n\ndef main():"
    (path / "eval.py").write_text(code.replace("def main():", above_main))
    run("eval.py", f"--runs={out / 'target'},{out / 'retrained'}", "--max_rows=4")
    result = json.loads((path / "out/report.json").read_text())["runs"]["target"]["forget"]
    low, high = result["ci95"]["answer_length"]
    assert 0 < low <= result["answer_length"] <= high and "answer_length" in (path / "out/report.md").read_text()
