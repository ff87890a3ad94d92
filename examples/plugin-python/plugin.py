"""A style classifier plugin in Python: classifies an image as calm, lively or busy.

Built into a component by `make python-plugin`; see docs/plugins.md.
"""

import io
import math
import sys
from typing import List

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import description
from wit_world.imports import log
from wit_world.imports.samples import Batch
from wit_world.imports.types import Matrix

STYLES = ["calm", "lively", "busy"]

# Side to which the image is resized, in pixels.
SIDE = 32


class Lines(io.TextIOBase):
    """Writes each line to the host's log: a plugin has no other output."""

    def __init__(self, level: log.Level):
        self.level = level
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            log.write(self.level, line)
        return len(text)


def report(kind, error, trace) -> None:
    """Writes an uncaught exception to the log. Python's own report would look for source files, which a plugin has not."""
    places = []
    while trace is not None:
        places.insert(0, f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}")
        trace = trace.tb_next
    log.write(log.Level.ERROR, f"{kind.__name__}: {error} (in {' < '.join(places)})")


# With these, what is printed and exceptions reach the author.
sys.stdout = Lines(log.Level.INFO)
sys.stderr = Lines(log.Level.WARN)
sys.excepthook = report


class Description(exports.Description):
    """The export that every plugin has."""

    def describe(self) -> description.Description:
        """Returns the plugin's name, version, media, encoders, options and other properties."""
        return description.Description("busyness", "0.1.0", ["image"], [], [], [])


class Classifier(exports.Classifier):
    """The kind of plugin: the world is `classifier-plugin`."""

    def styles(self) -> List[str]:
        """Returns the styles, in the order of the columns that `classify` returns."""
        return STYLES

    def classify(self, batch: Batch) -> Matrix:
        """Returns the natural logarithms of probabilities: a row per image, a column per style."""
        rows: List[float] = []
        n_samples = batch.len()
        for i in range(n_samples):
            rows += log_softmax(logits(batch.image_resized(i, SIDE, SIDE).rgb))
        return Matrix(n_samples, len(STYLES), rows)


def logits(rgb: bytes) -> List[float]:
    """Returns a logit for each style from the mean difference between neighboring pixels."""
    if len(rgb) != 3 * SIDE * SIDE:
        raise Err(f"{len(rgb)} bytes are not an image of {SIDE} x {SIDE}")
    gray = [sum(rgb[i : i + 3]) / 765 for i in range(0, len(rgb), 3)]
    grain = sum(abs(a - b) for a, b in zip(gray, gray[1:])) / (len(gray) - 1)
    return [-abs(grain - target) * 40 for target in (0.0, 0.06, 0.12)]


def log_softmax(values: List[float]) -> List[float]:
    """Returns v - log of the sum of exp(v)."""
    top = max(values)
    normalizer = top + math.log(sum(math.exp(value - top) for value in values))
    return [value - normalizer for value in values]
