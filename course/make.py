"""The starter kit, made from the code itself: what a student writes is taken out, all else is as it is.

    python -m course.make --out=KIT                       the bodies of course.PROBLEMS replaced, docstrings kept,
                                                          and of four baselines that say an answer
    python -m course.make --out=KIT --solved=1,3          problems 1 and 3 keep their reference
    python -m course.make --gradescope=autograder.zip --seed=SECRET
"""

import argparse
import ast
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

from common import HOME, UserError, cli
from course import PROBLEMS, STUDENTS_TESTS

PARTS = ("*.py", "README.md", "requirements.txt", "pyproject.toml", ".gitignore", "common", "config", "data", "lab",
         "experiments", "course", "docs", "assets")
FOR_STAFF = ("course/staff", "course/make.py", "course/grade.py", "course/inside.py", "course/mutants.py",
             "course/canary.py", "docs/theory.md")         # the last answers a written question
LIKE_THE_ANSWER = {2: [("baselines.py", "undial")],                                     # taken out as well
                   4: [("baselines.py", "satimp"), ("baselines.py", "dpo"), ("baselines.py", "ap")]}
FOR_STUDENTS = {STUDENTS_TESTS.format(2): "asu.forward_kl, asu.asu, asu.kl and asu.look",
                STUDENTS_TESTS.format(4): "baselines.npo, simnpo, wga and ceu",
                STUDENTS_TESTS.format(5): "eval.truth_ratio, forget_truth_ratio, utility_truth_ratio, "
                                          "extraction_strength and gap"}


# ------------------------------------------------------------------------------------------ functions in a source
PARSER = threading.Lock()


def parsed(source):
    """ast.parse, one thread at a time: Python 3.11 counts the depth of all threads' trees together, and raises
    SystemError where a garbage collection lets another thread in (python/cpython#106905)."""
    with PARSER:
        return ast.parse(source)


def find(source, name, where):
    """The ast node of a function, "forward_kl" or "Frozen.says". Raises UserError where there is none."""
    node = parsed(source)
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", []) if getattr(child, "name", None) == part), None)
    if not isinstance(node, ast.FunctionDef):
        raise UserError(f"{where} has no function {name}")
    return node


def span(node):
    """-> (first, last) line of a function, decorators included, from 0; last is exclusive."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno


def blanked(source, name, problem, where):
    """The source with the body of one function, behind its docstring, replaced."""
    node, lines = find(source, name, where), source.splitlines(keepends=True)
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    start = first.lineno - 1
    if start <= node.lineno - 1:
        raise UserError(f"{where}: {name} is written in one line; it has no body to take out")
    while start > 1 and lines[start - 1].lstrip().startswith("#"):         # a comment above the body is part of it
        start -= 1
    body = " " * first.col_offset + f'raise NotImplementedError("problem {problem}: {name}")\n'
    return "".join([*lines[:start], body, *lines[node.end_lineno:]])


# --------------------------------------------------------------------------------------------------------------- kits
def tree():
    """The repository, but for what is nobody's business -> {path from its root: bytes}"""
    files = {}
    for part in PARTS:
        for path in sorted(HOME.glob(part)):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and "__pycache__" not in file.parts:
                    files[file.relative_to(HOME).as_posix()] = file.read_bytes()
    return files


def for_staff(path):
    return any(path == part or path.startswith(part + "/") for part in FOR_STAFF)


def kit(files, solved=()):
    """The files of a starter kit -> {path: bytes}. solved: problems that keep their reference."""
    made = {path: content for path, content in files.items() if not for_staff(path)}
    for problem, functions in PROBLEMS.items():
        for path, name in [*functions, *LIKE_THE_ANSWER.get(problem, ())] if problem not in solved else ():
            made[path] = blanked(made[path].decode(), name, problem, path).encode()
    return made


def write(files, folder):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def students_tests(made):
    """Beside it, empty files for a student's own tests."""
    for path, functions in FOR_STUDENTS.items():
        problem = path.removesuffix(".py").rpartition("_p")[2]
        made[path] = textwrap.dedent(f'''\
            """Problem {problem}: your own tests of {functions}.

            The grader runs them on the reference, where all must pass, and on mutants of it, each of which should make
            one fail. Import the functions from the kit's modules; the fixture draw is that of course/checking.py.
            """
            ''').encode()
    return made


# ---------------------------------------------------------------------------------------------------------- Gradescope
SETUP = """#!/usr/bin/env bash
# Runs once, when the autograder's image is built.
set -euo pipefail
apt-get install -y python3-pip python3-venv
python3 -m venv "${AUTOGRADER:-/autograder}/venv"
"${AUTOGRADER:-/autograder}/venv/bin/pip" install -r "${AUTOGRADER:-/autograder}/source/requirements.txt"
"""
RUN = """#!/usr/bin/env bash
# Runs for each submission. AUTOGRADER and PYTHON may name other places, for a trial run at home.
set -uo pipefail
autograder=${AUTOGRADER:-/autograder}
python=${PYTHON:-$autograder/venv/bin/python}
cd "$autograder/source"
"$python" -m course.grade "$autograder/submission" --seed_file=secret --out="$autograder/results" FLAGS
test -s "$autograder/results/results.json"
"""


def gradescope(path, seed, flags=""):
    """Write the autograder's zip: setup.sh, run_autograder, the repository and the secret."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN.replace("FLAGS", flags).replace(" \n", "\n"))):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        for name, content in tree().items():
            archive.writestr(name, content)
        archive.writestr("secret", seed + "\n")


# ---------------------------------------------------------------------------------------------------------------- main
def parser(description):
    """argparse with our errors of one line, and none of the scripts' common flags."""
    p = argparse.ArgumentParser(description=description, allow_abbrev=False)
    p.error = lambda message: sys.exit(cli._complain(message))
    return p


def problem_list(text):
    """An argparse type: "1,3" -> [1, 3]"""
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(",")]
    if not set(numbers) <= PROBLEMS.keys():
        raise argparse.ArgumentTypeError(f"{cli.shortened(text)} is not a list of problems from 1 to {max(PROBLEMS)}, "
                                         "as in 1,3")
    return numbers


def main():
    p = parser("Make the starter kit, or Gradescope's autograder.")
    p.add_argument("--out", help="folder of the kit; it must not be there yet, or be empty")
    p.add_argument("--solved", type=problem_list, default=[], help="problems that keep their reference, as in 1,3")
    p.add_argument("--gradescope", help="the zip to write in place of a kit")
    p.add_argument("--seed", help="the secret that goes into the zip")
    args = p.parse_args()
    if not args.out and not args.gradescope:
        raise UserError("--out=DIR is needed, or --gradescope=ZIP")
    if args.gradescope:
        if not args.seed:
            raise UserError("--gradescope needs --seed=SECRET, from which the hidden tests are made")
        gradescope(args.gradescope, args.seed)
        print(f"{args.gradescope}: upload it as the autograder; it holds the secret and the reference")
    if args.out:
        out = Path(args.out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out={out} is there already; a kit needs a folder of its own")
        made = students_tests(kit(tree(), args.solved))
        write(made, out)
        print(f"{out}: {len(made)} files; cd there and read course/README.md")


if __name__ == "__main__":
    cli.run(main)
