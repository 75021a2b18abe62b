"""The course kit: the starter kit, the grader on good and unfinished work, the mutants, Gradescope, bad input."""

import ast
import concurrent.futures
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest

from common import HOME, UserError
from course import MUTANTS, PROBLEMS, STUDENTS_TESTS, TESTS, WRITTEN, grade, make, mutants, points
from course.make import blanked, find, kit, tree
from tests.conftest import call

HANDOUT = (HOME / "course/README.md").read_text()


@pytest.fixture(scope="module")
def files():
    return tree()


@pytest.fixture(scope="module")
def reference(files, tmp_path_factory):
    """The repository as a submission -> (its folder, full marks for the written questions)"""
    folder = tmp_path_factory.mktemp("reference")
    return folder, grade.reference(folder, files)


@pytest.fixture
def work(reference, tmp_path):
    """A copy of the reference's files, to be spoilt."""
    for path in {path for functions in PROBLEMS.values() for path, _ in functions}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(reference[0] / path, tmp_path / path)
    return tmp_path


# ------------------------------------------------------------------------------------------------------- the tables
def test_eight_problems_are_worth_110_points_and_each_test_says_how_many():
    assert list(PROBLEMS) == list(range(1, 9)) and sum(map(points, PROBLEMS)) == 110
    assert [points(problem) for problem in PROBLEMS] == [10, 10, 10, 15, 15, 15, 20, 15]
    for problem in PROBLEMS:
        worth = grade.test_points((HOME / f"course/test_p{problem}.py").read_text())
        assert sum(worth.values()) == TESTS[problem], problem


def test_the_handout_names_every_function_command_and_number_of_points():
    for problem, functions in PROBLEMS.items():
        part = re.search(rf"^## Problem {problem}\b.*?(?=^## )", HANDOUT, re.M | re.S)[0]
        assert f"({points(problem)} points)" in part.splitlines()[0]
        assert f"pytest course -m p{problem}" in part
        for path, name in functions:
            assert f"`{name}`" in part and f"`{path}`" in part, (problem, name)
        for word in ("**Deliverable.**", "**Time.**", "**Hint.**", "**Slower machine.**"):
            assert word in part, (problem, word)
        assert (problem in MUTANTS) == (STUDENTS_TESTS.format(problem) in part)
        assert (problem in WRITTEN) == (f"W{problem}" in part)
    rubric = (HOME / "course/staff/README.md").read_text()
    for problem, most in WRITTEN.items():
        assert f"### W{problem} ({most} points)" in rubric


# -------------------------------------------------------------------------------------------------- the starter kit
def test_a_body_is_replaced_and_its_signature_docstring_and_neighbours_stay():
    source = ('import a\n\n\n@deco\ndef f(x,\n      y=1):\n    """Doc\n    string."""\n    # why\n    return x\n\n\n'
              'class C:\n    def g(self):\n        return 1\n\n    def h(self):\n'
              '        """Doc."""\n        return 2\n')
    assert blanked(source, "f", 3, "m.py") == source.replace(
        "    # why\n    return x\n", '    raise NotImplementedError("problem 3: f")\n')
    assert blanked(source, "C.g", 3, "m.py") == source.replace(
        "return 1", 'raise NotImplementedError("problem 3: C.g")')
    with pytest.raises(UserError, match="m.py has no function k"):
        blanked(source, "k", 3, "m.py")
    with pytest.raises(UserError, match="in one line"):
        blanked("def f(): return 1\n", "f", 3, "m.py")


def test_threads_that_parse_do_not_disturb_each_other(files):
    source = files["asu.py"].decode()
    gc.callbacks.append(lambda *_: time.sleep(1e-4))                # another thread goes on within a garbage collection
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = [pool.submit(find, source, "forward_kl", "asu.py") for _ in range(40)]
            assert {part.result().name for part in found} == {"forward_kl"}
    finally:
        gc.callbacks.pop()


