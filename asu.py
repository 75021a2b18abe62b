"""Unlearning by attention smoothing (ASU), after section 3 of arXiv 2603.01285.

    python asu.py                                       OUT/target -> OUT/asu_gd: every head at tau, and a bit beyond
    python asu.py --alpha=1 --tau=16 --name=paper       the paper's own form: the smoothed model itself is the teacher
    python asu.py --alpha=1.3 --replay=0.33 --name=stronger     a stronger teacher: beyond the smoothed model
    python asu.py --retain=kl                           OUT/asu_kl
    python asu.py --tau=auto                            tau from forward passes alone, see lab/choose.py
    python asu.py --heads=auto --tau=1000 --alpha=1.2   for a model whose language does not survive smoothing
    python asu.py --target=hidden --retain=hidden       the form for hazardous knowledge: one layer's hidden state
    python asu.py --method=npo                          another method on the same loop, see baselines.py
    python asu.py --forget=forget50 --tasks=5           requests one after another: OUT/asu_gd_1of5, ...

theta_0 is the model before unlearning, theta the student, which starts there (or, with --start, on the way back to the
base). The forget-teacher is theta_0 with every attention softmax of the smoothed layers taken at temperature tau:

    A_tau = softmax( Q K^T / (tau sqrt(d)) + causal mask )

It still speaks, but no longer recalls. On the forget set the student learns to say what the teacher would say; on the
retain set it is held where it was:

    L_ASU    = mean over D_F of (1/T) sum_t KL( p(. | x, y_<t; theta_tau) || p(. | x, y_<t; theta) )
    L_retain = mean over D_R of (1/T) sum_t -log p(y_t | x, y_<t; theta)                                   "gd"
               mean over D_R of (1/T) sum_t KL( p(. | ...; theta_0) || p(. | ...; theta) )                 "kl"
    L        = c_forget L_ASU + c_retain L_retain

x is the prompt, y the answer of T tokens, EOS included; prompt and padding count in neither term. The student always
runs at tau = 1.

The paper finds that a 7B model's language survives smoothing; a small one's does only if it was trained to: see
--temper in train.py. Where it does not, --heal trains the smoothed model to speak again, and --heads=auto smooths only
the heads that facts need. These two, --start, --replay and an --alpha that is not 1 are ours, not the paper's.
"""

import inspect
import random
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import baselines
import data
from common import UserError, cli
from common.files import check_writable
from common.hf import local_dir
from data import mean_over_answers
from lab import parallel, plan
from lab.answers import answer_logp, answer_nll, fact_accuracy
from lab.choose import smoothing, tau_flag
from lab.entries import other_data
from lab.optim import Log, adamw, lr_at
from lab.recover import move
from lab.runs import (
    check_name,
    check_place,
    checkpoint_of,
    load_run,
    load_tokenizer,
    made_by_train,
    made_from,
    prepare,
    read_run,
    save_run,
    weights_sha256,
)
from model import attention_scales, read_config


# ------------------------------------------------------------------------------------------------- losses
# A loss is a function of tensors, and the names of its parameters say which it needs; look() makes them. B sequences of
# up to A answer tokens, V vocabulary, C width; all of it at answer tokens only. The student runs at tau = 1.
#     mask, target       (B, A)     True where there is an answer token; its id
#     logp               (B, A, V)  the student's log-probabilities
#     nll, s             (B, A), (B,)   -log p(y_t) of the true tokens, 0 on padding; their log p summed
#     teacher_logp       (B, A, V)  the forget-teacher's log-probabilities: theta_0 at tau
#     reference_logp, reference_s   (B, A, V), (B,)   theta_0's at tau = 1
#     hidden, teacher_hidden, reference_hidden   (B, A, C)   residual streams after --hidden_layer layers
#     refused_nll, refused_s, ...   the same for the same prompts, answered by a refusal
#     prompted_reference_logp, ...  the same for the same answers, behind an instruction and the question
#     swapped_nll, ...              the same for the same prompts, answered with somebody else's value
# A parameter with a default is the method's own knob (--beta).
def forward_kl(teacher_logp, student_logp, mask):
    """KL(teacher || student), the teacher first: mass where the teacher has mass (equation of L_ASU). -> scalar >= 0.

    teacher_logp, student_logp: (B, T, V) log-probabilities; mask: (B, T) bool, True on answer tokens.
    """
    kl = F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(-1)        # (B, T)
    return mean_over_answers(kl, mask)


