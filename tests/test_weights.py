"""Real weights in, real weights out: HF directories against transformers, and refusals of what would be misread."""

import json
import shutil

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from common import cli, hf
from lab import runs
from model import ModelConfig, Transformer
from tests.conftest import small_model
from tests.test_chat import family

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 30}      # of 8 pairs: 1 kept, 1 blended, 6 slowed down
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS = [
    ("llama", {}), ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("llama", {"head_dim": 16, "rope_parameters": LLAMA3}), ("llama", {"rope_parameters": LINEAR}),
    ("llama", {"attention_bias": True, "eos_token_id": [599, 598, 597]}),
    ("mistral", {"sliding_window": None}), ("mistral", {"sliding_window": 64, "head_dim": 16}),
    ("qwen2", {}), ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("qwen2", {"rope_parameters": LLAMA3, "eos_token_id": [599, 5]})]
NAMES = ["-".join([kind, *map(str, changes)]) for kind, changes in VARIANTS]
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


def ids(B=3, T=40, V=600, seed=1):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def hf_model(kind, seed=0, **changes):
    """A random model of transformers, its weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = dict(vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=599,
                  bos_token_id=3, pad_token_id=None) | changes
    prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[kind]
    model = getattr(transformers, f"{prefix}ForCausalLM")(getattr(transformers, f"{prefix}Config")(**config))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p)            # they start at 0, which would hide a bias that is never read
    return model.eval()


def edit_config(dir, **changes):
    file = dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_from_config(dir, *keys):
    file = dir / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in keys}))


# ------------------------------------------------------------------------------------------ equal to transformers
@pytest.mark.parametrize("kind, changes", VARIANTS, ids=NAMES)
def test_logits_and_greedy_tokens_are_transformers(tmp_path, kind, changes):
    theirs = hf_model(kind, **changes)
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path)
    assert ours.config.eos_id == changes.get("eos_token_id", 599)
    with torch.no_grad():
        assert torch.allclose(ours(ids()), theirs(ids()).logits, atol=1e-4)
    for prompt, row in zip(PROMPTS, ours.generate(PROMPTS, 30)):
        [full] = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, pad_token_id=0).tolist()
        new = full[len(prompt):]
        assert row == (new[:-1] if len(new) < 30 else new)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind, changes", VARIANTS, ids=NAMES)
def test_tau_is_transformers_scaling_divided_by_it(tmp_path, kind, changes, attention):
    theirs = hf_model(kind, **changes)
    theirs.set_attn_implementation(attention)
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path)
    for layer in theirs.model.layers:
        layer.self_attn.scaling /= 2.5
    with torch.no_grad():
        logits = ours(ids(), 2.5)
        assert torch.allclose(logits, theirs(ids()).logits, atol=1e-4)
        assert not torch.allclose(logits, ours(ids()), atol=0.1)


@pytest.mark.parametrize("kind, changes", VARIANTS, ids=NAMES)
def test_saved_again_they_open_in_transformers_and_here(tmp_path, kind, changes):
    theirs = hf_model(kind, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Transformer.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, theirs(ids()).logits)
    assert again.config.rope_parameters == theirs.config.rope_parameters
    for key in ("eos_token_id", "bos_token_id"):
        assert getattr(again.generation_config, key) == getattr(theirs.generation_config, key)
    assert Transformer.from_pretrained(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("changes", [
    {}, {"n_kv_head": 2, "tie_weights": False}, {"model_type": "qwen2", "qkv_bias": True},
    {"qkv_bias": True, "o_bias": True}, {"model_type": "mistral"}])
def test_scratch_models_open_in_transformers_and_here(tmp_path, changes):
    ours = small_model(**changes)
    for name, p in ours.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p)
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(ours(ids()), theirs(ids()).logits, atol=1e-4)
    assert theirs.generation_config.eos_token_id == 599
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == ModelConfig(**{**vars(ours.config), "init_std": again.config.init_std})
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def test_left_padding_as_transformers_takes_it(tmp_path):
    theirs = hf_model("llama", rope_parameters=LLAMA3)
    theirs.save_pretrained(tmp_path)
    T = max(map(len, PROMPTS))
    idx = torch.tensor([[0] * (T - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in PROMPTS])
    ours = Transformer.from_pretrained(tmp_path)
    with torch.no_grad():
        real = mask.bool()
        their_logits = theirs(idx, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        assert torch.allclose(ours(idx, attention_mask=mask)[real], their_logits[real], atol=1e-4)
    full = theirs.generate(idx, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=599)
    new = full[:, T:].tolist()
    assert ours.generate(PROMPTS, 12) == [row[:row.index(599)] if 599 in row else row for row in new]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_a_file_is_kept_and_another_can_be_asked_for(tmp_path, dtype):
    theirs = hf_model("qwen2").to(dtype)
    theirs.save_pretrained(tmp_path / "a")
    ours = Transformer.from_pretrained(tmp_path / "a")
    assert ours.dtype == dtype
    assert Transformer.from_pretrained(tmp_path / "a", dtype=torch.float32).dtype == torch.float32
    ours.save_pretrained(tmp_path / "b")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert again.dtype == dtype and {p.dtype for p in again.parameters()} == {dtype}
    for name, p in again.state_dict().items():
        assert torch.equal(p, theirs.state_dict()[name])
    with torch.no_grad():
        logits, exact = ours(ids()).float(), theirs.float()(ids()).logits
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_file_of_an_older_transformers_means_the_same(tmp_path):
    """rope_theta and rope_scaling beside each other, the type under its old name, EOS in generation_config.json."""
    theirs = hf_model("llama", rope_parameters=LLAMA3, eos_token_id=[599, 7])
    theirs.save_pretrained(tmp_path)
    drop_from_config(tmp_path, "rope_parameters", "head_dim", "tie_word_embeddings", "bos_token_id")
    scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_theta", "rope_type")} | {"type": "llama3"}
    edit_config(tmp_path, rope_theta=1000.0, rope_scaling=scaling, eos_token_id=599)
    ours = Transformer.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(ours(ids()), theirs(ids()).logits, atol=1e-4)
    assert ours.config.eos_id == [599, 7]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_what_a_config_leaves_out_means_what_transformers_assumes(tmp_path, kind):
    """Without these keys its class's defaults hold, a norm epsilon of 1e-6 among them."""
    theirs = hf_model(kind, num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=2048)
    theirs.save_pretrained(tmp_path)
    drop_from_config(tmp_path, "rms_norm_eps", "rope_parameters", "head_dim", "tie_word_embeddings", "hidden_act",
                     "use_sliding_window")
    with torch.no_grad():
        assert torch.allclose(Transformer.from_pretrained(tmp_path)(ids()), theirs(ids()).logits, atol=1e-4)


