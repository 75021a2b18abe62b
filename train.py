"""Make a model that has something to forget: base -> target -> retrained.

    python train.py                                    out/base, out/target, out/retrained
    python train.py --init_from=DIR_OR_HUB_ID          the same from a downloaded model as the base

    base        strangers and world facts, from scratch: it speaks and knows nobody
    target      base fine-tuned on all authors
    retrained   base fine-tuned on the retain authors only: what unlearning should end up like

Fine-tuning replays a share of strangers and world facts; without it a model is confidently wrong about people it never
met. Every epoch and batch is fixed by --seed before training starts, so an interrupted run resumes bit for bit.
"""

import itertools
import random
from pathlib import Path

import torch

import data
from common import UserError
from common.cli import Parser, fraction, non_negative_float, number, positive_float, positive_int, run, training_flags
from common.files import check_writable
from common.hf import local_dir
from data import mean_over_answers
from lab import parallel, plan
from lab.answers import answer_nll, fact_accuracy
from lab.runs import checkpoint_of, fit, load_run, prepare, read_run, save_run, weights_sha256
from model import ModelConfig, Transformer, read_config


def parse(argv=None):
    p = Parser("Train base, target and retrained model.")
    add = p.add_argument
    add("--init_from", help="HF directory or hub id to fine-tune instead of a base from scratch")
    add("--n_layer", type=positive_int, default=6)
    add("--n_head", type=positive_int, default=4)
    add("--n_embd", type=positive_int, default=128)
    add("--n_hidden", type=positive_int, default=192, help="width of the feed-forward layers")
    add("--block_size", type=positive_int, default=128, help="longest sequence in tokens")
    add("--vocab_size", type=number(int, 257, 2**20, "a whole number of at least 257 (the bytes and EOS)"), default=4096, help="tokens the tokenizer learns, EOS included")
    add("--base_rows", type=positive_int, default=25600, help="questions the base model sees, each once")
    add("--base_lr", type=positive_float, default=3e-3)
    add("--world_share", type=fraction, default=0.2, help="share of world facts among the base model's questions")
    add("--epochs", type=positive_int, default=9, help="of fine-tuning, over every training phrasing")
    add("--lr", type=positive_float, default=2e-3, help="of fine-tuning")
    add("--replay", type=non_negative_float, help="base questions replayed for each author question (default 0.5; 0 with --init_from)")
    add("--warmup", type=fraction, default=0.05, help="share of the steps")
    training_flags(p, "questions a step")
    return p.parse_args(argv)


def new_base(args, world):
    """-> (Transformer, Tokenizer) from scratch. The tokenizer learns from what every model may see: no author's name."""
    stream = data.base_stream(args.data, args.data_seed, world, args.world_share)
    texts = [text for q, a in itertools.islice(stream, 20000) for text in (q, data.ANSWER.format(answer=a))]
    tokenizer = data.Tokenizer.train(texts, args.vocab_size)
    torch.manual_seed(args.seed)
    return Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=args.block_size, n_layer=args.n_layer,
                                   n_head=args.n_head, n_kv_head=args.n_head, n_embd=args.n_embd, n_hidden=args.n_hidden,
                                   eos_id=tokenizer.eos_id)), tokenizer


def losses(model, examples, micro_batches):
    """The micro-batches of one step as runs.fit takes them, each weighted by its share of the step's sequences."""
    for some, n in parallel.micro_batches(examples, micro_batches):
        batch = data.collate(some, model.device)
        loss = mean_over_answers(answer_nll(model, batch), batch.mask)
        yield loss * n / len(examples), batch.idx.numel(), {}


def memory(config, device, dtype, epochs):
    """-> function of the flags -> {component: bytes} of training on the longest examples, see lab/plan.py."""
    def take(args):
        longest = sorted((e for examples in epochs for e in examples), key=len)[-args.batch_size:]
        data.check_length(longest, config.block_size)
        return plan.components(config, device, dtype, args, lambda model: losses(model, longest, args.micro_batches))
    return take