def test_the_kit_is_this_repository_without_the_answers(files):
    made = kit(files)
    for problem, functions in PROBLEMS.items():
        for path, name in functions:
            node, whole = (find(source[path].decode(), name, path) for source in (made, files))
            assert ast.get_docstring(node) == ast.get_docstring(whole) is not None, name
            assert ast.dump(node.args) == ast.dump(whole.args)
            assert len(node.body) == 2 and isinstance(node.body[1], ast.Raise), name
            assert f"problem {problem}: {name}" in ast.unparse(node.body[1])
    changed = {path for path in made if made[path] != files[path]}
    assert changed == {path for functions in PROBLEMS.values() for path, _ in functions}
    left_out = set(files) - set(made)
    assert {"course/grade.py", "course/make.py", "course/mutants.py", "docs/theory.md"} <= left_out
    assert all(path.startswith(("course/", "docs/")) for path in left_out)
    assert {"course/README.md", "course/test_p3.py", "README.md", "config/tiny.args"} <= set(made)
    assert not any("staff" in path or path.startswith((".git/", "tests/")) for path in made)


def test_solved_problems_keep_their_reference(files):
    made = kit(files, solved=[1, 2])
    assert made["model.py"] == files["model.py"] and made["asu.py"] != files["asu.py"]
    assert blanked(blanked(made["asu.py"].decode(), "Frozen.remember", 3, ""), "Frozen.says", 3, "") == \
        made["asu.py"].decode()
    assert b'"problem 2' not in made["asu.py"] and b'"problem 3' in made["asu.py"]
    for name, is_out in (("undial", False), ("satimp", True)):          # the one says problem 2's answer, the other 4's
        body = ast.unparse(find(made["baselines.py"].decode(), name, ""))
        assert ("NotImplementedError" in body) == is_out and "F.kl_div" not in ast.unparse(
            find(kit(files)["baselines.py"].decode(), name, ""))


@pytest.mark.slow
def test_a_student_can_start(tmp_path):
    """The command makes the kit; a problem's tests run by its mark alone, and say what is missing."""
    call(make, f"--out={tmp_path / 'kit'}")
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run([sys.executable, "-m", "pytest", "course", "-m", "p2", "-n", "0"], cwd=tmp_path / "kit",
                          capture_output=True, text=True, env=env)
    tests = len(grade.test_points((HOME / "course/test_p2.py").read_text()))
    assert f"{tests} failed" in done.stdout and "passed" not in done.stdout
    assert done.stdout.count("NotImplementedError: problem 2: forward_kl") >= tests


# -------------------------------------------------------------------------------------------------------- the grader
@pytest.mark.slow
def test_the_reference_gets_110_of_110(files, reference):
    folder, marks = reference
    lines = grade.grade(files, folder, "a secret", marks, jobs=2)
    assert grade.total(lines) == sum(line[3] for line in lines) == 110, grade.table(lines)
    result = grade.results(lines, 61.4)
    assert result["score"] == 110 and result["execution_time"] == 61
    for test in result["tests"]:
        assert {"name", "score", "max_score", "output", "visibility", "status"} <= test.keys()
        assert test["score"] == test["max_score"] and test["status"] == "passed"
    assert abs(sum(test["max_score"] for test in result["tests"]) - 110) < 0.01
    assert "sum: 110 of 110" in result["output"]


@pytest.mark.slow
def test_the_starter_kit_gets_nothing_and_every_test_says_not_implemented(files, tmp_path):
    make.write(make.students_tests(kit(files)), tmp_path)
    lines = grade.grade(files, tmp_path, "a secret", None, jobs=2)
    assert grade.total(lines) == 0 and sum(line[3] for line in lines) == pytest.approx(110)
    tests = [line for line in lines if line[1].startswith("test_")]
    assert len(tests) == sum(len(grade.test_points(files[f"course/test_p{p}.py"].decode())) for p in PROBLEMS)
    for problem, name, _, _, output in tests:
        assert output in [f"problem {problem}: {function}" for _, function in PROBLEMS[problem]], (name, output)
    assert {line[4] for line in lines if line[1].startswith("mutant")} == {
        f"{STUDENTS_TESTS.format(p)} has no test" for p in MUTANTS}
    assert [line[4] for line in lines if line[1] == "written question"] == ["not marked yet"] * 3


