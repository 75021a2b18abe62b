"""What was forgotten, what was kept, what it cost: every run held against the model retrained without the data.

    python eval.py                     out/report.json, out/report.md, out/*.png from every run in out/
    python eval.py --runs=target,asu_gd
    python eval.py --encoder=DIR_OR_HUB_ID --nli=DIR_OR_HUB_ID      the paper's full MU and FE, see lab/judges.py
    python eval.py --runs=target,asu_gd --retrained=TOFU_EVAL.json  against a published log, see lab/published.py

Rows of the report: the runs, and the forget-teacher itself (the target at tau, untrained). The headline is the gap to
retrain: 0 is a model that cannot be told from one that never saw the forget set. Everything is greedy and seeded: the
same checkpoints give the same numbers to the last digit. Where the data names no facts, lab/facts.py finds them with
the target, or else the first of --runs: name the model that was unlearned first. Where a run cannot be measured its row
says why, the others are measured, and the exit code is 2.

l(a|q) below is the mean negative log-likelihood, in nats, of the answer's tokens, EOS included.
"""

import collections
import inspect
import itertools
import math
import time
from pathlib import Path

import numpy as np
from nltk.stem.porter import PorterStemmer  # comes with rouge_score
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp

import data
from common import UserError
from common.cli import Parser, layer_numbers, model_flags, pick_device, positive_int, run
from common.files import check_writable
from lab import judges
from lab.answers import ask
from lab.card import add_metrics
from lab.entries import find_runs, fitting, noting, with_teachers
from lab.facts import find_by_first
from lab.published import from_log, lacking, read_log, same_questions
from lab.recover import recorded
from lab.report import REPORT, write_report
from lab.runs import load_run
from lab.said import KINDS, answer_kind, continued
from lab.scores import by_class, membership, nll, privleak, score, tau_curves, total
from lab.statistics import bootstrap, harmonic_mean, interval, means

ROUGE = RougeScorer(["rougeL"], use_stemmer=True)                          # knows the letters a to z alone
ROUGE_OF_ANY_SCRIPT = RougeScorer(["rougeL"], tokenizer=data.Words(PorterStemmer().stem))


# ------------------------------------------------------------------------------------- metrics of one question
# A metric is a function of one question -> a number, and the names of its parameters say what it needs:
#   part                              the set's name: forget, retain, world, real_authors
#   row                               the question as the data has it
#   prediction, heldout_prediction    what the model says, greedily, to the question and to its held-out phrasing
#   tokens                            of the prediction
#   reference                         the true answer
#   scores                            of the reference's tokens, see lab/scores.py
#   nll, pert_nll                     l(a|q) of the reference, and of the wrong answers (K,)
#   r                                 see truth_ratio
#   facts, kind                       the texts of the row's facts, and answer_kind; None where the row has no facts
#   right, wrong                      log p(a|q) of the right option, of the others (K,); None where there are none
# Where a question has None, the whole set is without that metric. METRICS, below, is the list.
def likelihood(nll):
    """P(a|q) = exp(-l(a|q)) in [0, 1]. Lower on forget, higher elsewhere is better (TOFU, arXiv 2401.06121)."""
    return np.exp(-nll)


def probability(nll, pert_nll, part):
    """P(a|q); on world and real_authors P(a|q) / (P(a|q) + sum_i P(pert_i|q)). In [0, 1] (TOFU)."""
    p = likelihood(nll)
    return p / (p + np.exp(-pert_nll).sum()) if part in ("world", "real_authors") else p


def rouge_l_recall(prediction, reference):
    """ROUGE-L recall in [0, 1]: longest common subsequence of stemmed words / words of the reference."""
    return rouge_l(prediction, reference).recall


def rouge_l_f1(prediction, reference):
    """ROUGE-L F1 in [0, 1], of stemmed words: VerbMem of a passage continued, KnowMem of a short answer (MUSE, arXiv
    2407.06460)."""
    return rouge_l(prediction, reference).fmeasure


def rouge_l(prediction, reference):
    """ROUGE-L as published where the reference is in the letters a to z, else of the words of data/words.py."""
    scorer = ROUGE_OF_ANY_SCRIPT if data.BEYOND_ASCII.search(reference) else ROUGE
    return scorer.score(reference, prediction)["rougeL"]


