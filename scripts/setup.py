#!/usr/bin/env python3
"""Installs what cargo cannot: libtorch and ONNX Runtime into .deps/, and Rust's wasm targets. Called by `make setup`.

The libraries are taken from PyPI wheels, from the index that pip is configured for. Only the parts of a wheel that are
needed are downloaded (pinned by sha256 in wheels.py), an interrupted download is resumed where it stopped, and a folder
gets its name only when it is complete. A second call finds everything and does nothing.
"""

import argparse
import errno
import fcntl
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import wheels

ROOT = Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps"
STAMP = "setup.json"
WASM_TARGETS = ("wasm32-unknown-unknown", "wasm32-wasip2")
ATTEMPTS = 5


class SetupError(Exception):
    """A sentence that says what went wrong and what to do."""


def say(text):
    print(f"setup: {text}", file=sys.stderr, flush=True)


def megabytes(count):
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


# --- finding a wheel -------------------------------------------------------------------------------------------------


def pip(*arguments, **options):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, text=True, **options)


def index_url():
    """The package index that pip would use: its help text names the default as the user's configuration sets it."""
    answer = pip("download", "--help", capture_output=True)
    if answer.returncode != 0:
        raise SetupError(
            "python3 has no pip, which knows the package index: install it (Debian: `apt install python3-pip`), or "
            "name a libtorch 2.11 that you have (`make setup LIBTORCH=/path` or `TORCH_PYTHON=python3`)"
        )
    found = re.search(r"--index-url.*?\(default\s+(\S+?)\)", answer.stdout, re.DOTALL)
    return found.group(1).rstrip("/") if found else None


class Links(HTMLParser):
    """The links of an index page."""

    def __init__(self):
        super().__init__()
        self.hrefs = []

    def handle_starttag(self, tag, attributes):
        href = dict(attributes).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)


def file_url(index, wheel):
    """The URL of the wheel's file by the index, or None."""
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    request = urllib.request.Request(f"{index}/{wheel.project}/", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as response:
        page, base, kind = response.read(), response.geturl(), response.headers.get("Content-Type", "")
    if "json" in kind:
        links = [entry["url"] for entry in json.loads(page)["files"]]
    else:
        parser = Links()
        parser.feed(page.decode("utf-8", "replace"))
        links = parser.hrefs
    for link in links:
        url = urllib.parse.urljoin(base, link)
        if urllib.parse.unquote(urllib.parse.urlsplit(url).path).endswith("/" + wheel.file):
            return urllib.parse.urldefrag(url).url
    return None


# --- downloading -----------------------------------------------------------------------------------------------------


class Progress:
    """One line about one download: rewritten on a terminal, repeated every few seconds elsewhere."""

    def __init__(self, label, done, total):
        self.label, self.done, self.total, self.began = label, done, total, done
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else 5):
            self.shown = now
            self.show()

    def show(self):
        speed = (self.done - self.began) / max(time.monotonic() - self.start, 1e-3)
        text = f"{self.label}: {self.done / 1e6:.0f} of {megabytes(self.total)}, {speed / 1e6:.1f} MB/s"
        left = (self.total - self.done) / speed if speed > 0 else 0
        if left >= 1:
            text += f", {left:.0f} s left" if left < 120 else f", {left / 60:.0f} min left"
        print(f"\r\033[Ksetup:   {text}" if self.terminal else f"setup:   {text}", file=sys.stderr, flush=True,
              end="" if self.terminal else "\n")

    def finish(self):
        if self.terminal:
            self.show()
            print(file=sys.stderr)
        elif self.done > self.began:
            self.show()