def test_generation_stops_at_any_of_several_eos_ids(tmp_path):
    theirs = hf_model("llama")
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path)
    rows = ours.generate(PROMPTS, 20)
    ours.config.eos_id = [rows[0][4], rows[1][9], 598]
    assert ours.generate(PROMPTS[:1], 20) == [rows[0][:rows[0].index(rows[0][4])]]
    stopped = ours.generate(PROMPTS, 20)
    assert all(row == full[:len(row)] and not set(row) & set(ours.config.eos_id) for row, full in zip(stopped, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_of_its_own_counts_whatever_the_config_says_of_tying(tmp_path, dtype, capsys):
    theirs = hf_model("llama", tie_word_embeddings=True).to(dtype)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    embedding = state["model.embed_tokens.weight"]
    save = lambda tensors: save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = "lm_head.weight differs from the embedding"
    save(state | {"lm_head.weight": embedding.clone()})
    assert Transformer.from_pretrained(tmp_path).config.tie_weights and not capsys.readouterr().out
    for change in (lambda: embedding.flip(0), lambda: embedding * 1.01):
        save(state | {"lm_head.weight": change().contiguous()})
        ours = Transformer.from_pretrained(tmp_path)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
        for _ in range(2):                                  # and once more after we have saved it
            with torch.no_grad():
                assert torch.allclose(ours(ids()), theirs(ids()).logits, atol=1e-4 if dtype == torch.float32 else 0.5)
            assert not ours.config.tie_weights and torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
            ours.save_pretrained(tmp_path / "again")
            theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=dtype).eval()
            ours = Transformer.from_pretrained(tmp_path / "again")
    assert capsys.readouterr().out.count(said) == 1         # said once
    del state["model.embed_tokens.weight"]                  # tied, and kept under the head's name
    save(state | {"lm_head.weight": embedding})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(theirs.lm_head.weight, Transformer.from_pretrained(tmp_path).embed_tokens.weight)


# ------------------------------------------------------------------------------------------------------ shards
@pytest.fixture
def sharded(tmp_path):
    theirs = hf_model("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path, theirs


def edit_index(dir, change):
    file = dir / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


def test_sharded_weights_are_read(sharded):
    dir, theirs = sharded
    assert len(list(dir.glob("model-*.safetensors"))) > 3
    ours = Transformer.from_pretrained(dir)
    with torch.no_grad():
        assert torch.allclose(ours(ids()), theirs(ids()).logits, atol=1e-4)
        torch.nn.init.ones_(ours.norm.weight.data).mul_(2)
        ours.save_pretrained(dir)  # into the same directory: the whole file now counts, as in transformers
        assert torch.equal(Transformer.from_pretrained(dir)(ids()), ours(ids()))


def test_a_missing_shard_or_a_lying_index_is_refused(sharded):
    dir, _ = sharded
    last = sorted(dir.glob("model-*.safetensors"))[-1]
    edit_index(dir, lambda index: index["weight_map"].update({"model.layers.7.mlp.up_proj.weight": last.name}))
    with pytest.raises(ValueError,
                       match=f"{last.name} has no tensor model.layers.7.mlp.up_proj.weight, which model.safet"):
        Transformer.from_pretrained(dir)
    edit_index(dir, lambda index: index["weight_map"].pop("model.layers.7.mlp.up_proj.weight"))
    Transformer.from_pretrained(dir)
    last.rename(dir / "elsewhere")
    with pytest.raises(ValueError, match=f"{last.name} is missing"):
        Transformer.from_pretrained(dir)
    for elsewhere in ("../model.safetensors", "/etc/passwd", "*", "", 3, ["a"]):
        edit_index(dir, lambda index: index["weight_map"].update({"model.norm.weight": elsewhere}))
        with pytest.raises(ValueError, match="index.json has no weight_map from tensors to files beside it"):
            Transformer.from_pretrained(dir)
    (dir / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="index.json is damaged: a JSON object is needed, this is list"):
        Transformer.from_pretrained(dir)


# ---------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("changes, message", [
    ({"model_type": "gpt2"}, "model_type=gpt2 is not supported"), ({"model_type": "gemma2"}, "model_type=gemma2"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling=.*yarn.* is not supported"),
    ({"rope_parameters": {"type": "dynamic", "factor": 4.0}}, "rope_scaling=.*dynamic.* is not supported"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=.*0.5.* is not supported"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor=None is not a number above 0"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "factor=-2 is not a number above 0"),
    ({"hidden_act": "gelu"}, "hidden_act=gelu"), ({"mlp_bias": True}, "mlp_bias=True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config=.*4"),
    ({"hidden_size": None, "vocab_size": None}, "config.json: no vocab_size, hidden_size"),
    ({"hidden_size": "32"}, "hidden_size='32' is not a whole number"),
    ({"num_hidden_layers": -1}, "num_hidden_layers=-1 is not"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"), ({"rms_norm_eps": None}, "rms_norm_eps=None"),
    ({"eos_token_id": "</s>"}, "eos_token_id='</s>' is neither"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10.0}}}, "rope_scaling=.*full_att"),
    ({"num_key_value_heads": 3}, "config.json: 4 heads cannot share 3"),
    ({"head_dim": 7}, "config.json: head_dim=7 is odd"),
    ({"intermediate_size": 65}, r"weight layers.0.mlp.down_proj.weight is \(32, 64\), config.json asks for \(32, 65\)"),
    ({"num_hidden_layers": 3}, "weight layers.2.input_layernorm.weight is missing, config.json asks for"),
    ({"num_hidden_layers": 1}, "weight layers.1.* has no place in the model that config.json describes"),
    ({"tie_word_embeddings": False}, "weight lm_head.weight is missing"),
    ({"tie_word_embeddings": None}, "weight lm_head.weight is missing"),
    ({"attention_bias": True}, "self_attn.k_proj.bias is missing")])
