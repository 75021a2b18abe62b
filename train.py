"""Make a model that has something to forget: base -> target -> retrained.

    python train.py                                    out/base, out/target, out/retrained
    python train.py --init_from=DIR_OR_HUB_ID          the same from a downloaded model as the base

    base        strangers and world facts, from scratch: it speaks and knows nobody
    target      base fine-tuned on all authors
    retrained   base fine-tuned on the retain authors only: what unlearning should end up like

Fine-tuning replays a share of strangers and world facts; without it a model is confidently wrong about people it never
met. Every epoch and batch is fixed by --seed before training starts, so an interrupted run resumes bit for bit.

A small model speaks with a few sharp heads, so smoothing its attention would break its language before it took a fact.
Therefore half of the strangers and world facts are read at a random attention temperature, up to --temper: language
then survives smoothing. An author's row is always read at 1, so facts are learnt there alone.
"""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import torch

import data
from common import UserError, cli
from common.files import check_writable
from common.hf import local_dir
from data import mean_over_answers
from lab import parallel, plan
from lab.answers import answer_nll, fact_accuracy
from lab.optim import Log, adamw, lr_at
from lab.runs import (
    check_place,
    checkpoint_of,
    load_run,
    load_tokenizer,
    prepare,
    read_run,
    save_run,
    weights_sha256,
)
from model import ModelConfig, Transformer, read_config

BASE_LR = 3e-3          # of the base model; --lr is of fine-tuning
SHAPE = "n_layer", "n_head", "n_embd", "n_hidden", "block_size", "vocab_size"      # of a base from scratch
NOT_BASES = "n_authors", "forget", "epochs", "lr", "replay", "phrasings"        # flags that mean nothing to the base


def parse(argv=None):
    p = cli.Parser("train.py", "Train base, target and retrained model.")
    add = p.add_argument
    add("--init_from", help="HF directory or hub id to fine-tune instead of a base from scratch")
    add("--n_layer", type=cli.number(int, 1, 1024, "a whole number from 1 to 1024"), default=6)
    add("--n_head", type=cli.size, default=4)
    add("--n_embd", type=cli.size, default=128)
    add("--n_hidden", type=cli.size, default=192, help="width of the feed-forward layers")
    add("--block_size", type=cli.number(int, 1, 2**20, "a whole number of at least 1, up to 2^20"), default=128,
        help="longest sequence in tokens")
    add("--vocab_size", type=cli.number(int, 257, 2**20, "a whole number of at least 257 (the bytes and EOS)"),
        default=4096, help="tokens the tokenizer learns, EOS included")
    add("--base_rows", type=cli.positive_int, default=25600, help="questions the base model sees, each once")
    add("--epochs", type=cli.positive_int, default=9, help="of fine-tuning, over every training phrasing")
    add("--lr", type=cli.positive_float, default=2e-3, help="of fine-tuning")
    add("--replay", type=cli.number(float, 0, 100, "a number from 0 to 100"), help="base questions replayed for each "
        "author question (default 0.5; 0 with --init_from)")
    add("--temper", type=cli.number(float, 1, 1e6, "a number of at least 1"), default=16.0, help="highest attention "
        "temperature at which the base model's questions, replayed ones too, are read; 1: none but 1")
    add("--warmup", type=cli.fraction, default=0.05, help="share of the steps")
    cli.model_flags(p)
    cli.training_flags(p, "questions a step")
    args = p.parse_args(argv)
    if args.replay is None:
        args.replay = 0.0 if args.init_from else 0.5
    if args.init_from:
        unused = SHAPE if args.replay else (*SHAPE, "base_rows", "temper")
        if unused := [f"--{flag}" for flag in unused if flag in p.given]:
            print(f"--init_from does not use {', '.join(unused)}", flush=True)
    return args


def new_base(args, world):
    """-> (Transformer, Tokenizer) from scratch. The tokenizer learns from what every model may see: no author's
    name."""
    stream = data.base_stream(args.data, args.data_seed, world)
    texts = [text for q, a in itertools.islice(stream, 20000) for text in (q, data.ANSWER.format(answer=a))]
    tokenizer = data.Tokenizer.train(texts, args.vocab_size)
    torch.manual_seed(args.seed)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, block_size=args.block_size, n_layer=args.n_layer,
                         n_head=args.n_head, n_kv_head=args.n_head, n_embd=args.n_embd, n_hidden=args.n_hidden,
                         eos_id=tokenizer.eos_id)
    return Transformer(config), tokenizer


# ------------------------------------------------------------------------------------------------ training
def temperatures(examples, highest, rng):
    """The attention temperature that each example is read at: for half of the strangers' log-uniform from 1 to highest,
    else 1. -> list of numbers. An author's row is always read at 1: facts are learnt there, and only there."""
    taus = []
    for example in examples:
        tempered = example.stranger and rng.random() < 0.5
        taus.append(highest ** rng.random() if tempered else 1.0)
    return taus


