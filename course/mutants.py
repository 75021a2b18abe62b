"""Mutants: the functions of problems 2, 4 and 5 with one mistake each. A student's own tests should tell them apart.

A mutant is an edit of the reference's source, so it follows the code; an edit that no longer fits is an error here, and
a failing test.
"""

from common import UserError
from course.make import find, span

# problem -> {what is wrong: (file, function, old text, new text)}
MUTANTS = {
    2: {
        "student and teacher swapped": ("asu.py", "forward_kl", "F.kl_div(student_logp, teacher_logp",
                                        "F.kl_div(teacher_logp, student_logp"),
        "padding in the mean": ("asu.py", "forward_kl", "mean_over_answers(kl, mask)", "kl.mean()"),
        "mean over all tokens at once": ("asu.py", "forward_kl", "mean_over_answers(kl, mask)",
                                         "(kl * mask).sum() / mask.sum()"),
        "sum over tokens for mean": ("asu.py", "forward_kl", "mean_over_answers(kl, mask)",
                                     "(kl * mask).sum(1).mean()"),
        "mean over the vocabulary for sum": ("asu.py", "forward_kl", ".sum(-1)", ".mean(-1)"),
        "the sign": ("asu.py", "forward_kl", "return mean", "return -mean"),
        "tokens shifted by one": ("asu.py", "forward_kl", "kl_div(student_logp,", "kl_div(student_logp.roll(1, 1),"),
        "tau on the student": ("asu.py", "look", "answer_logp(model, batch)", "answer_logp(model, batch, tau=3.0)"),
        "unmasked retain KL": ("asu.py", "kl", "(reference_logp, logp, mask)",
                               "(reference_logp, logp, torch.ones_like(mask))"),
        "retain KL to the smoothed model": ("asu.py", "look", '"reference", what, rows', '"teacher", what, rows'),
        "stale teacher": ("asu.py", "look", "theta_0.teacher(what, rows, batch)",
                          'theta_0.__dict__.setdefault("stale", theta_0.teacher(what, rows, batch))'),
    },
    4: {
        "NPO: the sign inside": ("baselines.py", "npo", "logsigmoid(-beta", "logsigmoid(beta"),
        "NPO: the sign in front": ("baselines.py", "npo", "-(2 / beta)", "(2 / beta)"),
        "NPO: no reference": ("baselines.py", "npo", "(s - reference_s)", "s"),
        "NPO: sum for mean": ("baselines.py", "npo", ".mean()", ".sum()"),
        "SimNPO: not normalised by length": ("baselines.py", "simnpo", "s / mask.sum(1)", "s"),
        "SimNPO: padding in the length": ("baselines.py", "simnpo", "mask.sum(1)", "mask.size(1)"),
        "SimNPO: the sign of gamma": ("baselines.py", "simnpo", "- gamma", "+ gamma"),
        "WGA: a gradient through the weight": ("baselines.py", "wga", ".detach()", ""),
        "WGA: no weight": ("baselines.py", "wga", "(w * nll", "(nll"),
        "CE-U: a gradient through its target": ("baselines.py", "ceu", "logp.detach().scatter", "logp.scatter"),
        "CE-U: the first token counts": ("baselines.py", "ceu", "after_first(mask)", "mask"),
        "CE-U: labels shifted by one": ("baselines.py", "ceu", "target[..., None]", "target.roll(1, 1)[..., None]"),
    },
    5: {
        "truth ratio: upside down": ("eval.py", "truth_ratio", "return np.exp(", "return 1 / np.exp("),
        "truth ratio: arithmetic mean": ("eval.py", "truth_ratio", "np.exp(np.asarray(pert_nll, float).mean(1)",
                                         "np.exp(-np.log(np.exp(-np.asarray(pert_nll, float)).mean(1))"),
        "truth ratio: sum for mean": ("eval.py", "truth_ratio", ".mean(1)", ".sum(1)"),
        "forget score: no minimum": ("eval.py", "forget_truth_ratio", "np.minimum(r, 1 / r)", "(1 / r)"),
        "utility score: below 0": ("eval.py", "utility_truth_ratio", "np.maximum(0, 1 - 1 / np.asarray(r, float))",
                                   "(1 - 1 / np.asarray(r, float))"),
        "utility score: of 1/r": ("eval.py", "utility_truth_ratio", "1 - 1 / np.asarray(r, float)",
                                  "1 - np.asarray(r, float)"),
        "extraction: the first wrong token": ("eval.py", "extraction_strength", "wrong[-1]", "wrong[0]"),
        "extraction: off by one": ("eval.py", "extraction_strength", "wrong[-1] + 1", "wrong[-1]"),
        "extraction: k in place of 1 - k/T": ("eval.py", "extraction_strength", "return 1 - ", "return "),
        "gap: of each question": ("eval.py", "gap", "abs(values[m][pick].mean() - reference[m][pick].mean())",
                                  "abs(values[m][pick] - reference[m][pick]).mean()"),
        "gap: no absolute value": ("eval.py", "gap", "abs(values[m]", "(values[m]"),
        "gap: the draw of one model alone": ("eval.py", "gap", "reference[m][pick]", "reference[m]"),
    },
}


def mutated(files, path, function, old, new):
    """-> (module, source of the changed function) for exec in the module. Raises UserError where the edit does not
    fit."""
    source = files[path].decode()
    node, lines = find(source, function, path), source.splitlines(keepends=True)
    (first, last), doc = span(node), node.body[0]
    parts = [(first, doc.lineno - 1), (doc.lineno - 1, doc.end_lineno), (doc.end_lineno, last)]
    head, text, body = ("".join(lines[a:b]) for a, b in parts)      # the docstring stays: it may quote the formula
    if (head + body).count(old) != 1:
        raise UserError(f"course/mutants.py: {old!r} stands {(head + body).count(old)} times in {function} of {path}, "
                        "not once")
    code = head.replace(old, new) + text + body.replace(old, new)
    return path.removesuffix(".py").replace("/", "."), "\n" * first + code     # on the lines of the reference


def variants(files, problem):
    """{name: (module, code)}: the reference, "", and every mutant of a problem."""
    made = {"": ("", "")}
    for name, edit in MUTANTS[problem].items():
        made[name] = mutated(files, *edit)
    return made
