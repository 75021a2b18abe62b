"""Grade submissions: the students' tests with other numbers, each problem in a process of its own.

    python -m course.grade SUBMISSION --seed=SECRET           a table, and results.json in Gradescope's format
    python -m course.grade A B C --seed=SECRET --out=GRADES   GRADES/A/results.json, ...
    python -m course.grade --reference --seed=SECRET          the repository itself: 110 of 110

SUBMISSION is a starter kit with a student's work in it, or only the files that belong to the problems. What the
isolation protects against, and what not, stands in course/staff/README.md.
"""

import ast
import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HOME, UserError, cli
from common.cli import positive_int
from common.files import check_writable, strict_json, write_file
from course import MUTANTS, PROBLEMS, STUDENTS_TESTS, WRITTEN
from course.make import find, kit, parsed, parser, problem_list, tree, write
from course.mutants import variants

SECONDS, MEMORY = 240, 8192         # of a problem: seconds on the clock, MB of address space (torch alone takes 3000)
OUTPUT = 2_000_000                  # bytes that a problem's process may print
ALIVE = "your tests pass on a mutant"
OWN_PARAMETERS = "course/method.py", "loss"        # its author chooses what it is given
EVALUATES = 5, 8                    # problems whose tests import eval.py
EACH = 60                           # seconds of a student's own tests on one mutant


# ----------------------------------------------------------------------------------------------- one process, shut in
def sandbox(job, folder, seconds=SECONDS, memory=MEMORY):
    """Run course/inside.py in a folder -> (messages: dicts that it told, why: "" or how it ended too early)."""
    scratch, nonce = folder / "scratch", secrets.token_hex(16)
    scratch.mkdir(exist_ok=True)
    read, write_end = os.pipe()
    env = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "MPLCONFIGDIR") if key in os.environ}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}
    process = subprocess.Popen([sys.executable, "-I", str(folder / "course/inside.py")], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=folder,
                               pass_fds=[write_end], start_new_session=True)
    os.close(write_end)
    job = {"nonce": nonce, "channel": write_end, "scratch": str(scratch), "kit": str(folder), "memory": memory,
           "seconds": seconds, **job}
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
    told, said, why = drain(process, read, seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)              # what it may have left behind goes too
    code = process.wait()
    os.close(read)
    process.stdout.close()
    messages = []
    for line in told.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and message.pop("nonce", None) == nonce:
                messages.append(message)
    if not why and not any("end" in message for message in messages):
        tail = said.decode(errors="replace").strip().rpartition("\n")[2]
        why = "it used more than its memory" if "memory" in tail.lower() else f"it ended early, with exit code {code}"
    return messages, why


def drain(process, results, seconds):
    """Read what a process tells and prints until it ends -> (told, said: the end of what it printed, why: "" or why it
    was stopped)."""
    told, said, printed, deadline = b"", b"", 0, time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream in (results, process.stdout.fileno()):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(timeout=0.2):
                chunk = os.read(key.fd, 2**16)
                if not chunk:
                    selector.unregister(key.fd)
                elif key.fd == results:
                    told += chunk
                else:
                    said, printed = (said + chunk)[-4000:], printed + len(chunk)
            if printed > OUTPUT or len(told) > OUTPUT:
                return told, said, "it printed without end"
            if time.monotonic() > deadline:
                return told, said, f"it took more than {seconds} seconds"
            if process.poll() is not None and not selector.select(timeout=0.2):
                break                                       # a child of its own may hold the streams open
    return told, said, ""


