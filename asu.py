"""Unlearning by attention smoothing (ASU), after section 3 of arXiv 2603.01285.

    python asu.py                                       OUT/target -> OUT/asu_gd
    python asu.py --heads=all --alpha=1 --tau=4         the paper's own form: every head at tau
    python asu.py --retain=kl                           OUT/asu_kl
    python asu.py --tau=auto --layers=1- --heads=all    tau from forward passes alone, see lab/choose.py
    python asu.py --target=hidden --retain=hidden       the form for hazardous knowledge: one layer's hidden state, not the output
    python asu.py --method=npo                          another method on the same loop, see baselines.py
    python asu.py --forget=forget50 --tasks=5           requests one after another: OUT/asu_gd_1of5, ...

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

Two additions of ours are on by default, because a model this small recalls and speaks with the same few heads: only the heads
that facts need are smoothed (--heads=auto, see lab/choose.py), and the teacher is strengthened a little (--alpha, see extrapolated).
"""

import functools
import inspect
import random
import re
import time
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

import baselines
import data
from common import UserError
from common.cli import (
    Parser,
    fraction,
    layer_list,
    layer_numbers,
    non_negative_float,
    positive_float,
    positive_int,
    run,
    training_flags,
)
from common.files import check_writable
from common.hf import local_dir
from data import Tokenizer, mean_over_answers
from lab import parallel, plan
from lab.answers import answer_logp, ask, fact_accuracy
from lab.choose import smoothing, tau_flag
from lab.runs import checkpoint_of, fit, load_run, made_by_train, prepare, read_run, save_run, weights_sha256
from model import attention_scales, read_config


# ------------------------------------------------------------------------------------------------- losses
def forward_kl(teacher_logp, student_logp, mask):
    """KL(teacher || student), the teacher first: mass where the teacher has mass (equation of L_ASU). -> scalar >= 0.

    teacher_logp, student_logp: (B, T, V) log-probabilities; mask: (B, T) bool, True on answer tokens.
    """
    kl = F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(-1)        # (B, T)
    return mean_over_answers(kl, mask)


class Answers:
    """The answers of one batch as a loss sees them: by the student now, and by the frozen theta_0. Each is computed when
    first asked for, so a method costs what it uses. B sequences, A answer tokens, V vocabulary; masks as in data.Batch."""

    def __init__(self, model, examples, numbers, frozen, hidden_layer=None):
        self.model, self.examples, self.numbers, self.frozen, self.hidden_layer = model, examples, numbers, frozen, hidden_layer
        self.batch = data.collate([examples[i] for i in numbers], model.device)
        self.mask, self.target = self.batch.mask, self.batch.target
        self.refused = None                         # Answers: the same prompts, answered by a refusal

    @cached_property
    def logp(self):
        """The student's log-probabilities, (B, A, V)."""
        return answer_logp(self.model, self.batch)

    @cached_property
    def nll(self):
        """The student's -log p(y_t), (B, A), in nats, 0 on padding."""
        return -self.true(self.logp)

    @property
    def teacher_logp(self):
        """The forget-teacher's log-probabilities (theta_0 at tau), (B, A, V)."""
        return self.frozen["teacher"](self.numbers, self.batch)

    @property
    def reference_logp(self):
        """theta_0's log-probabilities at tau = 1, (B, A, V)."""
        return self.frozen["reference"](self.numbers, self.batch)

    def true(self, logp):
        """(B, A, V) -> (B, A): what it gives the true tokens; 0 on padding."""
        return logp.gather(-1, self.target[..., None])[..., 0] * self.mask

    @property
    def tokens(self):
        """Positions the student ran over, prompt and padding among them."""
        return self.batch.idx.numel() + (self.refused.batch.idx.numel() if self.refused else 0)

    @property
    def s(self):
        """Summed log-probability of each answer, s_theta(x, y), (B,)."""
        return -self.nll.sum(1)

    @property
    def s_ref(self):
        """The same by theta_0."""
        return self.true(self.reference_logp).sum(1)

    @cached_property
    def hidden(self):
        """The student's residual stream after hidden_layer layers at answer tokens, (B, A, C)."""
        return self.batch.at_answers(self.model.hidden(self.batch.idx, n_layers=self.hidden_layer))

    @property
    def reference_hidden(self):
        """theta_0's at tau = 1."""
        return self.frozen["hidden"](self.numbers, self.batch)

    @property
    def teacher_hidden(self):
        """The forget-teacher's."""
        return self.frozen["teacher_hidden"](self.numbers, self.batch)

    def mean(self, x):
        """(B, A) -> scalar, see mean_over_answers."""
        return mean_over_answers(x, self.mask)


