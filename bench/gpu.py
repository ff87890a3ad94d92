"""The parts of bench/gpu.sh, one command each. A part writes its results to PART.json in the folder WORK.

It needs no package but torch, except for the part trl. A part also runs by itself:

    HOST=target/release/host WORK=/some/folder python3 bench/gpu.py ratio --device cuda
"""
import argparse
import ctypes
import importlib.util
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

import random_model

ROOT = random_model.ROOT
HOST = random_model.HOST
WORK = Path(os.environ.get("WORK", "."))
# The largest accepted |ratio - 1| of a first update: the program's own limit.
MAX_RATIO_ERROR = 1e-5
GIB = 1 << 30
# The exit code of a part that cannot run here.
SKIPPED = 77


class Failure(Exception):
    """Why a part failed, in one sentence."""


class Skip(Exception):
    """Why a part cannot run here, in one sentence."""


def save(part, result, summary):
    """Writes the results of a part, and its line in the table; a part with several steps does so after each."""
    (WORK / f"{part}.json").write_text(json.dumps({"summary": summary, "result": result}))
    print(summary, flush=True)


def host(*arguments, tf32=None):
    """Runs the program and raises its error as a Failure. `tf32="0"` turns TF32 off."""
    command = [str(HOST), *map(str, arguments)]
    print("$", *command, flush=True)
    environment = os.environ | ({"NVIDIA_TF32_OVERRIDE": tf32} if tf32 else {})
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    print(ran.stdout + ran.stderr, end="", flush=True)
    if ran.returncode != 0:
        lines = (ran.stderr.strip() or "no message").splitlines()
        error = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
        raise Failure(f"host {arguments[0]}: exit {ran.returncode}: {error.removeprefix('error: ')}")


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def settings(pairs):
    return [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]


def read_tensors(path):
    """Reads the f32 tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")

    def tensor(entry):
        begin, end = entry["data_offsets"]
        return torch.frombuffer(bytearray(data[start + begin:start + end]), dtype=torch.float32).view(entry["shape"])

    header = json.loads(data[8:start])
    return {name: tensor(entry) for name, entry in header.items() if name != "__metadata__"}


def read_tensor(path, name):
    """Reads an f32 tensor of a safetensors file."""
    return read_tensors(path)[name]


# ------------------------------------------------------------------------------------------------------------ cuda
def cuda(args):
    """Describes the GPU, and compares the program's images on it with those on the CPU."""
    result = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "torch_library": str(torch_library())}
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise Failure("Python's torch sees no GPU: does nvidia-smi list one, and is its driver 580 or newer?")
        properties = torch.cuda.get_device_properties(args.device)
        result |= {"gpu": properties.name, "gpu_memory_gib": properties.total_memory / GIB,
                   "compute_capability": f"{properties.major}.{properties.minor}", "driver": Nvml.open(args.device).driver()}
    # Its exit code does not matter: it is 1 also if something is missing that is not needed here.
    doctor = subprocess.run([HOST, "doctor", "--json"], stdout=subprocess.PIPE, text=True)
    result["doctor"] = json.loads(doctor.stdout)["checks"]
    print(doctor.stdout)
    images_on = {}
    # By default, cuDNN computes f32 convolutions in TF32.
    for name, device, tf32 in [("cpu", "cpu", None), ("as it is", args.device, None), ("without TF32", args.device, "0")]:
        out = WORK / f"images_on {name}"
        host("sample", "--model", "tiny-art", "--prompt", "painting of a woman", "--count", 8, "--steps", 10, "--tensors",
             "--device", device, "--out", out, tf32=tf32)
        images_on[name] = read_tensor(out / "sample.safetensors", "images")
    differs = {name: (images - images_on["cpu"]).abs().max().item() for name, images in images_on.items() if name != "cpu"}
    result["images_differ_from_cpu_by"] = differs
    where = result.get("gpu", "the CPU")
    driver = f", driver {result['driver']}" if "driver" in result else ""
    library = next(check["found"] for check in result["doctor"] if check["name"] == "libtorch")
    save("cuda", result, f"{where}{driver}; libtorch {library}; images differ from the CPU's by "
                         f"{differs['as it is']:.1e}, without TF32 by {differs['without TF32']:.1e}")
    if str(torch_library()) not in library:
        raise Failure(f"the program runs on another libtorch than Python: {library}")