def test_configs_that_lie_or_would_change_the_mathematics_are_refused(tmp_path, model, changes, message):
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_a_window_shorter_than_the_context_cuts_the_context(tmp_path, capsys):
    """Within its window a model attends to everything. Longer sequences, where it would not, are refused."""
    for kind, more in (("mistral", {}), ("qwen2", {"use_sliding_window": True, "max_window_layers": 0})):
        theirs, unlimited = hf_model(kind, sliding_window=16, **more), hf_model(kind, sliding_window=None)
        theirs.save_pretrained(tmp_path / kind)
        ours = [Transformer.from_pretrained(tmp_path / kind) for _ in range(2)][0]
        assert 1 == capsys.readouterr().out.count("a window of 16 tokens, so the context is cut from 64 to 16")
        with torch.no_grad():
            assert torch.allclose(ours(ids(T=16)), theirs(ids(T=16)).logits, atol=1e-4)
            assert not torch.allclose(theirs(ids(T=17)).logits, unlimited(ids(T=17)).logits, atol=0.1)
        with pytest.raises(ValueError, match="sequence of 17 tokens is longer than the model's context of 16"):
            ours(ids(T=17))
        ours.save_pretrained(tmp_path / "again")
        assert Transformer.from_pretrained(tmp_path / "again").config == ours.config
        assert not capsys.readouterr().out


