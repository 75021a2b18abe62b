"""What others publish about a retrained model in place of its weights: the log of its answers, question by question.

TOFU's evaluation leaves eval_log_aggregated.json, or one file for each set (eval_log_forget.json); open-unlearning's
leaves TOFU_EVAL.json. Both number the questions from 0 in the order of the data's files. A question has, as far as the
log does, in nats a token:

    nll, para_nll, pert_nll     l(a|q) of the true answer, of its paraphrase, and of the wrong answers (a list)
    inverse_r                   1/r as open-unlearning logs it (truth ratio, see eval.py)
    rouge_l                     ROUGE-L recall of what the model said
    prediction, truth           what it said, and the true answer
"""

import math
from pathlib import Path

import numpy as np

from common import UserError
from common.files import read_json
from data import subset, words
from lab.said import answer_kind
from lab.statistics import interval, means

TOFU = {"eval_log_forget.json": "forget", "eval_log.json": "retain",        # file, or key of the aggregated one -> set
        "eval_real_author_wo_options.json": "real_authors", "eval_real_world_wo_options.json": "world"}
TOFU_KEYS = {"nll": "avg_gt_loss", "para_nll": "avg_paraphrased_loss", "pert_nll": "average_perturb_loss",
             "rouge_l": "rougeL_recall"}
OPEN_UNLEARNING = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world"}     # prefix -> set
OPEN_UNLEARNING_KEYS = {"nll": ("q_a_prob", "avg_loss"), "para_nll": ("q_a_para_prob", "avg_loss"),
                        "pert_nll": ("q_a_pert_prob", "avg_loss"), "inverse_r": ("truth_ratio", "score"),
                        "rouge_l": ("q_a_rouge", "rougeL_recall"), "prediction": ("q_a_rouge", "generation"),
                        "truth": ("q_a_rouge", "ground_truth")}
FLAWED = 0.1            # the share of true answers that may read otherwise than in the data: special tokens, blanks


def read_log(path):
    """A log -> {set: {row number: {name: value}}}, names as above. Raises UserError for what is none, or damaged."""
    path = Path(path)
    log = read_json(path)
    if "avg_gt_loss" in log:                                            # the file of one set
        if path.name not in TOFU:
            raise UserError(f"{path}: which set this is of, its name should say: {', '.join(TOFU)}")
        log = {path.name: log}
    sets = {}
    for file, part in TOFU.items():
        if file in log:
            sets[part] = tofu(log[file], f"{path}, {file}")
    by_name = {key.lower(): value for key, value in log.items()}
    for prefix, part in OPEN_UNLEARNING.items():
        if f"{prefix}_q_a_prob" in by_name or f"{prefix}_truth_ratio" in by_name:
            sets[part] = open_unlearning(by_name, prefix, path)
    if not sets.get("forget"):
        raise UserError(f"{path} is not the log of a retrained model: it has neither eval_log_forget.json, as TOFU's "
                        "eval_log_aggregated.json, nor forget_Q_A_Prob with value_by_index, as open-unlearning's "
                        "TOFU_EVAL.json")
    for part, questions in sets.items():
        for number, question in questions.items():
            check(question, f"{path}, {part}, question {number}")
    return sets


def tofu(log, where):
    """One set of TOFU's log, {key: {number: value}}, by question."""
    questions = {}
    for name, key in TOFU_KEYS.items():
        for number, value in by_number(log, key, where).items():
            questions.setdefault(number, {})[name] = value
    for number, texts in by_number(log, "generated_text", where).items():       # prompt, what was said, the truth
        if isinstance(texts, list) and len(texts) == 3 and number in questions:
            questions[number] |= {"prediction": texts[1], "truth": texts[2]}
    return questions


def open_unlearning(log, prefix, path):
    """One set of open-unlearning's log, {metric: {"value_by_index": {number: {key: value}}}}, by question."""
    questions = {}
    for name, (metric, key) in OPEN_UNLEARNING_KEYS.items():
        metric = f"{prefix}_{metric}"
        entry = log.get(metric, {})
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {metric} is not an object with value_by_index")
        for number, values in by_number(entry, "value_by_index", f"{path}, {metric}").items():
            if isinstance(values, dict) and values.get(key) is not None:
                questions.setdefault(number, {})[name] = values[key]
    for question in questions.values():
        if isinstance(question.get("para_nll"), list):                          # of several paraphrases
            question["para_nll"] = float(np.mean(question["para_nll"]))
        if prefix in ("ra", "wf") and "nll" in question:                        # no paraphrases there
            question.setdefault("para_nll", question["nll"])
    return questions


def by_number(log, key, where):
    """log[key], {"0": value, ...} -> {0: value, ...}; {} where there is no such key."""
    values = log.get(key, {}) if isinstance(log, dict) else None
    if not isinstance(values, dict) or not all(n.isascii() and n.isdigit() and len(n) < 10 for n in values):
        raise UserError(f"{where}: {key} is not an object from question numbers to values")
    return {int(number): value for number, value in values.items()}


