"""What a step costs: time, memory, and the share of what the machine can multiply.

    python -m data.smollm2 --out=smollm2
    python -m experiments.bench --run=smollm2          OUT/bench/bench.md and bench.json
    python -m experiments.bench --parts=train

step            one step of ASU on --run: ours, ours with a live teacher, and the recipe of the paper's released code
transformers    our model against transformers' on --run, the same weights and rows
train           the model that train.py makes from scratch
gpu             step, on the shapes of Llama 3 with random weights in bfloat16, every weight trained

Rows are random tokens of TOFU's lengths, see rows(); padding is in no count of tokens or operations. Seconds are the
median of --repeats after a warm-up. Every line of step and gpu is a process of its own, so that its peak memory is its
own.
"""

import concurrent.futures
import copy
import importlib.util
import json
import platform
import random
import statistics
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import asu
import data
import train
from common import UserError
from common.cli import Parser, pick_device, positive_int, run
from common.files import check_writable, write_file
from common.hf import local_dir
from data import mean_over_answers
from experiments.processes import workers
from lab.answers import answer_nll
from lab.lora import add_lora
from lab.optim import adamw, peak_mb
from lab.runs import load_run
from model import ModelConfig, Transformer

TAU, LR = 2.3, 1e-5                                 # of the released code, for Llama-2-7B on TOFU
RELEASED_WIDTH = 500                                # to which it pads every row
LLAMA3 = dict(vocab_size=128256, block_size=8192, n_kv_head=8, n_head=32, rope_theta=500000.0, init_std=0.02)
SHAPES = {"Llama-3.2-1B": LLAMA3 | dict(n_layer=16, n_embd=2048, n_hidden=8192),
          "Llama-3-8B": LLAMA3 | dict(n_layer=32, n_embd=4096, n_hidden=14336, tie_weights=False)}


def rows(n, vocab_size, seed):
    """n examples as long as TOFU's are: prompts of 15 to 45 tokens, answers of 20 to 60, evenly distributed."""
    rng, examples = random.Random(f"bench {seed}"), []
    for _ in range(n):
        prompt = rng.choices(range(vocab_size), k=rng.randint(15, 45))
        examples.append(data.Example(prompt, rng.choices(range(vocab_size), k=rng.randint(20, 60))))
    return examples


# ------------------------------------------------------------------------------------------------- recipes
def ours(model, forget, retain, teacher="cached"):
    """asu.py: rows padded to the longest, only answers projected to the vocabulary. -> function () that yields the
    forget and the retain loss"""
    theta_0 = asu.Frozen(model, TAU, live=teacher == "live")
    theta_0.remember(asu.asu, forget)

    def losses():
        for loss, examples in ((asu.asu, forget), (asu.gd, retain)):
            tensors, _ = asu.look(model, theta_0, examples, loss)
            yield loss(**tensors)
    return losses


def released(model, forget, retain):
    """The released code's way, from its description: a second model in memory that runs on every step, all rows padded
    to 500 tokens (or the model's context), logits of every position; the mask comes last. The mathematics is ours.
    -> as ours"""
    teacher, width = copy.deepcopy(model).requires_grad_(False), min(RELEASED_WIDTH, model.config.block_size)

    def padded(examples):
        idx, target, mask = (torch.zeros(len(examples), width, dtype=torch.long) for _ in range(3))
        for i, e in enumerate(examples):
            p, n = len(e.prompt), len(e)
            idx[i, :n - 1] = torch.tensor((e.prompt + e.answer)[:-1])
            target[i, p - 1:n - 1], mask[i, p - 1:n - 1] = torch.tensor(e.answer), 1
        return idx.to(model.device), target.to(model.device), mask.bool().to(model.device)
    (idx, _, mask), (retain_idx, retain_target, retain_mask) = padded(forget), padded(retain)

    def losses():
        with torch.no_grad():
            teacher_logp = teacher(idx, TAU).float().log_softmax(-1)                            # (B, 500, V)
        forget_loss = asu.forward_kl(teacher_logp, model(idx).float().log_softmax(-1), mask)
        logits = model(retain_idx).float().flatten(0, 1)                                        # (B * 500, V)
        nll = F.cross_entropy(logits, retain_target.flatten(), reduction="none").view_as(retain_mask)
        yield torch.stack((forget_loss, mean_over_answers(nll, retain_mask)))
    return losses


