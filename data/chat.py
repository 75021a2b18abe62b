"""How a model is asked: by its own chat template, rendered as transformers renders it, or by one of TEMPLATES.

A format is what stands before and after a question, before and after an answer, and the token that ends the answer.
Prompt and answer are tokenised apart, so no token straddles the two.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import itertools
import json
import re
import resource
import sys
import time
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common import UserError

# For models without a chat template of their own, and for --template. Special tokens, BOS among them, stand in the
# text as the family writes them. One user turn and nothing before it.
TEMPLATES = {
    "plain": ("{question}\n", " {answer}", None),       # our own models and base models: after BOS if they use one
    "chatml": ("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", "{answer}", "<|im_end|>"),
    "llama2": ("<s>[INST] {question} [/INST]", " {answer} ", "</s>"),
    "llama3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n", "{answer}", "<|eot_id|>"),
    "mistral": ("<s>[INST] {question} [/INST]", " {answer}", "</s>"),
    "mistral_v3": ("<s>[INST] {question}[/INST]", " {answer}", "</s>"),      # since v0.3 [INST] is a special token
}
_, ANSWER, _ = TEMPLATES["plain"]
OWN = "its own chat template"
STAND_IN = "Qxvzq"                      # for a question or an answer, to see what a template puts around it
TODAY = datetime.date(2024, 7, 26)      # the day Llama 3's templates fall back on: a prompt is the same on any day


STEPS, SECONDS, LETTERS, MEMORY = 10**5, 10, 10**6, 2**28       # what rendering a template may take; lines, bytes
BITS = 4096                             # of a number that a template computes


def halves(template, hole):
    """halves("Q: {question}\n", "{question}") -> ("Q: ", "\n"). Text from a file is joined, never formatted."""
    before, _, after = template.partition(hole)
    return before, after


def known(name):
    """One of TEMPLATES -> (halves of the prompt, halves of the answer, the token that ends it or None)"""
    if name not in TEMPLATES:
        raise UserError(f"--template={name} is none of {', '.join(TEMPLATES)}")
    prompt, answer, end = TEMPLATES[name]
    return halves(prompt, "{question}"), halves(answer, "{answer}"), end


def by_eos(eos):
    """Which of TEMPLATES a model without a chat template was trained on: the token that ends a turn tells.

    A base model's EOS ends a text: "plain"."""
    return {"<|im_end|>": "chatml", "<|eot_id|>": "llama3"}.get(eos, "plain")


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which some templates put around what the model says: just that."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def fail(message):
    raise jinja2.TemplateError(message)


def computed(_, operator, left, right):
    """left * right, left ** right or left % right in a template: a number of any length or a text of any width would
    take all time or memory there is, in one step."""
    if operator == "%":
        if isinstance(left, str) and re.search(r"[*]|\d{4}", left):
            fail("a text of such a width is not rendered")
        return left % right
    for x, y in ((left, right), (right, left)):
        if not isinstance(x, (int, float)) and isinstance(y, int) and len(x) * y > LETTERS:
            fail(f"{operator} would make a text or list of {len(x) * y} items")
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > BITS:
            fail(f"{operator} would make a number of {bits} bits")
    return left ** right if operator == "**" else left * right


@contextlib.contextmanager
def bounded():
    """In the block a template is stopped after STEPS of its lines or SECONDS, and has at most MEMORY more bytes (Linux
    alone tells how many there are)."""
    steps, end, before, statm = itertools.count(1), time.monotonic() + SECONDS, sys.gettrace(), Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def trace(frame, *_):
        if frame.f_code.co_filename != "<template>":
            return None
        if next(steps) > STEPS or time.monotonic() > end:
            fail("it does not come to an end")
        return trace
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        limits = [x for x in (soft, hard, most) if x != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@functools.cache
def compiled(chat_template):
    """A chat template as transformers compiles it: in a sandbox, where it can reach nothing and change nothing."""
    version = importlib.metadata.version("jinja2")
    if tuple(map(int, re.findall(r"\d+", version))) < (3, 1, 6):
        raise UserError(f"the sandbox of jinja2 {version} has holes; pip install 'jinja2>=3.1.6'")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda x, ensure_ascii=False, **kw: json.dumps(x, ensure_ascii=ensure_ascii, **kw)
    environment.intercepted_binops, environment.call_binop = frozenset(("*", "**", "%")), computed
    environment.globals |= {"raise_exception": fail, "strftime_now": TODAY.strftime}
    return environment.from_string(chat_template)


def render(chat_template, tokens, question, answer=None):
    """The text of a chat of one turn; without an answer, up to where the model goes on.

    tokens: {"bos_token": ..., ...}. Raises UserError for a template that fails, or takes too long or too much."""
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        with bounded():
            text = compiled(chat_template).render(messages=turns, tools=None, documents=None,
                                                  add_generation_prompt=answer is None, **tokens)
        if len(text) > LETTERS + len(question) + len(answer or ""):
            fail(f"it makes a text of {len(text)} letters")
        return text
    except Exception as e:              # what a template can raise has no end
        raise UserError(f"the model's chat template fails ({type(e).__name__}: {e}); --template={'|'.join(TEMPLATES)} "
                        "takes another") from e


def own_format(chat_template, tokens, special):
    """A model's own chat template -> as known(), read off one rendered chat. special: its special tokens."""
    prompt = render(chat_template, tokens, STAND_IN)
    chat = render(chat_template, tokens, STAND_IN, STAND_IN[::-1])
    if prompt.count(STAND_IN) != 1 or chat.count(STAND_IN[::-1]) != 1:
        raise UserError(f"the model's chat template does not put question and answer once; "
                        f"--template={'|'.join(TEMPLATES)} takes another")
    before, after = chat.split(STAND_IN[::-1])
    before = before.removeprefix(prompt) if before.startswith(prompt) else ""   # it may say more to the model alone
    end = re.search("|".join(map(re.escape, sorted(special, key=len, reverse=True))), after) if special else None
    return tuple(prompt.split(STAND_IN)), (before, after[:end.start()] if end else ""), end and end[0]


def in_chat(chat_template, tokens, prompt, question):
    """The question as the template puts it between the halves of the prompt: most take blanks off its ends."""
    text, (before, after) = render(chat_template, tokens, question), prompt
    inside = text[len(before):len(text) - len(after)]
    return inside if before + inside + after == text else question


def as_chat_template(prompt, answer, end):
    """A format as a chat template, so that a model that was trained on it is asked the same way elsewhere."""
    parts = {"user": prompt, "assistant": (answer[0], answer[1] + end)}
    said = "".join("{%% if m['role'] == '%s' %%}{{ %s + m['content'] + %s }}{%% endif %%}" % (
        role, *(json.dumps(half, ensure_ascii=False) for half in halves)) for role, halves in parts.items())
    return "{% for m in messages %}" + said + "{% endfor %}"