def test_every_mutant_is_another_function_and_there_are_enough(files):
    for problem in MUTANTS:
        made = mutants.variants(files, problem)
        assert len(made) >= 9 and len({code for _, code in made.values()}) == len(made)
    with pytest.raises(UserError, match="stands 0 times in npo"):
        mutants.mutated(files, "baselines.py", "npo", "no such text", "")


@pytest.mark.slow
@pytest.mark.parametrize("problem", list(MUTANTS))
def test_every_mutant_dies_on_the_hidden_tests_and_the_reference_does_not(files, tmp_path, problem):
    make.write(kit(files, PROBLEMS) | {"course/inside.py": files["course/inside.py"]}, tmp_path)
    job = {"kind": "variants", "file": f"course/test_p{problem}.py", "seed": "hidden", "each": 60,
           "variants": mutants.variants(files, problem), "forbidden": [str(HOME)]}
    messages, why = grade.sandbox(job, tmp_path)
    outcomes = {message["variant"]: message for message in messages if "variant" in message}
    assert not why and outcomes.keys() == job["variants"].keys()
    survived = [name for name, outcome in outcomes.items() if outcome["passed"] == outcome["tests"]]
    assert survived == [""] and outcomes[""]["tests"] > 3


@pytest.mark.slow
def test_a_mistake_in_one_function_costs_its_test_and_gives_its_hint(files, work):
    text = (work / "baselines.py").read_text().replace("mask.sum(1) - gamma", "mask.size(1) - gamma")
    (work / "baselines.py").write_text(text)
    lines = grade.grade_tests(files, work, 4, "s", {})
    wrong = [line for line in lines if line[1] < line[2]]
    assert [line[0] for line in wrong] == ["test_simnpo_is_normalised_by_length_and_has_no_reference"]
    assert "the length of an answer is mask.sum(1), without padding" in wrong[0][3]


@pytest.mark.slow
def test_a_problem_does_not_suffer_from_another_one_in_the_same_file(files, work):
    """asu.py without problem 2, or 3; and what a submission raises does not reach its author, but for our hints."""
    source = (work / "asu.py").read_text()
    (work / "asu.py").write_text(blanked(source, "forward_kl", 2, "asu.py"))
    assert all(score == most for _, score, most, _ in grade.grade_tests(files, work, 3, "s", {}))
    source = blanked(blanked(source, "Frozen.says", 3, "asu.py"), "Frozen.remember", 3, "asu.py")
    (work / "asu.py").write_text(source)
    assert all(score == most for _, score, most, _ in grade.grade_tests(files, work, 2, "s", {}))
    (work / "asu.py").write_text(source.replace("    kl = F.kl_div", '    raise ValueError(open(__file__).read())\n'
                                                                     "    kl = F.kl_div", 1))
    assert {output for _, _, _, output in grade.grade_tests(files, work, 2, "s", {})} == {"it raised ValueError"}


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("spoil, message", [
    (lambda work: (work / "asu.py").unlink(), "asu.py is missing"),
    (lambda work: (work / "asu.py").write_text("def f(:\n"), "asu.py, line 1: "),
    (lambda work: (work / "asu.py").write_bytes(b"\xff\xfe"), "asu.py, line 1: .* can't decode byte"),
    (lambda work: (work / "asu.py").write_text("x = " + "-" * 10**6 + "1\n"), "asu.py cannot be read as Python"),
    (lambda work: (work / "asu.py").unlink() or (work / "asu.py").mkdir(), "asu.py is missing"),
    (lambda work: (work / "asu.py").unlink() or (work / "asu.py").symlink_to(HOME / "asu.py"),
     "asu.py is a link to a file outside the submission"),
    (lambda work: (work / "asu.py").write_text("class forward_kl:\n    pass\n"), "asu.py has no function forward_kl"),
    (lambda work: (work / "asu.py").write_text("x = 1\n"), "asu.py has no function forward_kl"),
    (lambda work: (work / "asu.py").write_text("def forward_kl(teacher, student, mask):\n    pass\n"),
     r"forward_kl has the signature \(teacher, student, mask\); \(teacher_logp, student_logp, mask\) is needed")])
