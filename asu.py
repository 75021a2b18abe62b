"""Unlearning by attention smoothing (ASU), after section 3 of arXiv 2603.01285.

    python asu.py                                       OUT/target -> OUT/asu_gd
    python asu.py --retain=kl --tau=6 --layers=0,1      OUT/asu_kl

theta_0 is the model before unlearning, theta the student, which starts there. The forget-teacher is theta_0 with every
attention softmax of the smoothed layers taken at temperature tau:

    A_tau = softmax( Q K^T / (tau sqrt(d)) + causal mask )

It still speaks, but no longer recalls. On the forget set the student learns to say what the teacher would say; on the
retain set it is held where it was:

    L_ASU    = mean over D_F of (1/T) sum_t KL( p(. | x, y_<t; theta_tau) || p(. | x, y_<t; theta) )
    L_retain = mean over D_R of (1/T) sum_t -log p(y_t | x, y_<t; theta)                                   "gd"
               mean over D_R of (1/T) sum_t KL( p(. | ...; theta_0) || p(. | ...; theta) )                 "kl"
    L        = c_forget L_ASU + c_retain L_retain

x is the prompt, y the answer of T tokens, EOS included; prompt and padding count in neither term. The student always runs
at tau = 1.
"""

import copy
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from common import (Parser, UserError, check_writable, fraction, layer_list, non_negative_float, pick_device,
                    positive_float, positive_int, run)
from runs import checkpoint_of, fit, load_run, save_run

RETAIN_LOSSES = ("gd", "kl", "none")


# ------------------------------------------------------------------------------------------------- losses
def mean_over_answers(x, mask):
    """(B, T) values a token -> scalar: mean over each sequence's unmasked tokens, then over sequences."""
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def forward_kl(teacher_logp, student_logp, mask):
    """KL(teacher || student), the teacher first: mass where the teacher has mass (equation of L_ASU). -> scalar >= 0.

    teacher_logp, student_logp: (B, T, V) log-probabilities; mask: (B, T) bool, True on answer tokens.
    """
    kl = F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(-1)        # (B, T)
    return mean_over_answers(kl, mask)


def answer_logp(model, batch, **kw):
    """Log-probabilities (B, A, V) at the answer tokens. Only those positions are projected to the vocabulary."""
    return model.lm_head(batch.at_answers(model.hidden(batch.idx, **kw))).float().log_softmax(-1)


def answer_nll(model, batch, **kw):
    """-log p(y_t | x, y_<t) of every answer token, (B, A), in nats; 0 on padding."""
    logits = model.lm_head(batch.at_answers(model.hidden(batch.idx, **kw))).float()             # (B, A, V)
    return F.cross_entropy(logits.transpose(1, 2), batch.target, reduction="none") * batch.mask


# --------------------------------------------------------------------------------------- the forget-teacher
def live_teacher(model, examples, tau=1.0, layers=None):
    """The teacher as the paper has it: a second, frozen model. -> function (numbers, batch) -> logp (B, A, V)."""
    frozen = copy.deepcopy(model).requires_grad_(False).eval()

    def logp(numbers, batch):
        with torch.no_grad():
            return answer_logp(frozen, batch, tau=tau, layers=layers)
    return logp


@torch.no_grad()
def cached_teacher(model, examples, tau=1.0, layers=None, numbers=None, batch_size=64):
    """The same without a second model. theta_0 and the data are fixed, so the teacher's outputs are constants: its final
    hidden states at answer tokens, T x C numbers a sequence, and the frozen head are all there is to keep.

    examples: those the teacher will be asked about; numbers: which of them (default all). -> as live_teacher.
    """
    head = model.lm_head.weight.detach().clone()                                                # (V, C)
    states = {}
    numbers = sorted(range(len(examples)) if numbers is None else set(numbers), key=lambda i: len(examples[i]))
    for i in range(0, len(numbers), batch_size):
        batch = data.collate([examples[j] for j in numbers[i:i + batch_size]], head.device)
        hidden = batch.at_answers(model.hidden(batch.idx, tau, layers))                         # (B, A, C)
        for j, h, mask in zip(numbers[i:i + batch_size], hidden, batch.mask):
            states[j] = h[mask].cpu()                                                           # (T, C)

    def logp(numbers, batch):
        hidden = torch.nn.utils.rnn.pad_sequence([states[j] for j in numbers], batch_first=True).to(head.device)
        return F.linear(hidden, head).float().log_softmax(-1)
    return logp


