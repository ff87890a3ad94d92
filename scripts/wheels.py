"""The wheels that setup.py takes libraries from, pinned byte by byte.

A wheel is a zip file with its directory at the end, so parts of it are enough: `spans` are the byte ranges of the files
that are unpacked, each with its sha256. They belong to one file whatever the local Python is, since no Python runs the
wheel's contents.

For a new torch version, change version, file name, size and spans here (`python3 scripts/wheels.py FILE.whl REGEX`
prints the spans of the members that match), and `tch` in Cargo.toml.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The bytes start to end (exclusive) of a file."""

    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel and what is unpacked from it."""

    project: str
    version: str
    file: str
    size: int
    spans: tuple
    # A member's whole name -> its path below the target folder, as a re.sub replacement; other members are left out.
    members: tuple

    @property
    def download(self):
        """Number of bytes that are downloaded of it."""
        return sum(span.end - span.start for span in self.spans)

    def place(self, member):
        """The path of a zip member below the target folder, or None if it is not needed."""
        for pattern, replacement in self.members:
            match = re.fullmatch(pattern, member)
            if match:
                return match.expand(replacement)
        return None


def whole(project, version, file, size, sha256, *members):
    """A wheel that is downloaded as a whole; its license files are always unpacked."""
    licenses = (r"[^/]*\.dist-info/(?:licenses/)?([Ll]icen[sc]e[^/]*|NOTICE[^/]*)", rf"licenses/{project}/\1")
    return Wheel(project, version, file, size, (Span(0, size, sha256),), (*members, licenses))


def nvidia(project, version, platform, size, sha256, libraries):
    """One of NVIDIA's wheels: its libraries (a regex) are unpacked flat into lib/."""
    file = f"{project.replace('-', '_')}-{version}-py3-none-{platform}.whl"
    return whole(project, version, file, size, sha256, (rf"nvidia/[^/]*/lib/({libraries})", r"lib/\1"))


TORCH_VERSION = "2.11.0"
TORCH_FILE = "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl"
TORCH_SIZE = 530604548
ONNXRUNTIME_VERSION = "1.32.0"

# libtorch for the CPU: libtorch_cpu itself links the CUDA runtime and its profiler interface, both small.
LIBTORCH = (
    Wheel(
        "torch",
        TORCH_VERSION,
        TORCH_FILE,
        TORCH_SIZE,
        (
            Span(23716327, 155095496, "2e432e2a3323f744f76cb68bfdc104414103290314df84683cb49c3ef22744be"),
            Span(528857948, 530604548, "ffcb2cf9c213175b9889556f66800d079a2ac3f91bfe1002daa0c11ba1d8e95d"),
        ),
        (
            (r"torch/lib/(libc10\.so|libtorch_cpu\.so|libgomp\.so\.1)", r"lib/\1"),
            (r"torch/(include/.*)", r"\1"),
            (r"[^/]*\.dist-info/licenses/(LICENSE|NOTICE)", r"licenses/torch/\1"),
        ),
    ),
    nvidia(
        "nvidia-cuda-runtime",
        "13.0.96",
        "manylinux2014_x86_64.manylinux_2_17_x86_64",
        2243632,
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        r"libcudart\.so\.13",
    ),
    nvidia(
        "nvidia-cuda-cupti",
        "13.0.85",
        "manylinux_2_25_x86_64",
        10715597,
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        r"libcupti\.so\.13",
    ),
)

ONNXRUNTIME = (
    whole(
        "onnxruntime",
        ONNXRUNTIME_VERSION,
        "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        27773237,
        "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        (r"onnxruntime/capi/(libonnxruntime\.so\.[0-9.]+)", r"lib/\1"),
        (r"onnxruntime/(LICENSE|ThirdPartyNotices\.txt)", r"licenses/onnxruntime/\1"),
    ),
)

# For ONNX plugins on a GPU: the newest build with CUDA. It finds NVIDIA's libraries among those that libtorch has loaded.
ONNXRUNTIME_CUDA_VERSION = "1.31.1"
ONNXRUNTIME_CUDA = (
    Wheel(
        "onnxruntime-gpu",
        ONNXRUNTIME_CUDA_VERSION,
        "onnxruntime_gpu-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
        255560985,
        (
            Span(0, 242551608, "058a84a8837c6f0dc7b7af8b08f888d7a137e7a79c64545cddb7a5776de7ce37"),
            Span(255509757, 255560985, "7d37324ff6995b1dcec2890cc1b84732c9704bc83bf97454104707dbea87a5fe"),
        ),
        (
            (r"onnxruntime/capi/(libonnxruntime\.so\.[0-9.]+|libonnxruntime_providers_(?:cuda|shared)\.so)", r"lib/\1"),
            (r"onnxruntime/(LICENSE|ThirdPartyNotices\.txt)", r"licenses/onnxruntime-gpu/\1"),
        ),
    ),
)

