"""CAN training: `host can train` and the same networks and step in eager PyTorch, interleaved, same threads.

Both sides do the same step on batches of real images: a generator forward, the discriminator's Wasserstein loss with
gradient penalty and L_SL, its Adam step, the generator's loss with L_SA through the discriminator's head, its Adam step.
The peer is written as usual in PyTorch (nn.Module, torch.optim.Adam, autograd.grad with create_graph), and has its
images in memory; the host reads its own from its cache. With `--frozen` the peer, too, computes no gradients of the
discriminator's weights in the generator's step, as the host does. Prints images per second and the ratio of the
medians.

    python bench/can.py [--rounds 5] [--threads 2] [--preset tiny-art|paper-64|…] [--device cuda] [--frozen]
                                     # needs torch==2.11.0
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent


def generator(can):
    layers, n_in, n_out, size = [], can["latent"], can["generator_channels"], 4
    while size < can["size"]:
        first = not layers
        act = nn.LeakyReLU(can["generator_slope"], inplace=True) if can["generator_slope"] else nn.ReLU(inplace=True)
        layers += [nn.ConvTranspose2d(n_in, n_out, 4, 1 if first else 2, 0 if first else 1, bias=False),
                   nn.BatchNorm2d(n_out), act]
        size *= 1 if first else 2
        n_in, n_out = n_out, n_out // 2
        if size * 2 == can["size"] and not first:
            break
    return nn.Sequential(*layers, nn.ConvTranspose2d(n_in, 3, 4, 2, 1, bias=False), nn.Tanh())


class Discriminator(nn.Module):
    def __init__(self, can, n_styles):
        super().__init__()
        widest, widths, size = 16 * can["discriminator_channels"], [3, can["discriminator_channels"]], can["size"]
        for _ in range(size.bit_length() - 6):
            widths.append(min(2 * widths[-1], widest))
        widths += [widest, widest]
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b),
                                                    nn.LeakyReLU(0.2, inplace=True)) for a, b in zip(widths, widths[1:])])
        h = can["head"]
        self.real = nn.Linear(widest * 16, 1)
        self.style = nn.Sequential(nn.Linear(widest * 16, h[0]), nn.LeakyReLU(0.2), nn.Dropout(can["dropout"]),
                                   nn.Linear(h[0], h[1]), nn.LeakyReLU(0.2), nn.Dropout(can["dropout"]),
                                   nn.Linear(h[1], n_styles))

    def forward(self, x, style=True):
        features = self.blocks(x).flatten(1)
        return self.real(features).squeeze(1), self.style(features) if style else None


class Peer:
    def __init__(self, can, device, frozen, n_styles=27):
        self.can, self.device, self.frozen = can, device, frozen
        self.g, self.d = generator(can).to(device), Discriminator(can, n_styles).to(device)
        adam = can["adam"]
        make = lambda net: torch.optim.Adam(net.parameters(), adam["learning_rate"], (adam["beta1"], adam["beta2"]), adam["epsilon"])
        self.opt_g, self.opt_d = make(self.g), make(self.d)
        n = can["batch_size"]
        self.real = torch.rand(8, n, 3, can["size"], can["size"]) * 2 - 1
        self.labels = torch.randint(0, n_styles, (8, n))
        self.sums = None

    def step(self, i):
        can, n = self.can, self.can["batch_size"]
        real, labels = self.real[i % 8].to(self.device), self.labels[i % 8].to(self.device)
        fake = self.g(torch.randn(n, can["latent"], 1, 1, device=self.device))

        self.opt_d.zero_grad()
        d_real, styles = self.d(real)
        detached = fake.detach()
        d_fake, _ = self.d(detached, style=False)
        mix = torch.rand(n, 1, 1, 1, device=self.device)
        between = (real * mix + detached * (1 - mix)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.d(between, style=False)[0].sum(), between, create_graph=True)
        penalty = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
        style = F.cross_entropy(styles, labels, label_smoothing=can["label_smoothing"])
        loss_d = d_fake.mean() - d_real.mean() + can["style_weight"] * style + can["lambda"] * penalty
        loss_d.backward()
        self.opt_d.step()

        self.opt_g.zero_grad()
        if self.frozen:
            self.d.requires_grad_(False)
        verdict, styles = self.d(fake)
        loss_g = -verdict.mean() - can["style_ambiguity_weight"] * F.log_softmax(styles, 1).mean()
        if self.frozen:
            self.d.requires_grad_(True)
        loss_g.backward()
        self.opt_g.step()
        losses = torch.stack([loss_d.detach(), loss_g.detach()])
        self.sums = losses if self.sums is None else self.sums + losses

    def images_per_second(self, steps):
        began = time.perf_counter()
        for i in range(steps):
            self.step(i)
            if (i + 1) % 10 == 0:
                self.sums.tolist()
        self.sums.tolist()
        return steps * self.can["batch_size"] / (time.perf_counter() - began)


def ours(args, steps):
    """Images per second of the second epoch; the first one warms up."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [ROOT / "target/release/host", "can", "train", "--preset", args.preset, "--out", out, "--device", args.device,
                   "--quiet", "--threads", str(args.threads), "--set", "can.epochs=2", "--set", f"can.steps_per_epoch={steps}",
                   "--set", "monitor.count=2", "--set", "monitor.every=2", "--set", "checkpoint.every=2"]
        subprocess.run(command + [part for s in args.sets for part in ("--set", s)], check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return lines[-1]["images_per_second"]


def resolved(args):
    import tomllib
    sets = [part for s in args.sets for part in ("--set", s)]
    text = subprocess.run([ROOT / "target/release/host", "can", "train", "--preset", args.preset, "--dry-run", "--quiet"] + sets,
                          check=True, capture_output=True, text=True).stdout
    return tomllib.loads(text)["can"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--preset", default="tiny-art")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    can = resolved(args)
    peer = Peer(can, args.device, args.frozen)
    count = lambda net: sum(p.numel() for p in net.parameters())
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; generator {count(peer.g):,}, "
          f"discriminator {count(peer.d):,} parameters, {can['size']} px, batch {can['batch_size']}")
    peer.images_per_second(args.steps)
    rows = []
    for i in range(args.rounds):
        rows.append((ours(args, args.steps), peer.images_per_second(args.steps)))
        print(f"round {i + 1}: host {rows[-1][0]:.1f}, PyTorch {rows[-1][1]:.1f} images/s", flush=True)
    host, torch_ = (statistics.median(column) for column in zip(*rows))
    print(f"median: host {host:.1f}, PyTorch {torch_:.1f} images/s, ratio {host / torch_:.2f}")


if __name__ == "__main__":
    main()
