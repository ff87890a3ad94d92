"""Writes can.safetensors: a small CAN in PyTorch 2.11, its losses, gradient penalty and one Adam step.

Run it with a Python that has torch==2.11.0 and safetensors; the file is committed. The networks are the paper's at a
side of 64 with few channels; weights are drawn here and stored under the names of the Rust networks.
"""
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(7)
SIZE, LATENT, G, D, D_MAX, HEAD, STYLES, N = 64, 6, 32, 4, 8, (10, 7), 5, 4


def generator():
    layers, n_in, n_out = [], LATENT, G
    for i in range(4):
        layers.append(nn.Sequential(nn.ConvTranspose2d(n_in, n_out, 4, 1 if i == 0 else 2, 0 if i == 0 else 1, bias=False),
                                    nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)))
        n_in, n_out = n_out, n_out // 2
    layers.append(nn.Sequential(nn.ConvTranspose2d(n_in, 3, 4, 2, 1, bias=False), nn.Tanh()))
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [3, D, 2 * D, D_MAX, D_MAX]
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
                                      for a, b in zip(widths, widths[1:])])
        self.real = nn.Linear(D_MAX * 16, 1)
        self.style = nn.ModuleList([nn.Linear(D_MAX * 16, HEAD[0]), nn.Linear(HEAD[0], HEAD[1]), nn.Linear(HEAD[1], STYLES)])

    def forward(self, x):
        features = self.blocks(x).flatten(1)
        h = F.leaky_relu(self.style[0](features), 0.2)
        h = F.leaky_relu(self.style[1](h), 0.2)
        return self.real(features).squeeze(1), self.style[2](h)


@contextmanager
def statistics_kept(net):
    """The running statistics are updated by real images alone."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm in norms:
        norm.momentum = 0.1


g, d = generator(), Discriminator()
for module in [*g.modules(), *d.modules()]:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.1)
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.2)
        nn.init.normal_(module.bias, 0, 0.2)


def g_state():
    state = {}
    for i in range(4):
        conv, norm = g[i][0], g[i][1]
        state[f"blocks.{i}.conv.weight"] = conv.weight
        state.update({f"blocks.{i}.norm.{k}": getattr(norm, k) for k in ("weight", "bias", "running_mean", "running_var")})
    state["out.conv.weight"] = g[4][0].weight
    return {k: v.detach().clone() for k, v in state.items()}


def d_state():
    state = {}
    for i in range(4):
        conv, norm = d.blocks[i][0], d.blocks[i][1]
        state[f"blocks.{i}.conv.weight"] = conv.weight
        state.update({f"blocks.{i}.norm.{k}": getattr(norm, k) for k in ("weight", "bias", "running_mean", "running_var")})
    for i in range(3):
        state[f"style_head.{i}.weight"], state[f"style_head.{i}.bias"] = d.style[i].weight, d.style[i].bias
    state["real_head.weight"], state["real_head.bias"] = d.real.weight, d.real.bias
    return {k: v.detach().clone() for k, v in state.items()}


out = {f"g.{k}": v for k, v in g_state().items()} | {f"d.{k}": v for k, v in d_state().items()}
noise, real, mix = torch.randn(N, LATENT), torch.rand(N, 3, SIZE, SIZE) * 2 - 1, torch.rand(N)
labels = torch.randint(0, STYLES, (N,))
out |= {"noise": noise, "real": real.half(), "mix": mix, "labels": labels}
real = out["real"].float()

g.eval(), d.eval()
with torch.no_grad():
    out["eval.images"] = g(noise.view(N, LATENT, 1, 1))[:1]
    out["eval.real"], out["eval.styles"] = d(real)
g.train(), d.train()

# One discriminator step of the Wasserstein form, in the trainer's order.
optimizer = torch.optim.Adam(d.parameters(), lr=1e-3, betas=(0.9, 0.99))
fake = g(noise.view(N, LATENT, 1, 1)).detach()
out["train.images"] = fake[:1]
real_verdict, styles = d(real)
with statistics_kept(d):
    fake_verdict, _ = d(fake)
between = (real * mix.view(-1, 1, 1, 1) + fake * (1 - mix.view(-1, 1, 1, 1))).requires_grad_(True)
with statistics_kept(d):
    (gradient,) = torch.autograd.grad(d(between)[0].sum(), between, create_graph=True)
penalty = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
losses = {
    "critic": fake_verdict.mean() - real_verdict.mean(), "penalty": penalty, "style": F.cross_entropy(styles, labels),
    "style_smoothed": F.cross_entropy(styles, labels, label_smoothing=0.2),
    "log_discriminator": F.binary_cross_entropy_with_logits(real_verdict, torch.ones(N))
    + F.binary_cross_entropy_with_logits(fake_verdict, torch.zeros(N)),
}
(losses["critic"] + losses["style"] + 10 * penalty).backward()
out["d.gradient.blocks.0.conv.weight"] = d.blocks[0][0].weight.grad.clone()
out["d.gradient.style_head.0.weight"] = d.style[0].weight.grad.clone()
optimizer.step()
out |= {f"d.after.{k}": v for k, v in d_state().items() if k.startswith(("blocks.0", "blocks.3", "real_head", "style_head.2"))}

# The generator's losses under the updated discriminator.
with statistics_kept(d):
    verdict, styles = d(g(noise.view(N, LATENT, 1, 1)))
uniform = torch.full((N, STYLES), 1 / STYLES)
losses |= {
    "critic_generator": -verdict.mean(), "ambiguity": F.cross_entropy(styles, uniform),
    "log_generator": torch.log(1 - torch.sigmoid(verdict)).mean(),
    "nonsaturating": F.binary_cross_entropy_with_logits(verdict, torch.ones(N)),
}
(losses["critic_generator"] + losses["ambiguity"]).backward()
out["g.gradient.blocks.0.conv.weight"] = g[0][0].weight.grad.clone()
out["g.gradient.out.conv.weight"] = g[4][0].weight.grad.clone()
out |= {f"g.after.{k}": v for k, v in g_state().items() if "running" in k}
out |= {f"loss.{k}": v.detach() for k, v in losses.items()}
save_file({k: v.contiguous().clone() for k, v in out.items()}, Path(__file__).with_name("can.safetensors"))
print(sum(v.numel() * v.element_size() for v in out.values()), {k: round(float(v.detach()), 4) for k, v in losses.items()})
