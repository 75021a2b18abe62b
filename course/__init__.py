"""The course: eight problems on this repository, their tests, their grader. Students begin with course/README.md,
lecturers with course/staff/README.md.

    python -m course.make --out=KIT                          the starter kit, made from the code itself
    python -m course.grade SUBMISSION --seed=SECRET          points, and results.json
    python -m course.leaderboard SUBMISSIONS/ --seed=SECRET  problem 8, all methods side by side
"""

# What a student writes: the bodies of these functions, (file, name). make.py takes them out, grade.py takes them in.
PROBLEMS = {
    1: [("model.py", "attention_scales"), ("model.py", "attend")],
    2: [("asu.py", "forward_kl")],
    3: [("asu.py", "Frozen.remember"), ("asu.py", "Frozen.says")],
    4: [("baselines.py", "npo"), ("baselines.py", "simnpo"), ("baselines.py", "wga"), ("baselines.py", "ceu")],
    5: [("eval.py", "truth_ratio"), ("eval.py", "forget_truth_ratio"), ("eval.py", "utility_truth_ratio"),
        ("eval.py", "extraction_strength"), ("eval.py", "gap"), ("course/answers.py", "bad_method_that_wins")],
    6: [("lab/choose.py", "worth"), ("lab/choose.py", "tau_auto"), ("lab/choose.py", "choose_heads")],
    7: [("lab/recover.py", "halves"), ("lab/recover.py", "relearned"), ("lab/recover.py", "leak_at_k"),
        ("lab/recover.py", "quantised"), ("course/answers.py", "worst_excess")],
    8: [("course/method.py", "loss"), ("course/method.py", "settings")],
}

# Points of a problem: its tests, the mutants that the student's own tests kill, its written question. 110 in all.
TESTS = {1: 6, 2: 3, 3: 10, 4: 10, 5: 7, 6: 15, 7: 20, 8: 15}
MUTANTS = {2: 3, 4: 5, 5: 4}
WRITTEN = {1: 4, 2: 4, 5: 4}

STUDENTS_TESTS = "course/mytests_p{}.py"        # of problems with mutants


def points(problem):
    """What a problem is worth, all its parts together."""
    return TESTS[problem] + MUTANTS.get(problem, 0) + WRITTEN.get(problem, 0)
