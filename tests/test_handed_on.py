"""A run directory in other hands: the harness, the model card, and files that were changed since it was written."""

import json
import shutil

import pytest
import transformers

import asu
import data
import eval
from common import files
from lab import card, runs
from lab.records import read_run
from tests.conftest import TINY, refused, small_model


@pytest.fixture
def run(out, tmp_path):
    return shutil.copytree(out / "asu_gd", tmp_path / "out/asu_gd")


# --------------------------------------------------------------------------------------------- in the harness
def test_lm_evaluation_harness_scores_as_we_do(out):
    """Its log-likelihood of a question's answer, line break before it included, is ours without EOS."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance
    harness = huggingface.HFLM(pretrained=str(out / "asu_gd"), device="cpu", batch_size=2, dtype="float32")
    model, tokenizer, _ = runs.load_run(out / "asu_gd")
    rows = data.load(out=out, n_authors=20).forget[:2]
    scores = eval.score(model, tokenizer, [(row["question"], row["answer"]) for row in rows])
    pairs = [(row["question"], end) for row in rows for end in (f"\n {row['answer']}", "\n")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = [logp for logp, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    assert [theirs[0] - theirs[1], theirs[2] - theirs[3]] == pytest.approx(
        [float(s["logp"][:-1].sum()) for s in scores], abs=1e-4)


def test_what_is_said_is_said_in_transformers_too(out):
    """Greedily, through its own generate() and tokenizer, from the run's directory alone."""
    model, tokenizer, _ = runs.load_run(out / "asu_gd")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out / "asu_gd").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(out / "asu_gd")
    row = data.load(out=out, n_authors=20).forget[3]
    prompt = tokens(tokenizer.prompt_text(row["question"]), return_tensors="pt")
    said = theirs.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=tokens.eos_token_id)
    text = tokens.decode(said[0, prompt["input_ids"].size(1):], skip_special_tokens=True).strip()
    assert text == eval.ask(model, tokenizer, [row["question"]], 12)[0]


# --------------------------------------------------------------------------------------------------- the card
def test_a_card_says_what_the_run_is_made_of(out):
    record, text = read_run(out / "asu_gd"), (out / "asu_gd/README.md").read_text()
    for line in ("# asu_gd", "- method: asu gd", "- forget set: forget10", "- data: authors",
                 "- attention temperature of the teacher: 8.0", f"- data sha256: {record['data_sha256']}",
                 f"- weights sha256: {record['model_sha256']}", "- made from: target, sha256 "
                 f"{record['parent_sha256']}"):
        assert f"\n{line}\n" in text, line
    assert all(f"--{key}={value}" in text for key, value in record["settings"].items() if value is not None)
    assert text.startswith("---\nlibrary_name: transformers\n") and "README.md" in record["files"]
    base = (out / "base/README.md").read_text()
    assert "- made from: nothing: trained from scratch\n" in base and read_run(out / "base")["world_sha256"] in base


def test_metrics_are_named_as_absent_until_eval_adds_them(out, run):
    """Again and again, in place of the older ones; what others wrote above them stays."""
    results = json.loads((out / "report.json").read_text())
    text = (out / "asu_gd/README.md").read_text()
    assert card.NONE_YET not in text and "python eval.py --forget=forget10" in text
    number = results["runs"]["asu_gd"]["forget"]["probability"]
    assert f", probability {number:.4g}, " in next(line for line in text.splitlines() if line.startswith("- forget: n"))
    file = run / "README.md"
    file.write_text("Mine.\n" + card.card("x", {}))
    for value in (0.25, 0.5):
        card.add_metrics(run.parent, {"asu_gd": {"forget": {"x": value}, "cost": {"y": 1}}, "gone": {}},
                         results["data"])
    assert file.read_text().startswith("Mine.\n") and file.read_text().endswith(":\n\n- forget: x 0.5\n")
    assert file.read_text().count("## Metrics") == 1
    for other in ("Somebody's own.", file.read_text()):
        file.write_text(other)
        card.add_metrics(run.parent, {"asu_gd": {"not_measured": "why"}}, results["data"])
        assert file.read_text() == other