def asu(forget):
    """L_ASU: speak as the smoothed model does."""
    return forward_kl(forget.teacher_logp, forget.logp, forget.mask)


def asu_idk(forget):
    """ASU+IDK: a refusal is taught, and ASU on every answer token but the first, where the refusal parts from the answer."""
    mask = forget.mask & (torch.arange(forget.mask.size(1), device=forget.mask.device) > 0)
    return forward_kl(forget.teacher_logp, forget.logp, mask) + baselines.idk(forget)


def asu_hidden(forget):
    """ASU's form for hazardous knowledge: MSE between the student's and the smoothed model's residual stream after one layer."""
    return forget.mean(((forget.hidden - forget.teacher_hidden) ** 2).mean(-1))


def gd(retain):
    """L_retain, GD: go on learning the retain set."""
    return retain.mean(retain.nll)


def kl(retain):
    """L_retain, KL: stay with theta_0 at tau = 1."""
    return forward_kl(retain.reference_logp, retain.logp, retain.mask)


METHODS = {"asu": asu, "asu_idk": asu_idk, **baselines.LOSSES, "asu_hidden": asu_hidden}
RETAIN_LOSSES = {"none": None, "gd": gd, "kl": kl, **baselines.RETAIN_LOSSES}
FROZEN = {"asu": "teacher", "asu_idk": "teacher", "asu_hidden": "teacher_hidden", "kl": "reference", **baselines.FROZEN}    # what a loss asks of theta_0
SMOOTHED = ("teacher", "teacher_hidden")                    # those of it that are at tau


def refuses(loss):
    """Whether a method or retain loss needs refusing answers beside the true ones."""
    return loss in ("asu_idk", *baselines.REFUSING)


# --------------------------------------------------------------------------------------- the forget-teacher
def live_teacher(model, examples, tau=1.0, layers=None):
    """The teacher as the paper has it: a second, frozen model. -> function (numbers, batch) -> logp (B, A, V)."""
    frozen = parallel.copy_of(model).requires_grad_(False).eval()

    def logp(numbers, batch):
        with torch.no_grad():
            return answer_logp(frozen, batch, tau=tau, layers=layers)
    return logp


def cached_teacher(model, examples, tau=1.0, layers=None, numbers=None, head=None):
    """The same without a second model. theta_0 and the data are fixed, so the teacher's outputs are constants: its final
    hidden states at answer tokens, T x C numbers a sequence, and the frozen head are all there is to keep.

    examples: those the teacher will be asked about; numbers: which of them (default all); head: see frozen_head.
    -> as live_teacher.
    """
    head = frozen_head(model) if head is None else head
    states = cached_states(model, examples, numbers, tau=tau, layers=layers)
    return lambda numbers, batch: F.linear(states(numbers, batch), head).float().log_softmax(-1)


def frozen_head(model):
    """theta_0's head, (V, C): a copy if training is going to change it."""
    weight = parallel.whole(model.lm_head.weight.detach())
    return weight.clone() if model.lm_head.weight.requires_grad else weight