def test_a_window_as_long_as_the_context_or_switched_off_is_no_window(tmp_path, capsys):
    theirs = hf_model("qwen2", sliding_window=16, use_sliding_window=False)
    theirs.save_pretrained(tmp_path)
    edit_config(tmp_path, sliding_window=16)
    with torch.no_grad():
        assert torch.allclose(Transformer.from_pretrained(tmp_path)(ids()), theirs(ids()).logits, atol=1e-4)
    edit_config(tmp_path, use_sliding_window=True, sliding_window=64)
    assert Transformer.from_pretrained(tmp_path).config.block_size == 64 and not capsys.readouterr().out


def test_mistrals_unspoken_window_counts(tmp_path):
    """Where config.json says nothing of one, transformers takes 4096."""
    hf_model("mistral", max_position_embeddings=8192).save_pretrained(tmp_path)
    drop_from_config(tmp_path, "sliding_window")
    assert Transformer.from_pretrained(tmp_path).config.block_size == 4096


WRONG = ["text", "", [], [[]], {}, {"a": {}}, [1, None], True, -5, 0, 1.5, 10**7 + 1, 10**30, 1e300, float("nan"),
         float("inf"), "\ud800", "x" * 10**5]


@pytest.mark.parametrize("key", [*hf.HF_KEYS.values(), "rope_parameters", "hidden_act", "sliding_window", "mlp_bias",
                                 "use_sliding_window", "attention_bias", "quantization_config",
                                 "partial_rotary_factor"])
def test_a_value_of_the_wrong_kind_or_size_is_named_in_one_short_line(tmp_path, model, key, monkeypatch, capsys):
    """Each key of config.json, each kind of wrong value: refused by name before anything is built from it, or read."""
    model.save_pretrained(tmp_path)
    contents, said = json.loads((tmp_path / "config.json").read_text()), 0
    for wrong in WRONG:
        (tmp_path / "config.json").write_text(json.dumps(contents | {key: wrong}))
        monkeypatch.setattr("sys.argv", ["sample.py"])
        try:
            cli.run(lambda: Transformer.from_pretrained(tmp_path))
        except SystemExit as stop:
            error = capsys.readouterr().err
            assert stop.code == 2 and error.count("\n") == 1 and len(error) <= 301 and "damaged" not in error[:20]
            assert key in error or "config.json" in error
            said += 1
    assert said >= (1 if key in ("bos_token_id", "partial_rotary_factor") else 3)


