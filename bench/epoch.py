"""An epoch of the tiny-art recipe: `host train` and diffusers + peft, interleaved, on the same model and threads.

The peer is written as its users write it (UNet2DConditionModel with a peft adapter, DDIM with log-probabilities,
AutoencoderKL, transformers' CLIP, k-means softmax, PPO loss) with the same number of rows per UNet call as the host,
which is its fastest setting. Prints images per second of both by part, and the ratio of medians.

    python bench/epoch.py [--rounds 5] [--epochs 2] [--threads 2]        # needs torch, diffusers, transformers, peft
"""
import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
# The preset tiny-art: samples per epoch, DDIM steps, number of steps that are trained on, samples per update, and rows
# per UNet call in sampling and in training.
SAMPLES, STEPS, TRAINED, BATCH, SAMPLE_ROWS, TRAIN_ROWS = 128, 10, 5, 32, 64, 80
DECODED = 16
MEDIA = ["painting of", "picture of", "drawing of"]
SUBJECTS = ["a man", "a woman", "a landscape", "nature", "a building", "an animal", "shapes", "an object"]


class Peer:
    def __init__(self, model: Path, clip: Path):
        self.unet = UNet2DConditionModel.from_pretrained(model / "unet").requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian",
                                         target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self.vae = AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False)
        self.clip = CLIPModel.from_pretrained(clip).requires_grad_(False)
        self.scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        self.scheduler.set_timesteps(STEPS)
        tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False)
        prompts = [""] + [f"{m} {s}" for m in MEDIA for s in SUBJECTS]
        ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.text = encoder(ids)[0]
        self.centers = torch.nn.functional.normalize(torch.randn(27, self.clip.config.projection_dim), dim=-1)

    def posterior(self, output, t, sample):
        """Mean and standard deviation of the DDIM step at eta 1; t is a tensor of timesteps."""
        alphas = self.scheduler.alphas_cumprod
        previous = (t - 1000 // STEPS).clamp(min=0)
        shape = (-1, 1, 1, 1)
        a, b = alphas[t].view(shape), alphas[previous].view(shape)
        variance = (1 - b) / (1 - a) * (1 - a / b)
        clean = (sample - (1 - a).sqrt() * output) / a.sqrt()
        return b.sqrt() * clean + (1 - b - variance).sqrt() * output, variance.sqrt()

    @staticmethod
    def log_prob(x, mean, std):
        value = -((x - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        return value.mean(dim=(1, 2, 3))

    def epoch(self):
        seconds = {}
        start = time.perf_counter()
        prompts = torch.randint(0, len(self.text), (SAMPLES,))
        latents, log_probs = [torch.randn(SAMPLES, 4, 16, 16)], []
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                parts = zip(latents[-1].split(SAMPLE_ROWS), prompts.split(SAMPLE_ROWS))
                output = torch.cat([self.unet(rows, t, self.text[of]).sample for rows, of in parts])
                mean, std = self.posterior(output, t.expand(SAMPLES), latents[-1])
                latents.append(mean + std * torch.randn_like(mean))
                log_probs.append(self.log_prob(latents[-1], mean, std))
        seconds["sample"] = time.perf_counter() - start

        start = time.perf_counter()
        rewards = []
        with torch.no_grad():
            for part in latents[-1].split(DECODED):
                images = self.vae.decode(part / self.vae.config.scaling_factor).sample
                images = (images / 2 + 0.5).clamp(0, 1)
                pixels = (images * 255).round() / 255
                pixels = (pixels - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) \
                    / torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
                features = self.clip.get_image_features(pixels)
                features = getattr(features, "pooler_output", features)
                features = torch.nn.functional.normalize(features, dim=-1)
                rewards.append((1 / torch.cdist(features, self.centers)).log_softmax(-1).mean(-1))
        rewards = torch.cat(rewards)
        advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-8)).clamp(-5, 5)
        seconds["reward"] = time.perf_counter() - start

        start = time.perf_counter()
        latents, log_probs = torch.stack(latents), torch.stack(log_probs)
        steps = torch.arange(TRAINED)
        for batch in torch.randperm(SAMPLES).split(BATCH):
            rows = [(s, i) for i in batch.tolist() for s in steps.tolist()]
            self.optimizer.zero_grad()
            for at in range(0, len(rows), TRAIN_ROWS):
                s, i = torch.tensor(rows[at:at + TRAIN_ROWS]).T
                t = self.scheduler.timesteps[s]
                output = self.unet(latents[s, i], t, self.text[prompts[i]]).sample
                mean, std = self.posterior(output, t, latents[s, i])
                ratio = (self.log_prob(latents[s + 1, i], mean, std) - log_probs[s, i]).exp()
                loss = torch.maximum(-advantages[i] * ratio, -advantages[i] * ratio.clamp(1 - 5e-3, 1 + 5e-3))
                (loss.sum() / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
        seconds["train"] = time.perf_counter() - start
        return seconds


def ours(host: Path, model: Path, plugin: str, epochs: int, threads: int):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        subprocess.run([host, "train", "--quiet", "--preset", "tiny-art", "--model", model, "--plugin", plugin,
                        "--threads", str(threads), "--set", f"train.epochs={epochs}", "--set", "monitor.count=2",
                        "--set", f"monitor.every={epochs}", "--out", out], check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["seconds"] for line in lines if line["epoch"] > 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="epochs per round, of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/host")
    parser.add_argument("--model", type=Path, default=ROOT / "models/weights/tiny-art/diffusion")
    parser.add_argument("--clip", type=Path, default=ROOT / "models/weights/tiny-art/clip")
    parser.add_argument("--plugin", default="kmeans_image")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peer = Peer(arguments.model, arguments.clip)
    peer.epoch()  # warms up caches, as the host's monitor of epoch 0 does
    sides = {"host": [], "diffusers + peft": []}
    for _ in range(arguments.rounds):
        sides["host"] += ours(arguments.host, arguments.model, arguments.plugin, arguments.epochs, arguments.threads)
        sides["diffusers + peft"] += [peer.epoch() for _ in range(arguments.epochs)]
    medians = {}
    print(f"{'':18}{'sample s':>10}{'reward s':>10}{'train s':>10}{'total s':>10}{'images/s':>10}")
    for name, epochs in sides.items():
        part = {key: statistics.median(e[key] for e in epochs) for key in ("sample", "reward", "train")}
        total = statistics.median(sum(e.values()) for e in epochs)
        medians[name] = total
        print(f"{name:18}{part['sample']:10.2f}{part['reward']:10.2f}{part['train']:10.2f}{total:10.2f}{SAMPLES / total:10.2f}")
    print(f"ratio (diffusers + peft / host): {medians['diffusers + peft'] / medians['host']:.2f}")


if __name__ == "__main__":
    main()
