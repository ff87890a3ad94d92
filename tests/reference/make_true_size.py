"""Writes a Stable Diffusion 2 (base) of random f32 weights at its true size, 5.2 GB, as a diffusers folder.

It generates noise, but takes the memory and the time of the real model:

    python tests/reference/make_true_size.py OUT TOKENIZER_FOLDER     # the folder has CLIP's vocab.json and merges.txt
    host train --model OUT --preset paper-512 --plugin kmeans_image --dry-run --set sample.micro_batch=2 \\
        --set train.micro_batch=2 --set train.batch_size=1 --set sample.batch_size=1
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

PUBLISHED = Path(__file__).resolve().parent.parent.parent / "models/src/published/stable-diffusion-2-base"
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False,
}


def main():
    out, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir()
    torch.manual_seed(0)
    read = lambda name: json.loads((PUBLISHED / f"{name}.json").read_text())
    parts = [
        ("unet", "diffusion_pytorch_model", lambda c: UNet2DConditionModel.from_config(c)),
        ("vae", "diffusion_pytorch_model", lambda c: AutoencoderKL.from_config(c)),
        ("text_encoder", "model", lambda c: CLIPTextModel(CLIPTextConfig(**c))),
    ]
    for name, stem, build in parts:
        config = read(name)
        state = build(config).state_dict()
        (out / name).mkdir()
        (out / name / "config.json").write_text(json.dumps(config))
        save_file({k: v.contiguous() for k, v in state.items() if "position_ids" not in k},
                  out / name / f"{stem}.safetensors", metadata={"format": "pt"})
        print(name, sum(v.numel() for v in state.values()), flush=True)
    (out / "scheduler").mkdir()
    (out / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (out / "tokenizer").mkdir()
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / file, out / "tokenizer")
    (out / "tokenizer/tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "!"}))
    (out / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
    }))


if __name__ == "__main__":
    main()