def checkpointed(model, forget, retain):
    """ours with --checkpointing. -> as ours"""
    model.checkpointing = True
    return ours(model, forget, retain)


def with_lora(model, forget, retain):
    """ours with --lora=16. -> as ours"""
    add_lora(model, 16)
    return ours(model, forget, retain)


# Each prepares a model and returns its losses. It may freeze or add weights: the optimizer takes what wants a gradient.
RECIPES = {"ours": ours, "ours, checkpointing": checkpointed, "ours, LoRA": with_lora,
           "ours, live teacher": partial(ours, teacher="live"), "released recipe": released}


# ---------------------------------------------------------------------------------------------- measuring
def timed(*functions, repeats, device):
    """Call each in turn, `repeats` times after a warm-up -> for each (median seconds, what its first call returned)."""
    seconds, first = [[] for _ in functions], []
    for repeat in range(repeats + 1):
        for f, times in zip(functions, seconds):
            start = time.perf_counter()
            result = f()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
            if repeat == 0:
                first.append(result)
    return [(statistics.median(times[1:]), result) for times, result in zip(seconds, first)]


def matmul_flops(device, dtype, n):
    """The measured limit: floating-point operations a second of an n x n matrix product, the best of ten."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n ** 3 / min(timed(lambda: a @ b, repeats=1, device=device)[0][0] for _ in range(10))


def train_flops(c, examples):
    """Of forward and backward pass over examples, by the model's matrix products alone, without padding.

    A weight costs 2 operations a token forward and 4 backward; a row of T tokens and A answer tokens meets the weights
    of the layers T times and those of the head A times. Attention multiplies T x T scores by hs twice in each of nh
    heads; what the causal mask spares is not deducted."""
    heads = c.n_head * c.head_dim
    layer = 2 * c.n_embd * heads + 2 * c.n_embd * c.n_kv_head * c.head_dim + 3 * c.n_embd * c.n_hidden
    lengths = [(len(e) - 1, len(e.answer)) for e in examples]       # the last token predicts nothing
    return sum(6 * (c.n_layer * (T * layer + 2 * T * T * heads) + A * c.vocab_size * c.n_embd) for T, A in lengths)


def random_model(shape, device, dtype):
    """shape: keywords of ModelConfig. The weights are never there in another dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Transformer(ModelConfig(**shape))
    finally:
        torch.set_default_dtype(before)


def random_rows(model, args):
    examples = rows(2 * args.batch_size, model.config.vocab_size, args.seed)
    data.check_length(examples, model.config.block_size)
    return examples


def tokens(examples):
    return sum(map(len, examples)) - len(examples)                  # the last token of a row is not read


def stepper(model, losses, lr):
    """-> function () that takes one step (backward, clipping, AdamW) and returns the losses, whose sum it lowers.

    losses() gives those that go backward one by one, as asu.unlearn has them; the released code's come together."""
    optimizer = adamw(model, lr, 0.01)

    def step():
        parts = []
        for loss in losses():
            (loss if loss.dim() == 0 else loss.sum()).backward()
            parts += loss.detach().flatten()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return [loss.item() for loss in parts]
    return step


def step_row(source, recipe, args, dtype=None, matmul=2048):
    """A whole step of a recipe. source: a model directory or hub id, or a shape."""
    device = pick_device(args)[0]
    torch.manual_seed(args.seed)
    try:
        model = random_model(source, device, dtype) if isinstance(source, dict) else load_run(source, device, dtype)[0]
        examples, start = random_rows(model, args), time.perf_counter()
        losses = RECIPES[recipe](model, examples[::2], examples[1::2])          # half to forget, half to retain
        setup = time.perf_counter() - start
        step = stepper(model, losses, LR)
        [(seconds, (forget_loss, retain_loss))] = timed(step, repeats=args.repeats, device=device)
    except torch.OutOfMemoryError:
        return {"variant": f"{recipe}: out of memory"}
    peak, limit = peak_mb(device), matmul_flops(device, model.dtype, matmul)
    return {"variant": recipe, "seconds": seconds, "tokens_per_s": tokens(examples) / seconds, "peak_mb": peak,
            "share": train_flops(model.config, examples) / seconds / limit, "matmul_flops": limit,
            "setup_seconds": setup, "forget_loss": forget_loss, "retain_loss": retain_loss}