def torch_library():
    return Path(torch.__file__).resolve().parent / "lib"


# ----------------------------------------------------------------------------------------------------------- ratio
def ratio(args):
    """Measures max |ratio - 1| of the first update, whose calls repeat those of sampling."""
    rows = 8 if args.small else 32
    result, failed = {}, []
    for dtype in ("f32", "bf16"):
        for guidance in (1, 5):
            run = WORK / f"ratio-{dtype}-{guidance}"
            # With guidance, a sample takes two UNet rows.
            micro = rows * (2 if guidance > 1 else 1)
            host("train", "--quiet", "--plugin", "kmeans_image", "--preset", "tiny-art", "--device", args.device, "--out", run,
                 *settings({"model.dtype": dtype, "sample.guidance": float(guidance), "sample.batch_size": rows,
                            "sample.batches_per_epoch": 2, "sample.micro_batch": micro, "train.micro_batch": micro,
                            "train.batch_size": 2 * rows, "train.shuffle": "calls", "train.epochs": 1, "monitor.count": 2}))
            error = metrics(run)[-1]["ratio_error"]
            result[f"{dtype}, guidance {guidance}"] = error
            if not error <= MAX_RATIO_ERROR:
                failed.append(f"{dtype} at guidance {guidance} is above {MAX_RATIO_ERROR:.0e}")
    save("ratio", result, "max |ratio - 1|: " + "; ".join(f"{name} {error:.1e}" for name, error in result.items()))
    if failed:
        raise Failure("; ".join(failed))


# ------------------------------------------------------------------------------------------------------------ demo
def demo(args):
    """Runs the demo's recipe for a few epochs."""
    run = WORK / "demo"
    sizes = {"train.epochs": 1, "sample.batches_per_epoch": 1, "train.batch_size": 16, "monitor.count": 8} if args.small \
        else {"train.epochs": 4, "monitor.count": 128}
    host("train", "--quiet", "--plugin", "kmeans_image", "--preset", "tiny-art", "--device", args.device, "--out", run,
         *settings(sizes))
    lines = metrics(run)
    last = lines[-1]
    rewards = [line["monitor"]["reward_mean"] for line in lines if "monitor" in line]
    result = {"epochs": last["epoch"], "images_per_second": last["images_per_second"], "seconds": last["seconds"],
              "ratio_error": lines[1]["ratio_error"], "monitor_reward": rewards}
    save("demo", result, f"{last['images_per_second']:.1f} images/s in epoch {last['epoch']}, reward {rewards[0]:.4f} -> "
                         f"{rewards[-1]:.4f}, ratio error {lines[1]['ratio_error']:.1e}")


# ------------------------------------------------------------------------------------------------------- processes
def processes(args):
    """Trains an epoch in one process and in two on the same device, and compares the weights."""
    # Each process would take a GPU of its own.
    device = "cuda:0" if args.device == "cuda" else args.device
    rows = 8 if args.small else 32
    seconds, weights = [], []
    for count in (1, 2):
        run = WORK / f"processes-{count}"
        host("train", "--quiet", "--plugin", "kmeans_image", "--preset", "tiny-art", "--device", device, "--out", run, "--nproc",
             count, "--timeout", 30, *settings({"sample.batch_size": rows, "sample.batches_per_epoch": 2, "train.epochs": 1,
                                                "sample.micro_batch": rows, "train.micro_batch": rows, "monitor.count": 2,
                                                "train.batch_size": 2 * rows, "train.shuffle": "calls"}))
        seconds.append(sum(metrics(run)[-1]["seconds"].values()))
        weights.append(read_tensors(run / "pytorch_lora_weights.safetensors"))
    one, two = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in weights)
    error = float((one - two).norm() / one.norm())
    save("processes", {"seconds": seconds, "difference": error},
         f"an epoch takes {seconds[0]:.2f} s in one process and {seconds[1]:.2f} s in two on one device; the weights differ by "
         f"{error:.1e} of their norm")
    if not error <= 1e-3:
        raise Failure(f"the weights of two processes differ by {error:.1e} of their norm")


