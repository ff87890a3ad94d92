"""Writes the reference files of CLIP with torch, transformers and Pillow.

    python tests/reference/make_clip.py [--model models/weights/tiny-art] [--shared ../shared/reference]

Writes, beside itself: clip_quick.safetensors, clip_gelu.safetensors, clip_text.safetensors, clip_vision.safetensors (random
small networks, their config.json in the metadata, inputs and outputs), resize.safetensors, clip_preprocess.safetensors,
clip_tokenizer.json and clip_shipped.safetensors, which belongs to the shipped model and is written again when that
changes. With --shared, the tokenizer's cases on CLIP's own vocabulary and clip_paintings.safetensors are written as
well; without it, they are left as they are.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

HERE = Path(__file__).parent
TEXT = dict(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=12, bos_token_id=58, eos_token_id=59, pad_token_id=59)
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)


def shake(model):
    """Random values everywhere, of a size that makes every tensor matter."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif p.dim() < 2 and name != "logit_scale":
                p.copy_(0.2 * torch.randn_like(p))
            elif p.dim() >= 2:
                p.copy_(torch.randn_like(p) * (0.5 if "embedding" in name else 1.5 * p.shape[-1] ** -0.5))
    return model.eval()


def saved_weights(model):
    """The tensors that save_pretrained writes, and its config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors"), Path(f"{folder}/config.json").read_text()


def digest(tensors):
    """As in models/src/safetensors.rs: name, type, shape and bytes of every tensor in order of names."""
    total = hashlib.sha256()
    names = {torch.float32: "F32"}
    for name, tensor in sorted(tensors.items()):
        data = tensor.contiguous().numpy().tobytes()
        lengths = [tensor.dim(), *tensor.shape, len(data)]
        total.update(name.encode() + b"\0" + names[tensor.dtype].encode() + b"\0")
        total.update(b"".join(n.to_bytes(8, "little") for n in lengths) + data)
    return total.hexdigest()


def token_ids(bos, eos, pad, length):
    """Texts of several lengths, one that fills the whole row."""
    rows = torch.full((4, length), pad)
    for row, n in zip(rows, [1, 3, length - 2, 5]):
        row[0] = bos
        row[1:n + 1] = torch.randint(2, min(bos, eos), (n,))
        row[n + 1] = eos
    return rows


def write(name, weights, config, data):
    tensors = {f"weights.{key}": value.contiguous() for key, value in weights.items()}
    tensors |= {f"data.{key}": value.detach().contiguous() for key, value in data.items()}
    save_file(tensors, HERE / f"{name}.safetensors", {"config": config, "digest": digest(weights)})


def whole_clip(name, act, eos):
    torch.manual_seed(len(name))
    text = TEXT | dict(hidden_act=act, eos_token_id=eos)
    model = shake(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION | dict(hidden_act=act), projection_dim=24)))
    # With eos_token_id = 2, as in old files, the end-of-text token is the highest id of the text.
    ids = token_ids(58, 59, 59, 12)
    pixels = torch.randn(3, 3, 32, 32, requires_grad=True)
    out = model(input_ids=ids, pixel_values=pixels)
    vision, text = out.vision_model_output, out.text_model_output
    image_embeds, text_embeds = vision.pooler_output, text.pooler_output
    last = text.last_hidden_state
    loss = (image_embeds.square().sum() + text_embeds.square().sum()).log()
    loss.backward()
    data = dict(ids=ids, pixels=pixels, last_hidden_state=last, image_embeds=image_embeds, text_embeds=text_embeds,
                pixels_grad=pixels.grad, tokens_grad=model.text_model.embeddings.token_embedding.weight.grad,
                fc2_grad=model.vision_model.encoder.layers[0].mlp.fc2.weight.grad)
    write(name, *saved_weights(model), data)


def text_alone():
    """Stable Diffusion 2's text encoder scaled down: gelu, heads of equal width, padded with id 0; names without a prefix."""
    torch.manual_seed(3)
    config = CLIPTextConfig(**TEXT | dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, hidden_act="gelu",
                                          vocab_size=200, bos_token_id=198, eos_token_id=199, pad_token_id=0))
    model = shake(CLIPTextModel(config))
    ids = token_ids(198, 199, 0, 12)
    out = model(input_ids=ids)
    weights = {key: value for key, value in model.state_dict().items() if "position_ids" not in key}
    _, config = saved_weights(model)
    write("clip_text", weights, config, dict(ids=ids, last_hidden_state=out.last_hidden_state, pooled=out.pooler_output))


def vision_alone():
    torch.manual_seed(4)
    model = shake(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION | dict(projection_dim=16, patch_size=10))))
    pixels = torch.randn(2, 3, 32, 32)
    write("clip_vision", *saved_weights(model), dict(pixels=pixels, image_embeds=model(pixel_values=pixels).image_embeds))


def noise(generator, width, height):
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
    return np.clip(np.round(127.5 + 140 * np.stack(waves, -1)), 0, 255).astype(np.uint8)


def resize():
    generator = np.random.default_rng(5)
    sources = {"noise": noise(generator, 47, 33), "smooth": smooth(120, 90), "pixel": noise(generator, 1, 1), "row": noise(generator, 64, 2)}
    tensors = {f"source.{name}": torch.from_numpy(image) for name, image in sources.items()}
    sizes = {"noise": [(94, 66), (23, 16), (46, 34), (47, 10), (13, 33), (101, 7), (1, 1), (45, 28)],
             "smooth": [(64, 48), (64, 64), (119, 91), (37, 90), (150, 113), (110, 70), (110, 69)], "pixel": [(5, 3)], "row": [(7, 9)]}
    for name, pairs in sizes.items():
        for size in pairs:
            image = Image.fromarray(sources[name]).resize(size, Image.BICUBIC)
            tensors[f"result.{name}.{size[0]}x{size[1]}"] = torch.from_numpy(np.array(image))
    save_file(tensors, HERE / "resize.safetensors")


