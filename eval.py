"""What was forgotten, what was kept, what it cost: every run held against the model retrained without the data.

    python eval.py                     out/report.json, out/report.md, out/*.png from every run in out/
    python eval.py --runs=target,asu_gd
    python eval.py --encoder=DIR_OR_HUB_ID --nli=DIR_OR_HUB_ID      the paper's full MU and FE, see judges.py

Rows of the report: the runs, and the forget-teacher itself (the target at tau, untrained). The headline is the gap to
retrain: 0 is a model that cannot be told from one that never saw the forget set. Everything is greedy and seeded: the
same checkpoints give the same numbers to the last digit. Where the data names no facts, lab/facts.py finds them with the
target, or else the first of --runs: name the model that was unlearned first.

l(a|q) below is the mean negative log-likelihood, in nats, of the answer's tokens, EOS included.
"""

import collections
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp, mannwhitneyu

import data
from common import UserError
from common.cli import Parser, layer_numbers, pick_device, positive_int, run
from common.files import check_writable, write_file
from lab import judges
from lab.answers import ask
from lab.facts import find_facts
from lab.report import LEGEND, TABLES, one_of_each, plot_curves, plot_tau, plot_tradeoff, table
from lab.runs import load_run, read_run

TAUS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)


# ------------------------------------------------------------------------------------------------ metrics
def truth_ratio(para_nll, pert_nll):
    """r = exp(mean_i l(pert_i) - l(para)) per question, (N,), (N, K) -> (N,). Above 1: the true answer is preferred.

    The geometric form (TOFU, arXiv 2401.06121, released code)."""
    return np.exp(np.asarray(pert_nll, float).mean(1) - np.asarray(para_nll, float))


def forget_truth_ratio(r):
    """mean min(r, 1/r) in [0, 1]. 1: cannot tell truth from lies, as wanted on a forget set (TOFU)."""
    r = np.asarray(r, float)
    return float(np.minimum(r, 1 / r).mean())


def utility_truth_ratio(r):
    """mean max(0, 1 - 1/r) in [0, 1]. Higher is better on what should be known (TOFU)."""
    return float(np.maximum(0, 1 - 1 / np.asarray(r, float)).mean())


def forget_quality(r_model, r_retrained):
    """Two-sample Kolmogorov-Smirnov test of 1/r against the retrained model's (TOFU) -> (D, n, p).

    D in [0, 1], 0 best; n questions; p shrinks with n alone, so the three belong together. Raises ValueError when a run
    is compared with itself: p = 1 would mean nothing."""
    r_model, r_retrained = np.asarray(r_model, float), np.asarray(r_retrained, float)
    if np.array_equal(r_model, r_retrained):
        raise UserError("forget quality of a run against itself says nothing; another run is needed")
    test = ks_2samp(1 / r_model, 1 / r_retrained)
    return float(test.statistic), len(r_model), float(test.pvalue)


def rouge_l_recall(prediction, reference):
    """ROUGE-L recall in [0, 1]: longest common subsequence of stemmed words / words of the reference."""
    return ROUGE.score(reference, prediction)["rougeL"].recall


ROUGE = RougeScorer(["rougeL"], use_stemmer=True)


def token_entropy(tokens):
    """Entropy of the unigram frequencies / log2(number of tokens), in [0, 1]; 0 for one token. Repetition lowers it.

    token_entropy([1, 2, 1, 2]) = 1 bit / 2 = 0.5 (ASU paper, section on metrics)."""
    n = len(tokens)
    if n < 2:
        return 0.0
    return sum(-c / n * math.log2(c / n) for c in collections.Counter(tokens).values()) / math.log2(n)


def exact_memorization(argmax_ids, true_ids):
    """Share of positions whose teacher-forced argmax is the true token, in [0, 1] (arXiv 2506.12618)."""
    return float(np.mean(np.asarray(argmax_ids) == np.asarray(true_ids)))


def extraction_strength(argmax_ids, true_ids):
    """1 - k/T in [0, 1], k the shortest prefix after which every argmax is right; k = T scores 0 (arXiv 2506.12618).

    extraction_strength([5, 2, 3], [1, 2, 3]) = 1 - 1/3."""
    wrong = np.flatnonzero(np.asarray(argmax_ids) != np.asarray(true_ids))
    return 1 - (wrong[-1] + 1 if len(wrong) else 0) / len(true_ids)