TEACHERS = {"cached": cached_teacher, "live": live_teacher}


# --------------------------------------------------------------------------------------------- unlearning
def unlearn(model, forget, retain, *, tau, layers=None, retain_loss="gd", c_forget=1.0, c_retain=1.0, epochs=10, lr=1e-3,
            batch_size=32, micro_batches=1, warmup=0.1, weight_decay=0.01, grad_clip=1.0, seed=0, teacher="cached",
            check=None, record=None, checkpoint=None, resume=False, settings=None):
    """Unlearn `forget` from `model` (changed in place) by ASU and return it.

    forget, retain: lists of data.Example. An epoch passes over the forget set once; each of its batches meets a batch of
    as many retain examples, which are drawn without repetition until all have been. tau, layers: the teacher's smoothing,
    see model.attention_scales; at tau = 1 teacher and student are one, the loss is 0 and no step is taken.
    check(step) -> numbers to log each epoch. record: a dict that receives the record of the run. checkpoint, resume,
    settings: see runs.fit. Raises ValueError for tau <= 0, bad layers, an unknown retain loss or teacher, an empty set.
    """
    if retain_loss not in RETAIN_LOSSES or teacher not in TEACHERS:
        raise UserError(f"retain_loss={retain_loss}, teacher={teacher}: choose from {RETAIN_LOSSES} and {tuple(TEACHERS)}")
    if not forget or not retain:
        raise UserError("the forget set and the retain set must not be empty")
    for examples in (forget, retain):
        data.check_length(examples, model.config.block_size)
    model.attention_scales(tau, layers)                     # refuses a bad tau or layers before any work
    record = {} if record is None else record
    if (torch.as_tensor(tau) == 1).all():
        print("tau=1 is no smoothing: the teacher is the model itself, the loss is 0 and nothing changes", flush=True)
        record |= {"steps": 0, "tokens": 0, "seconds": 0.0, "curve": [{"step": 0, "loss": 0.0, "forget_loss": 0.0}]}
        return model

    rng = random.Random(f"unlearn {seed}")
    forget_batches = [b for _ in range(epochs) for b in data.bucketed([len(e) for e in forget], batch_size, rng)]
    retain_numbers = []
    while len(retain_numbers) < epochs * len(forget):
        retain_numbers += [i for b in data.bucketed([len(e) for e in retain], batch_size, rng) for i in b]
    retain_numbers = iter(retain_numbers)
    retain_batches = [[next(retain_numbers) for _ in batch] for batch in forget_batches]
    steps = len(forget_batches)
    print(f"{len(forget)} forget and {len(retain)} retain examples, {epochs} epochs, {steps} steps of {batch_size} + "
          f"{batch_size}, teacher {teacher} at tau={tau}, layers={'all' if layers is None else layers}", flush=True)

    start = time.perf_counter()
    forget_teacher = TEACHERS[teacher](model, forget, tau, layers)
    if retain_loss == "kl":                                 # theta_0 at tau = 1 on the rows that will be drawn
        drawn = {} if teacher == "live" else {"numbers": {i for batch in retain_batches for i in batch}}
        reference = TEACHERS[teacher](model, retain, **drawn)
    teacher_seconds = time.perf_counter() - start

    def losses(step):
        """The micro-batches of one step, each weighted by its share of the step's sequences."""
        parts = (data.split(batches[step], micro_batches) for batches in (forget_batches, retain_batches))
        for f, r in zip(*parts):
            share = len(f) / len(forget_batches[step])
            batch = data.collate([forget[i] for i in f], model.device)
            loss_forget = forward_kl(forget_teacher(f, batch), answer_logp(model, batch), batch.mask)
            tokens, loss_retain = batch.idx.numel(), torch.zeros_like(loss_forget)
            if retain_loss != "none":
                batch = data.collate([retain[i] for i in r], model.device)
                tokens += batch.idx.numel()
            if retain_loss == "gd":
                loss_retain = mean_over_answers(answer_nll(model, batch), batch.mask)
            if retain_loss == "kl":
                loss_retain = forward_kl(reference(r, batch), answer_logp(model, batch), batch.mask)
            yield (share * (c_forget * loss_forget + c_retain * loss_retain), tokens,
                   {"forget_loss": share * loss_forget.item(), "retain_loss": share * loss_retain.item()})

    record |= fit(model, losses, steps, label="unlearn", lr=lr, warmup=int(warmup * steps) + 1, weight_decay=weight_decay,
                  grad_clip=grad_clip, every=steps // epochs, check=check, checkpoint=checkpoint, resume=resume,
                  settings=settings)
    record["seconds"] = round(record["seconds"] + teacher_seconds, 2)
    return model


