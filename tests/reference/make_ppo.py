"""Writes ppo.safetensors: TRL's DDPOTrainer on log-probabilities and advantages, as reference of the PPO objective.

    python tests/reference/make_ppo.py

Needs torch 2.11.0 and trl 0.11.4, whose `DDPOTrainer.calculate_loss` runs here unchanged, on a fake pipeline that
returns the given log-probabilities. For each clip range: the loss, its gradient with respect to the log-probabilities,
the approximate KL divergence ½ mean (log ratio)² and the share of rows whose ratio left the range.
"""

import contextlib
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
from trl import DDPOConfig, DDPOTrainer  # noqa: E402

ROWS = 64
RANGES = {"narrow": 1e-4, "wide": 0.2}


def calculate_loss(log_prob, old_log_prob, advantages, clip_range):
    trainer = DDPOTrainer.__new__(DDPOTrainer)
    trainer.config = DDPOConfig(train_clip_range=clip_range, train_cfg=False)
    trainer.autocast = contextlib.nullcontext
    trainer.sd_pipeline = SimpleNamespace(
        unet=lambda *_: SimpleNamespace(sample=None),
        scheduler_step=lambda *_, **__: SimpleNamespace(log_probs=log_prob),
    )
    return trainer.calculate_loss(None, None, None, old_log_prob, advantages, None)


def main():
    generator = torch.Generator().manual_seed(20)
    old_log_prob = torch.randn(ROWS, generator=generator) * 0.3 - 1.0
    advantages = torch.randn(ROWS, generator=generator)
    advantages[::13] = 0.0
    tensors = {"old_log_prob": old_log_prob, "advantages": advantages}
    for name, clip_range in RANGES.items():
        # A third of the rows inside the range, the others beyond either end of it; a few exactly on the old policy.
        log_ratio = (torch.rand(ROWS, generator=generator) * 6 - 3) * clip_range
        log_ratio[::11] = 0.0
        log_prob = (old_log_prob + log_ratio).requires_grad_(True)
        loss, approx_kl, clip_fraction = calculate_loss(log_prob, old_log_prob, advantages, clip_range)
        loss.backward()
        # Every case of the objective occurs: both signs of the advantage, below, inside and above the range.
        ratio = (log_prob.detach() - old_log_prob).exp()
        place = (ratio > 1 + clip_range).int() - (ratio < 1 - clip_range).int()
        cases = {(int(p), int(s)) for p, s in zip(place, advantages.sign())}
        assert {(p, s) for p in (-1, 0, 1) for s in (-1, 1)} <= cases, cases
        tensors |= {
            f"{name}.clip_range": torch.tensor(clip_range, dtype=torch.float64), f"{name}.log_prob": log_prob.detach(),
            f"{name}.loss": loss.detach(), f"{name}.gradient": log_prob.grad, f"{name}.approx_kl": approx_kl.detach(),
            f"{name}.clip_fraction": clip_fraction,
        }
        print(name, float(loss), float(approx_kl), float(clip_fraction))
    save_file(tensors, Path(__file__).with_name("ppo.safetensors"))


if __name__ == "__main__":
    main()
