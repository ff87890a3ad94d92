"""Writes Stable Diffusion 2 (base) with random weights at its true shape as a diffusers folder; needs only torch.

It generates noise, but takes the memory and the time of the real model. `host models count` lists the tensors; the
tokenizer is that of tiny-art with 77 tokens per text.

    python bench/random_model.py OUT [--dtype bf16|f16|f32] [--device cuda] [--narrow]     # 2.6 GB in bf16, 5.2 GB in f32
    host train --model OUT --preset paper-512 --plugin kmeans_image --dry-run --set sample.micro_batch=2 \\
        --set train.micro_batch=2 --set train.batch_size=1 --set sample.batch_size=1
"""
import argparse
import ctypes
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("HOST", ROOT / "target/release/host"))
PUBLISHED = ROOT / "models/src/published/stable-diffusion-2-base"
TOKENIZER = ROOT / "models/weights/tiny-art/diffusion/tokenizer"
FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
DTYPES = {"bf16": (torch.bfloat16, "BF16"), "f16": (torch.float16, "F16"), "f32": (torch.float32, "F32")}
INDEX = {
    "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
}
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False,
}
# The same topology at a tenth of the width, to try things on a CPU.
NARROW = {
    "unet": {"block_out_channels": [32, 64, 128, 128], "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 64},
    "vae": {"block_out_channels": [32, 32, 64, 64]},
    "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2},
}


def tensors_of(model):
    """Returns {part: {tensor: shape}} of a model's folder, whose configurations suffice."""
    answer = subprocess.run([HOST, "models", "count", model, "--json", "--tensors"], check=True, capture_output=True, text=True)
    return {part["name"]: part["tensors"] for part in json.loads(answer.stdout)["components"]}


def fresh(name, shape, device):
    """Returns an initial tensor: ones for norms, zeros for biases, else normal with PyTorch's variance of layers."""
    if len(shape) == 1:
        return (torch.ones if name.endswith("weight") else torch.zeros)(shape, device=device)
    return torch.randn(shape, device=device) / math.sqrt(3 * math.prod(shape[1:]))


def write(path, shapes, dtype, device):
    """Writes a safetensors file: the length of the header, the header, the bytes of the tensors."""
    kind, label = DTYPES[dtype]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * kind.itemsize
        header[name] = {"dtype": label, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = fresh(name, shape, device).to(kind).cpu().contiguous()
            file.write((ctypes.c_char * (tensor.numel() * kind.itemsize)).from_address(tensor.data_ptr()))


def make(out, dtype="bf16", device="cpu", narrow=False):
    """Writes the folder; returns {part: {tensor: shape}}."""
    torch.manual_seed(0)
    out.mkdir(parents=True)
    (out / "model_index.json").write_text(json.dumps(INDEX))
    (out / "scheduler").mkdir()
    (out / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (out / "tokenizer").mkdir()
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / file, out / "tokenizer")
    (out / "tokenizer/tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    for part in FILES:
        config = json.loads((PUBLISHED / f"{part}.json").read_text())
        if narrow:
            config.update(NARROW[part])
        (out / part).mkdir()
        (out / part / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(out)
    for part, stem in FILES.items():
        write(out / part / f"{stem}.safetensors", tensors[part], dtype, device)
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cpu", help="where the weights are sampled")
    parser.add_argument("--narrow", action="store_true", help="the same topology at a tenth of the width")
    args = parser.parse_args()
    for part, shapes in make(args.out, args.dtype, args.device, args.narrow).items():
        print(part, sum(math.prod(shape) for shape in shapes.values()))


if __name__ == "__main__":
    main()
