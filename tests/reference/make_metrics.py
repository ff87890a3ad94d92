"""Writes the reference files of the networks of evaluation metrics with torch, transformers and Pillow.

    python tests/reference/make_metrics.py [--shared ../shared/reference]

Writes, beside itself: metric_preprocess.safetensors (bilinear resize, and the image processors of DINO and DINOv2),
metric_dino.safetensors (random small networks whose weights the tests draw by the same rule, their config.json in the
metadata, and outputs for drawn inputs), metric_image_reward.safetensors (the same of ImageReward),
metric_word_piece.json (BERT's tokenizer on a small vocabulary), metric_open_clip.safetensors (CLIP by the names of OpenAI's
repository, HPSv2's preprocessing and CSD; the metadata has the names and shapes of the weights). With --shared, metric_aesthetic.safetensors is written as well, ratings by the published
aesthetic predictor; without it, the file is left as it is.
"""

import argparse
import json
import math
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BitImageProcessorPil,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

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


class Head(torch.nn.Module):
    """The layers of ImageReward's MLP and of the aesthetic predictor, by their names."""

    def __init__(self, width):
        super().__init__()
        sizes = [width, 1024, 128, 64, 16, 1]
        pairs = zip([0, 2, 4, 6, 7], sizes, sizes[1:])
        self.layers = torch.nn.ModuleDict({str(i): torch.nn.Linear(*pair) for i, *pair in pairs})

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x[:, 0].contiguous()


def blip_name(name):
    """The name that a tensor of BlipVisionModel has in BLIP's own files."""
    for ours, theirs in [
        ("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"), ("encoder.layers", "blocks"), ("post_layernorm", "norm"),
        ("layer_norm", "norm"), ("self_attn.projection", "attn.proj"), ("self_attn", "attn"),
    ]:
        name = name.replace(ours, theirs)
    return name


def image_reward():
    """BLIP from transformers' two classes, as upstream's ImageReward.score calls it."""
    vision = BlipVisionModel(BlipVisionConfig(hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2,
                                              image_size=32, patch_size=8, layer_norm_eps=1e-6))
    text = BlipTextModel(BlipTextConfig(hidden_size=192, encoder_hidden_size=128, intermediate_size=160, num_hidden_layers=2,
                                        num_attention_heads=3, vocab_size=50, max_position_embeddings=20,
                                        is_decoder=True), add_pooling_layer=False)
    head = Head(192)
    parts = {"blip.visual_encoder": (vision, blip_name), "blip.text_encoder": (text, str), "mlp": (head, str)}
    names = {f"{prefix}.{rename(name)}": tensor for prefix, (module, rename) in parts.items()
             for name, tensor in module.state_dict().items() if "position_ids" not in name}
    drawn = draw(names, 80)
    for prefix, (module, rename) in parts.items():
        module.load_state_dict({name: drawn[f"{prefix}.{rename(name)}"] for name in module.state_dict()})
        module.eval()
    ids = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(81))
    mask = (torch.arange(11) < torch.tensor([11, 4, 1])[:, None]).long()
    with torch.no_grad():
        image = vision(normal(82, 3, 3, 32, 32)).last_hidden_state
        features = text(ids, attention_mask=mask, encoder_hidden_states=image,
                        encoder_attention_mask=torch.ones(image.shape[:2]), is_decoder=False).last_hidden_state[:, 0]
        rewards = (head(features) - 0.16717362830052426) / 1.0333394966054072
    tensors = {"ids": ids, "mask": mask, "image": image.contiguous(), "features": features.contiguous(), "rewards": rewards}
    save_file(tensors, HERE / "metric_image_reward.safetensors")


PROMPTS = [
    "", "  \t\n ", "a painting of a man", "A Painting, of   THE man!", "naïve café ÀÉÎ e\u0301te\u0301 Ångström İ ẞ ﬁne", "浮世絵の絵 painting画",
    "unaffable unaffxable paintings", "it's 3.14 (yes)[no] $5 ^_^ `x` ~", "[CLS] [MASK]a[SEP] [enc] [ENC] [DEC]x [UNK]",
    "zero\u200bwidth\u00a0nbsp\u3000wide\u0000nul\u00adsoft\ufffd", "🎨 emoji👩🏽‍🎨", "x" * 100 + " " + "x" * 101, "man " * 50, "«quotes» “curly” ¿que? ٠١ Ⅷ ½",
]


def word_piece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)] + list("0123456789")
    words = ["a", "painting", "of", "the", "man", "un", "naive", "cafe", "yes", "no", "width", "emoji"]
    pieces = ["##" + word for word in [*letters, "ing", "s", "aff", "able", "xx"]]
    marks = list("!,.'()[]$^_`~«»“”¿?") + ["浮", "世", "絵", "画", "の", "##の"]
    vocab = list(dict.fromkeys([*special, *letters, *words, *pieces, *marks]))
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})
    # As upstream's init_tokenizer.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    encoded = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35)
    cases = dict(vocab=vocab, prompts=PROMPTS, ids=encoded["input_ids"], mask=encoded["attention_mask"])
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in cases.items())
    (HERE / "metric_word_piece.json").write_text("{\n" + lines + "\n}\n")