@torch.no_grad()
def cached_states(model, examples, numbers=None, batch_size=64, **kw):
    """model.hidden(..., **kw) at the answer tokens of the examples, kept in CPU memory.

    -> function (numbers, batch) -> states (B, A, C); zeros on padding."""
    states = {}
    numbers = sorted(range(len(examples)) if numbers is None else set(numbers), key=lambda i: len(examples[i]))
    for i in range(0, len(numbers), batch_size):
        batch = data.collate([examples[j] for j in numbers[i:i + batch_size]], model.device)
        hidden = batch.at_answers(model.hidden(batch.idx, **kw))                                # (B, A, C)
        for j, h in zip(numbers[i:i + batch_size], hidden):
            states[j] = h[:len(examples[j].answer)].to("cpu", copy=True)                        # (T, C)
    return lambda numbers, batch: torch.nn.utils.rnn.pad_sequence([states[j] for j in numbers],
                                                                  batch_first=True).to(batch.idx.device)


TEACHERS = {"cached": cached_teacher, "live": live_teacher}


def answered_by_teacher(model, tokenizer, rows, phrasings, tau, layers):
    """The training questions as Examples with the teacher's own greedy answers instead of the true ones, for the student is taught
    on the answer that it is given. Ours, not the paper's: docs/tried.md says what came of it."""
    pairs = [(q, a) for row in rows for q, a in list(zip(row["questions"], row["answers"]))[:phrasings]]
    if not all(q for q, _ in pairs):
        raise UserError("--answers=teacher: passages have no question that the teacher could answer")
    questions, longest = [q for q, _ in pairs], max(len(tokenizer.encode_answer(a)) for _, a in pairs)
    said = ask(model, tokenizer, questions, max(40, longest), tau=tau, layers=layers)
    return [data.encode(tokenizer, q, a) for q, a in zip(questions, said)]


def extrapolated(teacher, reference, alpha):
    """A stronger teacher, from theta_0 through the smoothed model and on: z + alpha (z_tau - z), of log-probabilities before a
    softmax, or of hidden states; alpha = 1 is the smoothed model itself. Both arguments, and what is returned, are functions as
    cached_teacher and cached_states return them. Ours, not the paper's."""
    def beyond(numbers, batch):
        z = reference(numbers, batch)
        return z + alpha * (teacher(numbers, batch) - z)
    return beyond


def theta_0_outputs(loss, model, examples, drawn, teacher, tau, layers, alpha=1.0, head=None, hidden_layer=None):
    """What a loss asks of theta_0 about the examples that will be drawn, by name, see Answers."""
    kind = FROZEN.get(loss)
    if kind in ("hidden", "teacher_hidden"):
        kept = {"numbers": drawn, "n_layers": hidden_layer}
        reference = cached_states(model, examples, **kept) if kind == "hidden" or alpha != 1 else None
        if kind == "hidden":
            return {kind: reference}
        smoothed = cached_states(model, examples, tau=tau, layers=layers, **kept)
        return {kind: smoothed if alpha == 1 else extrapolated(smoothed, reference, alpha)}
    only = {"numbers": drawn, "head": head} if teacher == "cached" else {}
    if kind == "reference" or kind == "teacher" and alpha != 1:
        reference = TEACHERS[teacher](model, examples, **only)
    if kind == "teacher":
        smoothed = TEACHERS[teacher](model, examples, tau, layers, **only)
        if alpha == 1:
            return {kind: smoothed}
        beyond = extrapolated(smoothed, reference, alpha)
        return {kind: lambda numbers, batch: beyond(numbers, batch).log_softmax(-1)}
    return {kind: reference} if kind else {}


def theta_0_bytes(config, device, dtype, what, weights):
    """Bytes on the device of what the losses ask of theta_0, for --plan. what: keywords of unlearn; weights: bytes of the model."""
    drawn = {what["method"]: what["forget"], what["retain_loss"]: what["retain"][:what["epochs"] * len(what["forget"])]}
    total, head = 0, 0
    for loss, examples in drawn.items():
        kind = FROZEN.get(loss)
        beyond = what["alpha"] != 1
        models = {"teacher": 1 + beyond, "teacher_hidden": 1 + beyond, "reference": 1 + refuses(loss), "hidden": 1}.get(kind, 0)
        if what["teacher"] == "live" and kind in ("teacher", "reference"):
            total += models * weights
        elif models:
            states = sum(len(e.answer) for e in examples) * config.n_embd * dtype.itemsize
            total += models * states * (device.type == "cpu")           # of a GPU's run they lie in the CPU's memory
            head = config.vocab_size * config.n_embd * dtype.itemsize
    return total + head


