"""The Llama-family transformer, with one thing added: the temperature tau of its attention softmax.

RMSNorm, rotary positions, SwiGLU, grouped-query attention, tied or untied head, optional attention biases. Module names
are HF's, so a state dict is an HF checkpoint. This file knows nothing of unlearning.

Shapes: B batch, T time, S time of the keys, C = n_embd, nh heads, nkv key/value heads, hs = head_dim (C / nh where the
config does not say), V vocabulary.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

from common import UserError
from common.files import read_json, write_file
from common.hf import DTYPES, as_list, from_hf, local_dir, read_weights, say, to_hf


@dataclass
class ModelConfig:
    vocab_size: int = 1536
    block_size: int = 128           # longest sequence, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4
    n_embd: int = 128
    n_hidden: int = 384             # width of the SwiGLU
    head_dim: int = 0               # 0: n_embd / n_head
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None    # HF's: {"rope_type": "llama3", "factor": ..., ...}, see rope_frequencies
    norm_eps: float = 1e-5
    tie_weights: bool = True
    qkv_bias: bool = False          # Qwen2
    o_bias: bool = False            # beside qkv_bias: what Llama's attention_bias means
    init_std: float = 0.06          # of new weights; GPT-2's 0.02 suits widths of 768 and learns slowly at 128
    bos_id: int | None = None
    eos_id: int | list | None = None    # a list: any of them ends a text (Llama 3)
    model_type: str = "llama"       # what HF calls it: llama, mistral, qwen2

    def __post_init__(self):
        if not self.head_dim and self.n_embd % (2 * self.n_head):
            raise UserError(f"n_embd={self.n_embd} does not divide into {self.n_head} heads of even size")
        if self.n_head % self.n_kv_head:
            raise UserError(f"{self.n_head} heads cannot share {self.n_kv_head} key/value heads evenly")
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} is odd; rotary positions turn pairs")

    @property
    def eos_ids(self):
        return as_list(self.eos_id)


# ---------------------------------------------------------------------------------------------- attention
def attention_scales(tau, layers, n_layer, n_head, hs):
    """Where the temperature acts: softmax(q k^T / (tau sqrt(hs))). -> per layer, a number or a tensor that multiplies
    scores (B, nh, T, S): (nh, 1, 1) or (B, 1, 1, 1).

    tau: a number, n_layer x n_head numbers, or B numbers, one for each sequence of a batch. layers: the layers it
    applies to, None for all; the others stay at 1.
    Raises ValueError for a tau that is not above 0, a wrong shape, or layers that are empty or out of range.
    """
    taus = torch.as_tensor(tau, dtype=torch.float64)
    if taus.dim() != 1 and taus.shape not in ((), (n_layer, n_head)):
        raise UserError(f"tau has shape {tuple(taus.shape)}; a number, {n_layer} layers x {n_head} heads, or a number "
                        "for each sequence is needed")
    if not (taus > 0).all():
        raise UserError(f"tau={tau} must be above 0; 1 leaves the attention as it is")
    if layers is not None and not all(0 <= i < n_layer for i in layers):
        raise UserError(f"layers={list(layers)} out of range: the model has layers 0 to {n_layer - 1}")
    if layers is not None and not len(layers):
        raise UserError("layers is empty; leave it out to smooth all layers")
    smoothed = range(n_layer) if layers is None else layers
    per_layer = [(taus[i] if taus.dim() == 2 else taus) if i in smoothed else torch.ones(()) for i in range(n_layer)]
    scale = [1 / (tau * math.sqrt(hs)) for tau in per_layer]
    shape = (-1, 1, 1, 1) if taus.dim() == 1 else (-1, 1, 1)
    return [s.float().view(shape) if s.dim() else s.item() for s in scale]


def attend(q, k, v, scale, mask=None, explicit=False):
    """softmax(scale * q k^T + mask) v -> ((B, nh, T, hs), weights (B, nh, T, S) or None).

    q (B, nh, T, hs); k, v (B, nkv, S, hs). scale: a number, (nh, 1, 1) or (B, 1, 1, 1). mask: True where a query may
    look, broadcast to (B, nh, T, S); None is causal. The explicit path is the formula, the other is PyTorch's fused
    kernel: same result.
    """
    shared = q.size(1) // k.size(1)                         # query heads to each key/value head
    if shared > 1 and (explicit or not q.is_cpu):           # the CPU's fused kernel shares them itself
        k, v = (a.repeat_interleave(shared, 1) for a in (k, v))
    if not explicit:
        if torch.is_tensor(scale):
            q, scale = q * scale.to(q), 1.0
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale,
                                              enable_gqa=k.size(1) != q.size(1)), None
    if mask is None:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-2, -1) * (scale.to(q) if torch.is_tensor(scale) else scale)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return weights @ v, weights


def rotate(x, cos, sin):
    """Rotary position embedding, halves rotated against each other as HF stores them. x (B, nh, T, hs)."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)


