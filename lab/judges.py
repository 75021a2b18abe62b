"""The two foreign networks of the paper's Model Utility and Forget Efficacy: a sentence encoder and an NLI classifier.

Measuring instruments, opened by transformers from a directory or the hub and only when asked for: no model of ours is
built, trained or smoothed with them. """

import numpy as np
import torch
import torch.nn.functional as F

from common import UserError
from common.hf import local_dir


def encoder(path, device="cpu"):
    """A sentence encoder -> function (texts, others) -> (N,): cosine similarity of each pair, clipped at 0, in [0,
    1], 1 the same.

    A sentence is the mean of the last hidden states over its tokens, L2-normalised (sentence-transformers' mean
    pooling)."""
    model, tokenizer = load("--encoder", path, "AutoModel", device)

    def embed(texts):
        return torch.cat([F.normalize((out.last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)       # (B, C)
                          for out, mask in outputs(model, tokenizer, texts)])
    return lambda texts, others: (embed(texts) * embed(others)).sum(-1).clamp(0, 1).cpu().numpy()


def nli(path, device="cpu"):
    """An NLI classifier -> function (premises, hypotheses) -> (N,) of bool: whether its likeliest label is
    entailment."""
    model, tokenizer = load("--nli", path, "AutoModelForSequenceClassification", device)
    names = model.config.id2label
    label = next((i for i, name in names.items() if name.lower().startswith("entail")), None)
    if label is None:
        raise UserError(f"--nli={path} has no label entailment (its labels: {', '.join(names.values())}); a model "
                        "trained on natural language inference is needed")
    return lambda premises, hypotheses: np.concatenate(
        [(out.logits.argmax(-1) == label).cpu().numpy() for out, _ in outputs(model, tokenizer, premises, hypotheses)])


def judge(part, rows, answers, rouge, similarity=None, entails=None):
    """What the networks make of the answers to one set -> {"cosine_similarity", "entailment"}, those whose network is
    given.

    cosine_similarity: mean over questions of the cosine of answer and truth. entailment: share of questions with
    entailment; on forget the answer is the premise and the truth the hypothesis (does it give the truth away?), on
    the other sets the truth is the premise and the answer the hypothesis (is it borne out?). An answer of ROUGE-L
    recall below 0.1 entails nothing. Both in [0, 1], higher is better on what is kept, lower entailment on forget
    (arXiv 2410.08109, released code). The truth is key original_answer where rows have it: a sentence beside TOFU's
    one-word answers."""
    truth = [row.get("original_answer", row["answer"]) for row in rows]
    metrics = {}
    if similarity:
        metrics["cosine_similarity"] = float(similarity(answers, truth).mean())
    if entails:
        premises, hypotheses = (answers, truth) if part == "forget" else (truth, answers)
        metrics["entailment"] = float((entails(premises, hypotheses) & (np.asarray(rouge) >= 0.1)).mean())
    return metrics


def load(flag, path, kind, device):
    """-> (model, tokenizer) by transformers' class `kind`. Raises UserError where it, the files or part of the
    weights are missing."""
    try:
        import transformers
    except ImportError as e:
        raise UserError(f"{flag} needs the package transformers: pip install transformers") from e
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        dir = local_dir(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(dir)
        model, loaded = getattr(transformers, kind).from_pretrained(dir, output_loading_info=True)
    except UserError as e:
        raise UserError(f"{flag}: {e}") from e
    except Exception as e:
        reason = f"{type(e).__name__}: {str(e).strip().split(chr(10))[0]}"
        raise UserError(f"{flag}={path}: transformers cannot open it ({reason})") from e
    absent = sorted(loaded["missing_keys"])
    if kind == "AutoModel":                                         # the pooler is not used
        absent = [name for name in absent if not name.startswith("pooler")]
    if absent:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise UserError(f"{flag}={path} lacks weights of {kind}: {absent[0]}{more}")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{flag}={path}: its tokenizer has no padding token; is it the right kind of model?")
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def outputs(model, tokenizer, *texts, batch_size=64):
    """The network's output and the attention mask (B, T, 1), batch after batch. texts: one list, or two for pairs."""
    length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512), 512)
    for i in range(0, len(texts[0]), batch_size):
        part = [column[i:i + batch_size] for column in texts]
        batch = tokenizer(*part, padding=True, truncation=True, max_length=length, return_tensors="pt").to(model.device)
        yield model(**batch), batch["attention_mask"][..., None]