# -------------------------------------------------------------------------------------------------------- one problem
def test_points(source):
    """The tests of a file and what each is worth, by its mark points -> {name: number}"""
    worth = {}
    for node in parsed(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            [mark] = [d for d in node.decorator_list if isinstance(d, ast.Call) and d.func.attr == "points"]
            worth[node.name] = mark.args[0].value
    return worth


def hints(source):
    """All texts in a file of tests. Of what a submission raises, only these reach its author: anything else could be
    the reference."""
    texts = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return texts


def parameters(node):
    """-> (names without a default, all names)"""
    a = node.args
    names = [arg.arg for arg in a.posonlyargs + a.args]
    return names[:len(names) - len(a.defaults)], names + [arg.arg for arg in a.kwonlyargs]


def submitted(submission, path):
    """A submitted file -> its bytes. Raises UserError where it is missing, a link out of the submission, no Python."""
    file = Path(submission) / path
    try:
        if not file.is_file():                              # a folder, a pipe, links in a circle
            raise UserError(f"{path} is missing")
        if not file.resolve().is_relative_to(Path(submission).resolve()):
            raise UserError(f"{path} is a link to a file outside the submission")
        content = file.read_bytes()
        parsed(content)
        return content
    except UserError:
        raise
    except SyntaxError as e:
        raise UserError(f"{path}, line {e.lineno}: {e.msg}" if e.lineno else f"{path}: {e.msg}") from e
    except (ValueError, RecursionError, MemoryError, OSError) as e:
        raise UserError(f"{path} cannot be read as Python ({type(e).__name__})") from e


def taken_in(files, submission, problem):
    """The tree in which a problem is graded: a kit with all other problems solved, the submission's files for this one
    in it, the tests and what runs them from us. -> {path: bytes}

    Raises UserError where a file is missing, does not parse, or a function has another signature."""
    others = PROBLEMS.keys() - {problem}
    made = {path: content for path, content in kit(files, others).items() if path.endswith((".py", ".toml"))}
    for path in {path for path, _ in PROBLEMS[problem]}:
        made[path] = source = submitted(submission, path)
        reference = files[path].decode()
        for name in [name for place, name in PROBLEMS[problem] if place == path]:
            needed, known = parameters(find(reference, name, path))
            asked, theirs = parameters(find(source, name, path))
            if (path, name) != OWN_PARAMETERS and (theirs[:len(known)] != known or set(asked) - set(needed)):
                raise UserError(f"{path}: {name} has the signature ({', '.join(theirs)}); ({', '.join(known)}) is "
                                "needed")
    ours = [path for path in files if path.startswith("course/test_p")]
    for path in (*ours, "course/checking.py", "course/conftest.py", "course/canary.py", "course/inside.py",
                 "course/__init__.py", "pyproject.toml"):
        made[path] = files[path]
    return made


def seed_of(secret, problem):
    """What a problem's process is told of the secret: enough for its draws, not the secret."""
    return hashlib.sha256(f"{secret} {problem}".encode()).hexdigest()[:16]


def grade_tests(files, submission, problem, secret, limits):
    """The hidden twins of one problem -> [(name, score, points, output)]"""
    path = f"course/test_p{problem}.py"
    source = files[path].decode()
    worth, known = test_points(source), hints(source) | hints(files["course/checking.py"].decode())
    outcomes, trouble = {}, ""
    try:
        made = taken_in(files, submission, problem)
        with tempfile.TemporaryDirectory(prefix="course-") as folder:
            write(made, Path(folder))
            job = {"kind": "tests", "file": path, "seed": seed_of(secret, problem), "forbidden": forbidden(submission),
                   "evaluates": problem in EVALUATES}
            messages, trouble = sandbox(job, Path(folder), **limits)
        for message in messages:
            if "violation" in message:
                trouble = str(message["violation"])
            elif "collect" in message:
                trouble = trouble or "it cannot be imported: " + shown(message["collect"].split(":")[0])
            elif message.get("canaries"):
                trouble = trouble or "it changed pytest, torch or the checks: tests that must fail passed"
            elif "test" in message:
                outcomes[message["test"]] = message
    except UserError as e:
        trouble = str(e)
    if trouble:
        return [(name, 0, most, f"0 points for problem {problem}: {trouble}") for name, most in worth.items()]
    lines = []
    for name, most in worth.items():
        message = outcomes.get(name, {"passed": False, "error": ["", "it did not run"]})
        kind, text = message["error"]
        if message["passed"]:
            lines.append((name, most, most, ""))
        else:
            lines.append((name, 0, most, text if text in known or text.startswith(f"problem {problem}: ") and
                          kind == "NotImplementedError" and len(text) < 50 else f"it raised {shown(kind)}"))
    return lines


def shown(kind):
    """The name of an exception, if it is one."""
    kind = kind.rpartition(".")[2]
    return kind if kind.isidentifier() and len(kind) <= 40 else "an exception"


def tests_in(source):
    """-> {what a test does: its name}, without names, docstrings and comments"""
    made = {}
    for node in parsed(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            made[ast.dump(ast.Module(node.body[ast.get_docstring(node) is not None:], []))] = node.name
    return made


def grade_mutants(files, submission, problem, secret, limits):
    """A student's own tests on the reference and on every mutant -> [(name, score, points, output)]"""
    path = STUDENTS_TESTS.format(problem)
    made = variants(files, problem)
    each = MUTANTS[problem] / (len(made) - 1)
    lines = {name: 0 for name in made if name}

    def nothing(why):
        return [(f"mutant: {name}", 0, each, why) for name in lines]
    try:
        source = submitted(submission, path)
    except UserError as e:
        return nothing(str(e))
    if b"def test" not in source:
        return nothing(f"{path} has no test")
    own, ours = tests_in(source), tests_in(files[f"course/test_p{problem}.py"])
    if copied := sorted(name for test, name in own.items() if test in ours):
        return nothing(f"{path}: copied from the course's own tests: {', '.join(copied)}")
    tree = {name: content for name, content in kit(files, PROBLEMS).items() if name.endswith((".py", ".toml"))
            and not name.startswith("course/test_p")}       # which kill every mutant
    tree |= {name: files[name] for name in ("course/inside.py", "course/canary.py")} | {path: source}
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        write(tree, Path(folder))
        job = {"kind": "variants", "file": path, "seed": seed_of(secret, problem), "variants": made, "each": EACH,
               "forbidden": forbidden(submission), "evaluates": problem in EVALUATES}
        messages, why = sandbox(job, Path(folder), **limits)
    if why or any("violation" in message for message in messages):
        return nothing(f"{path}: " + (why or next(m["violation"] for m in messages if "violation" in m)))
    outcomes = {message["variant"]: message for message in messages if "variant" in message}
    reference = outcomes.get("", {"collect": "", "tests": 0, "passed": 0})
    if not reference["tests"]:
        return nothing(f"{path} has no test that runs")
    if reference["passed"] < reference["tests"] or reference["collect"]:
        return nothing(f"{path}: {reference['tests'] - reference['passed']} of {reference['tests']} tests fail on the "
                       "reference, where all must pass")
    graded = []
    for name in lines:
        killed = name not in outcomes or outcomes[name]["passed"] < reference["tests"]       # stopped: killed as well
        graded.append((f"mutant: {name}", each * killed, each, "" if killed else ALIVE))
    return graded


def holds_course(folder):
    """Whether a folder holds files of the course: a submission."""
    return any(os.path.isfile(folder / path) for functions in PROBLEMS.values() for path, _ in functions)


def forbidden(submission):
    """Folders that nothing in a submission's process may read or write: ours, itself, and the submissions beside it."""
    return [str(HOME), *(str(path) for path in submission.resolve().parent.iterdir() if holds_course(path))]


# ------------------------------------------------------------------------------------------------------ one submission
def grade(files, submission, secret, marks=None, problems=tuple(PROBLEMS), limits=None, jobs=1):
    """All problems of one submission -> [(problem, name, score, points, output)]

    marks: of the written questions, {problem: points}, None where nobody has marked them yet."""
    submission, limits, work = Path(submission), limits or {}, []
    if not submission.is_dir():
        raise UserError(f"{submission} is not a folder")
    if not holds_course(submission):
        raise UserError(f"{submission} holds none of the files of the course, such as {PROBLEMS[1][0][0]}")
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for problem in problems:
            work.append((problem, pool.submit(grade_tests, files, submission, problem, secret, limits)))
            if problem in MUTANTS:
                work.append((problem, pool.submit(grade_mutants, files, submission, problem, secret, limits)))
    lines = [(problem, *line) for problem, part in work for line in part.result()]
    for problem in [problem for problem in WRITTEN if problem in problems]:
        mark, most = (marks or {}).get(str(problem)), WRITTEN[problem]
        said = "as marked" if mark is not None else "not marked yet"
        lines.append((problem, "written question", mark or 0, most, said))
    return sorted(lines, key=lambda line: line[0])


def changed(files):
    """Files of ours that are no longer what they were when grading began. What grades is in memory all the time."""
    return [path for path, content in files.items()
            if not (HOME / path).is_file() or (HOME / path).read_bytes() != content]


def table(lines):
    """-> text: points by problem, and what went wrong."""
    rows, notes = ["problem   tests  mutants  written  points"], []
    for problem in PROBLEMS:
        own = [line for line in lines if line[0] == problem]
        if own:                                             # t: tests, m: mutants, w: the written question
            parts = [[line for line in own if line[1].startswith("mutant: ") == (kind == "m") and
                      (line[1] == "written question") == (kind == "w")] for kind in "tmw"]
            cells = [f"{total(part):g}/{sum(line[3] for line in part):g}" if part else "-" for part in parts]
            rows.append(f"{problem:<8}{cells[0]:>7}{cells[1]:>9}{cells[2]:>9}  {total(own):g} of "
                        f"{sum(line[3] for line in own):g}")
            outputs = collections.defaultdict(list)
            for _, name, score, most, output in own:
                if score < most:
                    outputs[output].append(name.removeprefix("mutant: "))
            notes += [f"problem {problem}: {output}" + f" ({', '.join(names)})" * (output == ALIVE)
                      for output, names in outputs.items()]
    rows.append(f"sum: {total(lines):g} of {sum(line[3] for line in lines):g}")
    return "\n".join([*rows, "", *notes]).rstrip()


def total(lines):
    return round(sum(line[2] for line in lines), 2)


def results(lines, seconds):
    """-> what Gradescope reads as results.json"""
    tests = []
    for problem, name, score, most, output in lines:
        words = name.removeprefix("test_").replace("_", " ")
        tests.append({"name": f"problem {problem}: {words}", "number": str(problem), "score": round(score, 4),
                      "max_score": round(most, 4), "status": "passed" if score == most else "failed", "output": output,
                      "output_format": "text", "visibility": "visible"})
    return {"score": total(lines), "execution_time": round(seconds), "output": table(lines), "output_format": "text",
            "stdout_visibility": "hidden", "visibility": "visible", "tests": tests}


def reference(folder, files):
    """The repository as a submission: its own code, the staff's tests and, as marked, the staff's answers."""
    write({path: content for path, content in files.items() if not path.startswith("course/staff/")}, folder)
    for path in files:
        if path.startswith("course/staff/mytests_p"):
            (folder / "course" / Path(path).name).write_bytes(files[path])
    return {str(problem): most for problem, most in WRITTEN.items()}


def read_marks(path):
    """-> {submission: {problem: points or None}}. Raises UserError for what is no such file, no such problem, too many
    points."""
    try:
        marks = json.loads(Path(path).read_text()) if path else {}
        if not all(mark is None or isinstance(mark, (int, float)) for of in marks.values() for mark in of.values()):
            raise ValueError
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise UserError(f'--marks={path}: a JSON file is needed, {{"SUBMISSION": {{"1": 4, "2": 3, "5": 4}}}}') from e
    most = {str(problem): points for problem, points in WRITTEN.items()}
    for name, of in marks.items():
        for problem, mark in of.items():
            if problem not in most:
                raise UserError(f"--marks={path}, {name}: problem {problem} has no written question; {', '.join(most)} "
                                "have one")
            if mark is not None and not 0 <= mark <= most[problem]:
                raise UserError(f"--marks={path}, {name}: {mark} points for problem {problem}, where there are "
                                f"0 to {most[problem]}")
    return marks


def secret_of(args):
    if args.seed_file:
        try:
            args.seed = Path(args.seed_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"--seed_file={args.seed_file} cannot be read") from e
    if not args.seed:
        raise UserError("--seed=SECRET (or --seed_file=FILE) is needed: the hidden tests are made from it")
    return args.seed


def main():
    p = parser("Grade submissions.")
    add = p.add_argument
    add("submissions", nargs="*", metavar="SUBMISSION", help="a folder")
    add("--reference", action="store_true", help="grade the repository itself")
    add("--seed", help="the secret; the hidden tests' shapes and draws are made from it")
    add("--seed_file", help="a file with the secret: other processes can read a command line")
    add("--out", default="grades", help="folder for results.json, or, of several submissions, NAME/results.json")
    add("--marks", help='of the written questions, a JSON file {"SUBMISSION": {"1": 4, "2": 3, "5": 4}}')
    add("--problems", type=problem_list, default=list(PROBLEMS), help="only these, as in 1,3")
    add("--seconds", type=positive_int, default=SECONDS, help="that a problem may take")
    add("--memory", type=positive_int, default=MEMORY, help="MB of address space that a problem may take")
    add("--jobs", type=positive_int, default=2, help="problems at a time")
    args = p.parse_args()
    secret, marks, files = secret_of(args), read_marks(args.marks), tree()
    if not args.submissions and not args.reference:
        raise UserError("which submission? A folder is needed, or --reference")
    check_writable(args.out)
    limits, failed = {"seconds": args.seconds, "memory": args.memory}, 0
    with tempfile.TemporaryDirectory(prefix="reference-") as folder:
        submissions = {Path(path).resolve().name: Path(path) for path in args.submissions}
        if len(submissions) < len(args.submissions):
            raise UserError("two submissions have the same name")
        if args.reference:
            submissions["reference"] = Path(folder)
            marks["reference"] = reference(Path(folder), files)
        if absent := marks.keys() - submissions.keys():
            print(f"--marks is of {', '.join(sorted(absent))} too, who are not graded now", file=sys.stderr)
        for name, path in submissions.items():
            out = Path(args.out) if len(submissions) == 1 else Path(args.out) / name
            start = time.perf_counter()
            try:
                lines = grade(files, path, secret, marks.get(name), args.problems, limits, args.jobs)
            except Exception as e:                          # of an odd submission: the others are graded all the same
                why = str(e) if isinstance(e, UserError) else f"the grader failed ({type(e).__name__}); tell staff"
                print(f"{name}: {why}" + f": {e}" * (why != str(e)), file=sys.stderr)
                write_file(out / "results.json", strict_json({"score": 0, "output": why, "tests": []}))
                failed += 1
                continue
            finally:
                if different := changed(files):
                    print(f"{name}: {', '.join(different)} changed meanwhile, by it or by you", file=sys.stderr)
            write_file(out / "results.json", strict_json(results(lines, time.perf_counter() - start)))
            print(f"{name}\n{table(lines)}\n{out / 'results.json'}\n", flush=True)
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main)