def rope_frequencies(c, device=None):
    """Radians each pair of a head turns from one position to the next -> (hs/2,), float32.

    rope_scaling stretches positions to reach past the length of pre-training: "linear" all alike (arXiv 2306.15595);
    "llama3" (Llama 3.1) only pairs that turn fewer than low_freq_factor times in the original context, keeps those that
    turn more than high_freq_factor times, and blends in between.
    """
    frequency = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, device=device).float() / c.head_dim)
    if c.rope_scaling is None:
        return frequency
    keep, s = 0.0, c.rope_scaling
    if s["rope_type"] == "llama3":
        turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
        keep = ((turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])).clamp(0, 1)
    return frequency * (keep + (1 - keep) / s["factor"])


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = c.n_head, c.n_kv_head, c.head_dim
        self.q_proj = nn.Linear(c.n_embd, c.n_head * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.n_embd, c.n_kv_head * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.n_embd, c.n_kv_head * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.n_head * c.head_dim, c.n_embd, bias=c.o_bias)

    def forward(self, x, rope, scale, mask, cache, explicit):
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, self.n_head, -1).transpose(1, 2), *rope)       # (B, nh, T, hs)
        k = rotate(self.k_proj(x).view(B, T, self.n_kv_head, -1).transpose(1, 2), *rope)    # (B, nkv, T, hs)
        v = self.v_proj(x).view(B, T, self.n_kv_head, -1).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)                                                       # (B, nkv, S, hs)
        y, weights = attend(q, k, v, scale, mask, explicit)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1)), weights


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.n_embd, c.n_hidden, bias=False)
        self.up_proj = nn.Linear(c.n_embd, c.n_hidden, bias=False)
        self.down_proj = nn.Linear(c.n_hidden, c.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(c.n_embd)), c.norm_eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(c), Attention(c)
        self.post_attention_layernorm, self.mlp = RMSNorm(c), MLP(c)

    def forward(self, x, *args):
        y, weights = self.self_attn(self.input_layernorm(x), *args)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class KVCache:
    """Keys and values of one layer, room for S positions made at once."""

    def __init__(self, B, n_kv_head, S, head_dim, like):
        self.k = like.new_empty(B, n_kv_head, S, head_dim)
        self.v = torch.empty_like(self.k)
        self.used = 0

    def append(self, k, v):
        start, self.used = self.used, self.used + k.size(2)
        self.k[:, :, start:self.used], self.v[:, :, start:self.used] = k, v
        return self.k[:, :, :self.used], self.v[:, :, :self.used]