def truth_ratio(para_nll, pert_nll):
    """r = exp(mean_i l(pert_i) - l(para)) per question, (N,), (N, K) -> (N,). Above 1: the true answer is preferred.

    The geometric form (TOFU, released code)."""
    return np.exp(np.asarray(pert_nll, float).mean(1) - np.asarray(para_nll, float))


def forget_truth_ratio(r):
    """mean min(r, 1/r) in [0, 1]. 1: cannot tell truth from lies, as wanted on a forget set (TOFU)."""
    r = np.asarray(r, float)
    return float(np.minimum(r, 1 / r).mean())


def utility_truth_ratio(r):
    """mean max(0, 1 - 1/r) in [0, 1]. Higher is better on what should be known (TOFU)."""
    return float(np.maximum(0, 1 - 1 / np.asarray(r, float)).mean())


def truth_ratio_score(r, part):
    """The truth ratio as the report has it: each set in its own form, 1 is best."""
    return forget_truth_ratio(r) if part == "forget" else utility_truth_ratio(r)


def token_entropy(tokens):
    """Entropy of the unigram frequencies / log2(number of tokens), in [0, 1]; 0 for one token. Repetition lowers it.

    token_entropy([1, 2, 1, 2]) = 1 bit / 2 = 0.5 (ASU paper, section on metrics)."""
    n = len(tokens)
    if n < 2:
        return 0.0
    return sum(-c / n * math.log2(c / n) for c in collections.Counter(tokens).values()) / math.log2(n)


def choice_accuracy(right, wrong):
    """1 where the right option is likelier than all others, else 0; a tie counts as wrong. Chance is 1 / (K + 1) (WMDP,
    arXiv 2403.03218)."""
    return float(right > max(wrong))


def fact_accuracy(prediction, facts):
    """1 where the answer states every fact as whole words, else 0. Lower on forget, higher elsewhere is better."""
    return float(data.states(prediction, facts))


def fact_accuracy_heldout_phrasing(heldout_prediction, facts):
    """fact_accuracy where the question is put in words that no model was trained on."""
    return fact_accuracy(heldout_prediction, facts)


def coherence(kind):
    """0 for gibberish, else 1. Higher is better everywhere."""
    return float(kind != "gibberish")


# To add a metric, write a function as above and add its name: it gets its interval and its columns by itself.
METRICS = {"probability": probability, "rouge_l": rouge_l_recall, "truth_ratio": truth_ratio_score,
           "token_entropy": token_entropy, "choice_accuracy": choice_accuracy, "fact_accuracy": fact_accuracy,
           "fact_accuracy_heldout_phrasing": fact_accuracy_heldout_phrasing, "coherence": coherence}
PASSAGE_METRICS = {"verbmem": rouge_l_f1, "probability": likelihood}


# ----------------------------------------------------------------------------------------- metrics of a whole set
def exact_memorization(argmax_ids, true_ids):
    """Share of positions whose teacher-forced argmax is the true token, in [0, 1] (arXiv 2506.12618)."""
    return float(np.mean(np.asarray(argmax_ids) == np.asarray(true_ids)))


def extraction_strength(argmax_ids, true_ids):
    """1 - k/T in [0, 1], k the shortest prefix after which every argmax is right; k = T scores 0 (arXiv 2506.12618).

    extraction_strength([5, 2, 3], [1, 2, 3]) = 1 - 1/3."""
    wrong = np.flatnonzero(np.asarray(argmax_ids) != np.asarray(true_ids))
    return 1 - (wrong[-1] + 1 if len(wrong) else 0) / len(true_ids)


def memorised(scores):
    """Mean exact memorisation and extraction strength of scored answers, both without EOS: that an answer ends is
    known to any model."""
    pairs = [(s["argmax"][:-1], s["ids"][:-1]) for s in scores]
    return {"exact_memorization": float(np.mean([exact_memorization(*pair) for pair in pairs])),
            "extraction_strength": float(np.mean([extraction_strength(*pair) for pair in pairs]))}


def of_fact_tokens(scores, rows, tokenizer):
    """NLL (nats a token) of all fact tokens of a set, of its function and of its name tokens (None without any); of the
    fact tokens also exact memorisation and the median rank of the true one. {} where no facts are given or were
    found."""
    if not all(row["facts"] or "found" in row for row in rows):
        return {}
    facts = {key: by_class(scores, rows, tokenizer, data.FACT, key) for key in ("logp", "argmax", "ids", "rank")}
    if not facts["logp"].size:
        return {}
    names = by_class(scores, rows, tokenizer, data.NAME)
    return {"fact_nll": float(-facts["logp"].mean()),
            "function_nll": float(-by_class(scores, rows, tokenizer, data.FUNCTION).mean()),
            "name_nll": float(-names.mean()) if names.size else None,
            "exact_memorization_facts": exact_memorization(facts["argmax"], facts["ids"]),
            "fact_rank_median": float(np.median(facts["rank"]))}