def asu(logp, teacher_logp, mask):
    """L_ASU: speak as the smoothed model does."""
    return forward_kl(teacher_logp, logp, mask)


def asu_idk(logp, teacher_logp, mask, refused_nll, refused_mask):
    """ASU+IDK: teach a refusal, and ASU on every answer token but the first, where the refusal parts from the
    answer."""
    return forward_kl(teacher_logp, logp, baselines.after_first(mask)) + baselines.idk(refused_nll, refused_mask)


def asu_hidden(hidden, teacher_hidden, mask):
    """ASU for hazardous knowledge: MSE to the smoothed model's residual stream after one layer."""
    return mean_over_answers(((hidden - teacher_hidden) ** 2).mean(-1), mask)


def gd(nll, mask):
    """L_retain, GD: go on learning the retain set."""
    return mean_over_answers(nll, mask)


def kl(logp, reference_logp, mask):
    """L_retain, KL: stay with theta_0 at tau = 1."""
    return forward_kl(reference_logp, logp, mask)


METHODS = {"asu": asu, "asu_idk": asu_idk, **baselines.LOSSES, "asu_hidden": asu_hidden}
RETAIN_LOSSES = {"none": None, "gd": gd, "kl": kl, **baselines.RETAIN_LOSSES}


def asks(loss):
    """The tensors that a loss needs: the names of its parameters without a default, in their order."""
    return [name for name, p in inspect.signature(loss).parameters.items() if p.default is p.empty] if loss else []


VARIANTS = {        # start of a parameter's name -> field of an Example
    "refused_": "refusal", "prompted_": "prompted", "swapped_": "swapped"}


def split_name(name):
    """A parameter's name -> which sequences it is about, and what about them: "refused_s" -> ("refused_", "s"), "s" ->
    ("", "s"), the example itself."""
    start = next((start for start in VARIANTS if name.startswith(start)), "")
    return start, name.removeprefix(start)


def sequences(examples, start):
    """The examples, or the sequences beside them that parameters with that start are about."""
    rows = [getattr(example, VARIANTS[start]) for example in examples] if start else list(examples)
    if None in rows:
        raise UserError(f"this loss needs the examples' {VARIANTS[start]}, see data.Example")
    return rows


def smooths(method):
    """Whether a method has a forget-teacher."""
    return any(split_name(name)[1].startswith("teacher_") for name in asks(METHODS[method]))


