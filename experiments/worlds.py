"""The README's table of other worlds: a scenario's preset, config/NAME.args, on several draws.

    python -m experiments.worlds --scenario=books                      OUT/worlds/books.md and .json
    python -m experiments.worlds --scenario=hazards
    python -m experiments.worlds --scenario=capitals --run=smollm2     what that model knows, see data/capitals.py

Books and hazards: each draw (--data_seed 1, 2, ...; draw 0 is the one that the presets were set on) has its own target and retrained
model. Capitals: one set of facts, several training seeds; there is no retrained model. Every step is one of the four scripts with the
preset's flags; what was trained is not trained again. Flags of the steps go into --flags.
"""

import json
import subprocess
import sys
from pathlib import Path

from common import HOME, Parser, UserError, check_writable, positive_int, run, write_file
from experiments.compare import mean_sd
from report import markdown

# scenario -> {method: flags of asu.py}, columns (heading, set, metric)
METHODS = {
    "books": {"ASU": [], "GA, KL": ["--method=ga", "--lr=1e-4"], "NPO, KL": ["--method=npo", "--lr=1e-4"]},
    "hazards": {"ASU, hidden state": [], "ASU, output": ["--target=logits", "--layers=0-2", "--tau=8"],
                "RMU": ["--method=rmu", "--target=logits", "--retain=hidden"]},
    "capitals": {"ASU": [], "GA, KL": ["--method=ga"], "NPO, KL": ["--method=npo"], "IDK, KL": ["--method=idk"]},
}
COLUMNS = {
    "books": (("VerbMem", "forget_text", "verbmem"), ("KnowMem", "forget", "knowmem"), ("PrivLeak", "forget_text", "privleak"),
              ("VerbMem retain", "retain_text", "verbmem"), ("KnowMem retain", "retain", "knowmem")),
    "hazards": (("forget choices", "forget", "choice_accuracy"), ("forget facts", "forget", "fact_accuracy"),
                ("retain choices", "retain", "choice_accuracy"), ("retain facts", "retain", "fact_accuracy")),
    "capitals": (("forget facts", "forget", "fact_accuracy"), ("held-out", "forget", "fact_accuracy_heldout_phrasing"),
                 ("neighbours", "retain", "fact_accuracy"), ("other facts", "world", "fact_accuracy"), ("general NLL", "general", "nll")),
}


def script(name, flags):
    what = ["-m", "data.capitals"] if name == "data.capitals" else [str(HOME / f"{name}.py")]
    done = subprocess.run([sys.executable, *what, *flags], capture_output=True, text=True, cwd=HOME if name == "data.capitals" else None)
    if done.returncode:
        raise UserError(f"{name} {' '.join(flags)} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    print(done.stdout.strip().splitlines()[-1], flush=True)


def one(scenario, seed, args):
    """One draw -> {run: result} as eval.py reports it."""
    out = Path(args.out) / "worlds" / scenario / f"seed{seed}"
    preset = [f"@config/{scenario}.args", *args.flags.split(), f"--out={out}", f"--seed={seed}"]
    names = {method: f"m{i}" for i, method in enumerate(METHODS[scenario])}
    if scenario == "capitals":
        known, source = out.parent / f"known_{Path(args.run).name}", str(Path(args.run).resolve() if Path(args.run).is_dir() else args.run)
        if not known.exists():
            script("data.capitals", [f"--run={source}", f"--out={known.resolve()}"])
        preset, run = [*preset, f"--data={known}"], [f"--run={source}"]
    else:
        preset, source, run = [*preset, f"--data_seed={seed}"], None, []
        script("train", [*preset, "--resume"])
    for method, flags in METHODS[scenario].items():
        script("asu", [*preset, *run, "--resume", *flags, f"--name={names[method]}"])
    runs = [source or "target"]
    script("eval", [*preset, "--runs=" + ",".join([*runs, *names.values()])])
    results = json.loads((out / "report.json").read_text())["runs"]
    before = Path(runs[0]).name
    return {"before": results[before]} | ({} if source else {"retrained": results["retrained"]}) | {m: results[n] for m, n in names.items()}


def main():
    p = Parser("Run a scenario's preset on several draws.")
    p.add_argument("--scenario", choices=list(METHODS), required=True)
    p.add_argument("--seeds", type=positive_int, default=3)
    p.add_argument("--run", help="capitals: the model, an HF directory or hub id")
    p.add_argument("--flags", default="", help="more flags for every step, blank-separated, as in '@config/tiny.args'")
    args = p.parse_args()
    check_writable(args.out)
    if own := [f"--{k}" for k in ("data", "data_seed", "n_authors", "forget", "seed", "device", "dtype") if getattr(args, k) != p.get_default(k)]:
        raise UserError(f"{own[0]} is the preset's to say; what every step should be told goes into --flags")
    if (args.scenario == "capitals") != bool(args.run):
        raise UserError("--run goes with --scenario=capitals, and that with --run")
    found = [one(args.scenario, seed, args) for seed in range(1, args.seeds + 1)]
    table = [["", *(heading for heading, *_ in COLUMNS[args.scenario]), "seconds"]]
    for name in found[0]:
        columns = (*COLUMNS[args.scenario], ("seconds", "cost", "seconds"))
        table.append([name, *(mean_sd([result[name].get(part, {}).get(key) for result in found]) for _, part, key in columns)])
    text = markdown(table)
    write_file(Path(args.out) / "worlds" / f"{args.scenario}.json", json.dumps(found, indent=1) + "\n")
    write_file(Path(args.out) / "worlds" / f"{args.scenario}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    run(main)