def transformers_rows(path, args):
    """Ours and transformers' by turns: logits, logits and gradients, and greedy generation from left-padded prompts."""
    import transformers
    device, dtype = pick_device(args)
    model = load_run(path, device, dtype)[0]
    other = transformers.AutoModelForCausalLM.from_pretrained(local_dir(path), dtype=dtype, attn_implementation="sdpa")
    other = other.to(device).eval()
    other.generation_config.eos_token_id = None                     # every row runs to its last token
    examples, n = random_rows(model, args), args.new_tokens
    idx, prompts = data.collate(examples, device).idx, [e.prompt for e in examples]
    T = max(map(len, prompts))
    left = torch.tensor([[0] * (T - len(p)) + p for p in prompts], device=device)
    seen = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts], device=device)

    def both(logits, model):
        F.cross_entropy(logits(idx).flatten(0, 1), idx.flatten()).backward()
        model.zero_grad(set_to_none=True)

    def theirs(idx):
        return other(idx, use_cache=False).logits

    def generate():
        full = other.generate(left, attention_mask=seen, max_new_tokens=n, do_sample=False, pad_token_id=0)
        return full[:, T:].tolist()
    pairs = {"forward": (torch.no_grad()(lambda: model(idx)), torch.no_grad()(lambda: theirs(idx)), tokens(examples)),
             "forward and backward": (lambda: both(model, model), lambda: both(theirs, other), tokens(examples)),
             f"generate {n} tokens a row": (lambda: model.generate(prompts, n, eos_id=[]), generate, n * len(prompts))}
    lines, first = [], []
    for what, (mine, his, count) in pairs.items():
        times = timed(mine, his, repeats=args.repeats, device=device)
        for variant, (seconds, result) in zip(("ours", "transformers"), times):
            lines.append({"what": what, "variant": variant, "seconds": seconds, "tokens_per_s": count / seconds})
            first.append(result)
    logits, other_logits, *_, generated, other_generated = first
    lines[-1] |= {"logits_differ": ((logits - other_logits).abs().max() / logits.abs().max()).item(),
                  "same_tokens": generated == other_generated}
    return lines


def train_row(args, flags=(), matmul=2048):
    """Steps as train.py's base model takes them at its defaults. flags: train.py's, for tests."""
    device, dtype = pick_device(args)
    flags, world = train.parse([f"--seed={args.seed}", f"--data_seed={args.data_seed}", *flags]), data.world()
    model, tokenizer = train.new_base(flags, world)
    model.to(device, dtype)
    steps = args.repeats * 10                                       # they take milliseconds
    stream = data.base_stream("authors", args.data_seed, world)
    examples = data.stranger_examples(tokenizer, stream, (steps + 1) * flags.batch_size)
    batches = data.bucketed([len(e) for e in examples], flags.batch_size, random.Random(args.seed))
    queue = iter(batches)

    def losses():
        batch = data.collate([examples[i] for i in next(queue)], device)
        return [mean_over_answers(answer_nll(model, batch), batch.mask)]
    [(seconds, _)] = timed(stepper(model, losses, train.BASE_LR), repeats=steps, device=device)
    peak, limit = peak_mb(device), matmul_flops(device, dtype, matmul)
    return {"what": "step of train.py", "variant": "ours", "seconds": seconds, "peak_mb": peak, "matmul_flops": limit,
            "tokens_per_s": tokens(examples) / len(batches) / seconds,
            "share": train_flops(model.config, examples) / len(batches) / seconds / limit}


# ------------------------------------------------------------------------------------------------- report
def fresh(f, *args):
    """f(*args) in a new process. The parent holds no model: a child's peak starts from its parent's."""
    with workers(1) as pool:
        try:
            return pool.submit(f, *args).result()
        except concurrent.futures.process.BrokenProcessPool as e:
            raise UserError("the process was killed, most likely for its memory; a smaller --batch_size needs "
                            "less") from e