def fit(model, batches, args, lr, log):
    """Minimise the cross-entropy of the answers, mean over a sequence's tokens, then over sequences. In place.

    batches: a list of lists of data.Example, one a step; args: flags; log: an optim.Log. Raises UserError where a
    loss is not finite."""
    optimizer, steps = adamw(parallel.settled(model), lr, args.weight_decay, args.optimizer_dtype), len(batches)
    model.train()
    first = log.begin(model, optimizer, steps, every=-(-steps // 8))
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, lr, args.warmup)
        taus = temperatures(batches[step], args.temper, random.Random(f"temper {log.label} {args.seed} {step}"))
        for part, n in parallel.micro_batches(list(zip(batches[step], taus)), args.micro_batches):
            examples, tau = zip(*part)
            batch, share = data.collate(examples, model.device), n / len(batches[step])
            loss = mean_over_answers(answer_nll(model, batch, tau=tau if max(tau) > 1 else 1.0), batch.mask)
            log.add("", share * loss.item(), 1.0, batch.idx.numel())
            parallel.backward(model, share * loss)
        parallel.add_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.end(step)
    log.finish()
    return model.eval()


def memory(args, config, device, dtype, examples):
    """What training on these examples would take -> {component: bytes}, see lab/plan.py."""
    longest = [replace(example, stranger=False) for example in sorted(examples, key=len)[-args.batch_size:]]
    data.check_length(longest, config.block_size)

    def two_steps(model, log):
        fit(model, [longest] * 2, args, args.lr, log)
    return plan.components(config, device, dtype, args, two_steps)


def train(name, model, tokenizer, epochs, rows, args, inputs, ignore=(), **about):
    """Fit the model and write OUT/name. -> (model, sha256 of its weights)

    epochs: a list of lists of examples. rows: to report fact accuracy on. inputs: the hashes this run depends on.
    ignore: flags that make no difference to it. about: more for run.json, which no settings are compared with.
    """
    path, settings = Path(args.out) / name, cli.settings(args, *ignore) | inputs
    check_place(path, settings, args.overwrite, args.resume)
    finished = read_run(path)
    if args.resume and finished.get("settings") == settings:
        print(f"{name}: finished already")
        checkpoint_of(path).unlink(missing_ok=True)         # of a run that was killed after its last file
        return load_run(path, model.device, model.dtype, args.shard)[0], finished["model_sha256"]
    rng, batches = random.Random(f"{name} {args.seed}"), []
    for examples in epochs:
        data.check_length(examples, model.config.block_size)
        numbers = data.bucketed([len(e) for e in examples], args.batch_size, rng)
        batches += [[examples[i] for i in batch] for batch in numbers]
    print(f"{name}: {sum(map(len, batches))} questions in {len(batches)} steps of {args.batch_size}, "
          f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {model.device}", flush=True)
    prepare(model, args)

    def check():
        return {"fact_accuracy": fact_accuracy(model, tokenizer, rows)}
    log = Log(name, check, checkpoint_of(path), args.resume, settings)
    every = [example for examples in epochs for example in examples]
    with plan.explained(lambda args: memory(args, model.config, model.device, model.dtype, every), args, model.device):
        fit(model, batches, args, BASE_LR if name == "base" else args.lr, log)
    record = {"kind": name, "settings": settings, "forget": args.forget, "effective_batch": args.batch_size, **inputs,
              **about}
    record |= log.record
    sha = save_run(path, model, tokenizer, record, args.init_from or "")
    print(f"{name}: {record['seconds']:.0f} s -> {path}", flush=True)
    return model, sha


def main():
    args = parse()
    if not args.init_from and (args.template or args.tokenizer):
        raise UserError("--template and --tokenizer are for a model that is there; give --init_from")
    if not args.init_from and args.lora:
        raise UserError("--lora trains a change of a model that is there; give --init_from")
    check_writable(args.out)
    device, dtype = parallel.start(args)
    dataset = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    print(*(f"--data={args.data}: {note}\n" for note in dataset.notes), sep="", end="", flush=True)
    world = dataset.sets.get("world", [])
    ignored = {"base": NOT_BASES if args.data in data.prose.WORLDS else (*NOT_BASES, "data"),
               "target": ["forget"], "retrained": []}
    made_of = {"world_sha256": data.digest(world)}, {"data_sha256": dataset.sha256}
    for name, flags in ignored.items():
        if not args.plan and not (name == "base" and args.init_from):
            check_place(Path(args.out) / name, cli.settings(args, *flags) | made_of[name != "base"], args.overwrite)
    if args.init_from:
        dir = local_dir(args.init_from, weights=not args.plan)
        config, tokenizer = read_config(dir), load_tokenizer(args.init_from, args)
        data.check_fits(dataset, tokenizer, config.block_size, args.phrasings)
        if args.plan:
            examples = data.training_examples(tokenizer, dataset.retain + dataset.forget, args.phrasings)
            return plan.show(lambda args: memory(args, config, device, dtype, examples), args, device)
        base_sha = read_run(dir).get("model_sha256") or weights_sha256(dir)
    else:
        base, tokenizer = new_base(args, world)
        data.check_fits(dataset, tokenizer, args.block_size, args.phrasings)
        stream = data.base_stream(args.data, args.data_seed, world)
        examples = data.stranger_examples(tokenizer, stream, args.base_rows)
        if args.plan:
            return plan.show(lambda args: memory(args, base.config, device, dtype, examples), args, device)
        base = parallel.shard(base.to(dtype), device) if args.shard else base.to(device, dtype)
        base, base_sha = train("base", base, tokenizer, [examples], world, args, made_of[0], ignored["base"])
    for name, rows in (("target", dataset.retain + dataset.forget), ("retrained", dataset.retain)):
        examples = data.training_examples(tokenizer, rows, args.phrasings)
        stream = data.base_stream(args.data, args.data_seed, world, start=args.base_rows)
        n = int(args.replay * len(examples))
        epochs = [examples + data.stranger_examples(tokenizer, stream, n) for _ in range(args.epochs)]
        model = (load_run(args.init_from, device, dtype, args.shard, args)[0] if args.init_from else
                 parallel.copy_of(base))
        train(name, model, tokenizer, epochs, dataset.questions(rows), args,
              made_of[1] | {"parent_sha256": base_sha}, ignored[name],
              any_split_sha256=dataset.any_split_sha256)
    parallel.stop()


if __name__ == "__main__":
    cli.run(main)
