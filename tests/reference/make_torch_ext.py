"""Writes torch_ext.safetensors: what PyTorch 2.11 computes for the tests of the crate torch-ext.

Run it with a Python that has torch==2.11.0 and safetensors; the file is committed.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
tensors: dict[str, torch.Tensor] = {}

# Generators: the draws are made in this order from one seed. 3x5 = 15 numbers take the scalar path of randn, 4x16 the
# vectorized one.
generator = torch.Generator().manual_seed(1234)
tensors["generator.normal"] = torch.randn(4, 16, generator=generator)
tensors["generator.normal_small"] = torch.randn(3, 5, generator=generator)
tensors["generator.uniform"] = torch.rand(3, 7, generator=generator)
tensors["generator.permutation"] = torch.randperm(50, generator=generator)
tensors["generator.integers"] = torch.randint(-3, 1000, (2, 9), generator=generator)
tensors["generator.state"] = generator.get_state()

# AdamW: 20 steps on fixed gradients; `skipped` never has one, `late` has one from step 5 on.
shapes = {"weight": (7, 5), "bias": (5,), "scalar": (), "late": (3, 2), "skipped": (4,)}
generator = torch.Generator().manual_seed(5)
parameters = {}
for name, shape in shapes.items():
    tensors[f"adamw.start.{name}"] = torch.randn(shape, generator=generator)
    parameters[name] = tensors[f"adamw.start.{name}"].clone().requires_grad_(True)
optimizer = torch.optim.AdamW(
    parameters.values(), lr=3e-3, betas=(0.9, 0.99), weight_decay=1e-2, eps=1e-8, fused=True
)
for name, shape in shapes.items():
    if name != "skipped":
        tensors[f"adamw.gradients.{name}"] = torch.randn((20, *shape), generator=generator)
for step in range(20):
    optimizer.zero_grad(set_to_none=True)
    for name, parameter in parameters.items():
        if name != "skipped" and not (name == "late" and step < 5):
            parameter.grad = tensors[f"adamw.gradients.{name}"][step].clone()
    if step == 15:
        optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.step()
for name, parameter in parameters.items():
    tensors[f"adamw.end.{name}"] = parameter.detach()
    if name != "skipped":
        state = optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"adamw.state.{name}.{key}"] = state[key].detach()

# Clipping: the same gradients with a maximum norm that clips them and one that does not.
generator = torch.Generator().manual_seed(6)
for name, shape in {"a": (6, 4), "b": (9,)}.items():
    tensors[f"clip.gradient.{name}"] = torch.randn(shape, generator=generator)
for label, max_norm in {"tight": 0.5, "loose": 100.0}.items():
    parameters = {name: torch.zeros_like(tensors[f"clip.gradient.{name}"], requires_grad=True) for name in "ab"}
    for name, parameter in parameters.items():
        parameter.grad = tensors[f"clip.gradient.{name}"].clone()
    tensors[f"clip.{label}.norm"] = torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
    for name, parameter in parameters.items():
        tensors[f"clip.{label}.{name}"] = parameter.grad

# Autocast: a matrix product whose result is bf16.
generator = torch.Generator().manual_seed(7)
tensors["autocast.a"] = torch.randn(5, 8, generator=generator)
tensors["autocast.b"] = torch.randn(8, 3, generator=generator)
with torch.autocast("cpu", torch.bfloat16):
    product = tensors["autocast.a"] @ tensors["autocast.b"]
assert product.dtype == torch.bfloat16
tensors["autocast.product"] = product.float()

path = Path(__file__).with_name("torch_ext.safetensors")
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"torch": torch.__version__})
print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")
