"""Writes log_softmax.safetensors: transformers' log-softmax of a sharp CLIP's logits for 16 paintings and 27 styles.

    python tests/reference/make_log_softmax.py [--host target/release/host]

The encoder is the shipped one with its logit scale replaced by 100 and by 400, where most probabilities are far below the
smallest float32. The paintings are those of `host art --per-class 1 --size 64 --seed 41`, the first 16 by name.
"""

import argparse
import math
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CLIP = ROOT / "models/weights/tiny-art/clip"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default=str(ROOT / "target/release/host"))
    host = parser.parse_args().host
    model = CLIPModel.from_pretrained(CLIP).eval().double()
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    processor = CLIPImageProcessorPil.from_pretrained(CLIP)
    styles = (ROOT / "plugins/wikiart_styles.txt").read_text().split("\n")
    styles = [style.replace("-", " ") for style in styles if style]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([host, "art", "--out", f"{folder}/art", "--per-class", "1", "--size", "64", "--seed", "41"], check=True)
        files = sorted(Path(f"{folder}/art").glob("*/*.png"))[:16]
        images = [Image.open(file).convert("RGB") for file in files]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].double()
    texts = tokenizer([f"a {style} painting" for style in styles], padding="max_length", return_tensors="pt",
                      max_length=model.config.text_config.max_position_embeddings, truncation=True)
    tensors = {}
    for scale in (100, 400):
        with torch.no_grad():
            model.logit_scale.fill_(math.log(scale))
            logits = model(pixel_values=pixels, **texts).logits_per_image
        log_p = logits.log_softmax(-1)
        tensors[f"log_p_{scale}"] = log_p.contiguous()
        tensors[f"reward_{scale}"] = log_p.mean(-1).contiguous()
        print(scale, "smallest log-probability", log_p.min().item(), "rewards", log_p.mean(-1)[:3].tolist())
    save_file(tensors, HERE / "log_softmax.safetensors", metadata={"styles": "\n".join(styles)})


main()