def harmonic_mean(values):
    """Harmonic mean; 0 as soon as one value is 0 or less."""
    values = list(values)
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)


LITE = ("rouge_l", "probability", "truth_ratio", "token_entropy")          # what MU and FE have without networks
TOFU = ("probability", "rouge_l", "truth_ratio"), ("retain", "real_authors", "world")


def model_utility(values):
    """Model Utility: the harmonic mean of metrics in [0, 1] over the sets that should be kept. Higher is better.

    MU-lite: of LITE on every set but forget. MU (ASU paper): of LITE, cosine similarity and entailment. TOFU's own (arXiv
    2401.06121): of the nine in TOFU."""
    return harmonic_mean(values)


def forget_efficacy(rouge, probability, truth_ratio, token_entropy, entailment=None):
    """Forget Efficacy (ASU paper): harmonic mean of 1-ROUGE, 1-probability, 1-TR', token entropy (and 1-entailment).

    truth_ratio is mean min(r, 1/r), which is 1-TR'. Without entailment this is FE-lite. In [0, 1], higher is better."""
    values = [1 - rouge, 1 - probability, truth_ratio, token_entropy] + ([] if entailment is None else [1 - entailment])
    return harmonic_mean(values)


def auc(members, others):
    """P(member scores above other) + half the ties: area under the ROC curve, 0.5 is chance."""
    return float(mannwhitneyu(members, others).statistic / (len(members) * len(others)))


def min_k(logp, k=0.4):
    """Mean of the k share of lowest values, at least one (Min-k%; of normalised log-probabilities: Min-k%++)."""
    lowest = np.sort(logp)[:max(1, int(len(logp) * k))]
    return float(lowest.mean())


def rouge_l_f1(prediction, reference):
    """ROUGE-L F1 in [0, 1], of stemmed words: VerbMem of a continued passage, KnowMem of a short answer (MUSE, arXiv 2407.06460)."""
    return ROUGE.score(reference, prediction)["rougeL"].fmeasure


def choice_accuracy(right, wrong):
    """(N,), (N, K) log-probabilities of the right option and of the others -> (N,): 1 where the right one is likeliest.

    Chance is 1 / (K + 1); a tie counts as wrong (WMDP, arXiv 2403.03218)."""
    return (np.asarray(right) > np.asarray(wrong).max(1)).astype(float)


REFUSAL = re.compile(r"\b(I (do not|don't|cannot|can't) (know|answer|say|recall)|not (sure|aware)|no (idea|information))", re.I)


def answer_kind(answer, row, slot_values):
    """"correct" (states the facts), "wrong" (a known phrasing of this answer about this person, with other values of the
    slot), "refusal", or "gibberish" (all else: empty, broken, or the answer to another question).

    slot_values: see data.slot_values. Coherence is 1 - the share of gibberish."""
    if data.states(answer, row["facts"]):
        return "correct"
    if REFUSAL.search(answer):
        return "refusal"
    for phrasing in [*row["answers"], row["paraphrased_answer"]]:
        pattern = re.escape(phrasing)
        for fact in map(re.escape, row["facts"]):
            pattern = re.sub(rf"(\ban?\\ )?\b{re.escape(fact)}(?!\w)",
                             lambda m: (r"an?\ " if m[1] else "") + "(.+)", pattern, count=1)
        match = re.fullmatch(pattern, answer)
        if match and all(v in pool for v, pool in zip(match.groups(), slot_values[row["slot"]])):
            return "wrong"
    return "gibberish"


