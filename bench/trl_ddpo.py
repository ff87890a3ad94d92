"""DDPO fine-tuning: `host train` and TRL 0.11.4's DDPOTrainer, interleaved, on the same model, recipe and threads.

Both sample `--batches` batches of `--batch` images per epoch (DDIM at eta 1, classifier-free guidance) and train a LoRA
of rank 4 on every timestep of them, in batches of the same size, with a reward of negligible cost. Prints images per
second of both, the ratio of the medians, and each side's peak memory. The clip range, learning rate and optimizer are
the same; the host merges rows of several timesteps into one UNet call of at most `--micro-batch` rows, which changes only
the speed.

    python bench/trl_ddpo.py [--rounds 5] [--threads 2] [--model DIR] [--device cuda] [--dtype bf16] [--json FILE]
                                     # needs torch, diffusers, transformers, peft, trl==0.11.4
"""
import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore")
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [f"{medium} {subject}" for medium in ("painting of", "picture of", "drawing of")
           for subject in ("a man", "a woman", "a landscape", "nature", "a building", "an animal", "shapes", "an object")]


def trl_trainer(args):
    config = DDPOConfig(
        seed=0, log_with=None, mixed_precision={"f32": "no", "bf16": "bf16"}[args.dtype], save_freq=10**9,
        sample_num_steps=args.steps, sample_eta=1.0, sample_guidance_scale=args.guidance, sample_batch_size=args.batch,
        sample_num_batches_per_epoch=args.batches, train_batch_size=args.batch, train_learning_rate=3e-4,
        train_clip_range=1e-4, accelerator_kwargs={"cpu": args.device == "cpu"})
    pipeline = DefaultDDPOStableDiffusionPipeline(str(args.model), use_lora=True)
    pipeline.sd_pipeline.safety_checker = None
    count = iter(range(10**9))

    def prompt():
        return PROMPTS[next(count) % len(PROMPTS)], {}

    def reward(images, prompts, metadata):
        return images.float().mean(dim=(1, 2, 3)), {}

    return DDPOTrainer(config, reward, prompt, pipeline)


def ours(args):
    """Seconds of each epoch but the first, which warms up, and the process's peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = {
            "sample.steps": args.steps, "sample.guidance": args.guidance, "sample.batch_size": args.batch,
            "sample.batches_per_epoch": args.batches, "sample.micro_batch": args.micro_batch,
            "train.batch_size": args.batch, "train.micro_batch": args.micro_batch, "train.epochs": args.epochs + 1,
            "train.shuffle": args.shuffle,
            "train.learning_rate": 3e-4, "train.clip_range": 1e-4, "train.timestep_fraction": 1.0,
            "monitor.count": 2, "monitor.every": args.epochs + 1, "model.dtype": f'"{args.dtype}"',
        }
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        command = [args.host, "train", "--quiet", "--preset", "tiny-art", "--model", args.model, "--plugin", args.plugin,
                   "--threads", str(args.threads), "--device", args.device, "--out", out, *sets]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        peak = 0
        # The memory that wait() reports of a child includes that of its parent at the time of the fork.
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), peak)
            time.sleep(0.05)
        if process.returncode != 0:
            raise SystemExit("host train failed")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [sum(line["seconds"].values()) for line in lines if line["epoch"] > 1], peak / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="epochs per round, of each side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--micro-batch", type=int, default=160,
                        help="most rows per UNet call of the host; under guidance, a sample has two")
    parser.add_argument("--shuffle", default="samples", choices=["samples", "calls"], help="the host's train.shuffle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/host")
    parser.add_argument("--model", type=Path, default=ROOT / "models/weights/tiny-art/diffusion")
    parser.add_argument("--plugin", default="palette", help="the host's reward")
    parser.add_argument("--json", type=Path, help="file that the numbers are written to as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = trl_trainer(args)
    step = trainer.step(0, 0)  # warms up, as the first epoch of the host does
    seconds = {"host": [], "trl": []}
    memory = 0.0
    for _ in range(args.rounds):
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()  # leaves the GPU's memory to the host
        epochs, peak = ours(args)
        seconds["host"] += epochs
        memory = max(memory, peak)
        for _ in range(args.epochs):
            start = time.perf_counter()
            step = trainer.step(1, step)
            seconds["trl"].append(time.perf_counter() - start)
    images = args.batch * args.batches
    median = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {"host": memory, "trl": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    ratio = median["trl"] / median["host"]
    print(f"\n{'':6}{'s per epoch':>12}{'min':>8}{'max':>8}{'images/s':>10}{'peak MiB':>10}")
    for name, values in seconds.items():
        print(f"{name:6}{median[name]:12.2f}{min(values):8.2f}{max(values):8.2f}{images / median[name]:10.2f}{peaks[name]:10.0f}")
    print(f"host is {ratio:.2f} times as fast as TRL")
    if args.json:
        args.json.write_text(json.dumps({"images_per_epoch": images, "seconds_per_epoch": seconds, "ratio": ratio}))


if __name__ == "__main__":
    main()
