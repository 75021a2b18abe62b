"""The command line: flags and presets, and errors for people.

A user's mistake is a UserError: one line on stderr, exit code 2, no traceback. Anything else that is raised is our bug
and shows its traceback.
"""

import argparse
import difflib
import os
import re
import sys
import time
from pathlib import Path

import torch

from common import HOME, UserError


def processes():
    """-> (number of this process, how many there are); (0, 1) unless torchrun started it."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    try:
        return tuple(int(os.environ[key]) for key in ("RANK", "WORLD_SIZE"))
    except (KeyError, ValueError) as e:
        print(f"error: LOCAL_RANK is set, as torchrun does, but RANK and WORLD_SIZE are not numbers ({e}); start it "
              "with torchrun, or unset LOCAL_RANK", file=sys.stderr)
        sys.exit(2)


def run(main):
    """Call a script's main(); turn a user's mistake, a full disk or Ctrl-C into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                  # a letter that the terminal lacks stops nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if words := mistake(e):
            sys.exit(_complain(words))
        if processes()[1] > 1:                              # lost contact? then another process has more to say
            time.sleep(20)
        raise


def mistake(e):
    """What a user is told of an exception, in one line; None where it is a bug of ours."""
    if isinstance(e, UserError):
        return one_line(e)
    if isinstance(e, OSError):
        return one_line(f"{e.strerror or e}: {e.filename or ''}".rstrip(": "))
    if isinstance(e, MemoryError) or "can't allocate memory" in str(e) or "out of memory" in str(e):
        return "there is not enough memory for this; a smaller model or --batch_size takes less"
    return None