# --------------------------------------------------------------------------------------- scoring one model
@torch.no_grad()
def score(model, tokenizer, pairs, batch_size=64, **smoothing):
    """Teacher-forced look at (question, answer) pairs -> a dict of arrays (T,) for each: logp of the true tokens, their
    ids, the argmax, the true token's rank (1 = first), and z, logp normalised by the mean and deviation of log p (Min-k%++)."""
    examples = [data.encode(tokenizer, q, a) for q, a in pairs]
    data.check_length(examples, model.config.block_size)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    scores = [None] * len(examples)
    for i in range(0, len(order), batch_size):
        batch = data.collate([examples[j] for j in order[i:i + batch_size]], model.device)
        logp = model.lm_head(batch.at_answers(model.hidden(batch.idx, **smoothing))).float().log_softmax(-1)  # (B, A, V)
        true = logp.gather(-1, batch.target[..., None])                                                       # (B, A, 1)
        mean = (logp.exp() * logp).sum(-1, keepdim=True)
        deviation = ((logp.exp() * (logp - mean) ** 2).sum(-1, keepdim=True)).sqrt()
        arrays = {"logp": true, "ids": batch.target, "argmax": logp.argmax(-1), "rank": (logp > true).sum(-1) + 1,
                  "z": (true - mean) / deviation.clamp(min=1e-6)}
        arrays = {k: v.reshape(batch.mask.shape).cpu().numpy() for k, v in arrays.items()}
        for row, j in enumerate(order[i:i + batch_size]):
            scores[j] = {k: v[row, :len(examples[j].answer)] for k, v in arrays.items()}
    return scores


def nll(scores):
    """-> (N,): l(a|q) of scored pairs."""
    return np.array([-s["logp"].mean() for s in scores])


def total(scores):
    """-> (N,): log p(a|q) of scored pairs, summed over the answer."""
    return np.array([s["logp"].sum() for s in scores])


def memorised(scores):
    """-> exact memorisation (without EOS) and extraction strength of scored pairs, their means."""
    return {"exact_memorization": float(np.mean([exact_memorization(s["argmax"][:-1], s["ids"][:-1]) for s in scores])),
            "extraction_strength": float(np.mean([extraction_strength(s["argmax"], s["ids"]) for s in scores]))}


def by_class(scores, rows, tokenizer, kind, key="logp"):
    """One value for all tokens of a class (data.FACT, ...) in the scored answers of rows, concatenated. Where rows name no facts,
    those found for them count, see lab/facts.py."""
    def picked(row):
        facts = row["facts"] or row.get("found", [])
        return np.array(data.token_classes(tokenizer, row["answer"], facts, row["author"])) == kind
    return np.concatenate([s[key][picked(row)] for s, row in zip(scores, rows)])


def evaluate(model, tokenizer, name, rows, slot_values, **smoothing):
    """All metrics of one model on one question set -> (metrics, per-question arrays of
    those the gap is made of with r and the scores of the true answers, answers).

    name "forget" takes the forget form of the truth ratio; "world" and "real_authors" a normalised probability (TOFU).
    Metrics that need exact facts are None where rows have none; those of fact tokens take facts that were found (key found)."""
    def pairs(q, a):
        return [(row[q], row[a]) for row in rows]

    true = score(model, tokenizer, pairs("question", "answer"), **smoothing)
    para = nll(score(model, tokenizer, pairs("question", "paraphrased_answer"), **smoothing))
    k = min(len(row["perturbed_answer"]) for row in rows)
    wrong = [(row["question"], answer) for row in rows for answer in row["perturbed_answer"][:k]]
    wrong = score(model, tokenizer, wrong, **smoothing)
    pert = nll(wrong).reshape(-1, k)
    r = truth_ratio(para, pert)
    answers, held_out = (ask(model, tokenizer, [row[q] for row in rows], **smoothing)
                         for q in ("question", "paraphrased_question"))
    probability = np.exp(-nll(true))
    if name in ("world", "real_authors"):
        probability = probability / (probability + np.exp(-pert).sum(1))
    values = {"probability": probability,
              "rouge_l": np.array([rouge_l_recall(a, row["answer"]) for a, row in zip(answers, rows)]),
              "truth_ratio": np.minimum(r, 1 / r) if name == "forget" else np.maximum(0, 1 - 1 / r),
              "token_entropy": np.array([token_entropy(tokenizer.encode(a)) for a in answers])}
    if all("choices" in row for row in rows):
        values["choice_accuracy"] = choice_accuracy(total(true), total(wrong).reshape(-1, k))
    metrics = {"n": len(rows), "fact_accuracy": None, "fact_accuracy_heldout_phrasing": None, "coherence": None}
    if all(row["facts"] for row in rows):
        kinds = [answer_kind(a, row, slot_values) for a, row in zip(answers, rows)]
        values["fact_accuracy"] = np.array([kind == "correct" for kind in kinds], float)
        values["fact_accuracy_heldout_phrasing"] = np.array([data.states(a, row["facts"])
                                                             for a, row in zip(held_out, rows)], float)
        values["coherence"] = np.array([kind != "gibberish" for kind in kinds], float)
        metrics["answer_kinds"] = {kind: kinds.count(kind) / len(rows) for kind in ("correct", "wrong", "refusal", "gibberish")}
    if all(row["facts"] or "found" in row for row in rows) and by_class(true, rows, tokenizer, data.FACT).size:
        for key, kind in (("fact_nll", data.FACT), ("function_nll", data.FUNCTION)):
            metrics[key] = float(-by_class(true, rows, tokenizer, kind).mean())
        hits = by_class(true, rows, tokenizer, data.FACT, "argmax") == by_class(true, rows, tokenizer, data.FACT, "ids")
        metrics["exact_memorization_facts"] = float(hits.mean())
        metrics["fact_rank_median"] = float(np.median(by_class(true, rows, tokenizer, data.FACT, "rank")))
    metrics |= {key: float(v.mean()) for key, v in values.items()}
    metrics |= memorised(true)
    return metrics, {"r": r, "scores": true, **values}, answers