def table(measured):
    """Lines of the report -> a Markdown table. Ratios are to the first line of the same `what`, which is ours."""
    lines = ["| what | variant | seconds | x | peak MB | x | tokens/s | of matmul limit |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]
    for line in measured:
        base = next(other for other in measured if other["what"] == line["what"])
        cells = [line["what"], line["variant"]]
        for key, form in (("seconds", ".4g"), ("peak_mb", ".0f")):
            cells.append(f"{line[key]:{form}}" if key in line else "-")
            cells.append(f"{line[key] / base[key]:.2f}" if key in line and key in base else "-")
        for key, form in (("tokens_per_s", ".0f"), ("share", ".0%")):
            cells.append(f"{line[key]:{form}}" if key in line else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(measured):
    """What the lines say beside their numbers -> list of texts."""
    losses, limits, same = [], {}, []
    for line in measured:
        if "forget_loss" in line:
            losses.append(f"{line['what']}, {line['variant']}: first losses {line['forget_loss']:.6f} forget, "
                          f"{line['retain_loss']:.6f} retain; {line['setup_seconds']:.1f} s before the first step")
        if "same_tokens" in line:
            same.append(f"transformers: logits differ by {line['logits_differ']:.1e} of the largest, greedy tokens "
                        f"{'are the same' if line['same_tokens'] else 'differ'}")
        if "matmul_flops" in line:
            limits[line["what"]] = (f"{line['what']}: the limit, measured in the same process, is "
                                    f"{line['matmul_flops'] / 1e9:.0f} GFLOP/s")
    return losses + same + list(limits.values())


PARTS = ("step", "transformers", "train", "gpu")


def parse():
    p = Parser("bench.py", "Measure what a step costs.")
    add = p.add_argument
    add("--run", help="the model of step and transformers: a run, HF directory or hub id (default OUT/target)")
    add("--parts", default=",".join(PARTS), help="comma-separated")
    add("--repeats", type=positive_int, default=5, help="timed calls of everything, after one that is not")
    add("--batch_size", type=positive_int, default=4, help="forget rows a step, and as many retain rows; the released "
        "code's is 4")
    add("--new_tokens", type=positive_int, default=40, help="to generate")
    return p.parse_args()


def main():
    args = parse()
    check_writable(args.out)
    (device, dtype), path, parts = pick_device(args), args.run or Path(args.out) / "target", args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"--parts: {unknown[0]!r} is not one of {','.join(PARTS)}")
    if "transformers" in parts and importlib.util.find_spec("transformers") is None:
        raise UserError("the package transformers is missing; install it, or leave transformers out of --parts")
    measured, left_out = [], []
    if "step" in parts:
        measured += [{"what": "ASU step"} | fresh(step_row, path, recipe, args, dtype) for recipe in RECIPES]
    if "transformers" in parts:
        measured += fresh(transformers_rows, path, args)
    if "train" in parts:
        measured.append(fresh(train_row, args))
    if "gpu" in parts and device.type == "cuda":
        for name, shape in SHAPES.items():
            measured += [{"what": f"ASU step, {name}"} | fresh(step_row, shape, recipe, args, torch.bfloat16, 8192)
                         for recipe in RECIPES]
    elif "gpu" in parts:
        left_out.append(f"gpu: left out, --device={device} is no GPU of CUDA's")
    machine = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
               "name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
               "python": platform.python_version()}
    lines = ["x: times the first line of the same kind.", *notes(measured), *left_out,
             ", ".join(f"{k} {v}" for k, v in machine.items())]
    text = table(measured) + "\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"
    print(text, end="")
    folder, report = Path(args.out) / "bench", {"settings": vars(args), "machine": machine, "rows": measured}
    write_file(folder / "bench.md", text)
    write_file(folder / "bench.json", json.dumps(report, indent=1) + "\n")
    print(f"written: {folder}/bench.md and bench.json")


if __name__ == "__main__":
    run(main)