def one_line(message):
    """A message of at most 300 letters, without what could steer a terminal: files hold anything."""
    line = " ".join(f"{message}".split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= 300 else f"{line[:200]} ... {line[-95:]}"


def _complain(message):
    if processes()[0] > 0:                                  # under torchrun the first's words will do; its end is ours
        time.sleep(10)
    print(one_line(f"{Path(sys.argv[0]).name}: error: {message}"), file=sys.stderr)
    return 2


# -------------------------------------------------------------------------------------------------- flags
class Parser(argparse.ArgumentParser):
    """argparse with the common flags, @preset files, and errors of one line that name the flag you may have meant."""

    def __init__(self, script, description, without=()):
        """script: the file's name, by which presets call it, whoever runs it. without: of the common flags, those that
        mean nothing to it."""
        super().__init__(script, description=description, allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)

        def add(flag, **kw):
            if flag[2:] not in without:
                self.add_argument(flag, **kw)
        add("--out", default="out", help="directory of all runs and reports")
        add("--seed", type=whole, default=0, help="of training: initial weights, batch order")
        add("--data", default="authors", help="a generated world (authors, books, hazards), a benchmark (tofu, "
            "muse-..., wmdp-...), or a directory with the files of one, see docs/data.md")
        add("--data_seed", type=whole, default=0, help="which fictitious authors are generated")
        add("--n_authors", type=positive_int, default=60, help="how many authors, books or substances are generated")
        add("--forget", default="forget10", help="the split to forget: forget01, forget05, forget10; of MUSE-News also "
            "scal_1, sust_1, ...")
        add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
        add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights and activations")

    def parse_args(self, argv=None):
        argv = [a for arg in (sys.argv[1:] if argv is None else argv) for a in expand_preset(arg, self.prog)]
        if empty := [arg for arg in argv if re.fullmatch(r"--\w+=\s*", arg) and arg[:-1] != "--train_flags"]:
            self.error(f"{empty[0].rstrip('= ')} is empty")
        args, unknown = self.parse_known_args(argv)
        self.given = {a.dest for a in self._actions if {arg.split("=")[0] for arg in argv} & set(a.option_strings)}
        if processes()[1] > 1 and "shard" not in args:
            self.error("this runs in one process; start it without torchrun")
        if unknown:
            known = [o for action in self._actions for o in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
            self.error(f"unknown flag {unknown[0]}" + (f"; did you mean {close[0]}?" if close else "; see --help"))
        return args

    def error(self, message):
        sys.exit(_complain(message))


def training_flags(p, batch_size_help):
    """The flags of every script that trains: batches, optimizer, memory."""
    add = p.add_argument
    add("--batch_size", type=positive_int, default=32, help=batch_size_help)
    add("--micro_batches", type=positive_int, default=1, help="parts a batch is computed in, to save memory")
    add("--phrasings", type=positive_int, help="of each question, so many of its training phrasings (default: all)")
    add("--checkpointing", action="store_true", help="compute each layer twice, not keeping its inside, to save memory")
    add("--lora", type=positive_int, help="train a change of this rank beside frozen matrices (LoRA), to save memory")
    add("--optimizer_dtype", choices=["float32", "bfloat16"], default="float32", help="of AdamW's state; float32 "
        "beside bfloat16 weights keeps a float32 copy of them, bfloat16 loses steps that are small beside the weight")
    add("--weight_decay", type=non_negative_float, default=0.01)
    add("--grad_clip", type=positive_float, default=1.0)
    add("--resume", action="store_true", help="go on where an interrupted run stopped; what is finished is kept")
    add("--overwrite", action="store_true", help="replace a finished run that has other settings")
    add("--shard", action="store_true", help="under torchrun: divide weights and optimizer state between processes")
    add("--plan", action="store_true", help="only say what memory the run would take, by component")


def model_flags(p):
    """The flags of every script that reads models of other people."""
    p.add_argument("--template", help="how models are asked, in place of their own chat template: plain, chatml, "
                   "llama2, llama3, mistral, mistral_v3")
    p.add_argument("--tokenizer", help="directory or hub id with the tokenizer of models that come without one")


def settings(args, *others):
    """The flags that a run's result depends on -> dict. others: more flags that do not count."""
    no_settings = "resume", "overwrite", "plan", "out", "device", "shard", *others
    return {k: v for k, v in vars(args).items() if k not in no_settings}


def differences(before, settings):
    """Two dicts of settings -> ["lr was 0.1, is 0.2", ...], of the settings that are asked for now."""
    changed = []
    for key, now in settings.items():
        pair = before.get(key), now
        if pair[0] != now:                                  # eight letters of a hash say that it is another
            was, now = (str(value)[:8] if key.endswith("_sha256") else value for value in pair)
            changed.append(f"{key} was {was}, is {now}")
    return changed


WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")       # quotes hold a word with blanks together


def expand_preset(arg, script):
    """"@config/tiny.args" -> its flags. `asu.py --epochs=2` is for asu.py alone.

    As in a shell: a flag is --flag=value, --flag value or --flag; a value with blanks stands in quotes; # begins a
    comment at the start of a line or after a blank. Raises UserError with file and line for anything else."""
    if not arg.startswith("@"):
        return [arg]
    path = next((p for p in (Path(arg[1:]), HOME / arg[1:]) if p.is_file()), None)
    if path is None:
        raise UserError(f"no preset file {arg[1:]} here or in {HOME}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is no preset file: it is not text") from e
    scripts = {file.name for folder in (HOME, HOME / "experiments") for file in folder.glob("*.py")}
    flags = []
    for n, line in enumerate(lines, 1):
        words = split_line(line, f"{path}, line {n}")
        if words and not words[0].startswith("-"):
            only = words.pop(0)
            if only not in scripts:
                raise UserError(f"{path}, line {n}: {only} is neither a flag nor a script; a value with blanks needs "
                                "quotes, and a comment a #")
            if not words:
                raise UserError(f"{path}, line {n}: no flag after {only}")
            words = words if only == script else []
        if bad := [word for word in words if not re.fullmatch(r"--\w+(=.*)?", word, re.S)]:
            raise UserError(f"{path}, line {n}: {bad[0]} is not a flag; --flag=value is one")
        flags += words
    return flags


def split_line(line, where):
    """'asu.py --lr 1e-4 --out="my runs"  # why' -> ["asu.py", "--lr=1e-4", "--out=my runs"]"""
    words, position = [], 0
    while position < len(line):
        if line[position].isspace():
            position += 1
            continue
        if line[position] == "#":
            break
        match = WORD.match(line, position)
        if not match or line[match.end():match.end() + 1].strip():
            raise UserError(f"{where}: a quotation mark is open: {line.strip()}")
        position = match.end()
        word = re.sub(r"""(["'])(.*?)\1""", r"\2", match[0])
        if word.startswith("--") or not words:
            words.append(word)
        elif words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            raise UserError(f"{where}: {word} is not a flag; a value with blanks needs quotes")
    return words


def number(kind, low, high, what, zero=False):
    """An argparse type: a number from low to high in digits 0 to 9; with zero, 0 as well."""
    def parse(text):
        try:
            value = kind(text)                              # which takes blanks and 1_0 too
            plain = re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", text, re.I)
            if plain and (low <= value <= high or zero and value == 0):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not {what}")
    return parse


def shortened(text):
    """What a message quotes: 40 letters say which it is."""
    return text if len(text) <= 40 else f"{text[:37]}..."


SMALL, LARGE = 1e-12, 1e12      # what float32 can still divide and multiply by
whole = number(int, 0, 2**32, "a whole number from 0 on, up to 2^32")
positive_int = number(int, 1, 2**31, "a whole number of at least 1, up to 2^31")
size = number(int, 1, 2**13, "a whole number from 1 to 8192")        # of a model from scratch
positive_float = number(float, SMALL, LARGE, f"a number above 0 ({SMALL:g} to {LARGE:g})")
non_negative_float = number(float, SMALL, LARGE, f"a number of at least 0 (0, or {SMALL:g} to {LARGE:g})", zero=True)
fraction = number(float, 0, 1, "a number from 0 to 1")


LAYERS = r"#(-#?)?(,#(-#?)?)*".replace("#", "(?:[0-9]{1,4})")


def layer_list(text):
    """An argparse type: "all", or layers such as "0,1", "6-8", "1-" (from 1 to the last). -> the text, see
    layer_numbers."""
    if text != "all" and not re.fullmatch(LAYERS, text):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a list of layers such as 0,1 or 6-8 or 1-, nor all")
    return text


def layer_numbers(text, n_layer):
    """layer_numbers("0,2-", 5) -> [0, 2, 3, 4]; "all" -> None."""
    if text == "all":
        return None
    ends = [part.split("-") for part in text.split(",")]
    return [i for end in ends for i in range(int(end[0]), int(end[-1] or n_layer - 1) + 1)]


def pick_device(args):
    """-> (torch.device, torch.dtype). "auto" takes a GPU, else Apple's, else the CPU."""
    name = args.device
    if getattr(args, "optimizer_dtype", "float32") == "bfloat16" != args.dtype:
        raise UserError(f"--optimizer_dtype=bfloat16 goes with --dtype=bfloat16, not {args.dtype}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()                # meta holds no number
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UserError(f"--device={args.device} is not usable here; --device=auto picks what is") from e
    return device, getattr(torch, args.dtype)