class QuickGelu(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(torch.nn.Module):
    """`ResidualAttentionBlock` of OpenAI's clip/model.py."""

    def __init__(self, width, heads, activation):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        layers = [("c_fc", torch.nn.Linear(width, 2 * width)), ("gelu", activation()), ("c_proj", torch.nn.Linear(2 * width, width))]
        self.mlp = torch.nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(torch.nn.Module):
    def __init__(self, width, heads, activation, layers=2):
        super().__init__()
        self.resblocks = torch.nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


def parameter(*shape):
    return torch.nn.Parameter(torch.zeros(shape))


class Visual(torch.nn.Module):
    """`VisionTransformer` of OpenAI's clip/model.py."""

    def __init__(self, activation, width=192, heads=3, size=32, patch=8, dim=24):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = parameter(width)
        self.positional_embedding = parameter((size // patch) ** 2 + 1, width)
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, activation)
        self.proj = parameter(width, dim) if dim else None

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_post(self.transformer(self.ln_pre(x))[:, 0])
        return x if self.proj is None else x @ self.proj


class OpenClip(torch.nn.Module):
    """`CLIP` of OpenAI's clip/model.py, with the activation as open_clip has it."""

    def __init__(self, activation, width=128, heads=2, vocabulary=60, length=12, dim=24):
        super().__init__()
        self.visual = Visual(activation)
        self.transformer = Transformer(width, heads, activation)
        self.token_embedding = torch.nn.Embedding(vocabulary, width)
        self.positional_embedding = parameter(length, width)
        self.ln_final = torch.nn.LayerNorm(width)
        self.text_projection = parameter(width, dim)
        self.logit_scale = torch.nn.Parameter(torch.tensor(0.0))
        self.mask = torch.full((length, length), -math.inf).triu(1)

    def texts(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.mask))
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def resize_max_size(image, size):
    """`ToTensor` and `ResizeMaxSize` of HPSv2, which calls torchvision's antialiased resize of tensors."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    scale = size / float(max(x.shape[2:]))
    new = tuple(round(side * scale) for side in x.shape[2:])
    x = torch.nn.functional.interpolate(x, new, mode="bicubic", align_corners=False, antialias=True)
    pad_h, pad_w = size - new[0], size - new[1]
    x = torch.nn.functional.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def fill(module, seed):
    """Draws the weights; returns the names and shapes of all, as JSON."""
    module.load_state_dict(draw(module.state_dict(), seed))
    module.eval()
    return json.dumps({name: list(tensor.shape) for name, tensor in module.state_dict().items()})


def open_clip():
    tensors, metadata = {}, {}
    normalized = torch.nn.functional.normalize
    ids = torch.zeros(3, 12, dtype=torch.long)
    for row, n in zip(ids, [1, 5, 10]):
        row[0], row[1:n + 1], row[n + 1] = 58, torch.arange(3, 3 + n), 59
    tensors["ids"] = ids
    for name, activation, seed in [("gelu", torch.nn.GELU, 90), ("quick_gelu", QuickGelu, 91)]:
        network = OpenClip(activation)
        metadata[name] = fill(network, seed)
        with torch.no_grad():
            images, texts = network.visual(normal(92, 3, 3, 32, 32)), network.texts(ids)
        tensors |= {f"images.{name}": images, f"texts.{name}": texts}
        tensors[f"cosines.{name}"] = (normalized(images, dim=-1) @ normalized(texts, dim=-1).T).diagonal().contiguous()
        tensors[f"logit_scale.{name}"] = network.logit_scale.detach()
    csd = torch.nn.Module()
    csd.backbone = Visual(QuickGelu, dim=None)
    csd.last_layer_style, csd.last_layer_content = parameter(192, 24), parameter(192, 24)
    metadata["csd"] = fill(csd, 93)
    with torch.no_grad():
        tensors["styles"] = normalized(csd.backbone(normal(94, 2, 3, 32, 32)) @ csd.last_layer_style, dim=1, p=2)
    generator = np.random.default_rng(95)
    images = {"wide": smooth(75, 40), "tall": noise(generator, 33, 58), "small": noise(generator, 9, 13), "square": smooth(64, 64)}
    for name, image in images.items():
        tensors[f"source.{name}"] = torch.from_numpy(image)
        tensors[f"padded.{name}"] = resize_max_size(image, 32)
    save_file(tensors, HERE / "metric_open_clip.safetensors", metadata)


def aesthetic(shared):
    weights = torch.load(shared / "aesthetic/sac+logos+ava1-l14-linearMSE.pth", map_location="cpu", weights_only=True)
    head = Head(768)
    head.load_state_dict(weights)
    embeddings = normal(70, 6, 768) * torch.tensor([0.01, 1, 1, 10, 100, 0])[:, None]
    with torch.no_grad():
        scores = head(torch.nn.functional.normalize(embeddings, dim=-1))
    save_file({"embeddings": embeddings, "scores": scores}, HERE / "metric_aesthetic.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    preprocess()
    dino()
    image_reward()
    word_piece()
    open_clip()
    if arguments.shared:
        aesthetic(arguments.shared)