# What torch 2.11.0's metadata lists for CUDA on Linux, less the parts that libtorch_cuda neither links nor opens.
CUDA = (
    Wheel(
        "torch",
        TORCH_VERSION,
        TORCH_FILE,
        TORCH_SIZE,
        (
            Span(34026801, 34253058, "01a03eda19ca9f682fe08ffd396bf833800b2c7256ffb670ad2d0c1be6b0ff78"),
            Span(155095496, 516658425, "932e3f3076876d90469ff3e5fc25e177cd413a284d440f5b844318c9b27de0db"),
            Span(529433228, 530604548, "15a9ab74fcfc2f8ab92f10076d89a5e2c46102d64ff226a63149db8e77b198cf"),
        ),
        (
            (r"torch/lib/(libtorch_cuda(?:_linalg)?\.so)", r"lib/\1"),
            (r"torch/lib/(libc10_cuda\.so|libtorch_nvshmem\.so|libcaffe2_nvrtc\.so)", r"lib/\1"),
        ),
    ),
    nvidia(
        "nvidia-cublas",
        "13.1.0.3",
        "manylinux_2_27_x86_64",
        423133236,
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        r"libcublas(?:Lt)?\.so\.13",
    ),
    nvidia(
        "nvidia-cuda-nvrtc",
        "13.0.88",
        "manylinux2010_x86_64.manylinux_2_12_x86_64",
        90215200,
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        r"libnvrtc\.so\.13|libnvrtc-builtins\.so\.13\.0",
    ),
    nvidia(
        "nvidia-cudnn-cu13",
        "9.19.0.56",
        "manylinux_2_27_x86_64",
        366066321,
        "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
        r"libcudnn[a-z_]*\.so\.9",
    ),
    nvidia(
        "nvidia-cufft",
        "12.0.0.61",
        "manylinux2014_x86_64.manylinux_2_17_x86_64",
        214085489,
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        r"libcufft\.so\.12",
    ),
    nvidia(
        "nvidia-cufile",
        "1.15.1.6",
        "manylinux2014_x86_64.manylinux_2_17_x86_64",
        1223672,
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        r"libcufile\.so\.0",
    ),
    nvidia(
        "nvidia-curand",
        "10.4.0.35",
        "manylinux_2_27_x86_64",
        59544258,
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        r"libcurand\.so\.10",
    ),
    nvidia(
        "nvidia-cusolver",
        "12.0.4.66",
        "manylinux_2_27_x86_64",
        200941980,
        "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        r"libcusolver\.so\.12",
    ),
    nvidia(
        "nvidia-cusparse",
        "12.6.3.3",
        "manylinux2014_x86_64.manylinux_2_17_x86_64",
        145942937,
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        r"libcusparse\.so\.12",
    ),
    nvidia(
        "nvidia-cusparselt-cu13",
        "0.8.0",
        "manylinux2014_x86_64",
        169884119,
        "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
        r"libcusparseLt\.so\.0",
    ),
    nvidia(
        "nvidia-nccl-cu13",
        "2.28.9",
        "manylinux_2_18_x86_64",
        196493177,
        "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
        r"libnccl\.so\.2",
    ),
    nvidia(
        "nvidia-nvjitlink",
        "13.0.88",
        "manylinux2010_x86_64.manylinux_2_12_x86_64",
        40713933,
        "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        r"libnvJitLink\.so\.13",
    ),
    nvidia(
        "nvidia-nvshmem-cu13",
        "3.4.5",
        "manylinux2014_x86_64.manylinux_2_17_x86_64",
        60412546,
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        r"libnvshmem_host\.so\.3",
    ),
)


def spans_of(path, pattern, gap=2 << 20):
    """The spans of the zip file `path` with its directory and the members that match `pattern`; two that are closer
    than `gap` bytes become one."""
    import hashlib
    import zipfile

    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        ends = [member.header_offset for member in members[1:]] + [archive.start_dir]
        size = file.seek(0, 2)
        ranges = [(m.header_offset, end) for m, end in zip(members, ends) if re.fullmatch(pattern, m.filename)]
        merged = []
        for start, end in [*ranges, (archive.start_dir, size)]:
            if merged and start - merged[-1][1] < gap:
                merged[-1][1] = end
            else:
                merged.append([start, end])
        for start, end in merged:
            file.seek(start)
            yield Span(start, end, hashlib.sha256(file.read(end - start)).hexdigest())


if __name__ == "__main__":
    import sys

    for found in spans_of(sys.argv[1], sys.argv[2]):
        print(f"{found}  # {(found.end - found.start) / 1e6:.1f} MB")
