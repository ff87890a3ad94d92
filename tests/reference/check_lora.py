"""A trained LoRA in diffusers: `host sample --lora` and diffusers' `load_lora_weights` on the same latents.

Both generate images of the same prompts from the same noise by DDIM at eta 0; prints the largest difference of the
images on [0, 1] and fails above 2e-4. Also checks that the LoRA changes the images at all.

    python tests/reference/check_lora.py MODEL_FOLDER LORA_FOLDER [--steps 10] [--guidance 2.5]
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPTS = ["painting of a man", "drawing of a landscape", "picture of shapes", ""]
TOLERANCE = 2e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/host")
    arguments = parser.parse_args()

    pipe = StableDiffusionPipeline.from_pretrained(arguments.model, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    latents = torch.randn(len(PROMPTS), pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(3))

    def draw():
        images = pipe(PROMPTS, latents=latents, num_inference_steps=arguments.steps, eta=0.0,
                      guidance_scale=arguments.guidance, output_type="pt").images
        return images.float()

    plain = draw()
    pipe.load_lora_weights(arguments.lora, weight_name="pytorch_lora_weights.safetensors")
    theirs = draw()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_file({"latents": latents}, folder / "latents.safetensors")
        subprocess.run([arguments.host, "sample", "--quiet", "--model", arguments.model, "--lora", arguments.lora,
                        "--prompt", *PROMPTS, "--steps", str(arguments.steps), "--eta", "0",
                        "--guidance", str(arguments.guidance), "--latents", folder / "latents.safetensors",
                        "--out", folder / "out", "--tensors"], check=True, stdout=subprocess.DEVNULL)
        ours = load_file(folder / "out/sample.safetensors")["images"]

    difference = (ours - theirs).abs().max().item()
    change = (theirs - plain).abs().max().item()
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}")
    print(f"largest difference between host and diffusers: {difference:.2e} (allowed {TOLERANCE:.0e})")
    print(f"largest change by the LoRA: {change:.3f}")
    if difference > TOLERANCE:
        sys.exit("the images differ")
    if change < 100 * TOLERANCE:
        sys.exit("the LoRA changes nothing, so this tests nothing")


if __name__ == "__main__":
    main()