def fetch_span(url, span, part, progress):
    """Appends the missing bytes of a span to the file `part`. A server that ignores ranges is read from the start."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={span.start + have}-{span.end - 1}"})
    with urllib.request.urlopen(request, timeout=60) as response, open(part, "ab") as out:
        skip = span.start + have if response.status == 200 else 0
        while have < span.end - span.start:
            block = response.read(1 << 18)
            if not block:
                raise http.client.IncompleteRead(b"")
            if skip:
                skip, block = max(0, skip - len(block)), block[skip:]
            block = block[: span.end - span.start - have]
            out.write(block)
            have += len(block)
            progress.add(len(block))


def verify(span, part, wheel):
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != span.sha256:
        part.unlink()
        raise SetupError(
            f"the download of {wheel.file} does not have the pinned sha256 and was deleted: run `make setup` again; if "
            "it happens again, the package index serves another file under this name"
        )


class SpannedFile:
    """A file of which only some spans exist, each in a file of its own; enough of a file for zipfile."""

    def __init__(self, wheel, parts):
        self.size, self.position = wheel.size, 0
        self.spans = [(span, open(part, "rb")) for span, part in zip(wheel.spans, parts)]

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=0):
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def read(self, count=-1):
        if count < 0:
            count = self.size - self.position
        for span, file in self.spans:
            if span.start <= self.position < span.end:
                file.seek(self.position - span.start)
                data = file.read(min(count, span.end - self.position))
                self.position += len(data)
                return data
        return b""

    def close(self):
        for _, file in self.spans:
            file.close()


def download(wheel, folder, label):
    """Returns the span files of a wheel, complete and verified."""
    parts = [folder / f"{wheel.file}.{span.start}.part" for span in wheel.spans]
    done = sum(part.stat().st_size for part in parts if part.exists())
    if done < wheel.download:
        try:
            index = index_url()
            url = file_url(index, wheel) if index else None
            problem = "the index does not list it"
        except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
            url, problem = None, str(error)
        if url:
            download_spans(url, wheel, parts, Progress(label, done, wheel.download))
        else:
            say(f"  {wheel.file} cannot be downloaded from the index directly ({problem}); trying pip")
            download_by_pip(wheel, folder, parts)
    for span, part in zip(wheel.spans, parts):
        verify(span, part, wheel)
    return parts


def download_spans(url, wheel, parts, progress):
    for span, part in zip(wheel.spans, parts):
        failures = 0
        while not part.exists() or part.stat().st_size < span.end - span.start:
            before = progress.done
            try:
                fetch_span(url, span, part, progress)
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                failures = 1 if progress.done > before else failures + 1
                if failures >= ATTEMPTS:
                    raise SetupError(
                        f"the download of {wheel.file} was interrupted ({error}): check the network and run "
                        "`make setup` again, it resumes from here"
                    ) from error
                time.sleep(2 ** (failures - 1))
    progress.finish()


def download_by_pip(wheel, folder, parts):
    """For indexes that only pip can read (credentials, local folders): the whole wheel, cut into its spans."""
    platforms = wheel.file[: -len(".whl")].rsplit("-", 1)[1].split(".")
    command = ["download", "--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    command += ["--abi", "cp311", "--abi", "none", "--dest", str(folder)]
    for name in platforms:
        command += ["--platform", name]
    if pip(*command, f"{wheel.project}=={wheel.version}", stdout=sys.stderr).returncode != 0:
        raise SetupError(
            f"pip cannot download {wheel.file} (its message is above): is the network up, and does pip's index have "
            "it? Otherwise put the wheels into a folder and run `PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER make setup`, "
            "or name a libtorch 2.11 that you have (`make setup LIBTORCH=/path` or `TORCH_PYTHON=python3`)"
        )
    whole = folder / wheel.file
    if not whole.exists():
        raise SetupError(f"pip downloaded another file than {wheel.file}: the pinned one is for Linux on x86-64")
    with open(whole, "rb") as file:
        for span, part in zip(wheel.spans, parts):
            file.seek(span.start)
            part.write_bytes(file.read(span.end - span.start))
    whole.unlink()


# --- unpacking -------------------------------------------------------------------------------------------------------


def unpack(wheel, parts, target):
    """Writes the members of the wheel that are needed below `target`; zipfile checks each one's CRC."""
    source = SpannedFile(wheel, parts)
    count = 0
    try:
        with zipfile.ZipFile(source) as archive:
            for member in archive.infolist():
                place = wheel.place(member.filename)
                if place is None or member.is_dir():
                    continue
                path = target / place
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as data, open(path, "wb") as out:
                    shutil.copyfileobj(data, out, 1 << 20)
                count += 1
    finally:
        source.close()
    if count == 0:
        raise SetupError(f"{wheel.file} contains none of the expected files: this is a mistake in scripts/wheels.py")