def forget_quality(r_model, r_retrained):
    """Two-sample Kolmogorov-Smirnov test of 1/r against the retrained model's (TOFU) -> (D, n, p).

    D in [0, 1], 0 best; n questions; p shrinks with n alone, so the three belong together. Raises UserError when a run
    is compared with itself: p = 1 would mean nothing."""
    r_model, r_retrained = np.asarray(r_model, float), np.asarray(r_retrained, float)
    if np.array_equal(r_model, r_retrained):
        raise UserError("forget quality of a run against itself says nothing; another run is needed")
    test = ks_2samp(1 / r_model, 1 / r_retrained)
    return float(test.statistic), len(r_model), float(test.pvalue)


LITE = ("rouge_l", "probability", "truth_ratio", "token_entropy")          # what MU and FE have without networks
JUDGED = ("cosine_similarity", "entailment")                               # what the two networks add
TOFU = ("probability", "rouge_l", "truth_ratio"), ("retain", "real_authors", "world")


def model_utility(values):
    """Model Utility: the harmonic mean of metrics in [0, 1] over the sets that should be kept. Higher is better.

    MU-lite: of LITE on every set but forget. MU (ASU paper): of LITE and JUDGED. TOFU's own: of the nine in TOFU."""
    return harmonic_mean(values)


def forget_efficacy(rouge, probability, truth_ratio, token_entropy, entailment=None):
    """Forget Efficacy (ASU paper): harmonic mean of 1-ROUGE, 1-probability, 1-TR', token entropy (and 1-entailment).

    truth_ratio is mean min(r, 1/r), which is 1-TR'. Without entailment this is FE-lite. In [0, 1], higher is better."""
    values = [1 - rouge, 1 - probability, truth_ratio, token_entropy] + ([] if entailment is None else [1 - entailment])
    return harmonic_mean(values)


# ------------------------------------------------------------------------------------------ one model measured
def apply(metrics, questions):
    """Metrics of a list of questions, each a dict of what metrics may ask for -> {name: (N,)}."""
    values = {}
    for name, metric in metrics.items():
        asks = inspect.signature(metric).parameters
        if unknown := asks.keys() - questions[0].keys():
            raise UserError(f"the metric {name} asks for {sorted(unknown)[0]}; there are {', '.join(questions[0])}")
        if all(x[asked] is not None for x in questions for asked in asks):
            values[name] = np.array([metric(**{asked: x[asked] for asked in asks}) for x in questions])
    return values


def ask_all(model, tokenizer, part, rows, slot_values, max_new_tokens=None, **smoothing):
    """Ask a model the questions of a set -> a list of what metrics may ask for, one dict a question.

    max_new_tokens: of an answer (default: see data.answer_limit)."""
    limit = max_new_tokens or data.answer_limit(tokenizer, rows, model.config.block_size)
    asking = smoothing | {"max_new_tokens": limit}
    def scored(key):
        return score(model, tokenizer, [(row["question"], row[key]) for row in rows], **smoothing)
    true, para = scored("answer"), scored("paraphrased_answer")
    pairs = [(row["question"], answer) for row in rows for answer in row["perturbed_answer"]]
    scores = iter(score(model, tokenizer, pairs, **smoothing))
    wrong = [list(itertools.islice(scores, len(row["perturbed_answer"]))) for row in rows]
    predictions = ask(model, tokenizer, [row["question"] for row in rows], **asking)
    heldout = ask(model, tokenizer, [row["paraphrased_question"] for row in rows], **asking)
    questions = []
    for i, row in enumerate(rows):
        options, facts, pert_nll = "choices" in row, row["facts"] or None, nll(wrong[i])
        questions.append({"part": part, "row": row, "prediction": predictions[i], "heldout_prediction": heldout[i],
                          "tokens": tokenizer.encode(predictions[i]), "reference": row["answer"], "scores": true[i],
                          "nll": nll([true[i]])[0], "pert_nll": pert_nll, "facts": facts,
                          "r": truth_ratio(nll([para[i]]), [pert_nll])[0],
                          "kind": facts and answer_kind(predictions[i], row, slot_values),
                          "right": total([true[i]])[0] if options else None,
                          "wrong": total(wrong[i]) if options else None})
    return questions