# -------------------------------------------------------------------------------------------- transformer
class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.checkpointing = False          # keep each layer's input alone; the backward pass computes its inside again
        self.embed_tokens = nn.Embedding(c.vocab_size, c.n_embd)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = RMSNorm(c)
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        if c.tie_weights:
            self.lm_head.weight = self.embed_tokens.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))        # writes to the residual stream
                nn.init.normal_(p, std=c.init_std / math.sqrt(2 * c.n_layer) if last else c.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @property
    def device(self):
        return self.embed_tokens.weight.device

    @property
    def dtype(self):
        return self.embed_tokens.weight.dtype

    def attention_scales(self, tau=1.0, layers=None):
        """attention_scales of this model's shape."""
        c = self.config
        return attention_scales(tau, layers, c.n_layer, c.n_head, c.head_dim)

    def hidden(self, idx, tau=1.0, layers=None, attention_mask=None, caches=None, explicit=False, weights=None,
               n_layers=None, below=None):
        """Final hidden states, before the head: idx (B, T) -> (B, T, C). With n_layers, the residual stream after so
        many; below = (n, x): go on from it, x (B, T, C) after the first n, which are not run again.

        tau, layers: attention temperature, see attention_scales. attention_mask (B, S): False on padding, left or
        right; S = T, or with caches all positions so far. weights: a list to which every layer's attention (B, nh, T,
        S) is appended. Raises ValueError past block_size.
        """
        B, T = idx.shape
        past = caches[0].used if caches else 0
        c = self.config
        if past + T > c.block_size:
            raise UserError(f"sequence of {past + T} tokens is longer than the model's context of {c.block_size}")
        explicit = explicit or weights is not None
        scales = self.attention_scales(tau, layers)
        query, key = (torch.arange(start, past + T, device=idx.device) for start in (past, 0))
        position, mask = query, None                                                # (T,), causal
        if attention_mask is not None:
            seen = attention_mask.bool()                                            # (B, S)
            position = (seen.cumsum(1) - 1).clamp(min=0)[:, None, past:]            # (B, 1, T): real tokens, from 0
            mask = (key <= query[:, None]) & seen[:, None] | (key == query[:, None])    # padding sees itself
            mask = mask[:, None]                                                    # (B, 1, T, S)
        elif past:
            mask = key <= query[:, None]                                            # (T, S)
        rope = self.rope(position)
        first, x = below or (0, self.embed_tokens(idx))                             # (B, T, C)
        for i, layer in list(enumerate(self.layers))[first:n_layers]:
            inputs = x, rope, scales[i], mask, caches[i] if caches else None, explicit
            again = self.checkpointing and torch.is_grad_enabled()
            x, w = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
            if weights is not None:
                weights.append(w)
        return self.norm(x) if n_layers is None else x

    def forward(self, idx, tau=1.0, layers=None, **kw):
        """idx (B, T) -> logits (B, T, V). See hidden()."""
        return self.lm_head(self.hidden(idx, tau, layers, **kw))

    def rope(self, position):
        """position (..., T) -> cos, sin (..., T, hs/2), worked out in float32."""
        angle = position[..., None].float() * rope_frequencies(self.config, position.device)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, temperature=0, top_k=None, seed=0, eos_id=None, tau=1.0, layers=None,
                 use_cache=True):
        """Continue prompts of unequal length (lists of ids) in one batch -> lists of new ids, without the EOS.

        temperature 0 is greedy, else samples from softmax(logits / temperature), from the top_k tokens if given; the
        same seed gives the same draw. eos_id: one or several, default the config's. use_cache=False recomputes
        everything at every token.
        """
        c, device = self.config, self.device
        stops = torch.tensor(c.eos_ids if eos_id is None else as_list(eos_id), dtype=torch.long, device=device)
        T = max(map(len, prompts))
        if min(map(len, prompts)) == 0:
            raise UserError("an empty prompt has nothing to continue")
        if T + max_new_tokens > c.block_size:
            raise UserError(f"prompt of {T} tokens and {max_new_tokens} new ones do not fit the model's context of "
                            f"{c.block_size}")
        idx = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=device)          # left padding
        seen = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts], dtype=torch.bool, device=device)
        like = torch.empty(0, dtype=self.dtype, device=device)
        caches = [KVCache(len(prompts), c.n_kv_head, T + max_new_tokens, c.head_dim, like)
                  for _ in range(c.n_layer)] if use_cache else None
        generator = torch.Generator(device=device).manual_seed(seed)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            new = idx if not use_cache or step == 0 else idx[:, -1:]
            x = self.hidden(new, tau, layers, attention_mask=seen, caches=caches)
            logits = self.lm_head(x[:, -1]).float()                                                 # (B, V)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                if top_k is not None:
                    worst = logits.topk(min(top_k, c.vocab_size)).values[:, -1:]
                    logits = logits.masked_fill(logits < worst, float("-inf"))
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            idx = torch.cat((idx, token[:, None]), 1)
            seen = torch.cat((seen, ~done[:, None]), 1)
            done = done | torch.isin(token, stops)
            if done.all():
                break
        stops = stops.tolist()
        return [list(itertools.takewhile(lambda token: token not in stops, row)) for row in idx[:, T:].tolist()]

    # ------------------------------------------------------------------------------------------- HF files
    def save_pretrained(self, dir, state_dict=None):
        """Write config.json and model.safetensors as HF's AutoModelForCausalLM reads them.

        state_dict: default the model's."""
        dir, config = Path(dir), to_hf(self.config)
        dir.mkdir(parents=True, exist_ok=True)
        state = {k if k.startswith("lm_head") else f"model.{k}": v.contiguous()
                 for k, v in (state_dict or self.state_dict()).items()}
        if self.config.tie_weights:
            del state["lm_head.weight"]
        aside = dir / ".model.safetensors.tmp"
        save_file(state, aside, metadata={"format": "pt"})
        aside.replace(dir / "model.safetensors")
        dtype = str(self.dtype).removeprefix("torch.")
        config |= {"dtype": dtype, "torch_dtype": dtype}        # transformers 5's name and 4's
        write_file(dir / "config.json", json.dumps(config, indent=1))

    @classmethod
    def from_pretrained(cls, dir_or_hub_id, device="cpu", dtype=None):
        """Read an HF directory (or hub id) of the Llama family -> Transformer in `dtype` (default: the file's own).

        Raises ValueError naming the file and what is wrong: missing, truncated, another architecture, other shapes.
        """
        dir = local_dir(dir_or_hub_id)
        config, state = read_config(dir), read_weights(dir, device)
        tied = [state[name] for name in ("embed_tokens.weight", "lm_head.weight") if name in state]
        if config.tie_weights and len(tied) == 2 and not torch.equal(tied[0].float(), tied[1].float()):
            say(f"{dir}: lm_head.weight differs from the embedding, so the two are not tied, as in transformers, "
                "although config.json says so")
            config.tie_weights = False
        elif config.tie_weights and tied:                   # under either name
            state["embed_tokens.weight"] = state["lm_head.weight"] = tied[0]
        with torch.device("meta"):
            model = cls(config)
        expected = model.state_dict()
        for name in sorted(expected.keys() | state.keys()):
            have, want = (tuple(s[name].shape) if name in s else "missing" for s in (state, expected))
            if have != want:
                raise UserError(f"{dir}: weight {name} is {have}, config.json asks for {want}" if name in expected else
                                f"{dir}: weight {name} has no place in the model that config.json describes")
            if state[name].dtype not in DTYPES:
                raise UserError(f"{dir}: weight {name} is {state[name].dtype}; quantised weights are not supported")
        dtype = dtype or state["embed_tokens.weight"].dtype
        model.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
        if config.tie_weights:
            model.lm_head.weight = model.embed_tokens.weight
        return model.requires_grad_(True)


def read_config(dir):
    """config.json, and the EOS ids of generation_config.json: there a chat model names all that end a turn."""
    hf = read_json(dir / "config.json")
    eos = read_json(dir / "generation_config.json", {}).get("eos_token_id")
    try:
        return ModelConfig(**from_hf(hf if eos is None else hf | {"eos_token_id": eos}, dir / "config.json"))
    except UserError as e:
        raise UserError(str(e) if str(dir) in str(e) else f"{dir / 'config.json'}: {e}") from e
