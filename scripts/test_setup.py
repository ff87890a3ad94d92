"""Tests of setup.py with a package index on this machine: no network is needed."""

import contextlib
import hashlib
import http.server
import io
import os
import sys
import tempfile
import threading
import unittest
import zipfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import setup
import wheels

FILE = "thing-1.0-py3-none-manylinux2014_x86_64.whl"


def make_wheel():
    """A wheel whose needed members lie between others that are large and not needed."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("thing/large_before.bin", os.urandom(300_000))
        archive.writestr("nvidia/x/lib/libthing.so.1", b"library " * 5_000)
        archive.writestr("nvidia/x/lib/libother.so.1", b"unneeded")
        archive.writestr("thing/large_after.bin", os.urandom(300_000))
        archive.writestr("thing-1.0.dist-info/licenses/License.txt", b"do as you like")
    return data.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with one file; `cut` is the number of bytes after which each answer is cut off."""

    wheel = b""
    ranges = True
    json = True
    cut = None
    sent = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        kind = type(self)
        if self.path == "/simple/thing/":
            link = f"../../files/{FILE}"
            body = (f'{{"files": [{{"url": "{link}"}}]}}' if kind.json else f'<a href="{link}#sha256=0">x</a>').encode()
            self.answer(200, "application/vnd.pypi.simple.v1+json" if kind.json else "text/html", body)
        elif self.path == f"/files/{FILE}":
            start, end, status = 0, len(kind.wheel), 200
            if kind.ranges and "Range" in self.headers:
                first, last = self.headers["Range"][len("bytes=") :].split("-")
                start, end, status = int(first), int(last) + 1, 206
            self.answer(status, "application/octet-stream", kind.wheel[start:end], kind.cut)
        else:
            self.answer(404, "text/plain", b"no")

    def answer(self, status, kind, body, cut=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[:cut]
        type(self).sent += len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)


class SetupTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.deps = Path(folder.name) / ".deps"
        self.deps.mkdir()
        Index.wheel, Index.ranges, Index.json, Index.cut, Index.sent = make_wheel(), True, True, None, 0
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        index = f"http://127.0.0.1:{server.server_address[1]}/simple"
        for patch in (
            mock.patch.object(setup, "DEPS", self.deps),
            mock.patch.object(setup, "index_url", lambda: index),
            mock.patch.object(setup.time, "sleep", lambda _: None),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.addCleanup(patch.__exit__, None, None, None)
            patch.__enter__()
        path = Path(folder.name) / "made.whl"
        path.write_bytes(Index.wheel)
        spans = tuple(wheels.spans_of(path, r"nvidia/x/lib/libthing.*|.*/License.txt", gap=1000))
        members = ((r"nvidia/[^/]*/lib/(libthing\.so\.1)", r"lib/\1"), (r".*/(License.txt)", r"licenses/\1"))
        self.wheel = wheels.Wheel("thing", "1.0", FILE, len(Index.wheel), spans, members)

    def install(self):
        setup.install("thing", "thing 1.0", (self.wheel,), 1000, lambda folder: None)

    def check_installed(self):
        self.assertEqual((self.deps / "thing/lib/libthing.so.1").read_bytes(), b"library " * 5_000)
        self.assertEqual((self.deps / "thing/licenses/License.txt").read_bytes(), b"do as you like")
        found = sorted(str(p.relative_to(self.deps)) for p in self.deps.rglob("*") if p.is_file())
        self.assertEqual(found, ["thing/lib/libthing.so.1", "thing/licenses/License.txt", "thing/setup.json"])

    def test_only_the_spans_are_downloaded_and_the_second_call_downloads_nothing(self):
        self.install()
        self.check_installed()
        self.assertLess(Index.sent, 60_000)
        sent = Index.sent
        self.install()
        self.assertEqual(Index.sent, sent)

    def test_an_html_index_and_a_server_without_ranges_work_too(self):
        Index.json = Index.ranges = False
        self.install()
        self.check_installed()

    def test_an_interrupted_download_is_resumed(self):
        Index.cut = 0
        with self.assertRaisesRegex(setup.SetupError, "resumes from here"):
            self.install()
        self.assertFalse((self.deps / "thing").exists())
        Index.cut = 15_000
        self.install()
        self.check_installed()
        self.assertLess(Index.sent, 60_000)

    def test_another_file_under_the_name_is_refused_and_deleted(self):
        Index.wheel = Index.wheel.replace(b"library library", b"mischief librar", 1)
        with self.assertRaisesRegex(setup.SetupError, "pinned sha256"):
            self.install()
        self.assertFalse((self.deps / "thing").exists())

    def test_pip_is_used_when_the_index_cannot_be_read(self):
        def bring(*arguments, **_):
            (Path(arguments[arguments.index("--dest") + 1]) / FILE).write_bytes(Index.wheel)
            return mock.Mock(returncode=0)

        with mock.patch.object(setup, "file_url", side_effect=OSError("401")), mock.patch.object(setup, "pip", bring):
            self.install()
        self.check_installed()

    def test_too_little_space_is_reported_before_anything_is_downloaded(self):
        with mock.patch.object(setup.shutil, "disk_usage", return_value=mock.Mock(free=1000)):
            with self.assertRaisesRegex(setup.SetupError, "make room"):
                self.install()
        self.assertEqual(Index.sent, 0)

    def make_libtorch(self, version):
        folder = self.deps.parent / f"libtorch-{version}"
        for name in ("lib/libtorch_cpu.so", "lib/libc10.so", "include/ATen/ATen.h"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        (folder / "build-version").write_text(version)
        return folder

    def test_a_named_libtorch_is_linked_if_its_version_fits(self):
        good, bad = self.make_libtorch("2.11.1+cpu"), self.make_libtorch("2.5.0")
        setup.set_up_libtorch(str(good), "")
        self.assertEqual((self.deps / "libtorch").resolve(), good.resolve())
        with self.assertRaisesRegex(setup.SetupError, "is libtorch 2.5.0, 2.11 is needed"):
            setup.set_up_libtorch(str(bad), "")
        with self.assertRaisesRegex(setup.SetupError, "not a libtorch with headers"):
            setup.set_up_libtorch(str(self.deps), "")
        # Without a name the link stays.
        setup.set_up_libtorch("", "")
        self.assertEqual((self.deps / "libtorch").resolve(), good.resolve())

    def test_another_platform_is_refused_with_what_to_do(self):
        with mock.patch.object(setup.platform, "machine", return_value="aarch64"):
            with self.assertRaisesRegex(setup.SetupError, "Linux on aarch64.*LIBTORCH"):
                setup.set_up_libtorch("", "")

    def test_the_pinned_spans_lie_within_their_files(self):
        for wheel in (*wheels.LIBTORCH, *wheels.ONNXRUNTIME, *wheels.ONNXRUNTIME_CUDA, *wheels.CUDA):
            edges = [edge for span in wheel.spans for edge in (span.start, span.end)]
            self.assertEqual(edges, sorted(edges), wheel.file)
            self.assertEqual(edges[-1], wheel.size, "a zip's directory is at its end")
            self.assertTrue(all(len(bytes.fromhex(span.sha256)) == hashlib.sha256().digest_size for span in wheel.spans))


if __name__ == "__main__":
    unittest.main()