def stamp_of(list_of_wheels):
    return {wheel.project: wheel.version for wheel in list_of_wheels}


def is_set_up(folder, list_of_wheels, stamp=STAMP):
    try:
        return json.loads((folder / stamp).read_text()) == stamp_of(list_of_wheels)
    except (OSError, ValueError):
        return False


def need_space(list_of_wheels, unpacked):
    need = sum(wheel.download for wheel in list_of_wheels) + unpacked
    free = shutil.disk_usage(DEPS).free
    if free < need:
        raise SetupError(f"{DEPS} has {megabytes(free)} free, {megabytes(need)} are needed: make room and run it again")


def fetch_into(list_of_wheels, target):
    """Downloads and unpacks wheels below `target`, one after the other; each is deleted once it is unpacked."""
    folder = DEPS / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    for number, wheel in enumerate(list_of_wheels, 1):
        label = f"[{number}/{len(list_of_wheels)}] {wheel.project} {wheel.version}"
        parts = download(wheel, folder, label)
        unpack(wheel, parts, target)
        for part in parts:
            part.unlink()


def install(name, title, list_of_wheels, unpacked, finish):
    """Creates .deps/NAME from wheels, unless it exists already."""
    final = DEPS / name
    if is_set_up(final, list_of_wheels):
        say(f"{title} is installed ({display(final)})")
        return
    size = sum(wheel.download for wheel in list_of_wheels)
    say(f"{title} into {display(final)}: {megabytes(size)} to download, {megabytes(unpacked)} on disk")
    need_space(list_of_wheels, unpacked)
    start = time.monotonic()
    temporary = DEPS / f"{name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fetch_into(list_of_wheels, temporary)
    finish(temporary)
    (temporary / STAMP).write_text(json.dumps(stamp_of(list_of_wheels), indent=2) + "\n")
    remove(final)
    temporary.rename(final)
    say(f"{title} is ready after {time.monotonic() - start:.0f} s")


def remove(path):
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def display(path):
    try:
        return path.relative_to(ROOT)
    except ValueError:
        return path


def finish_libtorch(folder):
    # The wheel's own libtorch.so, an empty shell, links the CUDA part too; the linker only wants the name.
    (folder / "lib/libtorch.so").symlink_to("libtorch_cpu.so")
    # torch-sys compares this with the version it was written for.
    (folder / "build-version").write_text(wheels.TORCH_VERSION + "\n")


def finish_onnxruntime(folder):
    (library,) = (folder / "lib").glob("libonnxruntime.so.*")
    (folder / "lib/libonnxruntime.so").symlink_to(library.name)


# --- an existing libtorch --------------------------------------------------------------------------------------------


def libtorch_version(folder):
    """The version of the libtorch in a folder by its own files, or None."""
    for name in ("build-version", "version.py"):
        path = folder / name
        found = re.search(r"(\d+\.\d+\.\d+)", path.read_text()) if path.is_file() else None
        if found:
            return found.group(1)
    header = folder / "include/torch/headeronly/version.h"
    if header.is_file():
        numbers = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", header.read_text())
                   for part in ("MAJOR", "MINOR", "PATCH")]
        if all(numbers):
            return ".".join(number.group(1) for number in numbers)
    return None