def check(question, where):
    """Raises UserError for a value that is of another kind than it can be."""
    def is_number(x):
        return type(x) in (int, float) and math.isfinite(x) and x >= 0
    for name, value in question.items():
        if name in ("prediction", "truth"):
            good, words = isinstance(value, str), "a text"
        elif name == "pert_nll":
            good, words = isinstance(value, list) and value and all(map(is_number, value)), "a list of numbers"
        else:
            good, words = is_number(value), "a number of at least 0"
        if not good:
            raise UserError(f"{where}: {name} is {repr(value)[:60]}, not {words}")


def same_questions(log, path, all_sets, max_rows):
    """The questions to measure, those that the log holds where it holds a set -> ({set: rows}, the log of those rows
    alone {set: [question]}, notes).

    log: {} where there is none; all_sets: {set: all its rows}. Raises UserError where it is of other questions."""
    sets, logged, notes = {}, {}, []
    for part, rows in all_sets.items():
        questions = log.get(part, {})
        known = subset([number for number in range(len(rows)) if number in questions], max_rows)
        if not questions or not rows[0]["question"]:
            sets[part] = subset(rows, max_rows)
            continue
        if max(questions) >= len(rows) or not known:
            raise UserError(f"{path}: {part} has question {max(questions)}, but --data has {len(rows)} there; the log "
                            "is of another split or other data")
        other = []
        for n in known:
            truth, answer = questions[n].get("truth"), rows[n]["answer"]
            if truth is not None and words(truth) != words(answer):
                other.append(f"question {n}: its true answer is {truth!r:.60}, in --data {answer!r:.60}")
        if len(other) > FLAWED * len(known):
            raise UserError(f"{path}: {part}, {other[0]}; the log is of another split or other data")
        sets[part], logged[part] = [rows[n] for n in known], [questions[n] for n in known]
        if len(questions) < len(rows):
            notes.append(f"{part}: {len(known)} questions are measured, of those that {path} holds")
    return sets, logged, notes


def as_questions(logged, part, rows, tokenizer, slot_values):
    """Logged questions of a set -> the dicts that a metric of eval.py may ask for, None for what the log lacks."""
    questions = []
    for row, log in zip(rows, logged):
        wrong, said, r = log.get("pert_nll", []), log.get("prediction"), None
        if wrong and "para_nll" in log:
            r = math.exp(min(700, np.mean(wrong) - log["para_nll"]))
        elif log.get("inverse_r"):
            r = 1 / log["inverse_r"]
        questions.append({"part": part, "row": row, "prediction": said, "heldout_prediction": None,
                          "tokens": None if said is None else tokenizer.encode(said), "reference": row["answer"],
                          "scores": None, "nll": log.get("nll"), "r": r,
                          "pert_nll": np.array(wrong) if wrong or part in ("forget", "retain") else None,
                          "facts": row["facts"] or None, "right": None, "wrong": None,
                          "kind": answer_kind(said, row, slot_values) if said is not None and row["facts"] else None,
                          "rouge_l": log.get("rouge_l")})
    return questions


def from_log(logged, sets, tokenizer, slot_values, apply, metrics):
    """The retrained model's row of the report, from the log of the questions of sets -> as eval.measure's.

    tokenizer: that of a run, for token entropy; apply, metrics: those of eval.py."""
    result, values, answers = {"cost": {}}, {}, {}
    for part, questions in logged.items():
        questions = as_questions(questions, part, sets[part], tokenizer, slot_values)
        values[part] = apply(metrics, questions)
        for key in ("r", "rouge_l"):                        # as they were logged
            if all(x[key] is not None for x in questions):
                values[part][key] = np.array([x[key] for x in questions])
        shown = {name: value for name, value in values[part].items() if name != "r"}
        result[part] = {"n": len(questions), "fact_accuracy": None} | means(shown)
        result[part]["ci95"] = {name: interval(value) for name, value in shown.items()}
        if all(x["prediction"] is not None for x in questions):
            answers[part] = [x["prediction"] for x in questions]
    return result, values, answers


def lacking(path, values, gap_metrics):
    """What cannot be said against a log -> a note. values: of from_log; gap_metrics: what the gap is made of."""
    there = {part: [m for m in gap_metrics if m in values.get(part, {})] for part in ("forget", "retain")}
    text = f"the retrained model is the log {path}: the gap is of " + ", of ".join(
        f"{', '.join(names) or 'nothing'} on {part}" for part, names in there.items())
    text += ", as it holds no more" if all(there.values()) else ", so there is no gap to retrain over both"
    absent = [] if "r" in values["forget"] else ["forget quality (no losses of paraphrased and wrong answers)"]
    absent += ["PrivLeak, exact memorisation and extraction strength (no log-probabilities of tokens)"]
    return f"{text}; without {' and '.join(absent)}"
