"""Packs what bench/gpu.sh needs on a machine without Rust and network into target/gpu-bundle.tar.xz, at most 64 MiB.

    make gpu-bundle                     # python3 bench/pack.py [--binaries]

The bundle contains the program and the unit tests (stripped), the shipped model and WASM plugins, reference tensors and
bench/; with --binaries only the program and the tests, for a machine with a checkout of the same commit. On the machine
with the GPU, in a new folder (with --binaries: in the checkout):

    tar xf gpu-bundle.tar.xz && bench/gpu.sh        # or: python3 -m tarfile -e gpu-bundle.tar.xz
"""
import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "target/gpu-bundle.tar.xz"
SUITE = "target/release/gpu-suite.json"
MOST = 64 << 20
# The files that the parts and the tests read.
FILES = ["bench", "models/weights", "models/src/published", "plugins/*.wasm", "tests/reference", "host/src/*.snap"]
# The test binaries, quick ones first: (binary, name in the table, arguments, whether --small runs it). The tests of ONNX
# plugins need ONNX Runtime and do not use the device.
TESTS = [("torch_ext", "torch-ext", [], True), ("ambiguity_models", "models", [], True),
         ("ambiguity_host", "host", ["--skip", "plugin::onnx"], False)]


def text_of(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def built_tests():
    """{target: its test binary, relative to the root}, as cargo reports them once they are built."""
    found = {}
    for line in text_of("cargo", "test", "--release", "--workspace", "--no-run", "--message-format=json").splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["profile"]["test"] and message["executable"]:
            found[message["target"]["name"]] = str(Path(message["executable"]).relative_to(ROOT))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", action="store_true", help="pack only the program and the tests")
    args = parser.parse_args()
    built = built_tests()
    tests = [{"name": name, "binary": built[target], "arguments": arguments, "small": small}
             for target, name, arguments, small in TESTS]
    commit = text_of("git", "describe", "--always", "--dirty", "--abbrev=40").strip()
    (ROOT / SUITE).write_text(json.dumps({"commit": commit, "tests": tests}, indent=1) + "\n")
    # Only files that git tracks.
    others = [] if args.binaries else [name for name in text_of("git", "ls-files", "-z", "--", *FILES).split("\0") if name]
    part = BUNDLE.with_suffix(".part")
    # The dictionary of this preset, 64 MiB, spans the binaries, which share much code.
    with tempfile.TemporaryDirectory() as stripped, tarfile.open(part, "w:xz", preset=9) as archive:
        for binary in ["target/release/host"] + [test["binary"] for test in tests]:
            plain = Path(stripped) / Path(binary).name
            subprocess.run(["strip", "-o", plain, ROOT / binary], check=True)
            archive.add(plain, binary)
        for name in [SUITE, *others]:
            archive.add(ROOT / name, name)
    part.replace(BUNDLE)
    size = BUNDLE.stat().st_size
    print(f"{BUNDLE.relative_to(ROOT)}: {size / (1 << 20):.1f} MiB, {commit}")
    if size > MOST:
        sys.exit("pack.py: error: that is more than 64 MiB")


if __name__ == "__main__":
    main()