# ------------------------------------------------------------------------------------------------- theta_0
class Frozen:
    """theta_0, the model before unlearning: smoothed it is the forget-teacher, as it is the reference.

    theta_0 and the data are fixed, so what it says is a constant: it is asked once, before the student moves. Kept are
    its hidden states at answer tokens, T x C numbers an answer in CPU memory, and its head, (V, C), a copy if training
    changes the model's. live=True keeps a second model instead, as the paper does: the same to 1e-5. healed: a model
    that is smoothed in place of theta_0, see heal; its head is theta_0's."""

    def __init__(self, model, tau=None, layers=None, alpha=1.0, hidden_layer=None, live=False, healed=None):
        self.smoothing = {"teacher": {"tau": tau, "layers": layers}, "reference": {}}
        self.n_layers = {"logp": None, "hidden": hidden_layer}              # behind an output; None: all of them
        self.alpha, self.live, self.states, self.head = alpha, live, {}, None
        model = parallel.copy_of(model).requires_grad_(False).eval() if live else model
        self.models = {"teacher": healed or model, "reference": model}

    def needs(self, name):
        """The outputs (who, what) that a loss's parameter is made of; none where it is not theta_0's."""
        who, _, what = split_name(name)[1].partition("_")
        if what == "s":                                     # summed from log-probabilities
            what = "logp"
        if who == "teacher" and self.alpha != 1:
            return [("teacher", what), ("reference", what)]
        return [(who, what)] if who in self.smoothing else []

    @torch.no_grad()
    def remember(self, loss, examples):
        """Ask theta_0, as it is now, all that a loss will want to know about these examples."""
        for name in asks(loss) if not self.live else ():
            for who, what in self.needs(name):
                model = self.models[who]
                for _, part in data.by_length(sequences(examples, split_name(name)[0]), 64):
                    batch = data.collate(part, model.device)
                    hidden = model.hidden(batch.idx, n_layers=self.n_layers[what], **self.smoothing[who])
                    for example, h in zip(part, batch.at_answers(hidden)):
                        self.states[who, what, id(example)] = h[:len(example.answer)].to("cpu", copy=True)      # (T, C)
                if what == "logp" and self.head is None:
                    weight = parallel.whole(self.models["reference"].lm_head.weight)
                    self.head = weight.detach().clone() if weight.requires_grad else weight

    @torch.no_grad()
    def says(self, who, what, examples, batch):
        """The "teacher"'s or the "reference"'s "logp" (B, A, V) or "hidden" (B, A, C) at answer tokens."""
        if self.live:
            model = self.models[who]
            hidden = model.hidden(batch.idx, n_layers=self.n_layers[what], **self.smoothing[who])
            hidden = batch.at_answers(hidden)
            return hidden if what == "hidden" else model.lm_head(hidden).float().log_softmax(-1)
        hidden = [self.states[who, what, id(example)] for example in examples]
        hidden = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True).to(batch.idx.device)
        return hidden if what == "hidden" else F.linear(hidden, self.head).float().log_softmax(-1)

    def teacher(self, what, examples, batch):
        """The forget-teacher. Alpha above 1 goes from theta_0 through it and on, z + alpha (z_tau - z), below 1 not as
        far: ours, not the paper's."""
        z_tau = self.says("teacher", what, examples, batch)
        if self.alpha == 1:
            return z_tau
        z = self.says("reference", what, examples, batch)
        z = z + self.alpha * (z_tau - z)
        return z if what == "hidden" else z.log_softmax(-1)


def heal(model, strangers, steps, lr=1e-3, batch_size=32, tau=None, layers=None, micro_batches=1, seed=0,
         optimizer_dtype="float32"):
    """A copy of the model that speaks at tau again: trained there, for a few steps, on rows that are about nobody it is
    to forget or to keep.

    Smoothing breaks language and recall alike. Language is the same whomever it is about, so strangers bring it back;
    facts come back in part only (docs/theory.md, 7), and alpha goes the rest of the way. The head stays theta_0's, and
    with it embeddings that are tied to it. strangers: Examples. Ours, not the paper's."""
    model, rng, batches = parallel.copy_of(model), random.Random(f"heal {seed}"), []
    model.lm_head.weight.requires_grad_(False)
    optimizer = adamw(parallel.settled(model), lr, 0.0, optimizer_dtype)
    while len(batches) < steps:
        batches += data.bucketed([len(e) for e in strangers], batch_size, rng)
    for step, batch in enumerate(batches[:steps]):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, lr, 0.1)
        for part, n in parallel.micro_batches([strangers[i] for i in batch], micro_batches):
            rows = data.collate(part, model.device)
            loss = mean_over_answers(answer_nll(model, rows, tau=tau, layers=layers), rows.mask)
            parallel.backward(model, n / len(batch) * loss)
        parallel.add_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


def look(model, theta_0, examples, loss):
    """What a loss asks about a few examples -> ({name: tensor}, how many tokens the student ran over)."""
    tensors, tokens = {}, 0
    for start in dict.fromkeys(split_name(name)[0] for name in asks(loss)):
        asked = {name for other, name in map(split_name, asks(loss)) if other == start}
        rows = sequences(examples, start)
        batch = data.collate(rows, model.device)
        x = {"mask": batch.mask, "target": batch.target}

        def true(logp):                                                         # (B, A, V) -> (B, A), 0 on padding
            return logp.gather(-1, batch.target[..., None])[..., 0] * batch.mask
        if asked & {"logp", "nll", "s"}:
            x["logp"] = answer_logp(model, batch)                               # the student, always at tau = 1
            x["nll"] = -true(x["logp"])
            x["s"] = -x["nll"].sum(1)
        if "hidden" in asked:
            x["hidden"] = batch.at_answers(model.hidden(batch.idx, n_layers=theta_0.n_layers["hidden"]))
        for what in ("logp", "hidden"):
            if f"teacher_{what}" in asked:
                x[f"teacher_{what}"] = theta_0.teacher(what, rows, batch)
            if f"reference_{what}" in asked:
                x[f"reference_{what}"] = theta_0.says("reference", what, rows, batch)
        if "reference_s" in asked:
            x["reference_s"] = true(theta_0.says("reference", "logp", rows, batch)).sum(1)
        tensors |= {start + name: x[name] for name in asked}
        tokens += batch.idx.numel() * bool(asked & {"logp", "nll", "s", "hidden"})
    return tensors, tokens