def preprocess():
    generator = np.random.default_rng(6)
    images = {"wide": smooth(75, 40), "tall": noise(generator, 33, 58), "square": smooth(64, 64), "small": noise(generator, 9, 13)}
    processors = {
        "clip": dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        "numbers": dict(size=36, crop_size=31),
        "padded": dict(size={"shortest_edge": 20}, crop_size={"height": 27, "width": 24}),
        "stretched": dict(size={"height": 24, "width": 30}, do_center_crop=False),
        "plain": dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False),
    }
    tensors = {f"source.{name}": torch.from_numpy(image) for name, image in images.items()}
    configs = {}
    for name, keys in processors.items():
        processor = CLIPImageProcessorPil(**keys)
        pixels = processor([Image.fromarray(image) for image in images.values()], return_tensors="pt")["pixel_values"]
        tensors[f"result.{name}"] = pixels
        # The file in the format of old ones on the Hub ("numbers") or as transformers writes it today.
        configs[name] = json.dumps(keys if name == "numbers" else json.loads(processor.to_json_string()))
    save_file(tensors, HERE / "clip_preprocess.safetensors", configs | {"order": json.dumps(list(images))})


TEXTS = [
    "", " ", "a photo of a cat", "A Photo   of\ta\nCAT!", "painting of a woman in the style of ukiyo-e",
    "don't you'll I'm we've she'd it's they're 'tis rock'n'roll DON'T", "3.14159 and 2,000,000 in 1999; 10th",
    "wow!!! really?! (yes) [no] {maybe} <b>bold</b> a!b ! !!", "naïve café, e\u0301te\u0301, Ångström, ﬁne, ½, Ⅷ, İstanbul, ẞ",
    "日本の浮世絵 葛飾北斎", "Импрессионизм и Ван Гог", "مرحبا بالعالم", "नमस्ते दुनिया", "🎨🖼️👩🏽‍🎨 emoji", "zero\u200bwidth\u00a0nbsp\u3000wide",
    "<|startoftext|>inside<|endoftext|> text <|EndOfText|>", "snake_case camelCase kebab-case a/b\\c C++ #tag @you 50% $5 &amp;",
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "word " * 100, "🎨" * 60, "x" * 400, "ab\u0000cd\u0007ef", "line\r\nbreak\u2028separator",
]


def byte_vocabulary(words):
    """A small vocabulary in CLIP's layout: 256 bytes, the same at a word's end, merges to `words`, two special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens, merges = symbols + [s + "</w>" for s in symbols], []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                tokens.append(parts[0] + parts[1])
            parts[:2] = [parts[0] + parts[1]]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def ids_of(tokenizer, texts=TEXTS):
    return tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)["input_ids"]


def tokenizer(model, shared):
    path = HERE / "clip_tokenizer.json"
    cases = json.loads(path.read_text()) if path.exists() else {}
    vocab, merges = byte_vocabulary(["a", "photo", "of", "painting", "cat", "don", "it", "caf"])
    small = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=20)
    bang = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=20, pad_token="!")
    cases |= {"texts": TEXTS, "vocab": vocab, "merges": merges, "small": ids_of(small), "small_bang": ids_of(bang)}
    cases["shipped"] = ids_of(CLIPTokenizer.from_pretrained(model / "diffusion/tokenizer"))
    if shared:
        folder = shared / "clip-tokenizer"
        real = dict(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)
        cases["clip"] = ids_of(CLIPTokenizer(**real))
        cases["clip_bang"] = ids_of(CLIPTokenizer(**real, pad_token="!"))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in cases.items())
    path.write_text("{\n" + lines + "\n}\n")


def shipped(model):
    """The shipped towers' embeddings of the texts."""
    ids = torch.tensor(ids_of(CLIPTokenizer.from_pretrained(model / "clip")))
    clip = CLIPModel.from_pretrained(model / "clip", dtype=torch.float32).eval()
    encoder = CLIPTextModel.from_pretrained(model / "diffusion/text_encoder", dtype=torch.float32).eval()
    with torch.no_grad():
        tensors = {"text_embeds": clip.get_text_features(ids).pooler_output, "encoder_pooled": encoder(ids).pooler_output}
    save_file(tensors, HERE / "clip_shipped.safetensors")


def paintings(model, shared):
    """The shipped CLIP's embeddings of JPEG files decoded by Pillow."""
    clip = CLIPModel.from_pretrained(model / "clip", dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    files = sorted((shared / "paintings").glob("*.jpg"))
    pixels = processor([Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeddings = clip.get_image_features(pixel_values=pixels).pooler_output
    names = json.dumps([file.name for file in files])
    save_file({"image_embeds": embeddings}, HERE / "clip_paintings.safetensors", {"files": names})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=HERE.parent.parent / "models/weights/tiny-art")
    parser.add_argument("--shared", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole_clip("clip_quick", "quick_gelu", 59)
    whole_clip("clip_gelu", "gelu", 2)
    text_alone()
    vision_alone()
    resize()
    preprocess()
    tokenizer(arguments.model, arguments.shared)
    shipped(arguments.model)
    if arguments.shared:
        paintings(arguments.model, arguments.shared)