def parse():
    p = Parser("Unlearn the forget set by attention smoothing.")
    add = p.add_argument
    add("--run", help="the model to unlearn: a run, HF directory or hub id (default OUT/target)")
    add("--name", help="name of the run directory to write (default asu_gd, asu_kl, ... from --retain)")
    add("--tau", type=positive_float, default=8.0, help="attention temperature of the forget-teacher; 1 is no smoothing")
    add("--layers", type=layer_list, help="layers to smooth, as in 0,1 or 6-8 (default all)")
    add("--retain", choices=RETAIN_LOSSES, default="gd", help="what holds the retain set")
    add("--c_forget", type=non_negative_float, default=1.0, help="weight of the ASU loss")
    add("--c_retain", type=non_negative_float, default=1.0, help="weight of the retain loss")
    add("--epochs", type=positive_int, default=10, help="passes over the forget set")
    add("--lr", type=positive_float, default=1e-3)
    add("--batch_size", type=positive_int, default=32, help="forget examples a step; as many retain examples beside them")
    add("--micro_batches", type=positive_int, default=1, help="parts a batch is computed in, to save memory")
    add("--warmup", type=fraction, default=0.1, help="share of the steps")
    add("--weight_decay", type=non_negative_float, default=0.01)
    add("--grad_clip", type=positive_float, default=1.0)
    add("--teacher", choices=list(TEACHERS), default="cached", help="cached hidden states, or a second live model")
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    return p.parse_args()


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = pick_device(args)
    out = Path(args.out)
    parent = out / "target" if args.run is None else args.run
    path = out / (args.name or f"asu_{args.retain}")
    model, tokenizer, parent_run = load_run(parent, device, dtype)
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    if parent_run.get("data_sha256", rows.sha256) != rows.sha256:
        raise UserError(f"{parent} was trained on other data than --data={args.data} --data_seed={args.data_seed} "
                        f"--n_authors={args.n_authors} gives")

    def check(step):
        return {f"{name}_fact_accuracy": data.fact_accuracy(model, tokenizer, part)
                for name, part in (("forget", rows.forget), ("retain", rows.retain))}

    settings = {k: v for k, v in vars(args).items() if k not in ("resume", "out", "device", "run", "name")}
    inputs = {"data_sha256": rows.sha256, "parent_sha256": parent_run.get("model_sha256")}
    record = {}
    unlearn(model, data.training_examples(tokenizer, rows.forget), data.training_examples(tokenizer, rows.retain),
            tau=args.tau, layers=args.layers, retain_loss=args.retain, c_forget=args.c_forget, c_retain=args.c_retain,
            epochs=args.epochs, lr=args.lr, batch_size=args.batch_size, micro_batches=args.micro_batches,
            warmup=args.warmup, weight_decay=args.weight_decay, grad_clip=args.grad_clip, seed=args.seed,
            teacher=args.teacher, check=check, record=record, checkpoint=checkpoint_of(path),
            resume=args.resume, settings=settings | inputs)
    save_run(path, model, tokenizer, {"kind": "unlearned", "settings": settings, **inputs, **record})
    print(f"{path}: {record['seconds']:.0f} s")


if __name__ == "__main__":
    run(main)