def evaluate_text(model, tokenizer, name, rows, batch_size=64, **smoothing):
    """The metrics of passages, as evaluate's. A quarter of each is given, and the rest, so many tokens, continued greedily.

    Of the set "general" only nll: the mean, in nats a token."""
    true = score(model, tokenizer, [("", row["answer"]) for row in rows], **smoothing)
    metrics = {"n": len(rows), "nll": float(nll(true).mean())}
    if name == "general":
        return metrics, {"nll": nll(true)}, [row["answer"] for row in rows]
    ids = [tokenizer.encode_answer(row["answer"])[:-1] for row in rows]
    given, answers = [max(1, len(some) // 4) for some in ids], [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(ids[i]))
    for i in range(0, len(order), batch_size):
        some = order[i:i + batch_size]
        prompts = [[tokenizer.start_id, *ids[j][:given[j]]] for j in some]
        new = model.generate(prompts, max(len(ids[j]) - given[j] for j in some), **smoothing)
        for j, said in zip(some, new):
            answers[j] = tokenizer.decode(said[:len(ids[j]) - given[j]]).strip()
    values = {"verbmem": np.array([rouge_l_f1(a, tokenizer.decode(some[n:])) for a, some, n in zip(answers, ids, given)]),
              "probability": np.exp(-nll(true))}
    metrics |= {key: float(v.mean()) for key, v in values.items()}
    metrics |= memorised(true)
    return metrics, {"scores": true, **values}, answers


def tau_curves(model, tokenizer, sets):
    """NLL of fact and of function tokens of the smoothed model against tau, on forget and retain -> dict of lists."""
    curves = {"tau": list(TAUS)}
    for part in ("forget", "retain"):
        pairs = [(row["question"], row["answer"]) for row in sets[part]]
        scored = [score(model, tokenizer, pairs, tau=tau) for tau in TAUS]
        for kind, token_class in (("fact", data.FACT), ("function", data.FUNCTION)):
            curves[f"{part}_{kind}_nll"] = [float(-by_class(s, sets[part], tokenizer, token_class).mean()) for s in scored]
    return curves


def membership(scores, others):
    """AUC of loss, Min-k% and Min-k%++ between trained-on (or forgotten) answers and answers about people nobody met.

    The goal is not 0.5 but the retrained model's value."""
    attacks = {"mia_loss": lambda s: s["logp"].mean(), "mia_min_k": lambda s: min_k(s["logp"]),
               "mia_min_k_pp": lambda s: min_k(s["z"])}
    return {key: auc(*([attack(s) for s in some] for some in (scores, others))) for key, attack in attacks.items()}


# ------------------------------------------------------------------------------------ held against retrained
GAP_METRICS = ("probability", "rouge_l", "truth_ratio", "fact_accuracy", "fact_accuracy_heldout_phrasing", "token_entropy",
               "coherence")


def gap(values, reference, pick=None):
    """Mean of |metric - the retrained model's| over GAP_METRICS (those there are) on one set, in [0, 1], 0 best.

    values, reference: {metric: per-question array (N,)}; pick: question numbers, for a bootstrap."""
    pick = slice(None) if pick is None else pick
    return float(np.mean([abs(values[m][pick].mean() - reference[m][pick].mean()) for m in GAP_METRICS if m in values]))


def bootstrap(statistic, draws=1000):
    """95% interval over resampled questions -> [low, high]. statistic(draw) calls draw(n) for n numbers out of n."""
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(0, n, n)
    return [float(x) for x in np.percentile([statistic(draw) for _ in range(draws)], (2.5, 97.5))]


def aggregate(sets, values, reference):
    """The numbers over all sets: MU and FE (-lite always, the paper's where both networks have judged, TOFU's where all its
    sets are there), and against the retrained model forget quality and gap.

    sets, values: of this run, by set name; reference: the retrained model's values, None where there is none or this is it."""
    asked = {name: s for name, s in sets.items() if set(LITE) <= s.keys()}                    # not the passages
    f, kept = asked["forget"], [s for name, s in asked.items() if name != "forget"]
    result = {"model_utility_lite": model_utility(s[m] for s in kept for m in LITE),
              "forget_efficacy_lite": forget_efficacy(*(f[m] for m in LITE)),
              "forget_quality_d": None, "forget_quality_n": None, "forget_quality_p": None, "gap_to_retrain": None}
    if all({"cosine_similarity", "entailment"} <= s.keys() for s in asked.values()):
        result["model_utility"] = model_utility(s[m] for s in kept for m in (*LITE, "cosine_similarity", "entailment"))
        result["forget_efficacy"] = forget_efficacy(*(f[m] for m in LITE), f["entailment"])
    if set(TOFU[1]) <= sets.keys():
        result["model_utility_tofu"] = model_utility(sets[part][m] for part in TOFU[1] for m in TOFU[0])
    if reference:
        for key, value in zip("dnp", forget_quality(values["forget"]["r"], reference["forget"]["r"])):
            result[f"forget_quality_{key}"] = value
        ours, gold = ([v[name] for name in ("forget", "retain")] for v in (values, reference))
        forget_gap, retain_gap = map(gap, ours, gold)
        result |= {"gap_to_retrain": (forget_gap + retain_gap) / 2, "gap_forget": forget_gap, "gap_retain": retain_gap}
        result["gap_to_retrain_ci95"] = bootstrap(
            lambda draw: sum(gap(v, g, draw(len(v["r"]))) for v, g in zip(ours, gold)) / 2)
        beyond = [bootstrap(lambda draw: (ours[0][m] - gold[0][m])[draw(len(ours[0][m]))].mean())
                  for m in ("probability", "rouge_l")]
        result["over_unlearned"] = any(high < 0 for _, high in beyond)
    return result


# --------------------------------------------------------------------------------------------------- main
def path_name(path):
    return Path(path).name


def find_runs(out, only):
    """-> {name: path}. All run directories in `out`; or those named (in `out`, or anywhere, or a hub id), and the
    retrained model they are held against where there is one."""
    if only:
        names = [name for name in only.split(",") if name]
        if "retrained" not in map(path_name, names) and (Path(out) / "retrained").is_dir():
            names.append("retrained")
        named = {path_name(name): Path(out) / name if (Path(out) / name).is_dir() else name for name in names}
        if len(named) < len(names):
            raise UserError(f"--runs={only}: two runs of one name; the report calls a run by the last part of its path")
        if missing := [name for name in named.values() if isinstance(name, str) and "/" not in name]:
            raise UserError(f"--runs: no run {missing[0]} in {out}")
        return named
    names = sorted(p.parent.name for p in Path(out).glob("*/run.json"))
    first = [name for name in ("base", "target", "retrained") if name in names]
    if "target" not in first or "retrained" not in first:
        raise UserError(f"no target and retrained model in {out}; run python train.py first, or name models with --runs")
    return {name: Path(out) / name for name in first + [name for name in names if name not in first]}


def teachers(records):
    """The forget-teachers of the runs that had one -> {name: (tau: a number or a table of heads, layers as --layers has them)}."""
    found = {}
    for record in (r for r in records.values() if r.get("kind") == "unlearned"):
        settings, tau = record["settings"], record["tau"]
        if settings["method"] in ("asu", "asu_idk", "asu_hidden"):
            where = "" if settings["layers"] == "all" else f"_layers{settings['layers']}"
            where = f"_{sum(t != 1 for row in tau for t in row)}heads" if isinstance(tau, list) else where
            at = max(max(row) for row in tau) if isinstance(tau, list) else tau
            found[f"teacher_tau{at:g}{where}"] = tau, "all" if isinstance(tau, list) else settings["layers"]
    return found


def misfit(name, record, records, rows, forget):
    """Why a run cannot stand in this report, or None."""
    if record.get("data_sha256", rows.sha256) != rows.sha256:
        return f"{name} was trained on other data than --data, --data_seed and --n_authors give"
    if record.get("kind") in ("retrained", "unlearned") and record["settings"]["forget"] != forget:
        return f"{name} was made for --forget={record['settings']['forget']}, not {forget}"
    parents = {r.get("model_sha256") for n, r in records.items() if n == "target" or r.get("kind") == "unlearned"}
    if record.get("kind") == "unlearned" and "model_sha256" in records.get("target", {}) and record["parent_sha256"] not in parents:
        return f"{name} was unlearned from another model than this target; run it again"


def parse():
    p = Parser("Measure every run against the retrained model.")
    p.add_argument("--runs", help="comma-separated runs in OUT, directories or hub ids (default: every run in OUT)")
    p.add_argument("--max_rows", type=positive_int, default=200, help="questions of each set, evenly spaced")
    p.add_argument("--encoder", help="sentence encoder, a directory or hub id: cosine similarity of answer and truth")
    p.add_argument("--nli", help="NLI classifier, a directory or hub id: entailment between answer and truth; with both, MU and FE")
    return p.parse_args()


def measure(model, tokenizer, sets, holdout, slot_values, smoothing):
    """One row of the report: all metrics on all sets -> (result, per-question values, answers), each by set name."""
    result, values, answers = {}, {}, {}
    for part, rows in sets.items():
        how = {"slot_values": slot_values} if rows[0]["question"] else {}
        result[part], values[part], answers[part] = (evaluate if how else evaluate_text)(model, tokenizer, part, rows, **how, **smoothing)
        if f"{part}_text" in sets and "choices" not in rows[0]:
            values[part]["knowmem"] = np.array([rouge_l_f1(a, row["answer"]) for a, row in zip(answers[part], rows)])
            result[part]["knowmem"] = float(values[part]["knowmem"].mean())
        result[part]["ci95"] = {m: bootstrap(lambda draw: v[draw(len(v))].mean()) for m, v in values[part].items()
                                if m in (*GAP_METRICS, "choice_accuracy", "verbmem", "knowmem", "nll")}
    if holdout:
        part = "forget" if holdout[0]["question"] else "forget_text"
    if holdout and part in sets:
        others = score(model, tokenizer, [(row["question"], row["answer"]) for row in holdout], **smoothing)
        result[part] |= membership(values[part].pop("scores"), others)
    return result, values, answers


def compare(results, values):
    """Add to each result what is measured against the retrained model: aggregate, and PrivLeak on forget."""
    gold = values.get("retrained")
    for name, result in results.items():
        sets = {part: metrics for part, metrics in result.items() if part in values[name]}
        result["aggregate"] = aggregate(sets, values[name], None if name == "retrained" else gold)
        for part in sets if gold else ():
            if "mia_min_k" in result[part]:
                reference = results["retrained"][part]["mia_min_k"]
                result[part]["privleak"] = 100 * (result[part]["mia_min_k"] - reference) / reference if reference else None


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = pick_device(args)
    out = Path(args.out)
    paths = find_runs(out, args.runs)
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    slot_values = data.slot_values([row for some in rows.sets.values() for row in some])
    sets = {name: some[::-(-len(some) // args.max_rows)] for name, some in rows.sets.items()}
    holdout = rows.holdout[:args.max_rows]

    similarity = None if args.encoder is None else judges.encoder(args.encoder, device)
    entails = None if args.nli is None else judges.nli(args.nli, device)

    records, notes = {name: read_run(path) for name, path in paths.items()}, []
    if (similarity is None) != (entails is None):
        notes.append(f"MU and FE need both networks: --{'nli' if similarity else 'encoder'} is missing, so they stay -lite")
    for name in list(paths):
        if why := misfit(name, records[name], records, rows, args.forget):
            if args.runs or name in ("target", "retrained"):
                raise UserError(why)
            notes.append(f"left out: {why}")
            del paths[name], records[name]
    entries = [(name, path, {}) for name, path in paths.items()]
    if "target" in paths:
        at = 1 + [name for name, *_ in entries].index("retrained" if "retrained" in paths else "target")
        entries[at:at] = [(name, paths["target"], smoothing) for name, smoothing in teachers(records).items()]

    if not all(row["facts"] for some in sets.values() for row in some if row["question"]):
        knows = "target" if "target" in paths else next(iter(paths))
        model, tokenizer, _ = load_run(paths[knows], device, dtype)
        others = dict.fromkeys(("forget", "retain"), [row for row in rows.forget + rows.retain if row["question"]] or rows.sets["forget"] + rows.sets["retain"])
        sets = {part: find_facts(model, tokenizer, some, others.get(part, rows.sets[part])) if some[0]["question"] else some
                for part, some in sets.items()}
        notes.append(f"fact spans found by the rule (lab/facts.py, with {knows}) where the data names none: fact and function NLL "
                     "are of those spans, and fact accuracy and coherence, which need exact facts, are left out")

    results, values, answers, curves = {}, {}, {}, None
    for name, path, smoothing in entries:
        start = time.perf_counter()
        model, tokenizer, record = load_run(path, device, dtype)
        if smoothing:
            smoothing = {"tau": smoothing[0], "layers": layer_numbers(smoothing[1], model.config.n_layer)}
        results[name], values[name], answers[name] = measure(model, tokenizer, sets, holdout, slot_values, smoothing)
        for part, some in ((part, some) for part, some in sets.items() if some[0]["question"]):
            results[name][part] |= judges.judge(part, some, answers[name][part], values[name][part]["rouge_l"], similarity, entails)
        results[name]["cost"] = {k: 0 if smoothing else record.get(k) for k in ("seconds", "peak_mb", "tokens")}
        if name == "target" and all("fact_nll" in results[name][part] for part in ("forget", "retain")):
            curves = tau_curves(model, tokenizer, sets)
        print(f"{name}: evaluated in {time.perf_counter() - start:.1f} s", flush=True)
    compare(results, values)

    about = {"name": rows.name, "data_sha256": rows.sha256, "forget": args.forget, "holdout": len(holdout),
             "questions": {part: len(some) for part, some in sets.items()}, "notes": notes}
    examples = one_of_each(sets, answers)
    tables = {title: text for title, columns in TABLES.items() if (text := table(results, columns))}
    summary = "\n\n".join(tables.pop(title) for title in ("Summary", "Passages and options") if title in tables)
    text = [f"# {args.forget} of {rows.name}", summary, f"```\n{examples}\n```",
            *(f"## {title}\n\n{some}" for title, some in tables.items()), LEGEND, *notes]
    if any(result["forget"]["fact_accuracy"] is not None for result in results.values()):
        plot_tradeoff(results, out / "tradeoff.png")
    if any(len(record.get("curve", [])) > 1 for record in records.values()):
        plot_curves(records, out / "curves.png")
    if curves:
        plot_tau(curves, out / "tau.png")
    write_file(out / "report.json", json.dumps({"data": about, "runs": results, "target_at_tau": curves}, indent=1) + "\n")
    write_file(out / "report.md", "\n\n".join(text) + "\n")
    print("\n".join(["", summary, "", examples, "", *notes, f"written: {out / 'report.md'}, report.json and figures"]))


if __name__ == "__main__":
    run(main)