def test_a_submission_that_cannot_be_taken_gets_one_clear_line(files, work, spoil, message):
    spoil(work)
    lines = grade.grade_tests(files, work, 2, "s", {})
    outputs = {output for *_, output in lines}
    assert len(outputs) == 1 and re.search(message, outputs.pop()) and not any(score for _, score, _, _ in lines)


def test_what_python_reads_is_taken_and_a_method_has_its_own_parameters(files, work):
    for mark in (b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\n# \xe9\n"):
        (work / "asu.py").write_bytes(mark + files["asu.py"])
        assert grade.taken_in(files, work, 2)["asu.py"] == mark + files["asu.py"]
    source = files["course/method.py"].decode().replace("def loss(nll, mask)", "def loss(logp, teacher_logp, mask)")
    (work / "course/method.py").write_text(source)
    assert grade.taken_in(files, work, 8)["course/method.py"] == source.encode()


@pytest.mark.slow
def test_a_model_that_is_destroyed_has_not_forgotten(files, work):
    text = files["course/method.py"].decode().replace('"epochs": 40, "lr": 1e-3', '"epochs": 1, "lr": 1.0')
    (work / "course/method.py").write_text(text)
    lines = grade.grade_tests(files, work, 8, "s", {})
    assert {name: score for name, score, *_ in lines} == {
        "test_it_runs_within_the_seconds_and_leaves_a_model": 3, "test_it_forgets": 0, "test_it_keeps_the_rest": 0,
        "test_it_stays_forgotten_under_the_worst_attack": 0}
    assert any("a broken model does not count" in line[3] for line in lines)


def test_one_odd_submission_does_not_stop_the_others(work, tmp_path, monkeypatch, capsys):
    (tmp_path / "odd").mkdir()
    shutil.copy(work / "asu.py", tmp_path / "odd")

    def graded(files, path, *_):
        if path.name == "odd":
            raise KeyError("never seen")
        return [(2, "test_x", 1, 1, "")]
    monkeypatch.setattr(grade, "grade", graded)
    with pytest.raises(SystemExit):
        call(grade, tmp_path / "odd", work, "--seed=s", f"--out={tmp_path / 'grades'}")
    assert "odd: the grader failed (KeyError); tell staff: 'never seen'" in capsys.readouterr().err
    assert "never seen" not in (tmp_path / "grades/odd/results.json").read_text()       # it may quote the reference
    assert json.loads((tmp_path / "grades" / work.name / "results.json").read_text())["score"] == 1


def test_the_courses_own_tests_do_not_count_as_a_students(files, work):
    text = files["course/test_p2.py"].decode().replace("def test_the_loss_is_the_formula", "def test_mine")
    (work / "course/mytests_p2.py").write_text(text)
    lines = grade.grade_mutants(files, work, 2, "s", {})
    assert not any(score for _, score, *_ in lines) and all("copied from the course's own" in line[3] for line in lines)
    (work / "course/mytests_p2.py").write_text("from course.test_p2 import *    # def test\n")
    assert {line[3] for line in grade.grade_mutants(files, work, 2, "s", {})} == {
        "course/mytests_p2.py has no test that runs"}


@pytest.mark.slow
def test_what_one_run_leaves_behind_is_not_there_in_the_next(files, tmp_path):
    text = ("import pathlib, tempfile\n\ndef test_nobody_was_here():\n"
            "    seen = pathlib.Path(tempfile.gettempdir(), 'x')\n    assert not seen.exists()\n    seen.touch()\n")
    make.write(files | {"course/mytests_p2.py": text.encode()}, tmp_path)
    job = {"kind": "variants", "file": "course/mytests_p2.py", "seed": "s", "each": 60, "forbidden": [],
           "variants": dict(list(mutants.variants(files, 2).items())[:3])}
    messages, why = grade.sandbox(job, tmp_path)
    assert not why and [(m["tests"], m["passed"]) for m in messages if "variant" in m] == [(1, 1)] * 3


def test_a_mutant_looks_like_the_reference_from_outside(files):
    for problem in MUTANTS:
        for name, (module, code) in mutants.variants(files, problem).items():
            if name:
                path, function, *_ = mutants.MUTANTS[problem][name]
                theirs, ours = find(code, function, path), find(files[path].decode(), function, path)
                assert (theirs.lineno, ast.get_docstring(theirs)) == (ours.lineno, ast.get_docstring(ours)), name


def test_no_folder_no_secret_no_marks_are_one_line_and_others_go_on(files, work, tmp_path, capsys):
    def refused(script, *flags):
        with pytest.raises(SystemExit) as stop:
            call(script, *flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in error
        return error
    assert "--seed=SECRET" in refused(grade, work) and "which submission" in refused(grade, "--seed=s")
    assert "is needed" in refused(grade, work, "--seed=s", "--marks=nowhere.json")
    (tmp_path / "marks.json").write_text('{"ann": {"1": "4"}}')
    assert "is needed" in refused(grade, work, "--seed=s", f"--marks={tmp_path / 'marks.json'}")
    (tmp_path / "marks.json").write_text('{"ann": {"1": 4, "2": null}}')            # null: not marked yet
    assert grade.read_marks(tmp_path / "marks.json") == {"ann": {"1": 4, "2": None}}
    for marks, message in (('{"ann": {"1": 5}}', "ann: 5 points for problem 1, where there are 0 to 4"),
                           ('{"ann": {"9": 1}}', "ann: problem 9 has no written question; 1, 2, 5 have one")):
        (tmp_path / "marks.json").write_text(marks)
        assert message in refused(grade, work, "--seed=s", f"--marks={tmp_path / 'marks.json'}")
    assert "is not a list of problems" in refused(grade, work, "--seed=s", "--problems=9")
    assert "--out=DIR" in refused(make) and "--seed=SECRET" in refused(make, f"--gradescope={tmp_path / 'a.zip'}")
    assert "is there already" in refused(make, f"--out={work}")
    (work / "asu.py").unlink()
    (tmp_path / "empty").mkdir()
    out = tmp_path / "grades"
    error = refused(grade, tmp_path / "none", tmp_path / "empty", work, "--seed=s", "--problems=2", f"--out={out}")
    assert error.count("\n") == 2 and "none is not a folder" in error and "holds none of the files" in error
    graded = json.loads((out / work.name / "results.json").read_text())
    assert graded["score"] == 0 and "asu.py is missing" in graded["output"]
    assert json.loads((out / "none" / "results.json").read_text())["score"] == 0


# -------------------------------------------------------------------------------------------------------- Gradescope
@pytest.mark.slow
def test_the_autograders_zip_grades_a_submission_at_home(work, tmp_path):
    make.gradescope(tmp_path / "autograder.zip", "a secret", flags="--problems=2")
    place = tmp_path / "autograder"
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        archive.extractall(place / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
    shutil.copytree(work, place / "submission", ignore=shutil.ignore_patterns("autograder*"))
    env = os.environ | {"AUTOGRADER": str(place), "PYTHON": sys.executable}
    for script in ("setup.sh", "run_autograder"):
        assert subprocess.run(["bash", "-n", place / "source" / script]).returncode == 0
    done = subprocess.run(["bash", place / "source" / "run_autograder"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "results" / "results.json").read_text())
    passed = [test for test in result["tests"] if test["status"] == "passed"]
    assert result["score"] == TESTS[2] == sum(test["score"] for test in passed)
    assert "a secret" not in json.dumps(result)
