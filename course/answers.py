"""What a student writes beside the functions of the repository: in problem 5 a bad method that wins, in problem 7 what
an attack is worth."""


def bad_method_that_wins(retrained):
    """Problem 5: two methods as metrics of the forget set -> (good, bad), each {metric: (N,) in [0, 1]} as `retrained`.

    By eval.forget_efficacy of the means the bad one is better, by 0.05 at least; by eval.gap to the retrained model it
    is worse, by 0.1 at least, and less than half of its answers are whole sentences (coherence)."""
    broken = {"probability": 0.0, "rouge_l": 0.0, "truth_ratio": 1.0, "token_entropy": 1.0}     # random tokens
    bad = {name: 0 * values + broken.get(name, 0.0) for name, values in retrained.items()}
    return dict(retrained), bad


def worst_excess(unlearned, retrained):
    """Problem 7: what the strongest attack brings back beyond the retrained model, and its name -> (excess, name).

    unlearned, retrained: {attack: share of forgotten facts stated after it}, the same attacks. Below 0 where every
    attack finds less than in the retrained model. Raises ValueError where the attacks differ or there are none."""
    if not unlearned or unlearned.keys() != retrained.keys():
        raise ValueError("the same attacks on both models are needed")
    return max((unlearned[name] - retrained[name], name) for name in unlearned)
