"""Writes files of PyTorch as `torch.save` writes them, and what is in them, with torch.

    python tests/reference/make_torch_file.py

Writes, beside itself: torch_file/nested.pth (a training program's checkpoint with tensors of every type and views of all
kinds), torch_file/protocol_4.pth (the same state dict alone, pickled with protocol 4), torch_file/legacy.pth (the format
before PyTorch 1.6), torch_file/module.pth (a whole network, which is code), and torch_file.safetensors, the tensors.
"""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def state_dict():
    torch.manual_seed(31)
    base = torch.randn(6, 5, 4)
    layer = torch.nn.Linear(3, 2)
    tensors = OrderedDict(
        layer=OrderedDict(layer.state_dict()),
        whole=base,
        same=base,
        transposed=base.permute(2, 0, 1),
        part=base[1:4, ::2, 3],
        column=base[:, 2, 1].unsqueeze(1),
        expanded=torch.randn(3, 1).expand(3, 4),
        overlapping=torch.randn(9).as_strided((3, 4), (2, 1)),
        parameter=torch.nn.Parameter(torch.randn(2, 3).t()),
        half=torch.randn(5, 3).half().t(),
        bfloat16=torch.randn(4, 2).bfloat16(),
        double=torch.randn(3).double(),
        long=torch.arange(7)[1::3],
        int=torch.arange(4, dtype=torch.int32),
        short=torch.arange(4, dtype=torch.int16),
        char=torch.arange(-2, 2, dtype=torch.int8),
        byte=torch.arange(250, 256, dtype=torch.uint8),
        bool=torch.tensor([[True, False, True], [False, False, True]]).t(),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(3, 0, 2),
    )
    # As the state dict of a network has it.
    tensors._metadata = OrderedDict({"": {"version": 1}})
    return tensors


def flat(tensors, prefix=""):
    for key, value in tensors.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value.detach()


if __name__ == "__main__":
    folder = HERE / "torch_file"
    folder.mkdir(exist_ok=True)
    tensors = state_dict()
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3, "loss": 0.25, "name": "détail", "large": 2**70, "done": False, "none": None, "sizes": torch.Size([1, 2]),
        "args": Namespace(lr=1e-3, names=["a", "b"]), "optimizer": optimizer.state_dict(), "state_dict": tensors,
    }
    torch.save(checkpoint, folder / "nested.pth")
    torch.save(tensors, folder / "protocol_4.pth", pickle_protocol=4)
    torch.save(layer.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Sequential(layer), folder / "module.pth")
    # The types that the tests' reader of safetensors knows.
    kept = {torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8}
    wider = {torch.bfloat16: torch.float32, torch.bool: torch.uint8}
    plain = {name: t if t.dtype in kept else t.to(wider.get(t.dtype, torch.int64)) for name, t in flat(tensors)}
    save_file({name: tensor.contiguous().clone() for name, tensor in plain.items()}, HERE / "torch_file.safetensors")
