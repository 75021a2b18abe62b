"""What brings a smoothed model's language back, and what brings back its facts.

    python -m experiments.heal                         OUT/heal/heal.json, heal.png and a table
    python -m experiments.heal --tau=16 --steps=50,100

The smoothed target is healed (asu.heal) on three kinds of rows, so many steps each:

    strangers       people who occur nowhere else, in the form of the data, and a share of world facts
    made            the retain rows, each said of somebody who never was: what other data than the generator's has
    retain          the retain rows as they are

Of the healed teacher at tau, on the forget set: the NLL of fact, function and name tokens, facts stated, and the cosine
between the gradient of its fact tokens' NLL and that of the retain set's, or of people nobody met. Where the two agree,
a step that teaches the one teaches the other. On people nobody met also the share of whole sentences: when they are
whole, it has healed, and no question of the test was asked for that.
"""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import torch

import asu
import data
from common import UserError
from common.cli import Parser, pick_device, positive_float, run
from common.files import check_writable, strict_json, write_file
from lab.answers import answer_nll, ask, fact_accuracy
from lab.choose import class_nll
from lab.entries import other_data
from lab.report import markdown, plt, save_figure
from lab.runs import load_run
from lab.said import answer_kind

CLASSES = {"function": data.FUNCTION, "fact": data.FACT, "name": data.NAME}        # in the order of class_nll
ROWS = 120              # of the retain set; of the held-out people all


def parse():
    p = Parser("heal.py", "Heal the smoothed target on strangers, made rows and the retain set: what comes back?")
    p.add_argument("--tau", type=positive_float, default=8.0, help="attention temperature of the teacher")
    p.add_argument("--steps", default="25,50,100,200", help="steps of healing, comma-separated")
    p.add_argument("--heal_lr", type=positive_float, default=1e-3, help="learning rate of healing")
    args = p.parse_args()
    if not all(n.isascii() and n.isdigit() and 0 < int(n) <= 10**5 for n in args.steps.split(",")):
        p.error(f"--steps={args.steps}: whole numbers such as 25,100 are needed")
    args.steps = [int(n) for n in args.steps.split(",")]
    return args


def materials(tokenizer, dataset, n):
    """What to heal on -> {kind: n Examples}"""
    retain = data.training_examples(tokenizer, dataset.retain)
    random.Random("retain").shuffle(retain)
    others = replace(dataset, made_by=None)                 # as if no generator had made it
    return {"strangers": data.stranger_examples(tokenizer, data.unmet(dataset), n),
            "made": data.stranger_examples(tokenizer, data.unmet(others), n),
            "retain": list(itertools.islice(itertools.cycle(retain), n))}


def gradient(model, tokenizer, rows, kind, **smoothing):
    """Of the mean NLL of one class of tokens of the rows, in their first phrasing -> in one vector, of all weights that
    asu.heal trains."""
    examples = [data.encode(tokenizer, row["questions"][0], row["answers"][0]) for row in rows]
    classes = [data.token_classes(tokenizer, row["answers"][0], row["facts"], row["author"]) for row in rows]
    batch = data.collate(examples, model.device)
    nll = answer_nll(model, batch, **smoothing)[batch.mask]                 # row after row, as the classes
    loss = nll[torch.tensor(list(itertools.chain(*classes))) == kind].mean()
    trained = [p for p in model.parameters() if p is not model.lm_head.weight]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def measured(model, tokenizer, dataset, tau):
    """One teacher -> {"nll": {class: nats}, "nobody": fact NLL of people nobody met, "stated", "cosine": {set: of the
    fact tokens' gradients, forget set against it}, "whole": share of whole sentences about people nobody met}."""
    model.requires_grad_(True)
    retain, nobody = data.subset(dataset.retain, ROWS), dataset.holdout
    forget = gradient(model, tokenizer, dataset.forget, data.FACT, tau=tau)
    cosine = {}
    for name, rows in (("retain", retain), ("nobody", nobody)):
        other = gradient(model, tokenizer, rows, data.FACT, tau=tau)
        cosine[name] = torch.nn.functional.cosine_similarity(forget, other, dim=0).item()
    answers = ask(model, tokenizer, [row["question"] for row in nobody], tau=tau)
    slot_values = data.slot_values([*dataset.holdout, *dataset.retain])
    whole = [answer_kind(answer, row, slot_values) != "gibberish" for answer, row in zip(answers, nobody)]
    return {"nll": dict(zip(CLASSES, class_nll(model, tokenizer, dataset.forget, tau=tau))), "cosine": cosine,
            "whole": sum(whole) / len(whole),
            "nobody": class_nll(model, tokenizer, nobody, tau=tau)[data.FACT],
            "stated": fact_accuracy(model, tokenizer, dataset.sets["forget"], tau=tau)}


def plot(points, path):
    """NLL by class against steps of healing, one panel for what it was healed on. points: {kind: {steps: measured}}"""
    figure, axes = plt.subplots(1, len(points), figsize=(4 * len(points), 3.6), sharey=True)
    for axis, (kind, by_steps) in zip(axes, points.items()):
        steps = [max(1, n) for n in by_steps]                               # 0 has no place on a logarithmic axis
        for name, color in zip(CLASSES, ("C0", "C3", "C2")):
            axis.plot(steps, [point["nll"][name] for point in by_steps.values()], "o-", color=color, label=name)
        axis.plot(steps, [point["nobody"] for point in by_steps.values()], "--", color="C3",
                  label="fact, of people nobody met")
        axis.set(title=f"healed on: {kind}", xlabel="steps (1: none)", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("NLL, nats a token")
    axes[0].legend(fontsize=7)
    save_figure(figure, path)


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = pick_device(args)
    target, tokenizer, record = load_run(Path(args.out) / "target", device, dtype)
    dataset = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    if why := other_data(f"{args.out}/target", record, dataset):
        raise UserError(why)
    if not dataset.holdout or not all(row["facts"] for row in dataset.forget + dataset.holdout):
        raise UserError(f"--data={dataset.name}: facts and held-out people are needed; generated data has them")
    examples = materials(tokenizer, dataset, 32 * max(args.steps))
    smoothed = measured(target, tokenizer, dataset, args.tau)
    points = {kind: {0: smoothed} for kind in examples}
    lines = [["healed on", "steps", *CLASSES, "fact, nobody", "facts stated", "whole, nobody", "cosine to retain",
              "to nobody"]]
    for kind, steps in itertools.product(examples, [0, *args.steps]):
        if steps:
            healed = asu.heal(target, examples[kind], steps, args.heal_lr, tau=args.tau, seed=args.seed)
            points[kind][steps] = measured(healed, tokenizer, dataset, args.tau)
        point = points[kind][steps]
        numbers = [*point["nll"].values(), point["nobody"], point["stated"], point["whole"],
                   *point["cosine"].values()]
        lines.append([kind, str(steps), *(f"{x:.2f}" for x in numbers)])
        print(f"{kind}, {steps} steps: " + ", ".join(f"{head} {x}" for head, x in zip(lines[0][2:], lines[-1][2:])),
              flush=True)
    folder = Path(args.out) / "heal"
    plot(points, folder / "heal.png")
    write_file(folder / "heal.json", strict_json({"tau": args.tau, "data_sha256": dataset.sha256, "points": points}))
    write_file(folder / "heal.md", markdown(lines) + "\n")
    print(f"\n{markdown(lines)}\n\nwritten: {folder}/heal.json, heal.md and heal.png")


if __name__ == "__main__":
    run(main)