def evaluate(model, tokenizer, name, rows, slot_values, max_new_tokens=None, **smoothing):
    """All metrics of one model on the question set `name` -> (metrics, values, answers).

    values: per question, {metric: (N,)} with r and the scores of the true answers beside METRICS; answers: what the
    model said. Where rows name no facts, the metrics that need exact ones are None, and those of fact tokens take
    facts that were found (key found)."""
    questions = ask_all(model, tokenizer, name, rows, slot_values, max_new_tokens, **smoothing)
    values, scores = apply(METRICS, questions), [x["scores"] for x in questions]
    metrics = {"n": len(rows), "fact_accuracy": None, "fact_accuracy_heldout_phrasing": None, "coherence": None}
    if all(x["kind"] for x in questions):
        kinds = [x["kind"] for x in questions]
        metrics["answer_kinds"] = {kind: kinds.count(kind) / len(rows) for kind in KINDS}
    metrics |= of_fact_tokens(scores, rows, tokenizer) | means(values) | memorised(scores)
    values = {"r": np.array([x["r"] for x in questions]), "scores": scores, **values}
    return metrics, values, [x["prediction"] for x in questions]


def evaluate_text(model, tokenizer, name, rows, **smoothing):
    """The metrics of passages, returned as evaluate's. Of the set "general" only nll: the mean, in nats a token."""
    scores = score(model, tokenizer, [("", row["answer"]) for row in rows], **smoothing)
    metrics = {"n": len(rows), "nll": float(nll(scores).mean())}
    if name == "general":
        return metrics, {"nll": nll(scores)}, [row["answer"] for row in rows]
    predictions, references = continued(model, tokenizer, rows, **smoothing)
    passages = [{"prediction": prediction, "reference": reference, "nll": loss}
                for prediction, reference, loss in zip(predictions, references, nll(scores))]
    values = apply(PASSAGE_METRICS, passages)
    return metrics | means(values) | memorised(scores), {"scores": scores, **values}, predictions


def measure(model, tokenizer, sets, holdout, slot_values, smoothing, max_new_tokens=None):
    """One row of the report: all metrics on all sets -> (result, per-question values, answers), each by set name.

    max_new_tokens: of an answer to a question, see ask_all."""
    result, values, answers, scores = {}, {}, {}, {}
    for part, rows in sets.items():
        if rows[0]["question"]:
            measured = evaluate(model, tokenizer, part, rows, slot_values, max_new_tokens, **smoothing)
        else:
            measured = evaluate_text(model, tokenizer, part, rows, **smoothing)
        result[part], values[part], answers[part] = measured
        scores[part] = values[part].pop("scores", None)
        if f"{part}_text" in sets and "choices" not in rows[0]:                     # short answers about passages
            values[part]["knowmem"] = np.array([rouge_l_f1(a, row["answer"]) for a, row in zip(answers[part], rows)])
            result[part]["knowmem"] = float(values[part]["knowmem"].mean())
        result[part]["ci95"] = {name: interval(value) for name, value in values[part].items() if name != "r"}
    learnt = "forget" if holdout and holdout[0]["question"] else "forget_text"      # what the held-out rows are like
    if holdout and learnt in sets:
        others = score(model, tokenizer, [(row["question"], row["answer"]) for row in holdout], **smoothing)
        result[learnt] |= membership(scores[learnt], others)
    return result, values, answers


# ------------------------------------------------------------------------------------ held against retrained
GAP_METRICS = ("probability", "rouge_l", "truth_ratio", "fact_accuracy", "fact_accuracy_heldout_phrasing",
               "token_entropy", "coherence")


def gap(values, reference, pick=slice(None)):
    """Mean of |metric - the retrained model's| over GAP_METRICS (those both have) on one set, in [0, 1], 0 best.

    values, reference: {metric: per-question array (N,)}; pick: question numbers, for a bootstrap."""
    return float(np.mean([abs(values[m][pick].mean() - reference[m][pick].mean())
                          for m in GAP_METRICS if m in values and m in reference]))