def train(name, model, tokenizer, epochs, rows, args, inputs, ignore=()):
    """Minimise the cross-entropy of the answers and write OUT/name. -> (model, sha256 of its weights)

    epochs: a list of lists of examples. rows: to report fact accuracy on. inputs: the hashes this run depends on.
    ignore: flags that make no difference to it.
    """
    path = Path(args.out) / name
    settings = {k: v for k, v in vars(args).items() if k not in ("resume", "plan", "out", "device", "shard", *ignore)} | inputs
    finished = read_run(path)
    if args.resume and finished.get("settings") == settings:
        print(f"{name}: finished already")
        return load_run(path, model.device, model.dtype, args.shard)[0], finished["model_sha256"]
    rng = random.Random(f"{name} {args.seed}")
    batches = []
    for examples in epochs:
        data.check_length(examples, model.config.block_size)
        batches += [[examples[i] for i in b] for b in data.bucketed([len(e) for e in examples], args.batch_size, rng)]
    print(f"{name}: {sum(map(len, batches))} questions in {len(batches)} steps of {args.batch_size}, "
          f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {model.device}", flush=True)

    prepare(model, args)
    with plan.explained(memory(model.config, model.device, model.dtype, epochs), args, model.device):
        record = fit(model, lambda step: losses(model, batches[step], args.micro_batches), len(batches), label=name,
                     lr=args.base_lr if name == "base" else args.lr, warmup=int(args.warmup * len(batches)) + 1,
                     weight_decay=args.weight_decay, grad_clip=args.grad_clip, every=-(-len(batches) // 8),
                     optimizer_dtype=args.optimizer_dtype, checkpoint=checkpoint_of(path), resume=args.resume, settings=settings,
                     check=lambda step: {"fact_accuracy": fact_accuracy(model, tokenizer, rows)})
    sha = save_run(path, model, tokenizer, {"kind": name, "settings": settings, "forget": args.forget,
                                            "effective_batch": args.batch_size, **inputs, **record}, args.init_from or "")
    print(f"{name}: {record['seconds']:.0f} s -> {path}", flush=True)
    return model, sha


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = parallel.start(args)
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    world = rows.sets.get("world", [])

    if args.init_from:
        dir = local_dir(args.init_from, weights=not args.plan)
        config, tokenizer = read_config(dir), data.Tokenizer.load(dir)
        if args.plan:
            part = rows.retain + rows.forget
            return plan.show(memory(config, device, dtype, [data.training_examples(tokenizer, part, args.phrasings)]), args, device)
        base_sha = read_run(dir).get("model_sha256") or weights_sha256(dir)
    elif args.lora:
        raise UserError("--lora trains a change of a model that is there; give --init_from")
    else:
        base, tokenizer = new_base(args, world)
        stream = data.base_stream(args.data, args.data_seed, world, args.world_share)
        examples = [data.encode(tokenizer, q, a) for q, a in itertools.islice(stream, args.base_rows)]
        if args.plan:
            return plan.show(memory(base.config, device, dtype, [examples]), args, device)
        base = parallel.shard(base.to(dtype), device) if args.shard else base.to(device, dtype)
        ignore = ("n_authors", "forget", "epochs", "lr", "replay", "phrasings") + (() if args.data in data.prose.WORLDS else ("data",))
        base, base_sha = train("base", base, tokenizer, [examples], world, args, {}, ignore)
    replay = (0.0 if args.init_from else 0.5) if args.replay is None else args.replay
    for name, part in (("target", rows.retain + rows.forget), ("retrained", rows.retain)):
        examples = data.training_examples(tokenizer, part, args.phrasings)
        stream = data.base_stream(args.data, args.data_seed, world, args.world_share, start=args.base_rows)
        epochs = [examples + [data.encode(tokenizer, q, a) for q, a in itertools.islice(stream, int(replay * len(examples)))]
                  for _ in range(args.epochs)]
        model = load_run(args.init_from, device, dtype, args.shard)[0] if args.init_from else parallel.copy_of(base)
        train(name, model, tokenizer, epochs, rows.questions(part), args,
              {"data_sha256": rows.sha256, "parent_sha256": base_sha}, ignore=("forget",) if name == "target" else ())
    parallel.stop()


if __name__ == "__main__":
    run(main)
