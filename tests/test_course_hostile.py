"""Submissions that would rather not be graded: each costs its problem's points, is named, and nothing else happens."""

import shutil

import pytest

from common import HOME
from course import TESTS, grade
from course.make import tree

LIMITS = {"seconds": 25, "memory": 8192}
HOSTILE = {         # what stands at the top of the submitted file -> what the grader says
    "an endless loop": ("while True:\n    pass", "it took more than 25 seconds"),
    "a crash": ("import os\nos.abort()", "it ended early, with exit code -6"),
    "a quiet end": ("import os\nos._exit(0)", "it ended early, with exit code 0"),
    "a flood": ("while True:\n    print('x' * 10000)", "it printed without end"),
    "all the memory": ("x = [bytearray(2**34)]", "it cannot be imported: MemoryError"),
    "reading the reference": (f"try:\n    open({str(HOME / 'asu.py')!r}).read()\nexcept OSError:\n    pass",
                              "it read the reference or another submission"),
    "writing into the grader": (f"try:\n    open({str(HOME / 'course/test_p1.py')!r}, 'a')\nexcept OSError:\n    pass",
                                "it wrote into the grader's folder"),
    "moving a file onto another": (f"import os\nopen(os.environ['TMPDIR'] + '/x', 'w').close()\ntry:\n    os.replace("
                                   f"os.environ['TMPDIR'] + '/x', {str(HOME / 'course/x')!r})\nexcept OSError:\n"
                                   "    pass", "it wrote into the grader's folder"),
    "a folder's descriptor": ("import os\ntry:\n    os.open('etc/hostname', 0, dir_fd=os.open('/', 0))\n"
                              "except OSError:\n    pass", "it opened a folder"),
    "the network without a connection": ("import socket\ntry:\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)."
                                         "sendto(b'x', ('127.0.0.1', 9))\nexcept OSError:\n    pass",
                                         "it called socket.sendto"),
    "changing the tests": ("try:\n    open('course/checking.py', 'w')\nexcept OSError:\n    pass", "it wrote a file"),
    "another process": ("import subprocess\nsubprocess.run(['true'])", "it called subprocess.Popen"),
    "pytest patched": ("import _pytest.python\n_pytest.python.Function.runtest = lambda self: None",
                       "it changed pytest, torch or the checks"),
    "torch patched": ("import torch\ntorch.Tensor.__le__ = lambda *args: torch.tensor(True)",
                      "it changed pytest, torch or the checks"),
    "reports patched": ("from _pytest.reports import TestReport\ntrue = TestReport.from_item_and_call.__func__\n"
                        "def fake(cls, item, call):\n    report = true(cls, item, call)\n"
                        "    report.outcome = 'passed'\n    return report\n"
                        "TestReport.from_item_and_call = classmethod(fake)", "it changed pytest, torch or the checks"),
    "results made up": ("import json, os\nline = json.dumps({'end': True, 'nonce': 0, 'canaries': []}).encode()\n"
                        "for fd in range(3, 30):\n    try:\n        os.write(fd, line + b'\\n')\n"
                        "    except OSError:\n        pass\nos._exit(0)", "it ended early"),
    "killing the grader": ("import os\nos.kill(os.getppid(), 9)", "it called os.kill"),
}


@pytest.fixture(scope="module")
def files():
    return tree()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_submission_costs_its_problem_and_is_named(files, tmp_path, kind):
    code, named = HOSTILE[kind]
    shutil.copy(HOME / "model.py", tmp_path)
    text = (tmp_path / "model.py").read_text()
    (tmp_path / "model.py").write_text(text.replace("import itertools\n", f"{code}\nimport itertools\n", 1))
    limits = LIMITS | ({"seconds": 8} if kind == "an endless loop" else {})
    lines = grade.grade_tests(files, tmp_path, 1, "s", limits)
    assert not any(score for _, score, _, _ in lines) and sum(most for _, _, most, _ in lines) == TESTS[1]
    outputs = {output for *_, output in lines}
    assert len(outputs) == 1 and named.replace("25", str(limits["seconds"])) in outputs.pop()
    assert (HOME / "course/test_p1.py").read_bytes() == files["course/test_p1.py"]


@pytest.mark.slow
def test_a_submission_may_not_read_the_one_beside_it(files, tmp_path):
    text = (HOME / "model.py").read_text()
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(text)
    code = f"try:\n    open({str(tmp_path / 'bob/model.py')!r}).read()\nexcept OSError:\n    pass\n"
    (tmp_path / "ann/model.py").write_text(text.replace("import itertools\n", f"{code}import itertools\n", 1))
    lines = grade.grade_tests(files, tmp_path / "ann", 1, "s", LIMITS)
    assert not any(score for _, score, _, _ in lines) and "it read the reference or another submission" in lines[0][-1]


@pytest.mark.slow
def test_the_same_file_without_the_trick_gets_its_points(files, tmp_path):
    shutil.copy(HOME / "model.py", tmp_path)
    assert sum(score for _, score, _, _ in grade.grade_tests(files, tmp_path, 1, "s", LIMITS)) == TESTS[1]


def test_what_was_changed_is_named(files, monkeypatch, tmp_path):
    monkeypatch.setattr(grade, "HOME", tmp_path)
    some = {"course/test_p1.py": files["course/test_p1.py"], "asu.py": files["asu.py"]}
    (tmp_path / "asu.py").write_bytes(b"mine")
    assert sorted(grade.changed(some)) == ["asu.py", "course/test_p1.py"]
    (tmp_path / "asu.py").write_bytes(files["asu.py"])
    assert grade.changed(some) == ["course/test_p1.py"]
