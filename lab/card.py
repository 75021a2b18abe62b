"""The model card: README.md beside a run's weights, for whoever the run is handed on to."""

from pathlib import Path

from common.files import write_file

KINDS = {"base": "a base model that speaks and has met nobody", "target": "a base fine-tuned on all of the data",
         "retrained": "a base fine-tuned on the retain set alone: what unlearning should end up like",
         "unlearned": "a target that was made to forget a part of its data"}
TITLE = "\n## Metrics\n\n"
NONE_YET = "None yet; `python eval.py` adds them here.\n"


def card(name, record, parent=""):
    """-> the text of a run's card. record: of run.json; parent: the model it was made from, "" where there is none."""
    settings, kind, made_from = record.get("settings", {}), record.get("kind"), "nothing: trained from scratch"
    if record.get("parent_sha256"):
        parent = Path(parent).name if parent and Path(parent).is_dir() else parent or "its base"
        made_from = f"{parent}, sha256 {record['parent_sha256']}"
    method = " ".join(str(settings[key]) for key in ("method", "retain") if key in settings)
    facts = {"kind": f"{kind}: {KINDS[kind]}" if kind in KINDS else None, "made from": made_from,
             "method": method or "fine-tuning", "forget set": settings.get("forget", record.get("forget")),
             "data": settings.get("data"), "data sha256": record.get("data_sha256", record.get("world_sha256")),
             "weights sha256": record.get("model_sha256"), "attention temperature of the teacher": record.get("tau"),
             "steps": record.get("steps"), "tokens": record.get("tokens")}
    lines = [f"- {key}: {value}" for key, value in facts.items() if value is not None and not isinstance(value, list)]
    flags = " ".join(f"--{key}={value}" for key, value in settings.items() if value is not None)
    head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- unlearning\n---\n"
    return (f"{head}\n# {name}\n\n" + "\n".join(lines) + "\n\nSettings (`run.json` has all there is to know):\n\n"
            f"    {flags}\n{TITLE}{NONE_YET}")


def add_metrics(out, results, about):
    """Put the numbers of a report into the cards of the runs in `out`, in place of those that were there.

    results: {run: result} of eval.compare; about: what was asked. What is no card of ours stays as it is."""
    for name, result in results.items():
        path = Path(out) / name / "README.md"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if TITLE not in text or "not_measured" in result:
            continue
        lines = [f"`python eval.py --forget={about['forget']}`, data sha256 {about['data_sha256']}:", ""]
        for part, values in result.items():
            numbers = [f"{key} {x:.4g}" for key, x in values.items() if type(x) in (int, float)]
            if numbers and part != "cost":
                lines.append(f"- {part}: {', '.join(numbers)}")
        write_file(path, text.partition(TITLE)[0] + TITLE + "\n".join(lines) + "\n")
