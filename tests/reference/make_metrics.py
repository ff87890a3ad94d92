"""Writes the reference files of the networks of evaluation metrics with torch, transformers and Pillow.

    python tests/reference/make_metrics.py [--shared ../shared/reference]

Writes, beside itself: metric_preprocess.safetensors (bilinear resize, and the image processors of DINO and DINOv2),
metric_dino.safetensors (random small networks whose weights the tests draw by the same rule, their config.json in the
metadata, and outputs for drawn inputs). With --shared, metric_aesthetic.safetensors is written as well, ratings by the published
aesthetic predictor; without it, the file is left as it is.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessorPil, ViTModel

HERE = Path(__file__).parent


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(tensors, seed):
    """The rule of `drawn` in models/src/tests/mod.rs: tensors in the order of their names, from one generator, scaled by
    kind."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, tensor in sorted(tensors.items()):
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            values /= (3 * tensor.numel() / tensor.shape[0]) ** 0.5
        else:
            values *= 0.1
            if name.endswith("weight"):
                values += 1
        drawn[name] = values
    return drawn


def drawn_model(model, seed):
    """A network of transformers with drawn weights, by the names that its files have, and its config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = f"{folder}/model.safetensors"
        save_file(draw(load_file(file), seed), file, {"format": "pt"})
        kind = dict(add_pooling_layer=False) if isinstance(model, ViTModel) else {}
        return type(model).from_pretrained(folder, **kind).eval(), Path(f"{folder}/config.json").read_text()


def noise(generator, width, height):
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
    return np.clip(np.round(127.5 + 140 * np.stack(waves, -1)), 0, 255).astype(np.uint8)


def preprocess():
    generator = np.random.default_rng(41)
    images = {"wide": smooth(75, 40), "tall": noise(generator, 33, 58), "small": noise(generator, 9, 13)}
    tensors = {f"source.{name}": torch.from_numpy(image) for name, image in images.items()}
    for name, sizes in {"wide": [(30, 20), (74, 40), (90, 45), (75, 13), (10, 39)], "tall": [(33, 7), (66, 58), (16, 29)],
                        "small": [(1, 1), (28, 28)]}.items():
        for width, height in sizes:
            image = Image.fromarray(images[name]).resize((width, height), Image.BILINEAR)
            tensors[f"bilinear.{name}.{width}x{height}"] = torch.from_numpy(np.array(image))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    # The files as they are on the Hub, with smaller sizes: `facebook/dino-vits16`, `facebook/dinov2-base`, and defaults.
    files = {
        "dino": dict(do_normalize=True, do_resize=True, feature_extractor_type="ViTFeatureExtractor", image_mean=mean,
                     image_std=std, resample=2, size=24),
        "dinov2": dict(crop_size=dict(height=24, width=24), do_center_crop=True, do_convert_rgb=True, do_normalize=True,
                       do_rescale=True, do_resize=True, image_mean=mean, image_processor_type="BitImageProcessor",
                       image_std=std, resample=3, rescale_factor=0.00392156862745098, size=dict(shortest_edge=28)),
        "vit": dict(image_processor_type="ViTImageProcessor", size=dict(height=20, width=22)),
        "bit": dict(image_processor_type="BitImageProcessor", size=dict(shortest_edge=20), crop_size=20),
    }
    for name, file in files.items():
        kind = ViTImageProcessorPil if name in ("dino", "vit") else BitImageProcessorPil
        with tempfile.TemporaryDirectory() as folder:
            Path(f"{folder}/preprocessor_config.json").write_text(json.dumps(file))
            processor = kind.from_pretrained(folder)
        pixels = processor([Image.fromarray(image) for image in images.values()], return_tensors="pt")["pixel_values"]
        tensors[f"result.{name}"] = pixels
    configs = {name: json.dumps(file) for name, file in files.items()}
    save_file(tensors, HERE / "metric_preprocess.safetensors", configs | {"order": json.dumps(list(images))})


def dino():
    common = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4)
    v2 = common | dict(image_size=70, patch_size=14, use_mask_token=False)
    vit = ViTConfig(**common, intermediate_size=80, image_size=32, patch_size=8)
    networks = {
        "vit": ViTModel(vit, add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(**v2)),
        "swiglu": Dinov2Model(Dinov2Config(**v2, use_swiglu_ffn=True)),
    }
    tensors, configs = {}, {}
    for i, (name, model) in enumerate(networks.items()):
        model, configs[name] = drawn_model(model, 50 + i)
        resized = dict(interpolate_pos_encoding=True) if name == "vit" else {}
        # The configuration's own size, a smaller square, and one that is no square and no multiple of a patch.
        for height, width in [(32, 32), (24, 24), (45, 29)] if name == "vit" else [(70, 70), (56, 56), (59, 85)]:
            key = f"{name}.{height}x{width}"
            pixels = normal(60 + height, 2, 3, height, width)
            with torch.no_grad():
                tensors[f"embedding.{key}"] = model(pixels, **resized).last_hidden_state[:, 0].contiguous()
    save_file(tensors, HERE / "metric_dino.safetensors", configs)


def aesthetic(shared):
    weights = torch.load(shared / "aesthetic/sac+logos+ava1-l14-linearMSE.pth", map_location="cpu", weights_only=True)
    sizes = [(768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    layers = torch.nn.ModuleDict({str(i): torch.nn.Linear(*size) for i, size in zip([0, 2, 4, 6, 7], sizes)})
    layers.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in weights.items()})
    embeddings = normal(70, 6, 768) * torch.tensor([0.01, 1, 1, 10, 100, 0])[:, None]
    x = torch.nn.functional.normalize(embeddings, dim=-1)
    with torch.no_grad():
        for layer in layers.values():
            x = layer(x)
    save_file({"embeddings": embeddings, "scores": x[:, 0].contiguous()}, HERE / "metric_aesthetic.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    preprocess()
    dino()
    if arguments.shared:
        aesthetic(arguments.shared)