def aggregate(sets, values, reference):
    """The numbers over all sets: MU and FE (-lite always, the paper's where both networks have judged, TOFU's where
    all its sets are there), and against the retrained model forget quality and gap.

    sets, values: of this run, by set name; reference: the retrained model's values, None where there is none or this
    is it."""
    asked = {part: s for part, s in sets.items() if set(LITE) <= s.keys()}                    # not the passages
    others = [s for part, s in asked.items() if part != "forget"]
    result = dict.fromkeys(("model_utility_lite", "forget_efficacy_lite", "forget_quality_d", "forget_quality_n",
                            "forget_quality_p", "gap_to_retrain"))
    if others:
        result["model_utility_lite"] = model_utility(s[m] for s in others for m in LITE)
    if forget := asked.get("forget"):
        result["forget_efficacy_lite"] = forget_efficacy(*(forget[m] for m in LITE))
    if others and forget and all(set(JUDGED) <= s.keys() for s in asked.values()):
        result["model_utility"] = model_utility(s[m] for s in others for m in (*LITE, *JUDGED))
        result["forget_efficacy"] = forget_efficacy(*(forget[m] for m in LITE), forget["entailment"])
    if all(set(TOFU[0]) <= sets.get(part, {}).keys() for part in TOFU[1]):
        result["model_utility_tofu"] = model_utility(sets[part][m] for part in TOFU[1] for m in TOFU[0])
    return result | against_retrained(values, reference) if reference else result


def against_retrained(values, reference):
    """Forget quality, and the gap on forget and on retain with the interval of their mean; over_unlearned: on forget,
    probability or ROUGE-L are below the retrained model's by more than chance. A copy of the retrained model has no
    forget quality. What a published log of the retrained model lacks is None."""
    try:
        d, n, p = forget_quality(values["forget"]["r"], reference["forget"]["r"])
    except (UserError, KeyError):
        d = n = p = None
    result = {"forget_quality_d": d, "forget_quality_n": n, "forget_quality_p": p, "gap_to_retrain": None}
    pairs = {part: (values[part], reference[part]) for part in ("forget", "retain")
             if set(GAP_METRICS) & values[part].keys() & reference.get(part, {}).keys()}
    result |= {f"gap_{part}": gap(*pair) for part, pair in pairs.items()}
    if len(pairs) == 2:
        result["gap_to_retrain"] = (result["gap_forget"] + result["gap_retain"]) / 2
        result["gap_to_retrain_ci95"] = bootstrap(
            lambda draw: sum(gap(v, gold, draw(len(v["r"]))) for v, gold in pairs.values()) / 2)
    distances = [values["forget"][m] - reference["forget"][m] for m in ("probability", "rouge_l")
                 if m in reference["forget"]]
    return result | {"over_unlearned": any(interval(distance)[1] < 0 for distance in distances)}


def compare(results, values):
    """Add to each result what is measured against the retrained model: aggregate, and PrivLeak. -> notes"""
    gold, notes = values.get("retrained"), []
    for name, result in results.items():
        sets = {part: result[part] for part in result if part in values[name]}
        result["aggregate"] = aggregate(sets, values[name], None if name == "retrained" else gold)
        for part in sets:
            if gold and "mia_min_k" in result[part] and "mia_min_k" in results["retrained"].get(part, {}):
                result[part]["privleak"] = privleak(result[part]["mia_min_k"], results["retrained"][part]["mia_min_k"])
        if gold and name != "retrained" and "r" in gold["forget"] and result["aggregate"]["forget_quality_d"] is None:
            notes.append(f"{name} answers as the retrained model does, number for number: it has no forget quality")
    return notes


# --------------------------------------------------------------------------------------------------- main
def parse():
    p = Parser("eval.py", "Measure every run against the retrained model.")
    p.add_argument("--runs", help="comma-separated runs in OUT, directories or hub ids (default: every run in OUT)")
    p.add_argument("--retrained", help="what stands for OUT/retrained: a directory, a hub id, or a file: the published "
                   "log of a retrained model, TOFU's eval_log_aggregated.json or open-unlearning's TOFU_EVAL.json")
    p.add_argument("--max_rows", type=positive_int, default=200, help="questions of each set, drawn at "
                   "random; of the people nobody met, all")
    p.add_argument("--max_new_tokens", type=positive_int, help="tokens of an answer (default: 8 more than the longest "
                   "true answer of the set has, at least 40)")
    p.add_argument("--encoder", help="sentence encoder, a directory or hub id: cosine similarity of answer and truth")
    p.add_argument("--nli", help="NLI classifier, a directory or hub id: entailment between answer and truth; "
                   "with both, MU and FE")
    model_flags(p)
    return p.parse_args()