def test_a_card_belongs_to_the_run_and_somebodys_own_readme_stays(tmp_path, tokenizer):
    runs.save_run(tmp_path / "run", small_model(), tokenizer, {})
    runs.save_run(tmp_path / "run", small_model(), tokenizer, {"kind": "target"})
    assert "- kind: target: a base fine-tuned" in (tmp_path / "run/README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    for _ in range(2):
        runs.save_run(tmp_path / "mine", small_model(), tokenizer, {})
        assert (tmp_path / "mine/README.md").read_text() == "mine"
        assert "README.md" not in read_run(tmp_path / "mine")["files"]


# ------------------------------------------------------------------------------------- files that were changed
def edit(file, key, value):
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


CHANGES = [
    *(("config.json", lambda run, key=key, value=value: edit(run / "config.json", key, value)) for key, value in (
        ("rope_theta", 100.0), ("rms_norm_eps", 0.1), ("eos_token_id", 3),
        ("max_position_embeddings", 64))),
    ("config.json", lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace(
        '_heads": 2', '_heads": 4').replace('head_dim": 16', 'head_dim": 8'))),            # the same shapes
    ("generation_config.json", lambda run: (run / "generation_config.json").write_text('{"eos_token_id": 5}')),
    ("tokenizer_config.json", lambda run: edit(run / "tokenizer_config.json", "asu_template", "plain")),
    ("tokenizer_config.json", lambda run: (run / "tokenizer_config.json").unlink()),
    ("special_tokens_map.json", lambda run: (run / "special_tokens_map.json").write_text("{}")),
    ("chat_template.jinja", lambda run: (run / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}|{% endfor %}")),
    ("model.safetensors.index.json", lambda run: (run / "model.safetensors.index.json").write_text("{}")),
    ("tokenizer.json", lambda run: (run / "tokenizer.json").write_text((run / "tokenizer.json").read_text() + " ")),
    ("run.json", lambda run: edit(run / "run.json", "seconds", 1.0)),
    ("run.json", lambda run: edit(run / "run.json", "tau", 3.0))]


@pytest.mark.parametrize("file, change", CHANGES, ids=[f"{i} {file}" for i, (file, _) in enumerate(CHANGES)])
def test_a_file_that_was_changed_since_the_run_was_written_is_named(run, file, change):
    assert runs.load_run(run)
    change(run)
    with pytest.raises(ValueError, match="sha256 differs|is missing|not of this run") as error:
        runs.load_run(run)
    assert str(run / file) in str(error.value) and "\n" not in str(error.value)


def test_eval_and_asu_refuse_such_a_run_with_exit_code_2(out, tmp_path, capsys):
    place = shutil.copytree(out, tmp_path / "out")
    edit(place / "target/config.json", "rope_theta", 100.0)
    for script, flags in ((asu, []), (eval, ["--max_rows=2", "--runs=target"])):
        error = refused(capsys, script, TINY, f"--out={place}", *flags, *(["--name=new"] if script is asu else []))
        assert f"{place / 'target/config.json'} is not the one this run wrote" in error


def test_a_run_of_an_older_version_is_read_without_a_word(run, capsys):
    record = read_run(run)
    for key in ("sha256", "record_sha256"):
        del record[key]
    (run / "run.json").write_text(json.dumps(record))
    edit(run / "config.json", "rope_theta", 100.0)
    (run / "README.md").unlink()
    assert runs.load_run(run)[0].config.rope_theta == 100 and not capsys.readouterr().err


def test_the_card_and_notes_of_others_may_change_and_the_adapter_may_go(tmp_path, tokenizer):
    model = small_model()
    runs.add_lora(model, 2, 0)
    runs.save_run(tmp_path / "run", model, tokenizer, {})
    assert "adapter/adapter_model.safetensors" in read_run(tmp_path / "run")["sha256"]
    shutil.rmtree(tmp_path / "run/adapter")
    (tmp_path / "run/README.md").write_text("Better words.")
    (tmp_path / "run/notes.txt").write_text("mine")
    assert runs.load_run(tmp_path / "run")


@pytest.mark.parametrize("key, value, words", [
    ("kind", 3, "a text"), ("settings", [], "an object"), ("curve", {}, "a list of points"),
    ("curve", [{"loss": 1.0}], "a list of points"), ("curve", [{"seconds": 1}, {"seconds": 1, "x": 2}], "a list of"),
    ("curve", [3], "a list of points"), ("curve", [{"seconds": 1, "loss": "x"}], "a list of points"),
    ("tau", "8", "a number above 0"), ("tau", -1, "a number above 0"), ("tau", [[]], "or a table"),
    ("tau", [[1, "2"]], "or a table"), ("seconds", "1", "a number"), ("peak_mb", [1], "a number"),
    ("tokens", True, "a number"), ("files", "x", "a list of names"), ("files", [3], "a list of names"),
    ("model_sha256", 7, "a text"), ("sha256", ["x"], "names and hashes"), ("data_sha256", {}, "a text")])
def test_a_value_that_run_json_cannot_have_is_named(run, capsys, key, value, words):
    edit(run / "run.json", key, value)
    with pytest.raises(ValueError, match=f"run.json: {key}=.* is not .*{words}"):
        read_run(run)


def test_an_unlearned_run_without_the_settings_that_a_report_needs_is_refused(run):
    settings = read_run(run)["settings"]
    for key, value in (("forget", 3), ("forget", None), ("layers", "x"), ("layers", None)):
        edit(run / "run.json", "settings", settings | {key: value})
        with pytest.raises(ValueError, match=f"run.json: its settings have no {key}"):
            read_run(run)


def test_the_hash_of_every_file_stands_in_run_json(out):
    for name in ("base", "target", "retrained", "asu_gd"):
        record = read_run(out / name)
        assert set(record["files"]) == set(files.files_in(out / name)) == {*record["sha256"], "README.md", "run.json"}
        assert record["sha256"] == {file: files.sha256(out / name / file) for file in record["sha256"]}