# ------------------------------------------------------------------------------------------------------------- can
def can(args):
    """Trains the paper's CAN at 64 px for two epochs of fifty steps, the second of which is warm."""
    run = WORK / "can"
    steps = 5 if args.small else 50
    sizes = {"can.size": 32, "can.generator_channels": 32, "can.discriminator_channels": 2, "can.head": "[8, 8]",
             "can.batch_size": 8, "can.per_class": 4} if args.small else {"can.per_class": 60}
    host("can", "train", "--quiet", "--preset", "tiny-art" if args.small else "paper-64", "--device", args.device, "--out", run,
         *settings({**sizes, "can.test_share": 0.25, "can.steps_per_epoch": steps, "can.epochs": 2, "monitor.every": 2,
                    "monitor.count": 16}))
    lines = [line for line in metrics(run) if line["epoch"] > 0]
    result = {"steps": steps, "images_per_second": [line["images_per_second"] for line in lines], "loss": lines[-1]["loss"]}
    save("can", result, f"{steps} steps at {lines[0]['images_per_second']:.1f} images/s, the next {steps} at "
                        f"{lines[1]['images_per_second']:.1f}")


# ------------------------------------------------------------------------------------------------------------- sd2
class Nvml:
    """The driver's library, which knows its version and the memory of a GPU in use."""

    class Memory(ctypes.Structure):
        _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]

    def __init__(self, library, index):
        self.library, self.handle = library, ctypes.c_void_p()
        self.check(library.nvmlInit_v2())
        self.check(library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self.handle)))

    @classmethod
    def open(cls, device):
        """Opens the library for `cuda` or `cuda:N`."""
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise Failure(f"the driver's library does not load: {error}") from error
        n = int(device.partition(":")[2] or 0)
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        return cls(library, int(shown[n]) if n < len(shown) and shown[n].isdigit() else n)

    @staticmethod
    def check(code):
        if code != 0:
            raise Failure(f"the driver does not answer (NVML error {code})")

    def driver(self):
        text = ctypes.create_string_buffer(96)
        self.check(self.library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(96)))
        return text.value.decode()

    def used(self):
        memory = self.Memory()
        self.check(self.library.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(memory)))
        return memory.used