def check_libtorch(folder):
    for name in ("lib/libtorch_cpu.so", "lib/libc10.so", "include/ATen/ATen.h"):
        if not (folder / name).exists():
            raise SetupError(f"{folder} is not a libtorch with headers: {name} is missing")
    version = libtorch_version(folder)
    wanted = wheels.TORCH_VERSION.rsplit(".", 1)[0]
    if version is None or version.rsplit(".", 1)[0] != wanted:
        raise SetupError(
            f"{folder} is libtorch {version or 'of an unknown version'}, {wanted} is needed: name another one, or none "
            "to use the one from PyPI"
        )
    return version


def python_torch(python):
    """The folder of the torch that is installed in a Python."""
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise SetupError(f"TORCH_PYTHON={python} does not run: {error}") from error
    if answer.returncode != 0 or not answer.stdout.strip():
        raise SetupError(f"{python} has no torch: install torch=={wheels.TORCH_VERSION} there, or leave TORCH_PYTHON out")
    return Path(answer.stdout.strip())


def link_libtorch(folder):
    """Makes .deps/libtorch a link to a libtorch that the user named."""
    version = check_libtorch(folder)
    final = DEPS / "libtorch"
    if final.is_symlink() and Path(os.readlink(final)) == folder:
        say(f"libtorch {version} is linked ({display(final)} -> {folder})")
        return
    DEPS.mkdir(exist_ok=True)
    remove(final)
    final.symlink_to(folder)
    say(f"libtorch {version}: {display(final)} -> {folder}")


def set_up_libtorch(libtorch, torch_python):
    final = DEPS / "libtorch"
    if torch_python:
        return link_libtorch(python_torch(torch_python))
    if libtorch:
        # The environment variable may name the folder that is created here.
        named = Path(libtorch).resolve()
        if named != final.resolve() and named != Path(os.path.abspath(final)):
            return link_libtorch(named)
    if final.is_symlink():
        say(f"libtorch {check_libtorch(final)} is linked ({display(final)} -> {os.readlink(final)})")
        return None
    need_platform()
    return install("libtorch", f"libtorch {wheels.TORCH_VERSION}", wheels.LIBTORCH, 500_000_000, finish_libtorch)


def set_up_cuda():
    """Adds libtorch's CUDA part and NVIDIA's libraries to the libtorch that `make setup` installed."""
    final = DEPS / "libtorch"
    if final.is_symlink():
        if (final / "lib/libtorch_cuda.so").exists():
            say(f"{os.readlink(final)} includes CUDA, nothing to do")
            return
        raise SetupError(
            f"{os.readlink(final)}, which {display(final)} links to, has no CUDA: remove that link and run "
            "`make setup setup-cuda`, or name a libtorch with CUDA"
        )
    stamp = "setup-cuda.json"
    if is_set_up(final, wheels.CUDA, stamp):
        say(f"CUDA is installed ({display(final)}/lib)")
        return
    size, unpacked = sum(wheel.download for wheel in wheels.CUDA), 3_100_000_000
    say(f"CUDA 13 for libtorch {wheels.TORCH_VERSION}: {megabytes(size)} to download, {megabytes(unpacked)} on disk")
    need_space(wheels.CUDA, unpacked)
    start = time.monotonic()
    # Files that an earlier call unpacked are kept; a wheel is unpacked again only if it is not recorded as done.
    temporary = DEPS / "cuda.unpacking"
    temporary.mkdir(parents=True, exist_ok=True)
    for number, wheel in enumerate(wheels.CUDA, 1):
        done = temporary / f"{wheel.file}.done"
        if not done.exists():
            say(f"wheel {number} of {len(wheels.CUDA)}")
            fetch_into([wheel], temporary)
            done.touch()
    for path in sorted(temporary.rglob("*")):
        if path.is_file() and path.suffix != ".done":
            place = final / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    (final / stamp).write_text(json.dumps(stamp_of(wheels.CUDA), indent=2) + "\n")
    shutil.rmtree(temporary)
    say(f"CUDA is ready after {time.monotonic() - start:.0f} s; `host doctor` reports whether it finds a GPU")


