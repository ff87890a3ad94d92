"""ONNX plugins for the tests: valid ones with onnxruntime's output for the same images, and invalid ones.

Writes onnx/*.onnx and onnx.safetensors. Run in a virtualenv with onnx, onnxruntime, numpy, Pillow and safetensors.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent
FOLDER = HERE / "onnx"
STYLES = ["baroque", "cubism", "pop-art"]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]

rng = np.random.default_rng(0)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model(name, nodes, constants, x, y, metadata, domains=(("", 17),), prefix="ambiguity."):
    graph = helper.make_graph(nodes, name, [x], [y], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid(*domain) for domain in domains])
    proto.ir_version = 8
    for key, value in metadata.items():
        proto.metadata_props.add(key=prefix + key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save_model(proto, str(FOLDER / f"{name}.onnx"))
    return proto


def weights(inputs, outputs, scale=1.0):
    return (rng.standard_normal((inputs, outputs)) * scale).astype(np.float32)


def convolution(channels, scale=0.4):
    kernel = (rng.standard_normal((4, channels, 3, 3)) * scale).astype(np.float32)
    return constant("kernel", kernel), constant("w", weights(4, 3, 2.0)), constant("b", weights(1, 3)[0])


def conv_nodes(x="x", y="y"):
    """Convolution, the mean over the image, a linear layer."""
    return [
        helper.make_node("Conv", [x, "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], [y]),
    ]


FLOAT, BYTE = TensorProto.FLOAT, TensorProto.UINT8

# --- plugins that work ------------------------------------------------------------------------------------------------

model(
    "pixels", conv_nodes(), convolution(3), tensor("x", FLOAT, ["n", 3, 12, 16]), tensor("y", FLOAT, ["n", 3]),
    {
        "name": "pixels", "version": "1.2.0", "title": "Three styles by a convolution", "license": "Apache-2.0",
        "styles": STYLES, "input": "pixels", "size": [12, 16], "mean": MEAN, "std": STD, "layout": "nchw",
        "channels": 3, "output": "logits",
    },
)
# Bytes, channels last, probabilities; the metadata have nothing that the graph shows.
model(
    "bytes",
    [
        helper.make_node("Cast", ["x"], ["cast"], to=FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["t"], perm=[0, 3, 1, 2]),
        *conv_nodes("t", "z"),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1),
    ],
    [*convolution(3), constant("scale", np.float32(255))],
    tensor("x", BYTE, ["n", 10, 10, 3]), tensor("y", FLOAT, ["n", 3]), {"styles": STYLES},
)
model(
    "gray", conv_nodes(), convolution(1), tensor("x", FLOAT, ["n", 1, 8, 8]), tensor("y", FLOAT, ["n", 3]),
    {"styles": STYLES, "input": '"pixels"', "mean": 0.5, "std": 0.25, "output": '"logits"'},
)
for n in (1, 4):
    model(
        f"fixed_{n}", conv_nodes(), convolution(3), tensor("x", FLOAT, [n, 3, 8, 8]), tensor("y", FLOAT, [n, 3]),
        {"styles": STYLES, "mean": MEAN, "std": STD},
    )
model(
    "embedding",
    [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)],
    [constant("w", weights(3, 3, 3.0)), constant("b", weights(1, 3)[0])],
    tensor("x", FLOAT, ["n", 3]), tensor("y", FLOAT, ["n", 3]),
    {"styles": STYLES, "input": "embedding:means", "encoder_digest": "means"},
)
# It has no metadata itself; bare.toml beside it has.
model("bare", conv_nodes(), convolution(3), tensor("x", FLOAT, ["n", 3, "h", "w"]), tensor("y", FLOAT, ["n", 3]), {})
(FOLDER / "bare.toml").write_text(
    'name = "bare"\nversion = "3"\nstyles = ["baroque", "cubism", "pop-art"]\nsize = 9\nmean = 0.5\nstd = 0.5\noutput = "logits"\n'
)
# An operator that the file itself defines, in a domain of its own.
defined = model(
    "function", [*conv_nodes("x", "z"), helper.make_node("Twice", ["z"], ["y"], domain="mine")], convolution(3),
    tensor("x", FLOAT, ["n", 3, 8, 8]), tensor("y", FLOAT, ["n", 3]), {"styles": STYLES, "output": "logits"},
    domains=(("", 17), ("mine", 1)),
)
defined.functions.append(
    helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                         [helper.make_opsetid("", 17)])
)
onnx.save_model(defined, str(FOLDER / "function.onnx"))

# --- plugins that are refused -----------------------------------------------------------------------------------------

PIXELS = tensor("x", FLOAT, ["n", 3, 8, 8])
METADATA = {"styles": STYLES, "output": "logits"}


def three(name, maker, extra=(), metadata=METADATA, **others):
    """A convolution whose values go through one more operator."""
    return model(name, [*conv_nodes("x", "z"), maker], [*convolution(3), *extra], PIXELS,
                 tensor("y", FLOAT, ["n", 3]), metadata, **others)


identity = helper.make_node("Identity", ["z"], ["y"])
three("nan", helper.make_node("Mul", ["z", "nan"], ["y"]), [constant("nan", np.float32(np.nan))])
# The declared shape is not that of the output.
three("shape", helper.make_node("Identity", ["one"], ["y"]), [constant("one", np.ones((1, 3), np.float32))])
three("sum", helper.make_node("Abs", ["z"], ["y"]), metadata={"styles": STYLES, "output": "probabilities"})
three("width", identity, metadata={"styles": ["a", "b"], "output": "logits"})
three("no_styles", identity, metadata={"output": "logits"})
three("twins", identity, metadata={"styles": ["a", "a", "b"], "output": "logits"})
three("misspelled", identity, metadata={"stlyes": STYLES})
three("custom", helper.make_node("Sparkle", ["z"], ["y"], domain="com.example"), domains=(("", 17), ("com.example", 1)))
three("random", helper.make_node("RandomNormalLike", ["z"], ["y"]))
three("unknown", helper.make_node("NoSuchOperator", ["z"], ["y"]))
external = three("external", identity)
for tensor_ in external.graph.initializer:
    if tensor_.name == "w":
        tensor_.ClearField("raw_data")
        tensor_.data_location = TensorProto.EXTERNAL
        tensor_.external_data.add(key="location", value="../../../../etc/passwd")
onnx.save_model(external, str(FOLDER / "external.onnx"))
# The same in a branch, which a careless reader does not check.
inside = helper.make_tensor("hidden", FLOAT, [1, 3], np.zeros(3, np.float32))
inside.ClearField("float_data")
inside.data_location = TensorProto.EXTERNAL
inside.external_data.add(key="location", value="weights.bin")
branch = helper.make_graph(
    [helper.make_node("Constant", [], ["k"], value=inside), helper.make_node("Add", ["z", "k"], ["o"])], "branch", [],
    [tensor("o", FLOAT, ["n", 3])],
)
three("external_in_branch", helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
      [constant("yes", np.array(True))])
# A loop that would run for years.
body = helper.make_graph(
    [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["v"], ["s"]),
     helper.make_node("Add", ["s", "v"], ["v_out"])],
    "body", [tensor("i", TensorProto.INT64, []), tensor("go", TensorProto.BOOL, []), tensor("v", FLOAT, ["n", 3])],
    [tensor("go_on", TensorProto.BOOL, []), tensor("v_out", FLOAT, ["n", 3])],
)
three("loop", helper.make_node("Loop", ["trips", "", "z"], ["y"], body=body),
      [constant("trips", np.array(1 << 50, np.int64))])
truncated = (FOLDER / "pixels.onnx").read_bytes()
(FOLDER / "truncated.onnx").write_bytes(truncated[: len(truncated) // 2])

# --- outputs of the valid ones ----------------------------------------------------------------------------------------

images = rng.integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)
# On noise alone the outputs of a convolution would hardly differ between images.
images[1] //= 4
images[2, :, :, 0] = 255
images[3] = 40
images[4, ::2] = 0
images[5, :, :12] = [10, 200, 90]


def pixels_of(width, height, mode="RGB"):
    resized = [Image.fromarray(image).resize((width, height), Image.BICUBIC).convert(mode) for image in images]
    return np.stack([np.asarray(image).reshape(height, width, -1) for image in resized])


def floats(pixels, mean, std):
    scaled = (pixels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def run(name, x):
    return onnxruntime.InferenceSession(str(FOLDER / f"{name}.onnx")).run(None, {"x": x})[0]


def run_fixed(name, x, n):
    """n images at a time; the last one is repeated until there are n."""
    parts = [x[i : i + n] for i in range(0, len(x), n)]
    filled = [np.concatenate([part, np.repeat(part[-1:], n - len(part), 0)]) for part in parts]
    return np.concatenate([run(name, part) for part in filled])[: len(x)]


# Logits so far apart that most probabilities are below the smallest float32.
model(
    "sharp",
    [helper.make_node("Gemm", ["x", "w"], ["y"])],
    [constant("w", weights(3, 3, 600.0))],
    tensor("x", FLOAT, ["n", 3]), tensor("y", FLOAT, ["n", 3]),
    {"styles": STYLES, "input": "embedding:means", "output": "logits"},
)

small = floats(pixels_of(8, 8), MEAN, STD)
means = images.reshape(6, -1, 3).astype(np.uint64).sum(1).astype(np.float32) / np.float32(255 * 20 * 24)
expected = {
    "pixels": softmax(run("pixels", floats(pixels_of(16, 12), MEAN, STD))),
    "bytes": run("bytes", pixels_of(10, 10)),
    "gray": softmax(run("gray", floats(pixels_of(8, 8, "L"), 0.5, 0.25))),
    "fixed_1": softmax(run_fixed("fixed_1", small, 1)),
    "fixed_4": softmax(run_fixed("fixed_4", small, 4)),
    "embedding": run("embedding", means),
    "bare": softmax(run("bare", floats(pixels_of(9, 9), 0.5, 0.5))),
    "function": softmax(run("function", floats(pixels_of(8, 8), 0.0, 1.0))),
}
for name, rows in expected.items():
    rows = rows.astype(np.float64)
    assert np.ptp(rows, axis=0).max() > 0.01, f"{name} returns the same for every image"
    print(f"{name:10} {rows.round(4).tolist()}")
logits = run("sharp", means).astype(np.float64)
highest = logits.max(1, keepdims=True)
expected["sharp_log"] = logits - highest - np.log(np.exp(logits - highest).sum(1, keepdims=True))
print("sharp", expected["sharp_log"].min())
tensors = {name: np.ascontiguousarray(rows.astype(np.float64)) for name, rows in expected.items()}
save_file({"images": images, **tensors}, str(HERE / "onnx.safetensors"))