def test_a_config_nested_without_end_or_of_other_text_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    whole = (tmp_path / "config.json").read_text()
    for damage in ("[" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5, '{"a": ' + "1" * 5000 + "}", '{"a": "\\ud800"}',
                   whole.replace('"rope_scaling": null', '"rope_scaling": ' + "[" * 900 + "]" * 900)):
        (tmp_path / "config.json").write_text(damage)
        with pytest.raises(ValueError, match="config.json"):
            Transformer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        Transformer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + whole.encode())       # a byte-order mark
    Transformer.from_pretrained(tmp_path)


def flip(data, i):
    data = bytearray(data)
    data[i] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize("change, message", [
    (lambda data: data[:-100], "model.safetensors is truncated or not a safetensors file"),
    (lambda data: data + b"more", "model.safetensors is truncated or not a safetensors file"),
    (lambda data: b"", "model.safetensors is truncated or not a safetensors file"),
    (lambda data: flip(data, 0), "model.safetensors is truncated or not a safetensors file"),
    (lambda data: flip(data, 20), "model.safetensors is truncated or not a safetensors file"),
    (lambda data: data.replace(b"model.norm.weight", b"model.gorm.weight"),
     "weight gorm.weight has no place in the model"),
    (lambda data: None, "model.safetensors is missing; only safetensors weights are read")])
def test_damaged_weights_are_refused(tmp_path, model, change, message):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = change(file.read_bytes())
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_weights_changed_behind_a_runs_back_are_refused(tmp_path, model, tokenizer):
    """A flipped bit in a tensor is a valid file; run.json knows the sha256."""
    runs.save_run(tmp_path / "run", model, tokenizer, {"kind": "target"})
    runs.load_run(tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    file.write_bytes(flip(file.read_bytes(), -100))
    with pytest.raises(ValueError, match="model.safetensors is not the one this run wrote"):
        runs.load_run(tmp_path / "run")


def test_integer_weights_are_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError,
                       match="layers.0.mlp.up_proj.weight is torch.int8; quantised weights are not supported"):
        Transformer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name, contents, message", [
    ("config.json", None, "config.json is missing: not a model directory"),
    ("config.json", "{", "config.json is not valid JSON"),
    ("config.json", "[]", "config.json is damaged: a JSON object is needed"),
    ("generation_config.json", "x", "generation_config.json is not")])
def test_damaged_configs_are_refused(tmp_path, model, name, contents, message):
    model.save_pretrained(tmp_path)
    (tmp_path / name).write_text("" if contents is None else contents)
    if contents is None:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_a_model_that_hf_cannot_describe_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="qkv_bias=True, o_bias=False: HF's llama has no such model"):
        small_model(qkv_bias=True).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_what_is_fetched_from_a_hub_is_what_is_read(tmp_path, monkeypatch, size):
    """No weights in other formats, no second copy under another name."""
    there, here, asked = tmp_path / "hub", tmp_path / "cache", []
    family(there, "chatml", "bytes")
    hf_model("llama", vocab_size=1000).save_pretrained(there, max_shard_size=size)
    wanted = sorted(file.name for file in there.iterdir())
    (there / "original").mkdir()
    for name in ("consolidated.safetensors", "pytorch_model.bin", "tokenizer.model", "vocab.json", "README.md",
                 "model.fp32.safetensors", "added_tokens.json", "original/config.json", "original/model.safetensors"):
        (there / name).write_bytes(b"x")

    def download(name, allow_patterns):
        asked.append(name)
        files = [str(file.relative_to(there)) for file in there.rglob("*") if file.is_file()]
        for file in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (here / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there / file, here / file)
        return str(here)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf.local_dir("owner/name", weights=False) == here
    assert sorted(file.name for file in here.rglob("*")) == [name for name in wanted if not name.endswith("tensors")]
    model, tokenizer, _ = runs.load_run("owner/name")
    assert sorted(file.name for file in here.rglob("*")) == wanted and set(asked) == {"owner/name"}
    whole, same, _ = runs.load_run(there)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    assert tokenizer.encode_prompt("Who?") == same.encode_prompt("Who?")
    with pytest.raises(ValueError, match="nowhere is not a model directory"):
        hf.local_dir("nowhere")


def test_rotary_buffers_of_older_checkpoints_are_passed_over(tmp_path, model):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(Transformer.from_pretrained(tmp_path)(ids()), model(ids()))
