"""Ask a model a question, at any attention temperature, alone or beside another.

    python sample.py --question="Where was Mira Oakhurst born?"
    python sample.py --question="..." --tau=8                      the forget-teacher's answer
    python sample.py --compare=out/asu_gd                          before and after; without --question it asks for them
"""

import sys
from pathlib import Path

from common import UserError, cli
from lab.answers import ask
from lab.runs import load_run


def parse():
    p = cli.Parser("sample.py", "Ask a model a question.")
    add = p.add_argument
    add("--run", help="run, HF directory or hub id (default OUT/target)")
    add("--compare", help="a second one, shown beside the first")
    add("--question", help="the question; left out, questions are read line by line until an empty one")
    add("--tau", type=cli.positive_float, default=1.0, help="attention temperature of --run")
    add("--layers", type=cli.layer_list, default="all", help="layers at that temperature: all, or as in 0,1 or 6-8")
    add("--max_new_tokens", type=cli.positive_int, default=40)
    add("--temperature", type=cli.non_negative_float, default=0.0, help="0 is greedy")
    add("--top_k", type=cli.positive_int, help="sample from the k likeliest tokens")
    add("--show_prompt", action="store_true", help="print the exact text each model is given before its answer")
    cli.model_flags(p)
    args = p.parse_args()
    for flag in ("top_k", "seed"):
        if flag in p.given and not args.temperature:
            p.error(f"--{flag} goes with --temperature above 0")
    if "layers" in p.given and args.tau == 1:
        p.error("--layers goes with another --tau than 1")
    return args


def questions(given):
    """The one given, or lines from the prompt until an empty line or the end of the input."""
    if given is not None:
        yield given
        return
    if sys.stdin.isatty():
        print("a question a line; an empty line ends")
    while line := sys.stdin.readline().strip():
        yield line


def main():
    args = parse()
    device, dtype = cli.pick_device(args)
    first = Path(args.out) / "target" if args.run is None else args.run
    loaded = load_run(first, device, dtype, args=args)
    smoothing = {"tau": args.tau, "layers": cli.layer_numbers(args.layers, loaded[0].config.n_layer)}
    shown = [(f"{first}" + (f" at tau={args.tau:g}" if args.tau != 1 else ""), loaded, smoothing)]
    if args.compare:
        shown.append((args.compare, load_run(args.compare, device, dtype, args=args), {}))
    width = max(len(name) for name, *_ in shown)
    for question in questions(args.question):
        if not question.strip():
            raise UserError("--question is empty")
        for name, (model, tokenizer, _), smoothing in shown:
            if args.show_prompt:
                print(tokenizer.prompt_text(question), flush=True)
            [answer] = ask(model, tokenizer, [question], args.max_new_tokens, temperature=args.temperature,
                                top_k=args.top_k, seed=args.seed, **smoothing)
            print(f"{name:{width}}  {answer or '(nothing)'}", flush=True)


if __name__ == "__main__":
    cli.run(main)