class Peak(threading.Thread):
    """Measures the peak memory in use on the GPU, minus the memory in use before.

    It samples every 20 ms, which suffices since libtorch keeps memory that it has allocated.
    """

    def __init__(self, device):
        super().__init__(daemon=True)
        self.nvml, self.done, self.most = Nvml.open(device), threading.Event(), 0
        self.before = self.nvml.used()

    def run(self):
        while not self.done.wait(0.02):
            self.most = max(self.most, self.nvml.used() - self.before)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def matmul_rate(device, n):
    """Measures the floating-point operations per second of products of random n x n matrices in bf16."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for _ in range(3):
        a @ b
    sync()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 1.0:
        for _ in range(10):
            a @ b
        count += 10
        sync()
    return 2 * n**3 * count / (time.perf_counter() - began)


def unet_flops(config, tensors, height, width, text_length):
    """Counts the floating-point operations of the forward pass of one row: (of layers, of attention's products).

    They are two per multiply-add of every convolution, linear layer and product of attention, as torch's FlopCounterMode
    counts; norms, activations and softmax are not counted.
    """
    last = len(config["block_out_channels"]) - 1

    def positions(level):
        return -(-height // 2**level) * -(-width // 2**level)

    def level(name):
        parts = name.split(".")
        moved = parts[2] in ("downsamplers", "upsamplers") if len(parts) > 2 else False
        if parts[0] == "down_blocks":
            return int(parts[1]) + moved
        if parts[0] == "up_blocks":
            return last - int(parts[1]) - moved
        return last if parts[0] == "mid_block" else 0

    weights = products = 0
    for name, shape in tensors.items():
        if len(shape) < 2:
            continue
        n = positions(level(name))
        if "time_emb" in name:
            rows = 1
        elif name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            rows = text_length
        else:
            rows = n
        weights += 2 * rows * math.prod(shape)
        if name.endswith("to_q.weight"):
            products += 2 * 2 * n * (text_length if "attn2" in name else n) * shape[0]
    return weights, products


def sd2(args):
    """Trains Stable Diffusion 2 (base) with random weights in bf16 for two epochs, the second of which is warm."""
    rate = matmul_rate(args.device, 1024 if args.small else 8192)
    model = WORK / "sd2"
    began = time.perf_counter()
    tensors = random_model.make(model, "bf16", args.device, narrow=args.small)
    result = {"matmul_tflops": rate / 1e12, "seconds_to_make_the_weights": time.perf_counter() - began,
              "parameters": {part: sum(map(math.prod, shapes.values())) for part, shapes in tensors.items()}, "runs": []}
    size, steps, samples = (64, 3, 4) if args.small else (512, 30, 16)
    failed = []
    config = json.loads((model / "unet/config.json").read_text())
    latent = size >> (len(json.loads((model / "vae/config.json").read_text())["block_out_channels"]) - 1)
    weights, products = unet_flops(config, tensors["unet"], latent, latent, 77)
    # With guidance, a step of a sample takes two rows. The backward pass costs as much as the forward pass for frozen
    # layers, which need only the gradient of their input, and twice as much for attention's products.
    all_rows = 2 * samples * steps
    flops = {"sample": all_rows * (weights + products), "train": all_rows * (2 * weights + 3 * products)}
    result["unet_tflop_per_row"] = (weights + products) / 1e12
    for layout in ("channels_last", "contiguous"):
        rows = samples
        while True:
            try:
                run = one_sd2_run(args, model, layout, size, steps, samples, rows)
                break
            except Failure as failure:
                if not re.search("out of (GPU )?memory", str(failure)) or rows == 2:
                    raise
                print(f"again with half the rows per call: {failure}", flush=True)
                rows //= 2
        seconds = run["seconds"]
        run["share_of_matmul_rate"] = {part: flops[part] / seconds[part] / rate for part in flops}
        run["share_of_matmul_rate"]["epoch"] = sum(flops.values()) / sum(seconds.values()) / rate
        result["runs"].append(run)
        if run["ratio_error"] > MAX_RATIO_ERROR:
            failed.append(f"{layout}: max |ratio - 1| is {run['ratio_error']:.1e}, above {MAX_RATIO_ERROR:.0e}")
        texts = [f"{run['layout']}: {run['images_per_second']:.3f} images/s ({run['rows_per_call']} rows per call), "
                 f"{run['peak_gib']:.1f} GiB, {100 * run['share_of_matmul_rate']['epoch']:.1f} % of the matrix rate (sampling "
                 f"{100 * run['share_of_matmul_rate']['sample']:.1f}, training "
                 f"{100 * run['share_of_matmul_rate']['train']:.1f})" for run in result["runs"]]
        save("sd2", result, f"{size} px, {steps} steps, bf16, {rate / 1e12:.1f} TFLOP/s matrix rate; " + "; ".join(texts))
    if failed:
        raise Failure("; ".join(failed))


def one_sd2_run(args, model, layout, size, steps, samples, rows):
    """Runs two epochs with this number of UNet rows per call and returns the metrics of the last."""
    run = WORK / f"sd2-{layout}-{rows}"
    command = ["train", "--quiet", "--model", model, "--preset", "paper-512", "--plugin", "kmeans_image", "--device",
               args.device, "--out", run, *settings({
                   "model.dtype": "bf16", "model.memory_format": layout, "sample.width": size, "sample.height": size,
                   "sample.steps": steps, "sample.batch_size": samples // 2, "sample.batches_per_epoch": 2,
                   "sample.micro_batch": rows, "train.micro_batch": rows, "train.batch_size": samples // 2,
                   "train.epochs": 2, "monitor.count": 2, "monitor.every": 2, "checkpoint.every": 2})]
    if args.device.startswith("cuda"):
        # Frees the memory that the matrices and the weights took in this process.
        torch.cuda.empty_cache()
        with Peak(args.device) as peak:
            host(*command)
        most = peak.most
    else:
        host(*command)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    lines = [line for line in metrics(run) if line["epoch"] > 0]
    return {"layout": layout, "rows_per_call": rows, "images_per_second": lines[-1]["images_per_second"],
            "images_per_second_of_first_epoch": lines[0]["images_per_second"], "seconds": lines[-1]["seconds"],
            "ratio_error": lines[0]["ratio_error"], "peak_gib": most / GIB}


# ------------------------------------------------------------------------------------------------------------- trl
def trl(args):
    """Compares an epoch with TRL's DDPOTrainer on the same model, which the part sd2 writes or this one."""
    missing = [name for name in ("diffusers", "transformers", "peft", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        raise Skip(f"Python lacks {', '.join(missing)}")
    model, out = WORK / "sd2", WORK / "trl-numbers.json"
    if not model.is_dir():
        random_model.make(model, "bf16", args.device, narrow=args.small)
    batch, steps, rounds = (2, 2, 1) if args.small else (8, 10, 2)
    command = [sys.executable, ROOT / "bench/trl_ddpo.py", "--model", model, "--host", HOST, "--device", args.device,
               "--dtype", "bf16", "--batch", batch, "--batches", 2, "--steps", steps, "--micro-batch", 2 * batch,
               "--shuffle", "calls", "--rounds", rounds, "--json", out, "--plugin", "kmeans_image"]
    print("$", *command, flush=True)
    ran = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    print(ran.stderr + ran.stdout, end="", flush=True)
    if ran.returncode != 0:
        raise Failure((ran.stderr.strip() or "no message").splitlines()[-1])
    result = json.loads(out.read_text())
    images = result["images_per_epoch"]
    median = {name: statistics.median(seconds) for name, seconds in result["seconds_per_epoch"].items()}
    save("trl", result, f"{images / median['host']:.2f} images/s, TRL {images / median['trl']:.2f}: {result['ratio']:.2f} "
                        f"times as fast ({steps} steps, {'narrow' if args.small else '512 px'}, bf16, guidance 5)")


# ----------------------------------------------------------------------------------------------------------- suite
OUTCOMES = ("ok", "FAILED", "ignored", "unfinished")


def suite(args):
    """Runs the test binaries that bench/pack.py lists on the device."""
    listed = ROOT / "target/release/gpu-suite.json"
    if not listed.is_file():
        raise Failure(f"{listed} is missing: `make gpu-bundle` builds the tests and writes it")
    deadline = time.monotonic() + args.limit
    tests = [test for test in json.loads(listed.read_text())["tests"] if test["small"] or not args.small]
    result, texts, failures = {}, [], []
    # The tests' tolerances are those of true f32. insta would ask cargo, which need not be installed, for the workspace.
    environment = os.environ | {"AMBIGUITY_TEST_DEVICE": args.device, "NVIDIA_TF32_OVERRIDE": "0", "INSTA_UPDATE": "no",
                                "AMBIGUITY_TEST_ROOT": str(ROOT), "INSTA_WORKSPACE_ROOT": str(ROOT)}
    if args.device.startswith("cuda"):
        # libtorch looks for CUDA once, at the latest when a test on the CPU computes a gradient.
        environment["LD_PRELOAD"] = str(torch_library() / "libtorch_cuda.so")
    for test in tests:
        command = [str(ROOT / test["binary"]), *test["arguments"]]
        print("$", *command, flush=True)
        began = time.monotonic()
        # A binary that hangs leaves the next ones half of the remaining time.
        last = test is tests[-1]
        outcomes, ending = run_tests(command, environment, (deadline - began) / (1 if last else 2))
        by = {outcome: sorted(name for name in outcomes if outcomes[name] == outcome) for outcome in OUTCOMES}
        one = {"passed": len(by["ok"]), "failed": by["FAILED"], "ignored": len(by["ignored"]), "unfinished": by["unfinished"],
               "ended": ending, "seconds": time.monotonic() - began}
        result[test["name"]] = one
        failures += [f"{test['name']}: {name}" for name in one["failed"]]
        texts.append(f"{test['name']} {one['passed']} passed, {len(one['failed'])} failed")
        # libtest exits with 0 or, where a test failed, with 101.
        if one["unfinished"] or ending not in ("exit 0", "exit 101"):
            texts[-1] += f", {len(one['unfinished'])} unfinished ({ending})"
            failures.append(f"{test['name']}: {ending}")
        save("suite", result, "; ".join(texts))
    if failures:
        raise Failure(", ".join(failures))


def run_tests(command, environment, seconds):
    """Runs a test binary, prints its output, and returns ({test: outcome}, how the process ended)."""
    listing = subprocess.run([*command, "--list", "--format", "terse"], cwd=ROOT, env=environment, check=True,
                             capture_output=True, text=True)
    names = [line.removesuffix(": test") for line in listing.stdout.splitlines() if line.endswith(": test")]
    outcomes = dict.fromkeys(names, "unfinished")
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             errors="replace")
    late = threading.Timer(max(seconds, 0), child.kill)
    late.start()
    for line in child.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", line):
            outcomes[found[1]] = found[2]
    code = child.wait()
    ran_out = not late.is_alive()
    late.cancel()
    return outcomes, "out of time" if ran_out else f"exit {code}" if code >= 0 else f"signal {-code}"


# ---------------------------------------------------------------------------------------------------------- report
def report(args):
    """Writes gpu.json and prints the table of all parts so far."""
    parts = {}
    for line in (WORK / "status.tsv").read_text().splitlines():
        name, status, microseconds, limit = line.split("\t")
        found = WORK / f"{name}.json"
        part = {"status": status, "seconds": round(int(microseconds) / 1e6, 1), "limit_seconds": int(limit)}
        part |= json.loads(found.read_text()) if found.is_file() else {"summary": "", "result": None}
        if status != "ok":
            log = (args.out / f"gpu-{name}.log").read_text(errors="replace").splitlines()
            part["log_tail"] = log[-40:]
            said = next((line for line in reversed(log) if re.match("(failed|skipped): ", line)), log[-1] if log else "")
            part["summary"] = "; ".join(filter(None, [re.sub("^(failed|skipped): ", "", said)[:300], part["summary"]]))
        parts[name] = part
    listed = ROOT / "target/release/gpu-suite.json"
    document = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": args.device, "small": args.small,
                "commit": json.loads(listed.read_text())["commit"] if listed.is_file() else None,
                "seconds": round(sum(part["seconds"] for part in parts.values()), 1), "parts": parts}
    whole = args.out / "gpu.json.part"
    whole.write_text(json.dumps(document, indent=1) + "\n")
    whole.replace(args.out / "gpu.json")
    print(f"{'part':<9}  {'status':<11}  {'seconds':>7}  result")
    for name, part in parts.items():
        print(f"{name:<9}  {part['status']:<11}  {part['seconds']:>7.1f}  {part['summary']}")


PARTS = {"cuda": cuda, "ratio": ratio, "demo": demo, "processes": processes, "can": can, "sd2": sd2, "trl": trl, "suite": suite, "report": report}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench/out"), help="folder of gpu.json and the logs")
    parser.add_argument("--limit", type=float, default=600, help="time limit of the suite in seconds")
    args = parser.parse_args()
    try:
        PARTS[args.part](args)
    except Failure as failure:
        sys.exit(f"failed: {failure}")
    except Skip as skip:
        print(f"skipped: {skip}")
        sys.exit(SKIPPED)


if __name__ == "__main__":
    main()