# --- tools -----------------------------------------------------------------------------------------------------------


def need_platform():
    machine = (platform.system(), platform.machine())
    if machine != ("Linux", "x86_64"):
        raise SetupError(
            f"the pinned wheels are for Linux on x86-64, this is {machine[0]} on {machine[1]}: name a libtorch "
            f"{wheels.TORCH_VERSION} for it (`make setup LIBTORCH=/path` or `TORCH_PYTHON=python3`)"
        )


def need_tools():
    """Fails early if a compiler is missing."""
    if not shutil.which("cargo"):
        raise SetupError("cargo is missing: install Rust with rustup (https://rustup.rs), then open a new shell")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
        raise SetupError("a C++ compiler is missing: install it (Debian: `apt install g++`)")


def set_up_targets():
    """Adds Rust's wasm targets, which plugins are built for."""
    if not shutil.which("rustup"):
        missing = [target for target in WASM_TARGETS if not target_folder(target)]
        if missing:
            raise SetupError(
                f"this Rust lacks the target {missing[0]}, and rustup, which could add it, is missing: install Rust with "
                "rustup (https://rustup.rs), or your distribution's package for the target (Debian: "
                "`libstd-rust-dev-wasm32`)"
            )
        return
    listed = subprocess.run(["rustup", "target", "list", "--installed"], cwd=ROOT, capture_output=True, text=True)
    missing = [target for target in WASM_TARGETS if target not in listed.stdout.split()]
    if not missing:
        say("Rust's wasm targets are installed")
        return
    say(f"Rust's targets {' and '.join(missing)}: about 20 MB each")
    if subprocess.run(["rustup", "target", "add", *missing], cwd=ROOT).returncode != 0:
        raise SetupError(f"rustup could not add {' '.join(missing)} (its message is above): is the network up?")


def target_folder(target):
    command = ["rustc", "--print", "target-libdir", "--target", target]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return answer.returncode == 0 and Path(answer.stdout.strip()).is_dir()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cuda", action="store_true", help="install the CUDA libraries too")
    parser.add_argument("--libtorch", default="", metavar="DIR", help="use this libtorch 2.11")
    parser.add_argument("--torch-python", default="", metavar="PYTHON", help="use the torch 2.11 of this Python")
    arguments = parser.parse_args()
    try:
        need_tools()
        DEPS.mkdir(exist_ok=True)
        with open(DEPS / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another setup is running here; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            set_up_libtorch(arguments.libtorch, arguments.torch_python)
            is_pinned_platform = (platform.system(), platform.machine()) == ("Linux", "x86_64")
            if is_pinned_platform:
                install("onnxruntime", f"ONNX Runtime {wheels.ONNXRUNTIME_VERSION}", wheels.ONNXRUNTIME, 36_000_000,
                        finish_onnxruntime)
            else:
                say("ONNX Runtime is pinned for Linux on x86-64 only; .onnx plugins will not load here")
            if arguments.cuda:
                set_up_cuda()
            if arguments.cuda and is_pinned_platform:
                install("onnxruntime-cuda", f"ONNX Runtime {wheels.ONNXRUNTIME_CUDA_VERSION} for CUDA",
                        wheels.ONNXRUNTIME_CUDA, 315_000_000, finish_onnxruntime)
            set_up_targets()
    except SetupError as error:
        sys.exit(f"setup: error: {error}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(f"setup: error: the disk of {DEPS} is full: make room and run it again, it resumes from here")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.exit(f"setup: error: cannot write {error.filename or DEPS}: {error.strerror}")
        sys.exit(f"setup: error: {error}")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say("stopped; the next call resumes from here")
        sys.exit(130)


if __name__ == "__main__":
    main()
