"""All comparisons with the reference implementations: `make parity` runs this in a virtualenv of its own.

1. The committed reference tensors are recomputed by their scripts and must be the same (largest relative error 1e-5),
   so that they are what the installed torch, diffusers, transformers and peft compute.
2. The shipped small model loads in diffusers and transformers, and `host embed` returns transformers' embeddings of
   images (by their own preprocessing) and texts, relative error <= 1e-5; of JPEGs a cosine >= 0.999.
3. A LoRA trained by `host train` generates the same images in diffusers as in `host sample` (check_lora.py), largest
   difference 2e-4.
4. The ONNX files that this program wrote pass ONNX's checker. The reference networks' (the test
   a_network_that_was_written_is_a_plugin writes them into target/tmp/onnx) return in onnxruntime PyTorch's logits and
   images of can.safetensors, largest difference 1e-4; the shipped plugins/*.onnx return finite logits.

    python tests/reference/parity.py [--host target/release/host] [--onnx target/tmp/onnx]
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL = ROOT / "models/weights/tiny-art/diffusion"
CLIP = ROOT / "models/weights/tiny-art/clip"
SHARED = ROOT.parent / "shared/reference"
failures = []


def report(what, error, limit):
    good = error <= limit
    print(f"{'ok  ' if good else 'FAIL'}  {what}: {error:.2e} (limit {limit:.0e})", flush=True)
    if not good:
        failures.append(what)


def relative(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def reference_tensors(folder):
    shared = ["--shared", str(SHARED)] if SHARED.exists() else []
    extra = {"make_clip.py": ["--model", str(MODEL.parent), *shared], "make_diffusion.py": [str(MODEL)],
             "make_metrics.py": shared}
    # Its embeddings are input, which the script takes from the committed file.
    shutil.copy(HERE / "linear.safetensors", folder)
    scripts = ("make_torch_ext.py", "make_diffusion.py", "make_ppo.py", "make_clip.py", "make_can.py", "make_kmeans.py",
               "make_linear.py", "make_mixture.py", "make_disregard.py", "make_torch_file.py", "make_metrics.py")
    for script in scripts:
        shutil.copy(HERE / script, folder)
        subprocess.run([sys.executable, "-W", "ignore", folder / script, *extra.get(script, [])], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for file in sorted(folder.glob("*.safetensors")):
        committed, fresh = load_file(HERE / file.name), load_file(file)
        if committed.keys() != fresh.keys():
            failures.append(file.name)
            print(f"FAIL  {file.name}: other tensors than the committed ones")
            continue
        # On another processor, a number between two bytes may be rounded to the other one.
        is_bytes = lambda name: fresh[name].dtype == torch.uint8
        report(f"{file.name} recomputed, {len(fresh)} tensors",
               max((relative(fresh[k], committed[k]) for k in fresh if not is_bytes(k)), default=0.0), 1e-5)
        for name in filter(is_bytes, fresh):
            report(f"{file.name} recomputed, bytes of {name}", relative(fresh[name], committed[name]), 1e-3)


def embeddings(host, folder):
    clip = CLIPModel.from_pretrained(CLIP).eval()
    processor, tokenizer = CLIPImageProcessor.from_pretrained(CLIP), CLIPTokenizer.from_pretrained(CLIP)
    pooled = lambda output: getattr(output, "pooler_output", output)

    def ours(*arguments):
        out = folder / "embeddings.safetensors"
        subprocess.run([host, "embed", *arguments, "--encoder", "tiny-art", "--out", out], check=True, stdout=subprocess.DEVNULL)
        return load_file(out)["embeddings"]

    subprocess.run([host, "art", "--out", folder / "art", "--per-class", "2", "--size", "80"], check=True,
                   stdout=subprocess.DEVNULL)
    images = sorted((folder / "art").glob("*/*.png"))

    def theirs(files):
        pixels = processor([Image.open(file).convert("RGB") for file in files], return_tensors="pt").pixel_values
        return pooled(clip.get_image_features(pixels))

    with torch.no_grad():
        report(f"{len(images)} images in transformers' CLIP", relative(ours("images", folder / "art"), theirs(images)), 1e-5)
        jpegs = folder / "jpegs"
        jpegs.mkdir()
        for i, file in enumerate(images[:16]):
            Image.open(file).convert("RGB").resize((160, 120)).save(jpegs / f"{i:02}.jpg", quality=85)
        a, b = ours("images", jpegs), theirs(sorted(jpegs.glob("*.jpg")))
        report("16 JPEGs, 1 - cosine", float(1 - torch.cosine_similarity(a, b).min()), 1e-3)
        texts = ["painting of a man", "drawing of a landscape", "", "an image in the style of cubism"]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        report("texts in transformers' CLIP", relative(ours("texts", *texts), pooled(clip.get_text_features(ids))), 1e-5)


def lora(host, folder):
    settings = ["sample.batches_per_epoch=2", "train.epochs=2", "monitor.count=4", "train.learning_rate=1e-2"]
    sets = [part for setting in settings for part in ("--set", setting)]
    subprocess.run([host, "train", "--quiet", "--plugin", "kmeans_image", "--preset", "tiny-art", "--out", folder / "run", *sets],
                   check=True, stdout=subprocess.DEVNULL)
    check = subprocess.run([sys.executable, "-W", "ignore", HERE / "check_lora.py", MODEL, folder / "run", "--host", host],
                           stdout=subprocess.PIPE, text=True)
    print(check.stdout, end="")
    if check.returncode != 0:
        failures.append("check_lora.py")


def onnx_session(file):
    """A session of a file that passes ONNX's checker with inferred shapes."""
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    kinds = {node.op_type for node in inferred.graph.node}
    print(f"ok    {file.name}: ONNX's checker, {len(model.graph.node)} operators ({', '.join(sorted(kinds))})", flush=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options)


def networks_as_onnx(folder):
    reference = load_file(HERE / "can.safetensors")
    for name, given, wanted in (("discriminator", "real", "eval.styles"), ("generator", "noise", "eval.images")):
        session = onnx_session(folder / f"{name}.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: reference[given].float().numpy()})
        wanted = reference[wanted]
        difference = (torch.from_numpy(found)[: len(wanted)] - wanted).abs().max()
        report(f"{name}.onnx in onnxruntime", float(difference), 1e-4)
    for file in sorted((ROOT / "plugins").glob("*.onnx")):
        session = onnx_session(file)
        given = session.get_inputs()[0]
        (found,) = session.run(None, {given.name: (torch.rand(3, *given.shape[1:]) * 2 - 1).numpy()})
        styles = json.loads(session.get_modelmeta().custom_metadata_map["ambiguity.styles"])
        good = found.shape == (3, len(styles)) and bool(torch.from_numpy(found).isfinite().all())
        report(f"plugins/{file.name}, {len(styles)} finite logits for 3 images", 0.0 if good else 1.0, 0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/host")
    parser.add_argument("--onnx", type=Path, default=ROOT / "target/tmp/onnx")
    arguments = parser.parse_args()
    host = arguments.host.resolve()
    packages = ("torch", "diffusers", "transformers", "peft", "safetensors", "pillow", "onnx", "onnxruntime")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    torch.set_num_threads(1)
    for part in (reference_tensors, lambda folder: embeddings(host, folder), lambda folder: lora(host, folder)):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))
    networks_as_onnx(arguments.onnx)
    if failures:
        raise SystemExit("not the same: " + ", ".join(failures))


if __name__ == "__main__":
    main()
