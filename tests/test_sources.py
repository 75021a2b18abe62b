"""What holds for every source file: the oldest Python that is promised runs it, and it imports only downwards."""

import ast
import re

import pytest

from common import HOME

PROMISED = re.search(r'^requires-python = ">=(\d+)\.(\d+)"', (HOME / "pyproject.toml").read_text(), re.MULTILINE)
OLDEST = tuple(map(int, PROMISED.groups()))
SOURCES = sorted(file for file in HOME.rglob("*.py") if file.relative_to(HOME).parts[0].lstrip(".") != "venv")
SINCE = {   # the Python -> what came with it in the standard library: names, attributes, keywords
    (3, 11): """file_digest tomllib UTC Self Never LiteralString NotRequired assert_never assert_type ExceptionGroup
        BaseExceptionGroup add_note StrEnum ReprEnum TaskGroup cbrt include_hidden max_tasks_per_child""",
    (3, 12): "batched sumprod binomialvariate override walk_up onexc case_sensitive",
    (3, 13): "full_match from_uri fma",
}


def newer_names(text):
    """The names in a source that the oldest Python does not have -> set."""
    newer = {name for since, names in SINCE.items() if since > OLDEST for name in names.split()}
    used = set()
    for node in ast.walk(ast.parse(text)):
        for field in ("id", "attr", "arg", "name"):         # of names, attributes, keywords, imports
            used.add(getattr(node, field, None))
        used.add(getattr(node, "module", None))
    return used & newer


def test_the_promise_is_the_one_that_was_made():
    assert OLDEST == (3, 10)


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: str(file.relative_to(HOME)))
def test_the_oldest_python_can_run_it(source):
    text = source.read_text(encoding="utf-8")
    ast.parse(text, feature_version=OLDEST)
    assert not newer_names(text)


def test_what_is_too_new_is_seen():
    for text in ("hashlib.file_digest(f, 'sha256')", "import tomllib as t", "from tomllib import load",
                 "x = ExceptionGroup", "from typing import Self", "itertools.batched(x, 2)",
                 "shutil.rmtree(d, onexc=f)"):
        assert newer_names(text), text
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass", feature_version=OLDEST)
    assert not newer_names("with open(path) as file: digest = hashlib.sha256(file.read())")


# ------------------------------------------------------------------------------------------------------ imports
LEVELS = [["common"], ["data"], ["model"], ["lab", "baselines"], ["asu", "train", "eval", "sample"], ["experiments"],
          ["course"]]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imports(text):
    """What a source imports, wherever in it it does -> the first parts of the names."""
    modules = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append(node.module)
    return [module.split(".")[0] for module in modules]


def test_imports_go_downwards():
    """common -> data -> model -> lab -> the scripts -> experiments, and no arrow back."""
    assert imports("import os.path\ndef f():\n    from lab.runs import x") == ["os", "lab"]
    checked = 0
    for source in SOURCES:
        level = LEVEL.get(source.relative_to(HOME).parts[0].removesuffix(".py"))
        if level is not None:                               # the tests import everything
            above = [name for name in imports(source.read_text(encoding="utf-8")) if LEVEL.get(name, 0) > level]
            assert not above, (source, above)
            checked += 1
    assert checked > 30
