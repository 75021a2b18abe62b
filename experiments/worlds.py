"""The tables of docs/worlds.md: a scenario's preset, config/NAME.args, on several draws.

    python -m experiments.worlds --scenario=books                      OUT/worlds/books.md and .json
    python -m experiments.worlds --scenario=hazards
    python -m experiments.worlds --scenario=capitals --run=smollm2     what that model knows, see capitals.py
    python -m experiments.worlds --scenario=books --grow               a growing forget set, and request after request

Books and hazards: each draw has its own target and retrained model, and none of them is one that the preset was set
on (books 1, 2, ...; hazards 4, 5, ...). Capitals: one set of facts, several training seeds; there is no retrained
model. Every step is one of the four scripts with the preset's flags; what was trained is not trained again. Flags of
the steps go into --flags.
"""

import json
from pathlib import Path

from common import UserError
from common.cli import Parser, positive_int, run
from common.files import check_writable, write_file
from experiments.trials import run_script
from lab.report import markdown, mean_sd

# scenario -> {method: flags of asu.py}, columns (heading, set, metric)
METHODS = {
    "books": {"ASU": [], "GradDiff": ["--method=ga", "--lr=1e-4"], "NPO": ["--method=npo", "--lr=3e-4"]},
    "hazards": {"ASU, hidden state": [], "ASU, output": ["--target=logits", "--layers=0-2", "--tau=8", "--retain=gd"],
                "RMU": ["--method=rmu", "--target=logits"]},
    "capitals": {"ASU": [], "GA, KL": ["--method=ga", "--epochs=5", "--lr=2e-5"],
                 "NPO, KL": ["--method=npo", "--epochs=5", "--lr=1e-5", "--c_retain=30"],
                 "IDK, KL": ["--method=idk", "--epochs=5", "--lr=4e-5"]},
}
COLUMNS = {
    "books": (("VerbMem", "forget_text", "verbmem"), ("KnowMem", "forget", "knowmem"),
              ("PrivLeak", "forget_text", "privleak"), ("VerbMem retain", "retain_text", "verbmem"),
              ("KnowMem retain", "retain", "knowmem")),
    "hazards": (("forget choices", "forget", "choice_accuracy"), ("forget facts", "forget", "fact_accuracy"),
                ("retain choices", "retain", "choice_accuracy"), ("retain facts", "retain", "fact_accuracy")),
    "capitals": (("forget facts", "forget", "fact_accuracy"), ("held-out", "forget", "fact_accuracy_heldout_phrasing"),
                 ("neighbours", "retain", "fact_accuracy"), ("other facts", "world", "fact_accuracy"),
                 ("general NLL", "general", "nll")),
}
FIRST = {"books": 1, "hazards": 4, "capitals": 1}                          # draw, or training seed
GROWN, REQUESTS = ("forget05", "forget10", "forget20", "forget40"), 4       # --grow: splits, requests for the last


def step(script, flags):
    """Run one step, and show what it says at last."""
    print(run_script(script, flags), flush=True)


def preset_of(scenario, seed, args, out):
    """The flags of every step."""
    draw = [] if scenario == "capitals" else [f"--data_seed={seed}"]
    return [f"@config/{scenario}.args", *args.flags.split(), f"--out={out}", f"--seed={seed}", *draw]


def results_in(out):
    return json.loads((out / "report.json").read_text())["runs"]


def one_draw(scenario, seed, args):
    """Train where there is something to train, unlearn by every method, evaluate -> {row: result as in report.json}"""
    out = Path(args.out) / "worlds" / scenario / f"seed{seed}"
    preset, run, start = preset_of(scenario, seed, args, out), [], "target"
    if scenario == "capitals":
        start = str(Path(args.run).resolve()) if Path(args.run).is_dir() else args.run
        known = out.parent / f"known_{Path(args.run).name}"
        if not known.exists():
            step("experiments.capitals", [f"--run={start}", f"--out={known.resolve()}"])
        preset, run = [*preset, f"--data={known}"], [f"--run={start}"]
    else:
        step("train", [*preset, "--resume"])
    names = {method: f"m{i}" for i, method in enumerate(METHODS[scenario])}
    for method, flags in METHODS[scenario].items():
        step("asu", [*preset, *run, "--resume", *flags, f"--name={names[method]}"])
    step("eval", [*preset, "--runs=" + ",".join([start, *names.values()])])
    results = results_in(out)
    rows = {"before": results[Path(start).name]}
    if scenario != "capitals":
        rows["retrained"] = results["retrained"]
    return rows | {method: results[name] for method, name in names.items()}


def grown(seed, args):
    """One draw of the books: ASU on ever more towns, on the most of them also request by request -> as one_draw"""
    books, rows = Path(args.out) / "worlds/books" / f"seed{seed}", {}
    step("train", [*preset_of("books", seed, args, books), "--resume"])
    for split in GROWN:
        out, names = books / split, ["at_once"]
        preset = [*preset_of("books", seed, args, out), f"--forget={split}"]
        run = [f"--run={books / 'target'}", "--resume"]
        step("asu", [*preset, *run, "--name=at_once"])
        if split == GROWN[-1]:
            step("asu", [*preset, *run, "--name=request", f"--tasks={REQUESTS}"])
            names += [f"request_{k + 1}of{REQUESTS}" for k in range(REQUESTS)]
        step("eval", [*preset, "--runs=" + ",".join([str(books / "target"), *names])])
        results = results_in(out)
        rows |= {f"{split}, {name}": results[name] for name in ("target", *names)}
    return rows


def parse():
    p = Parser("worlds.py", "Run a scenario's preset on several draws.")
    add = p.add_argument
    add("--scenario", choices=list(METHODS), required=True)
    add("--seeds", type=positive_int, default=3)
    add("--grow", action="store_true", help="books: how much can be forgotten, at once and request after request")
    add("--run", help="capitals: the model, an HF directory or hub id")
    add("--flags", default="", help="more flags for every step, blank-separated, as in '@config/tiny.args'")
    args = p.parse_args()
    for flag in ("data", "data_seed", "n_authors", "forget", "seed", "device", "dtype"):
        if getattr(args, flag) != p.get_default(flag):
            raise UserError(f"--{flag} is the preset's to say; what every step should be told goes into --flags")
    if (args.scenario == "capitals") != bool(args.run):
        raise UserError("--run goes with --scenario=capitals, and that with --run")
    if args.grow and args.scenario != "books":
        raise UserError("--grow is for --scenario=books")
    return args


def main():
    args = parse()
    check_writable(args.out)
    seeds = range(FIRST[args.scenario], FIRST[args.scenario] + args.seeds)
    draws = [grown(seed, args) if args.grow else one_draw(args.scenario, seed, args) for seed in seeds]
    columns = (*COLUMNS[args.scenario], ("seconds", "cost", "seconds"))
    table = [["", *(heading for heading, *_ in columns)]]
    for row in draws[0]:
        values = [[draw[row].get(part, {}).get(key) for draw in draws] for _, part, key in columns]
        table.append([row, *map(mean_sd, values)])
    text, file = markdown(table), Path(args.out) / "worlds" / (args.scenario + "_grown" * args.grow)
    write_file(file.with_suffix(".json"), json.dumps(draws, indent=1) + "\n")
    write_file(file.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    run(main)