# --------------------------------------------------------------------------------------------- unlearning
def unlearn(model, forget, retain, *, tau=None, layers=None, alpha=1.0, method="asu", retain_loss="gd", beta=None, refusals=(),
            c_forget=1.0, c_retain=1.0, epochs=10, lr=1e-3, batch_size=32, micro_batches=1, warmup=0.1, weight_decay=0.01,
            grad_clip=1.0, optimizer_dtype="float32", seed=0, teacher="cached", teacher_model=None, hidden_layer=None, check=None,
            record=None, checkpoint=None, resume=False, settings=None, loop=fit):
    """Unlearn `forget` from `model` (changed in place) and return it.

    forget, retain: lists of data.Example. An epoch passes over the forget set once; each of its batches meets a batch of
    as many retain examples, which are drawn without repetition until all have been. method: a name in METHODS;
    retain_loss: in RETAIN_LOSSES. tau, layers: the ASU teacher's smoothing, see model.attention_scales; at tau = 1 teacher
    and student are one, the loss is 0 and no step is taken. alpha: see extrapolated. beta: the method's own knob (None: its
    default). hidden_layer: of the methods that compare hidden states, how many layers those have behind them (None: half of them).
    refusals: token ids of refusing answers, for the methods that teach one. teacher_model: theta_0, if it is not
    `model` as it is now.
    check(step) -> numbers to log each epoch. record: a dict that receives the record of the run. checkpoint, resume,
    settings, optimizer_dtype: see lab/runs.fit, which loop may replace. Raises ValueError for tau <= 0, bad layers, an unknown method, retain loss or teacher or a
    combination that makes no sense, an empty set.
    """
    for name, given, known in (("method", method, METHODS), ("retain_loss", retain_loss, RETAIN_LOSSES),
                               ("teacher", teacher, TEACHERS)):
        if given not in known:
            raise UserError(f"{name}={given}: choose from {', '.join(known)}")
    if method not in baselines.RETAIN_ONLY.get(retain_loss, METHODS):
        raise UserError(f"the retain loss {retain_loss} belongs to method {' or '.join(baselines.RETAIN_ONLY[retain_loss])}, not to {method}; "
                        "with any method go none, gd, kl")
    hidden_layer = max(1, model.config.n_layer // 2) if hidden_layer is None else hidden_layer
    if not 1 <= hidden_layer <= model.config.n_layer:
        raise UserError(f"hidden_layer={hidden_layer}: the model has {model.config.n_layer} layers")
    if beta is not None and "beta" not in inspect.signature(METHODS[method]).parameters:
        raise UserError(f"method {method} has no beta")
    if not forget or (not retain and retain_loss != "none"):
        raise UserError("the forget set and the retain set must not be empty")
    if not refusals and (refuses(method) or refuses(retain_loss)):
        raise UserError(f"method {method} teaches refusals, but there are none")
    smooths = FROZEN.get(method) in SMOOTHED
    if smooths:
        model.attention_scales(tau, layers)                 # refuses a bad tau or layers before any work
    below = zip(model.attention_scales(tau, layers)[:hidden_layer], model.attention_scales()) if method == "asu_hidden" else ()
    if method == "asu_hidden" and all((torch.as_tensor(scale) == plain).all() for scale, plain in below):
        raise UserError(f"the teacher's hidden state after {hidden_layer} layers is the model's own, for no layer before it is smoothed")
    record = {} if record is None else record
    if method == "asu" and (torch.as_tensor(tau) == 1).all():
        print("tau=1 is no smoothing: the teacher is the model itself, the loss is 0 and nothing changes", flush=True)
        record |= {"steps": 0, "tokens": 0, "seconds": 0.0, "curve": [{"step": 0, "loss": 0.0, "forget_loss": 0.0}]}
        return model

    rng = random.Random(f"unlearn {seed}")
    forget_batches = [b for _ in range(epochs) for b in data.bucketed([len(e) for e in forget], batch_size, rng)]
    retain_numbers = []
    while retain and len(retain_numbers) < epochs * len(forget):
        retain_numbers += [i for b in data.bucketed([len(e) for e in retain], batch_size, rng) for i in b]
    retain_numbers = iter(retain_numbers)
    retain_batches = [[next(retain_numbers, None) for _ in batch] for batch in forget_batches]
    steps, knob = len(forget_batches), {} if beta is None else {"beta": beta}
    print(f"{method}: {len(forget)} forget and {len(retain)} retain examples, {epochs} epochs, {steps} steps of {batch_size} + "
          f"{batch_size}" + (f", teacher {teacher}" if smooths else ""),
          flush=True)

    start = time.perf_counter()
    rows = {method: (forget, forget_batches), retain_loss: (retain, retain_batches)}
    asks = {FROZEN.get(loss) for loss in rows} & {"teacher", "reference"}
    head = frozen_head(teacher_model or model) if asks and teacher == "cached" else None
    sides = {}                                              # loss -> what Answers needs for its rows, and for their refusals
    for loss, (examples, batches) in rows.items():
        if loss == "none":
            continue
        drawn = {i for batch in batches for i in batch}
        refused = [data.Example(e.prompt, rng.choice(refusals)) for e in examples] if refuses(loss) else []
        data.check_length(examples + refused, model.config.block_size)

        def outputs(some):
            return theta_0_outputs(loss, teacher_model or model, some, drawn, teacher, tau, layers, alpha, head, hidden_layer)

        sides[loss] = [(examples, outputs(examples))]
        if refused:                                         # nobody asks the teacher what it thinks of a refusal
            sides[loss].append((refused, outputs(refused) if FROZEN.get(loss) == "reference" else {}))
    teacher_seconds = time.perf_counter() - start

    def answers(loss, numbers):
        real, *refusal = (Answers(model, examples, numbers, frozen, hidden_layer) for examples, frozen in sides[loss])
        real.refused = refusal[0] if refusal else None
        return real

    def losses(step):
        """The micro-batches of one step, forget and retain apart, so that the graph of one is gone before the other's is built;
        each is weighted by its share of the step's sequences."""
        parts = (parallel.micro_batches(batches[step], micro_batches) for batches in (forget_batches, retain_batches))
        for (f, n), (r, _) in zip(*parts):
            share = n / len(forget_batches[step])
            some = answers(method, f)
            loss = METHODS[method](some, **knob)
            yield share * c_forget * loss, some.tokens, {"forget_loss": share * loss.detach()}
            if retain_loss != "none":
                some = answers(retain_loss, r)
                loss = RETAIN_LOSSES[retain_loss](some)
                yield share * c_retain * loss, some.tokens, {"retain_loss": share * loss.detach()}

    record |= loop(model, losses, steps, label=method, lr=lr, warmup=int(warmup * steps) + 1, weight_decay=weight_decay,
                   grad_clip=grad_clip, every=steps // epochs, optimizer_dtype=optimizer_dtype, check=check,
                   checkpoint=checkpoint, resume=resume, settings=settings)
    record["seconds"] = round(record["seconds"] + teacher_seconds, 2)
    return model


TAKEN = ("base", "target", "retrained", "data", "compare", "ablate", "analyze", "continual", "bench", "worlds")      # in OUT, by others


def parse():
    p = Parser("Unlearn the forget set by attention smoothing, or by another method.")
    add = p.add_argument
    add("--run", help="the model to unlearn: a run, HF directory or hub id (default OUT/target)")
    add("--name", help="name of the run directory to write (default METHOD_RETAIN: asu_gd, npo_kl, ...)")
    add("--method", choices=[m for m in METHODS if m != "asu_hidden"], default="asu", help="ASU, or a baseline on the same loop")
    add("--target", choices=["logits", "hidden"], default="logits", help="what ASU distils: the teacher's distribution, or its hidden state")
    add("--hidden_layer", type=positive_int, help="layers behind the hidden state of --target=hidden and of rmu (default: half of them)")
    add("--tau", type=tau_flag, default=1000.0, help="attention temperature of the forget-teacher; 1 is no smoothing; auto: from the "
        "model's own NLL, see lab/choose.py")
    add("--layers", type=layer_list, default="all", help="layers to smooth: all, or as in 0,1 or 6-8; 1- is all but the first")
    add("--heads", choices=["auto", "all"], default="auto", help="smooth the heads that facts need most (auto), or all, as the paper")
    add("--alpha", type=positive_float, default=1.2, help="strengthen the teacher: z + alpha (z_tau - z); 1 is the paper's")
    add("--answers", choices=["true", "teacher"], default="true", help="whose answers to the forget questions ASU is taught on")
    add("--beta", type=positive_float, help="the method's own knob, see baselines.py (default: the method's)")
    add("--retain", choices=list(RETAIN_LOSSES), default="gd", help="what holds the retain set; ap goes with idk, hidden with rmu")
    add("--c_forget", type=non_negative_float, default=1.0, help="weight of the forget loss")
    add("--c_retain", type=non_negative_float, default=1.0, help="weight of the retain loss")
    add("--tasks", type=positive_int, default=1, help="forget the authors in so many requests, one after another")
    add("--teacher_from", choices=["latest", "original"], default="latest", help="theta_0 of the second request and later: "
        "the weights that the one before left, or --run's")
    add("--epochs", type=positive_int, default=10, help="passes over the forget set")
    add("--lr", type=positive_float, default=1e-3)
    add("--warmup", type=fraction, default=0.1, help="share of the steps")
    add("--teacher", choices=list(TEACHERS), default="cached", help="cached hidden states, or a second live model")
    training_flags(p, "forget examples a step; as many retain examples beside them")
    args = p.parse_args()
    if args.target == "hidden":
        if args.method != "asu":
            p.error(f"--target=hidden is a form of ASU, not of --method={args.method}")
        args.method = "asu_hidden"
    given = [k for k in ("tau", "layers", "heads", "alpha", "answers", "hidden_layer") if getattr(args, k) != p.get_default(k)]
    asks = {FROZEN.get(args.method), FROZEN.get(args.retain)}
    unused = [f"--{k}" for k in given if not asks & ({"hidden", "teacher_hidden"} if k == "hidden_layer" else set(SMOOTHED))]
    if unused:
        print(f"--method={args.method} --retain={args.retain} does not use {', '.join(unused)}", flush=True)
    return args


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = parallel.start(args)
    out = Path(args.out)
    parent = out / "target" if args.run is None else args.run
    name = args.name or f"{args.method}_{args.retain}"
    if not re.fullmatch(r"\w[\w.-]*", name) or name in TAKEN:
        raise UserError(f"--name={name}: a plain name is needed that is none of {', '.join(TAKEN)}")
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    requests = data.by_author(rows.forget, args.tasks)
    smooths = FROZEN.get(args.method) in SMOOTHED
    parent_run = read_run(local_dir(made_by_train(parent), weights=not args.plan))
    if parent_run.get("data_sha256", rows.sha256) != rows.sha256:
        raise UserError(f"{parent} was trained on other data than --data={args.data} --data_seed={args.data_seed} "
                        f"--n_authors={args.n_authors} gives")

    def sets(task, tokenizer, args):
        """-> what is asked to be forgotten, what nobody has asked to forget yet (both rows), and keywords of unlearn."""
        request, kept = requests[task], rows.retain + [row for later in requests[task + 1:] for row in later]
        how = {k: getattr(args, k) for k in ("alpha", "method", "beta", "c_forget", "c_retain", "epochs", "lr", "batch_size",
                                             "micro_batches", "warmup", "weight_decay", "grad_clip", "optimizer_dtype", "seed", "teacher",
                                             "hidden_layer")}
        return request, kept, how | {"forget": data.training_examples(tokenizer, request, args.phrasings),
                                     "retain": data.training_examples(tokenizer, kept, args.phrasings), "retain_loss": args.retain,
                                     "refusals": [data.encode(tokenizer, "", text).answer for text in data.REFUSALS]}

    def memory(args):
        """-> {component: bytes} of the first request, see lab/plan.py."""
        dir = local_dir(parent, weights=False)
        config, (*_, first) = read_config(dir), sets(0, Tokenizer.load(dir), args)
        tau = 2.0 if args.tau == "auto" else args.tau
        attention_scales(tau, layer_numbers(args.layers, config.n_layer), config.n_layer, config.n_head, config.head_dim)
        taken = plan.components(config, device, dtype, args, functools.partial(largest_step, first))
        more = taken["weights"] * (args.teacher_from == "original" and args.tasks > 1)
        return taken | {"theta_0": theta_0_bytes(config, device, dtype, first, taken["weights"]) + more}

    if args.plan:
        return plan.show(memory, args, device)
    model, tokenizer, _ = load_run(parent, device, dtype, args.shard)
    original = parallel.copy_of(model) if args.teacher_from == "original" and args.tasks > 1 else None
    settings = {k: v for k, v in vars(args).items() if k not in ("resume", "plan", "out", "device", "shard", "run", "name")}
    parent_sha = parent_run.get("model_sha256") or weights_sha256(parent)

    for task in range(args.tasks):
        path = out / (name if args.tasks == 1 else f"{name}_{task + 1}of{args.tasks}")
        request, kept, what = sets(task, tokenizer, args)
        inputs = {"data_sha256": rows.sha256, "parent_sha256": parent_sha}
        done = read_run(path) if args.resume else {}
        if done.get("settings") == settings and done["parent_sha256"] == parent_sha:
            model, parent_sha, parent = load_run(path, device, dtype, args.shard)[0], done["model_sha256"], path
            print(f"{path}: finished already", flush=True)
            continue

        def check(step):
            return {f"{part}_fact_accuracy": fact_accuracy(model, tokenizer, rows.questions(some))
                    for part, some in (("forget", request), ("retain", kept))}

        record, tau, layers, start = {}, None, None, time.perf_counter()
        with plan.explained(memory, args, device):
            if smooths:
                learnt = [row | {key: row[key][:args.phrasings] for key in ("questions", "answers")} for row in request]
                chosen = smoothing(original or model, tokenizer, learnt, rows, args.tau, args.layers, args.heads)
                tau, layers = parallel.from_first(chosen)
            if smooths and args.answers == "teacher":
                what["forget"] = answered_by_teacher(original or model, tokenizer, request, args.phrasings, tau, layers)
            choosing = time.perf_counter() - start
            prepare(model, args)
            unlearn(model, **what, tau=tau, layers=layers, teacher_model=original, check=check, record=record,
                    checkpoint=checkpoint_of(path), resume=args.resume, settings=settings | inputs)
        record["seconds"] = round(record["seconds"] + choosing, 2)
        if args.tasks > 1:                                  # is what was forgotten first still forgotten?
            record["fact_accuracy_by_request"] = [fact_accuracy(model, tokenizer, rows.questions(some)) for some in requests]
        record = {"kind": "unlearned", "settings": settings, "tau": tau, **inputs, **record}
        parent_sha, parent = save_run(path, model, tokenizer, record, parent), path
        print(f"{path}: {record['seconds']:.0f} s", flush=True)
    parallel.stop()


def largest_step(what, model):
    """The losses of one step on the longest rows, as runs.fit takes them. what: keywords of unlearn."""
    longest = {part: sorted(what[part], key=len)[-what["batch_size"]:] for part in ("forget", "retain")}
    found = []

    def keep(model, losses, *_, **__):
        found.append(losses(0))
        return {"seconds": 0.0}
    unlearn(model, **what | longest | {"epochs": 1, "teacher": "cached"}, tau=2.0, loop=keep)
    return found[0]


if __name__ == "__main__":
    run(main)