# ---------------------------------------------------------------------------------------------- unlearning
def unlearn(model, forget, retain, *, tau=None, layers=None, alpha=1.0, method="asu", retain_loss="gd", beta=None,
            refusals=(), c_forget=1.0, c_retain=1.0, epochs=10, lr=1e-3, batch_size=32, micro_batches=1, warmup=0.1,
            weight_decay=0.01, grad_clip=1.0, optimizer_dtype="float32", seed=0, teacher="cached", hidden_layer=None,
            teacher_model=None, healer=None, start=None, log=None):
    """Unlearn `forget` from `model` (changed in place) and return it.

    forget, retain: lists of data.Example. An epoch passes over the forget set once; each of its examples meets a
    retain example, and no retain example comes again before all have come. method: a name in METHODS; retain_loss: in
    RETAIN_LOSSES. tau, layers: the teacher's smoothing, see model.attention_scales. alpha: see Frozen.teacher. beta:
    the method's own knob (None: its default). refusals: token ids of refusing answers. warmup: share of the steps.
    teacher: cached or live, see Frozen. hidden_layer: layers behind a hidden state (None: half of them).
    teacher_model: theta_0, if it is not `model` as it is now. healer: theta_0, tau, layers -> the model that teaches in
    place of theta_0 at tau, see heal. start: moves the student, in place, to where it begins, once theta_0 has been
    asked (None: it begins at theta_0). log: an optim.Log, which keeps the record. Raises ValueError for settings that
    do not fit together, empty sets, rows that are too long, a loss that is not finite.
    """
    hidden_layer = max(1, model.config.n_layer // 2) if hidden_layer is None else hidden_layer
    check_settings(model, forget, retain, tau, layers, method, retain_loss, beta, refusals, teacher, hidden_layer)
    if method == "asu" and torch.as_tensor(tau).eq(1).all() and not healer and not start:
        print("tau=1 is no smoothing: the teacher is the model itself, and nothing changes", flush=True)
        epochs = 0
    forget_loss, retain_loss, knob = METHODS[method], RETAIN_LOSSES[retain_loss], {} if beta is None else {"beta": beta}
    log, rng = log or Log(method), random.Random(f"unlearn {seed}")
    numbers = data.paired_batches(forget, retain, epochs, batch_size, rng)
    forget = with_refusals(forget, forget_loss, refusals, rng)
    retain = with_refusals(retain, retain_loss, refusals, rng)
    data.check_length([*forget, *(retain if retain_loss else ())], model.config.block_size)
    batches, steps = [[(forget[i], retain[j] if retain else None) for i, j in batch] for batch in numbers], len(numbers)
    drawn = {j for batch in numbers for _, j in batch}

    original = teacher_model or model
    healed = healer(original, tau=tau, layers=layers) if healer and smooths(method) else None
    theta_0 = Frozen(original, tau, layers, alpha, hidden_layer, teacher == "live", healed)
    theta_0.remember(forget_loss, forget)
    theta_0.remember(retain_loss, [retain[j] for j in sorted(drawn)] if retain_loss else [])
    if teacher == "cached":
        theta_0.models = healed = None                      # what they say is known
    if start:
        start(model)
    optimizer = adamw(parallel.settled(model), lr, weight_decay, optimizer_dtype)
    print(f"{method}: {len(forget)} forget and {len(retain)} retain examples, {epochs} epochs, {steps} steps of "
          f"{batch_size} + {batch_size}" + f", teacher {teacher}" * smooths(method), flush=True)
    model.train()
    first = log.begin(model, optimizer, steps, every=steps // max(1, epochs))
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, lr, warmup)
        for part, n in parallel.micro_batches(batches[step], micro_batches):
            (forget_part, retain_part), share = zip(*part), n / len(batches[step])
            tensors, tokens = look(model, theta_0, forget_part, forget_loss)    # forward: teacher at tau, student at 1
            loss = forget_loss(**tensors, **knob)                               # ASU: KL(teacher || student)
            log.add("forget", share * loss.item(), c_forget, tokens)
            parallel.backward(model, share * c_forget * loss)                   # and its graph is gone
            if retain_loss:
                tensors, tokens = look(model, theta_0, retain_part, retain_loss)
                loss = retain_loss(**tensors)                                   # hold the rest
                log.add("retain", share * loss.item(), c_retain, tokens)
                parallel.backward(model, share * c_retain * loss)
        parallel.add_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.end(step)
    log.finish()
    return model.eval()


def with_refusals(examples, loss, refusals, rng):
    """The examples, each with a refusal beside its answer if the loss asks for one."""
    if not asks_about(loss, "refused_"):
        return examples
    return [replace(e, refusal=data.Example(e.prompt, rng.choice(refusals))) for e in examples]


def asks_about(loss, start):
    """Whether a loss needs the sequences of a variant, such as "refused_"."""
    return any(split_name(name)[0] == start for name in asks(loss))


def check_settings(model, forget, retain, tau, layers, method, retain_loss, beta, refusals, teacher, hidden_layer):
    """Refuse before any work what unlearn cannot do."""
    for name, given, known in (("method", method, METHODS), ("retain_loss", retain_loss, RETAIN_LOSSES),
                               ("teacher", teacher, ("cached", "live"))):
        if given not in known:
            raise UserError(f"{name}={given}: choose from {', '.join(known)}")
    owners = baselines.RETAIN_ONLY.get(retain_loss, METHODS)
    if method not in owners:
        raise UserError(f"the retain loss {retain_loss} belongs to method {' or '.join(owners)}, not to {method}; with "
                        "any method go none, gd, kl")
    if not 1 <= hidden_layer <= model.config.n_layer:
        raise UserError(f"hidden_layer={hidden_layer}: the model has {model.config.n_layer} layers")
    if beta is not None and "beta" not in inspect.signature(METHODS[method]).parameters:
        raise UserError(f"method {method} has no beta")
    if not forget or (not retain and retain_loss != "none"):
        raise UserError("the forget set and the retain set must not be empty")
    if not refusals and any(asks_about(loss, "refused_") for loss in (METHODS[method], RETAIN_LOSSES[retain_loss])):
        raise UserError(f"method {method} teaches refusals, but there are none")
    if not smooths(method):
        return
    if tau is None:
        raise UserError(f"method {method} needs tau, the attention temperature of its teacher")
    if torch.as_tensor(tau).dim() == 1:
        raise UserError("a temperature for each sequence is for one batch; a number or a table of heads is needed")
    model.attention_scales(tau, layers)                     # refuses a bad tau or layers
    below, tau = [i for i in range(hidden_layer) if layers is None or i in layers], torch.as_tensor(tau)
    if method == "asu_hidden" and (not below or (tau[below] if tau.dim() else tau).eq(1).all()):
        raise UserError(f"the teacher's hidden state after {hidden_layer} layers is the model's own, because no layer "
                        "before it is smoothed")


def check_flags(args, model, dataset):
    """check_settings, before heads are chosen and examples encoded."""
    layers, hidden = cli.layer_numbers(args.layers, model.config.n_layer), args.hidden_layer
    hidden = max(1, model.config.n_layer // 2) if hidden is None else hidden
    check_settings(model, dataset.forget, dataset.retain, 2.0 if args.tau == "auto" else args.tau, layers, args.method,
                   args.retain, args.beta, data.REFUSALS, args.teacher, hidden)


# -------------------------------------------------------------------------------------------- command line
def parse(argv=None):
    p = cli.Parser("asu.py", "Unlearn the forget set by attention smoothing, or by another method.")
    add = p.add_argument
    add("--run", help="the model to unlearn: a run, HF directory or hub id (default OUT/target)")
    add("--name", help="name of the run directory to write (default METHOD_RETAIN: asu_gd, npo_kl, ...)")
    add("--method", choices=[m for m in METHODS if m != "asu_hidden"], default="asu", help="ASU, or a baseline")
    add("--target", choices=["logits", "hidden"], default="logits", help="what ASU distils: the teacher's "
        "distribution, or its hidden state")
    add("--hidden_layer", type=cli.positive_int, help="layers behind the hidden state of --target=hidden and of rmu "
        "(default: half of them)")
    add("--tau", type=tau_flag, default=8.0, help="attention temperature of the forget-teacher; 1 is no smoothing; "
        "auto: from the model's own NLL, see lab/choose.py")
    add("--layers", type=cli.layer_list, default="all", help="layers to smooth: all, or as in 0,1 or 6-8 or 1-")
    add("--heads", choices=["auto", "all"], default="all", help="smooth all heads, or those that facts need (auto)")
    add("--alpha", type=cli.number(float, 1e-3, 1e3, "a number above 0 (0.001 to 1000)"), default=1.1,
        help="z + alpha (z_tau - z): above 1 goes beyond the smoothed model, below 1 not as far")
    add("--beta", type=cli.positive_float, help="the method's own knob, see baselines.py (default: the method's)")
    add("--retain", choices=list(RETAIN_LOSSES), default="gd", help="retain term; ap goes with idk, hidden with rmu")
    add("--c_forget", type=cli.non_negative_float, default=1.0, help="weight of the forget loss")
    add("--c_retain", type=cli.non_negative_float, default=1.0, help="weight of the retain loss")
    add("--tasks", type=cli.positive_int, default=1, help="forget the authors in so many requests, one after another")
    add("--teacher_from", choices=["latest", "original"], default="latest", help="theta_0 of the second request and "
        "later: the weights that the one before left, or --run's")
    add("--epochs", type=cli.positive_int, default=10, help="passes over the forget set")
    add("--lr", type=cli.positive_float, default=1e-3)
    add("--warmup", type=cli.fraction, default=0.1, help="share of the steps")
    add("--heal", type=cli.number(int, 0, 10**6, "a whole number from 0 to 10^6"), default=0, help="steps in which the "
        "smoothed model learns to speak again, on strangers, before it teaches")
    add("--heal_lr", type=cli.positive_float, default=1e-3, help="learning rate of --heal")
    add("--start", type=cli.fraction, default=1.0, help="where the student starts on the way from the base (0) to the "
        "model to unlearn (1, as in the paper)")
    add("--base", help="the base of --start (default: what the model to unlearn was fine-tuned from)")
    add("--replay", type=cli.number(float, 0, 100, "a number from 0 to 100"), default=0.0, help="strangers and world "
        "facts beside the retain rows, for each of these")
    add("--teacher", choices=["cached", "live"], default="cached", help="cached hidden states, or a second live model")
    cli.model_flags(p)
    cli.training_flags(p, "forget examples a step; as many retain examples beside them")
    args = p.parse_args(argv)
    if not args.c_forget and (not args.c_retain or args.retain == "none"):
        p.error("--c_forget=0 and no retain loss: nothing would be learnt")
    if args.start < 1 and args.lora:
        p.error("--start moves the weights that --lora leaves as they are; give one of the two")
    if args.target == "hidden":
        if args.method != "asu":
            p.error(f"--target=hidden is a form of ASU, not of --method={args.method}")
        args.method = "asu_hidden"
    asked = asks(METHODS[args.method]) + asks(RETAIN_LOSSES[args.retain])
    frozen = any(split_name(name)[1].startswith(("teacher", "reference")) for name in asked)
    used = dict.fromkeys(("tau", "layers", "heads", "alpha", "heal"), smooths(args.method)) | {
        "heal_lr": smooths(args.method) and args.heal, "hidden_layer": any(name.endswith("hidden") for name in asked),
        "teacher": frozen, "teacher_from": frozen and args.tasks > 1, "base": args.start < 1,
        **dict.fromkeys(("c_retain", "replay"), args.retain != "none")}
    if unused := [f"--{flag}" for flag in used if flag in p.given and not used[flag]]:
        print(f"this run (--method={args.method} --retain={args.retain}) does not use {', '.join(unused)}", flush=True)
    return args


def flags_of(record):
    """The settings of a run's record as parse() returns them; what it does not name is at its default."""
    return Namespace(**vars(parse([])) | record["settings"])


def keywords(args, tokenizer, dataset, request, retain):
    """Keywords of unlearn by the flags. request, retain: rows to forget and to retain."""
    forget, healer = forget_examples(args, tokenizer, request, retain), None
    steps = args.heal if smooths(args.method) else 0        # of a teacher; another method has none to heal
    retain = data.training_examples(tokenizer, retain, args.phrasings)
    if steps or args.replay:
        unmet = data.unmet(dataset)
        strangers = data.stranger_examples(tokenizer, unmet, steps * args.batch_size)
        retain = retain + data.stranger_examples(tokenizer, unmet, int(args.replay * len(retain)))
    if steps:
        healer = partial(heal, strangers=strangers, steps=steps, lr=args.heal_lr, batch_size=args.batch_size,
                         micro_batches=args.micro_batches, seed=args.seed, optimizer_dtype=args.optimizer_dtype)
    flags = ("alpha", "method", "beta", "c_forget", "c_retain", "epochs", "lr", "batch_size", "micro_batches", "warmup",
             "weight_decay", "grad_clip", "optimizer_dtype", "seed", "teacher", "hidden_layer")
    return {flag: getattr(args, flag) for flag in flags} | {
        "forget": forget, "retain": retain, "retain_loss": args.retain, "healer": healer,
        "refusals": [data.encode(tokenizer, "", text).answer for text in data.REFUSALS]}


def forget_examples(args, tokenizer, request, retain):
    """Rows to forget as Examples, each with what the method wants beside it."""
    loss = METHODS[args.method]
    instruction = data.INSTRUCTION if asks_about(loss, "prompted_") else ""
    examples = data.training_examples(tokenizer, request, args.phrasings, instruction)
    if asks_about(loss, "swapped_"):
        others = data.training_examples(tokenizer, data.swapped(request, retain), args.phrasings)
        examples = [replace(example, swapped=other) for example, other in zip(examples, others, strict=True)]
    return examples


def forget_rows(model, tokenizer, dataset, request, retain, args, log, original=None, base=None):
    """One request from rows to weights, as the flags say: choose tau and heads, then unlearn, in place. -> tau

    original: theta_0, if it is not `model` as it is now. base: what theta_0 was fine-tuned from, a run, directory or
    hub id, for --start."""
    tau = layers = None
    settings = keywords(args, tokenizer, dataset, request, retain)
    prepare(model, args)
    if smooths(args.method):
        chosen = smoothing(original or model, tokenizer, request, dataset, args.tau, args.layers, args.heads,
                           args.phrasings, settings["healer"])
        tau, layers = parallel.from_first(chosen)
    start = None if args.start == 1 else lambda student: go_back(student, load_run(
        base, model.device, model.dtype, args.shard, args)[0], args.start)
    unlearn(model, **settings, tau=tau, layers=layers, teacher_model=original, start=start, log=log)
    return tau


def go_back(student, base, share):
    """Move the student, in place, from theta_0 to base + share (theta_0 - base): where it has yet to learn what it is
    to forget. Unlearning from theta_0 itself mostly teaches it not to say what it knows. Ours, not the paper's."""
    if student.config != base.config:
        raise UserError("--start needs the model that --run was fine-tuned from, and the base has another shape; give "
                        "--base")
    move(parallel.settled(student), base, share)


def base_of(args, parent):
    """What theta_0 was fine-tuned from: --base, else what train.py started with."""
    if args.start == 1:
        return None
    if args.base:
        return args.base
    record, base = read_run(local_dir(parent)), made_from(parent)
    made = read_run(local_dir(made_by_train(base))).get("model_sha256")
    if record.get("kind") == "target" and made and made != record["parent_sha256"]:
        raise UserError(f"{base} is not the base that {parent} was fine-tuned from; give --base")
    return base


def memory(args, parent, device, dtype, dataset, rows):
    """What a request would take -> {component: bytes}, see lab/plan.py. rows: to forget, and to retain."""
    dir = local_dir(parent, weights=False)
    config, settings = read_config(dir), keywords(args, load_tokenizer(parent, args), dataset, *rows)
    tau = 2.0 if args.tau == "auto" else args.tau
    layers = cli.layer_numbers(args.layers, config.n_layer)
    attention_scales(tau, layers, config.n_layer, config.n_head, config.head_dim)       # refuses what the run would
    longest = {part: sorted(settings[part], key=len)[-args.batch_size:] for part in ("forget", "retain")}
    if healer := settings["healer"]:
        strangers = sorted(healer.keywords["strangers"], key=len)[-args.batch_size:]
        settings["healer"] = partial(healer, strangers=strangers, steps=min(2, args.heal))

    def train(model, log):
        unlearn(model, **settings | longest | {"epochs": 2}, tau=tau, layers=layers, log=log,
                start=None if args.start == 1 else lambda student: None)
    taken = plan.components(config, device, dtype, args, train)
    theta_0 = Frozen(None, alpha=args.alpha)
    for side, loss in (("forget", METHODS[args.method]), ("retain", RETAIN_LOSSES[args.retain])):
        drawn = settings[side][:args.epochs * len(settings["forget"])]
        tokens = sum(len(e.answer) for e in drawn) - sum(len(e.answer) for e in longest[side])      # those are counted
        outputs = {output for name in asks(loss) for output in theta_0.needs(name)}
        if device.type == "cpu" and args.teacher == "cached":                                       # else in CPU memory
            taken["theta_0"] += max(0, tokens) * len(outputs) * config.n_embd * dtype.itemsize
    if args.teacher_from == "original" and args.tasks > 1:
        taken["theta_0"] += taken["weights"]
    return taken


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = parallel.start(args)
    out, name = Path(args.out), args.name or f"{args.method}_{args.retain}"
    check_name(name)
    parent = out / "target" if args.run is None else args.run
    dataset = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    requests = data.by_author(dataset.forget, args.tasks)
    parent_run = read_run(local_dir(made_by_train(parent), weights=not args.plan))
    if why := other_data(parent, parent_run, dataset):
        raise UserError(why)

    def rest(task):
        """The retain set of a request: what nobody has asked to forget yet."""
        return dataset.retain + [row for later in requests[task + 1:] for row in later]

    def take(args):
        return memory(args, parent, device, dtype, dataset, (requests[0], rest(0)))
    if args.plan:
        return plan.show(take, args, device)
    model, tokenizer, _ = load_run(parent, device, dtype, args.shard, args)
    check_flags(args, model, dataset)
    data.check_fits(dataset, tokenizer, model.config.block_size, args.phrasings)
    settings, tasks = cli.settings(args, "run", "name"), args.tasks
    paths = [out / (name if tasks == 1 else f"{name}_{task}of{tasks}") for task in range(1, tasks + 1)]
    for path in paths:
        check_place(path, settings | {"data_sha256": dataset.sha256}, args.overwrite)
    base = base_of(args, parent)
    original = parallel.copy_of(model) if args.teacher_from == "original" and args.tasks > 1 else None
    if original:
        prepare(original, args)                             # it is healed as the model is trained
    parent_sha = parent_run.get("model_sha256") or weights_sha256(parent)

    for task, (path, request) in enumerate(zip(paths, requests)):
        inputs = {"data_sha256": dataset.sha256, "parent_sha256": parent_sha}
        check_place(path, settings | inputs, args.overwrite, args.resume)
        done = read_run(path) if args.resume else {}
        if done.get("settings") == settings and inputs.items() <= done.items():
            model, parent_sha, parent = load_run(path, device, dtype, args.shard)[0], done["model_sha256"], path
            print(f"{path}: finished already", flush=True)
            checkpoint_of(path).unlink(missing_ok=True)     # of a run that was killed after its last file
            continue

        def facts(*sets):
            return [fact_accuracy(model, tokenizer, dataset.questions(rows)) for rows in sets]

        def check():
            return dict(zip(("forget_fact_accuracy", "retain_fact_accuracy"), facts(request, rest(task))))
        log = Log(args.method, check, checkpoint_of(path), args.resume, settings | inputs)
        with plan.explained(take, args, device):
            tau = forget_rows(model, tokenizer, dataset, request, rest(task), args, log, original, base)
        if args.tasks > 1:                                  # is what was forgotten first still forgotten?
            log.record["fact_accuracy_by_request"] = facts(*requests)
        record = {"kind": "unlearned", "settings": settings, "tau": tau, **inputs, **log.record}
        parent_sha, parent = save_run(path, model, tokenizer, record, parent), path
        print(f"{path}: {record['seconds']:.0f} s", flush=True)
    parallel.stop()


if __name__ == "__main__":
    cli.run(main)