def measure_run(name, path, teacher, sets, holdout, slot_values, args, place, networks):
    """One row of the report -> (result, values, answers) as measure's, how long answers may be, curves over tau (of the
    target alone), the tokenizer. teacher: None, or (tau, layers) that smooth it; place: device and dtype; networks: see
    lab/judges.py."""
    model, tokenizer, record = load_run(path, *place, args=args)
    smoothing = {"tau": teacher[0], "layers": layer_numbers(teacher[1], model.config.n_layer)} if teacher else {}
    asked = {part: rows for part, rows in sets.items() if rows[0]["question"]}
    limits = {part: args.max_new_tokens or data.answer_limit(tokenizer, rows, model.config.block_size)
              for part, rows in asked.items()}
    measured = measure(model, tokenizer, sets, holdout, slot_values, smoothing, args.max_new_tokens)
    result, values, answers = measured
    for part, rows in asked.items():
        result[part] |= judges.judge(part, rows, answers[part], values[part]["rouge_l"], *networks)
    result["cost"] = {key: 0 if teacher else record.get(key) for key in ("seconds", "peak_mb", "tokens")}
    drawn = name == "target" and all("fact_nll" in result[part] for part in ("forget", "retain"))
    return measured, limits, tau_curves(model, tokenizer, sets) if drawn else None, tokenizer


def main():
    args = parse()
    check_writable(args.out, REPORT)
    place, out = pick_device(args), Path(args.out)
    paths = find_runs(out, args.runs, args.retrained)
    log = read_log(args.retrained) if args.retrained and Path(args.retrained).is_file() else {}
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    slot_values = data.slot_values(itertools.chain(*rows.sets.values()))
    sets, logged, notes = same_questions(log, args.retrained, rows.sets, args.max_rows)
    networks = args.encoder and judges.encoder(args.encoder, place[0]), args.nli and judges.nli(args.nli, place[0])
    paths, records, left_out, failures = fitting(paths, rows, args.forget, named=bool(args.runs))
    if networks.count(None) == 1:
        notes.append(f"MU and FE need both networks: --{'nli' if args.encoder else 'encoder'} is missing, so they stay "
                     "-lite")
    sets, found = find_by_first(paths, lambda path: load_run(path, *place, args=args), sets, rows)
    notes += rows.notes + left_out + found

    results, values, answers, curves, said = {}, {}, {}, None, {}
    entries = with_teachers(paths, records)
    for name, (path, teacher) in [(name, entry) for name, entry in entries.items() if name not in failures]:
        start = time.perf_counter()
        with noting(failures, name):
            measured, limits, curve, tokenizer = measure_run(name, path, teacher, sets, rows.holdout, slot_values,
                                                             args, place, networks)
            results[name], values[name], answers[name] = measured
            if limits != said:
                print("answers of up to " + ", ".join(f"{n} tokens ({part})" for part, n in limits.items()), flush=True)
            curves, said = curve or curves, limits
            print(f"{name}: evaluated in {time.perf_counter() - start:.1f} s", flush=True)
    if not results:
        raise UserError("no run could be measured; " + "; ".join(f"{name}: {why}" for name, why in failures.items()))
    if logged:
        results["retrained"], values["retrained"], answers["retrained"] = from_log(
            logged, sets, tokenizer, slot_values, apply, METRICS)
        notes.append(lacking(args.retrained, values["retrained"], GAP_METRICS))
    notes += compare(results, values)
    for name, shares in recorded(out, entries, records, rows.sha256).items():
        results[name]["aggregate"] |= shares
    notes += [f"{name} was not measured: {why}" for name, why in failures.items()]
    results = {name: results.get(name) or {"not_measured": failures[name]} for name in [*entries, *results]}

    about = {"name": rows.name, "data_sha256": rows.sha256, "forget": args.forget, "holdout": len(rows.holdout),
             "max_new_tokens": said, "notes": notes}
    print(write_report(out, about, results, records, curves, sets, answers, METRICS))
    add_metrics(out, results, about)
    if failures:
        name, why = next(iter(failures.items()))
        raise UserError(f"{len(failures)} of {len(entries)} rows are not measured; {name}: {why}")


if __name__ == "__main__":
    run(main)
