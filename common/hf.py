"""HF's file format: config.json and safetensors, and where a model's directory is found."""

import contextlib
import functools
import logging
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from common import UserError
from common.files import check_file, read_json


def as_list(ids):
    """None, an id or a list of ids, as HF writes EOS -> a list of ids"""
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


@functools.cache
def say(line):
    """Print a line about a model once, however often the model is read."""
    print(line, flush=True)


@contextlib.contextmanager
def quiet():
    """No log lines of the hub's libraries in the block: what went wrong there is one line of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


INDEX = "model.safetensors.index.json"
# Beside its weights, all that is read of a model, here or by transformers (lab/judges.py): what a hub is asked for.
AROUND = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "chat_template.jinja", "run.json", INDEX)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HF_KEYS = {"vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
           "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads", "n_embd": "hidden_size",
           "n_hidden": "intermediate_size", "head_dim": "head_dim", "norm_eps": "rms_norm_eps",
           "tie_weights": "tie_word_embeddings", "bos_id": "bos_token_id", "eos_id": "eos_token_id",
           "rope_theta": "rope_theta", "rope_scaling": "rope_scaling", "model_type": "model_type"}
COUNTS = ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "head_dim")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# What transformers' config classes assume of a key that config.json leaves out.
DEFAULTS = {"all": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False},
            "llama": {"max_position_embeddings": 2048},
            "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
            "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False}}
ROPE_NUMBERS = {"linear": ["factor"],
                "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]}


def to_hf(c):
    """ModelConfig -> the dict of an HF config.json, which transformers 4 reads as well as 5."""
    biases = {"llama": (c.o_bias, c.o_bias), "mistral": (False, False), "qwen2": (True, False)}[c.model_type]
    if (c.qkv_bias, c.o_bias) != biases:
        raise UserError(f"qkv_bias={c.qkv_bias}, o_bias={c.o_bias}: HF's {c.model_type} has no such model")
    hf = {theirs: getattr(c, ours) for ours, theirs in HF_KEYS.items()}
    hf |= {"architectures": [ARCHITECTURES[c.model_type]], "hidden_act": "silu", "sliding_window": None}
    if c.model_type == "llama":
        hf |= {"attention_bias": c.o_bias, "mlp_bias": False}
    return hf


# What the values of config.json may be. Checked before anything is built from them: no size in a file is believed.
LARGEST = {"vocab_size": 10**8, "max_position_embeddings": 10**9, "num_hidden_layers": 1000,
           "num_attention_heads": 10**4, "num_key_value_heads": 10**4, "hidden_size": 10**6, "intermediate_size": 10**7,
           "head_dim": 10**4, "sliding_window": 10**9}
FLAGS = "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"
TEXTS = "model_type", "hidden_act"
NUMBERS = "rms_norm_eps", "rope_theta"
DICTS = "rope_scaling", "rope_parameters"
IDS = "bos_token_id", "eos_token_id"


def is_number(x):
    return type(x) in (int, float) and 0 < x < 1e30


def check(hf, where):
    """Raises UserError, naming the key, for a value in the dict of a config.json that is of another kind or size."""
    for key, value in hf.items():
        if largest := LARGEST.get(key):
            good = value is None or type(value) is int and 0 < value <= largest
            words = f"not a whole number from 1 to {largest}"
        elif key in FLAGS:
            good, words = value is None or type(value) is bool, "neither true nor false"
        elif key in TEXTS:
            good, words = type(value) is str, "not a text"
        elif key in NUMBERS:
            good, words = is_number(value), "not a number above 0"
        elif key in DICTS:
            good, words = value is None or type(value) is dict, "not a dict of numbers"
        elif key in IDS:                                    # some write -1 where there is none
            good = all(type(i) is int and -1 <= i < 2**31 for i in as_list(value))
            words = "neither an id nor a list of ids"
        else:
            continue
        if not good:
            raise UserError(f"{where}: {key}={repr(value)[:60]} is {words}")


def from_hf(hf, where):
    """The dict of an HF config.json -> keywords of model.ModelConfig. where: the file, for messages.

    Rotary settings stand in `rope_scaling` and `rope_theta`, or in one dict `rope_parameters` (transformers 5). Raises
    UserError by name for what would change the mathematics, is missing, or of another kind or size than it can be.
    """
    check(hf, where)
    hf = DEFAULTS["all"] | DEFAULTS.get(hf.get("model_type"), {}) | hf
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        "model_type": hf.get("model_type") not in ARCHITECTURES,
        "hidden_act": hf.get("hidden_act", "silu") != "silu",
        "rope_scaling": rope_type not in ["default", *ROPE_NUMBERS] or dict in map(type, rope.values()),
        "partial_rotary_factor": rope.get("partial_rotary_factor", hf.get("partial_rotary_factor") or 1) != 1,
        "mlp_bias": bool(hf.get("mlp_bias")),
        "quantization_config": bool(hf.get("quantization_config")),
    }
    for key, bad in refused.items():
        if bad:
            raise UserError(f"{where}: {key}={str(hf.get(key) or rope)[:100]} is not supported; it would change the "
                            "model's mathematics")
    values = {ours: hf[theirs] for ours, theirs in HF_KEYS.items() if hf.get(theirs) is not None}
    values["rope_theta"] = rope.get("rope_theta", hf["rope_theta"])
    values["rope_scaling"] = None
    if rope_type in ROPE_NUMBERS:
        values["rope_scaling"] = {"rope_type": rope_type} | {key: rope.get(key) for key in ROPE_NUMBERS[rope_type]}
    values["tie_weights"] = bool(hf["tie_word_embeddings"])
    values.setdefault("n_kv_head", values.get("n_head"))
    missing = [HF_KEYS[k] for k in COUNTS if k != "head_dim" and values.get(k) is None]
    if missing:
        raise UserError(f"{where}: no {', '.join(missing)}")
    for key, x in ({"rope_theta": values["rope_theta"]} | (values["rope_scaling"] or {})).items():
        if key != "rope_type" and not is_number(x):
            raise UserError(f"{where}: {key}={repr(x)[:60]} is not a number above 0")
    window = hf.get("sliding_window") if hf.get("use_sliding_window", True) else None
    if window and window < values["block_size"]:            # within its window a model attends to everything
        say(f"{where}: it attends within a window of {window} tokens, so the context is cut from "
            f"{values['block_size']} to {window}")
        values["block_size"] = window
    bias = bool(hf.get("attention_bias")) and hf["model_type"] == "llama"
    return {"qkv_bias": bias or hf["model_type"] == "qwen2", "o_bias": bias, **values}


def local_dir(dir_or_hub_id, weights=True):
    """A directory as it is; a hub id ("owner/name") is downloaded, or found in the hub's cache. -> Path

    weights=False: only the files around them. Raises UserError for what is neither."""
    path = Path(dir_or_hub_id)
    if path.is_dir():
        if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
            raise UserError(f"{path} is a LoRA adapter, not a model; asu.py and train.py write it into the merged "
                            "model's directory")
        return path
    if str(dir_or_hub_id).count("/") != 1 or path.parent.is_dir():
        raise UserError(f"{dir_or_hub_id} is not a model directory")
    from huggingface_hub import snapshot_download
    try:
        with quiet():
            path = Path(snapshot_download(str(dir_or_hub_id), allow_patterns=list(AROUND)))
            return Path(snapshot_download(str(dir_or_hub_id), allow_patterns=sorted(shards(path)))) if weights else path
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{dir_or_hub_id} is no directory and could not be had from the hub "
                        f"({type(e).__name__})") from e


def shards(dir):
    """The files that hold a model's weights, by its index if it has one -> {file: tensors that the index names}"""
    index = dir / INDEX
    if not index.exists() or (dir / "model.safetensors").exists():
        return {"model.safetensors": set()}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(
            isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) for file in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensors to files beside it")
    files = {file: set() for file in sorted(weight_map.values())}
    for name, file in weight_map.items():
        files[file].add(name)
    return files


def read_weights(dir, device):
    """The tensors of model.safetensors, or of the shards its index names -> {name without HF's "model.": tensor}

    Raises UserError naming the file that is missing, truncated or not what the index says."""
    state = {}
    for file, names in shards(dir).items():
        check_file(dir / file)
        if not (dir / file).exists():
            raise UserError(f"{dir / file} is missing; only safetensors weights are read")
        try:
            with safe_open(dir / file, "pt", device=str(device)) as f:
                if lost := names - set(f.keys()):
                    raise UserError(f"{dir / file} has no tensor {min(lost)}, which {INDEX} says it has")
                state |= {k.removeprefix("model."): f.get_tensor(k) for k in f.keys() if "rotary_emb" not in k}
        except (SafetensorError, OSError) as e:
            raise UserError(f"{dir / file} is truncated or not a safetensors file ({e})") from e
    return state
