"""The README's table of other worlds: a scenario's preset, config/NAME.args, on several draws.

    python -m experiments.worlds --scenario=books                      OUT/worlds/books.md and .json
    python -m experiments.worlds --scenario=hazards
    python -m experiments.worlds --scenario=capitals --run=smollm2     what that model knows, see experiments/capitals.py
    python -m experiments.worlds --scenario=books --grow               a growing forget set, and requests one after another

Books and hazards: each draw (--data_seed 1, 2, ...; draw 0 is the one that the presets were set on) has its own target and retrained
model. Capitals: one set of facts, several training seeds; there is no retrained model. Every step is one of the four scripts with the
preset's flags; what was trained is not trained again. Flags of the steps go into --flags.
"""

import json
import subprocess
import sys
from pathlib import Path

from common import HOME, UserError
from common.cli import Parser, positive_int, run
from common.files import check_writable, write_file
from experiments.compare import mean_sd
from lab.report import markdown

# scenario -> {method: flags of asu.py}, columns (heading, set, metric)
METHODS = {
    "books": {"ASU": [], "GradDiff": ["--method=ga", "--lr=1e-4"], "NPO": ["--method=npo", "--lr=3e-4"]},
    "hazards": {"ASU, hidden state": [], "ASU, output": ["--target=logits", "--layers=0-2", "--tau=8", "--retain=gd"],
                "RMU": ["--method=rmu", "--target=logits"]},
    "capitals": {"ASU": [], **{f"{name.upper()}, KL": [f"--method={name}", "--epochs=5", "--lr=2e-5"] for name in ("ga", "npo", "idk")}},
}
COLUMNS = {
    "books": (("VerbMem", "forget_text", "verbmem"), ("KnowMem", "forget", "knowmem"), ("PrivLeak", "forget_text", "privleak"),
              ("VerbMem retain", "retain_text", "verbmem"), ("KnowMem retain", "retain", "knowmem")),
    "hazards": (("forget choices", "forget", "choice_accuracy"), ("forget facts", "forget", "fact_accuracy"),
                ("retain choices", "retain", "choice_accuracy"), ("retain facts", "retain", "fact_accuracy")),
    "capitals": (("forget facts", "forget", "fact_accuracy"), ("held-out", "forget", "fact_accuracy_heldout_phrasing"),
                 ("neighbours", "retain", "fact_accuracy"), ("other facts", "world", "fact_accuracy"), ("general NLL", "general", "nll")),
}
GROWN, REQUESTS = ("forget05", "forget10", "forget20", "forget40"), 4       # --grow: splits, and requests that make the last of them


def script(name, flags):
    what = ["-m", "experiments.capitals"] if name == "experiments.capitals" else [str(HOME / f"{name}.py")]
    done = subprocess.run([sys.executable, *what, *flags], capture_output=True, text=True, cwd=HOME if name == "experiments.capitals" else None)
    if done.returncode:
        raise UserError(f"{name} {' '.join(flags)} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    print(done.stdout.strip().splitlines()[-1], flush=True)


def preset_of(scenario, seed, args, out):
    return [f"@config/{scenario}.args", *args.flags.split(), f"--out={out}", f"--seed={seed}"] + [f"--data_seed={seed}"] * (scenario != "capitals")


def results_in(out):
    return json.loads((out / "report.json").read_text())["runs"]


def one(scenario, seed, args):
    """One draw -> {run: result} as eval.py reports it."""
    out = Path(args.out) / "worlds" / scenario / f"seed{seed}"
    preset = preset_of(scenario, seed, args, out)
    names = {method: f"m{i}" for i, method in enumerate(METHODS[scenario])}
    if scenario == "capitals":
        known, source = out.parent / f"known_{Path(args.run).name}", str(Path(args.run).resolve() if Path(args.run).is_dir() else args.run)
        if not known.exists():
            script("experiments.capitals", [f"--run={source}", f"--out={known.resolve()}"])
        preset, run = [*preset, f"--data={known}"], [f"--run={source}"]
    else:
        source, run = None, []
        script("train", [*preset, "--resume"])
    for method, flags in METHODS[scenario].items():
        script("asu", [*preset, *run, "--resume", *flags, f"--name={names[method]}"])
    runs = [source or "target"]
    script("eval", [*preset, "--runs=" + ",".join([*runs, *names.values()])])
    results = results_in(out)
    before = Path(runs[0]).name
    return {"before": results[before]} | ({} if source else {"retrained": results["retrained"]}) | {m: results[n] for m, n in names.items()}


def grown(seed, args):
    """One draw of the books: ASU on ever more towns, and on the most of them request by request -> {"split, run": result}"""
    books, found = Path(args.out) / "worlds/books" / f"seed{seed}", {}
    script("train", [*preset_of("books", seed, args, books), "--resume"])
    for split in GROWN:
        out, names = books / split, ["at_once"]
        preset = [*preset_of("books", seed, args, out), f"--forget={split}"]
        run = [f"--run={books / 'target'}", "--resume"]
        script("asu", [*preset, *run, "--name=at_once"])
        if split == GROWN[-1]:
            script("asu", [*preset, *run, "--name=request", f"--tasks={REQUESTS}"])
            names += [f"request_{k + 1}of{REQUESTS}" for k in range(REQUESTS)]
        script("eval", [*preset, "--runs=" + ",".join([str(books / "target"), *names])])
        found |= {f"{split}, {name}": results_in(out)[name] for name in ("target", *names)}
    return found


def main():
    p = Parser("Run a scenario's preset on several draws.")
    p.add_argument("--scenario", choices=list(METHODS), required=True)
    p.add_argument("--seeds", type=positive_int, default=3)
    p.add_argument("--grow", action="store_true", help="books: how much can be forgotten, at once and in requests one after another")
    p.add_argument("--run", help="capitals: the model, an HF directory or hub id")
    p.add_argument("--flags", default="", help="more flags for every step, blank-separated, as in '@config/tiny.args'")
    args = p.parse_args()
    check_writable(args.out)
    if own := [f"--{k}" for k in ("data", "data_seed", "n_authors", "forget", "seed", "device", "dtype") if getattr(args, k) != p.get_default(k)]:
        raise UserError(f"{own[0]} is the preset's to say; what every step should be told goes into --flags")
    if (args.scenario == "capitals") != bool(args.run):
        raise UserError("--run goes with --scenario=capitals, and that with --run")
    if args.grow and args.scenario != "books":
        raise UserError("--grow is for --scenario=books")
    seeds = range(1, args.seeds + 1)
    found = [grown(seed, args) if args.grow else one(args.scenario, seed, args) for seed in seeds]
    columns = (*COLUMNS[args.scenario], ("seconds", "cost", "seconds"))
    table = [["", *(heading for heading, *_ in columns)]]
    for name in found[0]:
        table.append([name, *(mean_sd([result[name].get(part, {}).get(key) for result in found]) for _, part, key in columns)])
    text, file = markdown(table), Path(args.out) / "worlds" / (args.scenario + "_grown" * args.grow)
    write_file(file.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write_file(file.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    run(main)
