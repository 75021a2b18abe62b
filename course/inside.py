"""What the grader starts in a process of its own: it shuts the doors, and only then lets a submission in.

The job comes as JSON on standard input, results leave line by line through a pipe, each with a number that nobody else
is told. Reading the reference, writing anywhere but into the scratch folder, starting a process, the network, killing
others: an audit hook, which Python cannot take out again, refuses all of it and reports it. Code of a submission runs
in this process, so this is no wall: see course/staff/README.md.
"""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time

NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
         "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "sqlite3.connect",
         "ctypes.dlopen", "resource.setrlimit", "resource.prlimit", "os.kill",
         "os.killpg")
CHANGES = {     # event -> where its paths stand, each with the folder's descriptor that it may be relative to
    "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),), "os.chmod": ((0, 2),), "os.chown": ((0, 3),),
    "os.truncate": ((0, None),), "shutil.rmtree": ((0, None),), "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)), "os.symlink": ((0, None), (1, 2)), "shutil.move": ((0, None), (1, None))}
LOOKS = ("os.listdir", "os.scandir", "os.chdir", "os.walk", "glob.glob")
LIBRARIES = "ctypes", "numpy", "torch", "pytest", "torch.utils.checkpoint"
EVALS = "scipy.stats", "matplotlib.pyplot", "rouge_score.rouge_scorer"      # heavier, of those who import eval.py


def shut(job, tell):
    """Refuse and report from now on what a submission has no business doing. It cannot be undone."""
    forbidden = [os.path.realpath(path) for path in job["forbidden"]]
    libraries = [os.path.realpath(path) for path in {sys.prefix, sys.base_prefix}]
    scratch, kit, me = os.path.realpath(job["scratch"]), os.path.realpath(job["kit"]), str(os.getpid())
    realpath, fsdecode = os.path.realpath, os.fsdecode
    busy = []

    def inside(path, folders):
        return any(path == folder or path.startswith(folder + "/") for folder in folders)

    def why(event, args):
        if event in NEVER:
            return f"it called {event}"
        if event != "open" and event not in CHANGES and event not in LOOKS or not args:
            return None
        writes, opens = event in CHANGES, event == "open"
        if opens:
            mode, flags = args[1], args[2] or 0
            writes = any(letter in (mode or "") for letter in "wax+") or flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for path, folder in CHANGES.get(event, ((0, None),)):
            if reason := why_not(args[path], -1 if folder is None else args[folder], writes, opens):
                return reason
        return None

    def why_not(path, folder, writes, opens):
        """Why a path may not be touched, None if it may. folder: a descriptor that it is relative to, -1: none"""
        if not isinstance(path, (str, bytes, os.PathLike)):     # a number: a file that is open already
            return None
        path = fsdecode(path)
        path = realpath(path if folder == -1 else os.path.join(f"/proc/self/fd/{folder}", path))
        if opens and not inside(path, [kit, *libraries]) and os.path.isdir(path):
            return "it opened a folder"                         # from there any file could be reached
        if inside(path, forbidden) and not inside(path, libraries) and not inside(path, [kit]):
            return "it wrote into the grader's folder" if writes else "it read the reference or another submission"
        if writes and not inside(path, [scratch, "/dev/null"]):
            return "it wrote a file"
        if path.startswith("/proc/") and path.split("/")[2].isdigit() and path.split("/")[2] != me:
            return "it looked into another process"
        return None

    def hook(event, args):
        if busy:
            return
        busy.append(event)
        try:
            reason = why(event, args)
        finally:
            busy.pop()
        if reason:
            tell({"violation": reason})
            raise PermissionError(f"the grader refuses this: {reason}")
    sys.addaudithook(hook)


class Report:
    """A pytest plugin: hands the seed in, tells the outcome of every test."""

    def __init__(self, seed, tell):
        self.seed, self.tell, self.errors, self.passed = seed, tell, {}, []

    def pytest_configure(self, config):
        config.course_seed = self.seed

    def pytest_runtest_makereport(self, item, call):
        if call.excinfo is not None:
            self.errors[item.nodeid] = [call.excinfo.typename[:60], str(call.excinfo.value)[:500]]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            name = report.nodeid.rpartition("::")[2]
            self.passed += [name] * report.passed
            error = self.errors.get(report.nodeid, ["", ""])
            self.tell({"test": name, "passed": report.passed and report.when == "call", "error": error})

    def pytest_collectreport(self, report):
        if report.failed:
            lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
            self.tell({"collect": lines[-1][2:].strip()[:300] if lines else "it cannot be imported"})


def run_tests(file, seed, tell):
    """-> names of the tests that passed"""
    import pytest
    report = Report(seed, tell)
    pytest.main([file, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "-o", "addopts=", "-s", "-q",
                 "--tb=no", "--no-header", "--rootdir=."], plugins=[report])
    return report.passed


def tests(job, tell):
    shut(job, tell)
    try:
        importlib.import_module("course.checking")          # what all tests stand on, and that on the model
    except Exception as e:
        tell({"collect": f"{type(e).__name__}: {e}"[:300]})
    run_tests(job["file"], job["seed"], tell)
    quiet = run_tests("course/canary.py", job["seed"], lambda message: None)
    tell({"end": True, "canaries": quiet})


def variants(job, tell):
    """One file of tests on the code as it is and on each mutant, each in a process of its own."""
    for module in {module for module, _ in job["variants"].values()} - {""}:
        importlib.import_module(module)                     # ours, whole; only the tests are not, and they come later
    names = list(job["variants"])
    random.Random(job["seed"]).shuffle(names)               # the tests are not to know which is the reference
    for name in names:
        module, code = job["variants"][name]
        shutil.rmtree(job["scratch"])                       # nor what the last ones left behind
        os.mkdir(job["scratch"])
        child = os.fork()
        if child == 0:
            try:
                if code:
                    module = sys.modules[module]
                    exec(compile(code, module.__file__, "exec"), module.__dict__)
                shut(job, tell)
                outcomes = []
                run_tests(job["file"], job["seed"], outcomes.append)
                right = [m["passed"] for m in outcomes if "test" in m]
                tell({"variant": name, "tests": len(right), "passed": sum(right),
                      "failed": [m["test"] for m in outcomes if not m.get("passed", True)],
                      "collect": next((m["collect"] for m in outcomes if "collect" in m), "")})
            finally:
                os._exit(0)
        deadline = time.monotonic() + job["each"]
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.02)
    tell({"end": True, "canaries": []})


def method(job, tell):
    """A method of the leaderboard: the target from the job's folder, the unlearned weights into its scratch folder."""
    from course import leaderboard
    leaderboard.inside(job, lambda: shut(job, tell))
    tell({"end": True, "canaries": []})


def main():
    job = json.loads(sys.stdin.read())
    os.chdir(job["kit"])
    sys.path.insert(0, job["kit"])
    sys.dont_write_bytecode = True
    os.environ.update(TMPDIR=job["scratch"], OMP_NUM_THREADS="1")
    for limit, value in ((resource.RLIMIT_AS, job["memory"] * 2**20), (resource.RLIMIT_CPU, job["seconds"] + 5),
                         (resource.RLIMIT_FSIZE, 2**28), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    for name in LIBRARIES + EVALS * job.get("evaluates", False):
        importlib.import_module(name)
    pipe, nonce = job["channel"], job.pop("nonce")
    write, dumps = os.write, json.dumps

    def tell(message):
        write(pipe, (dumps({"nonce": nonce, **message}) + "\n").encode())
    {"tests": tests, "variants": variants, "method": method}[job["kind"]](job, tell)


if __name__ == "__main__":
    main()
