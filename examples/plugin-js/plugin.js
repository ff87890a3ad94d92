// A style classifier plugin in JavaScript: classifies an image as mirrored, leaning or lopsided.
//
// Built into a component by `make js-plugin`; see docs/plugins.md.

import * as log from "ambiguity:plugin/log@0.2.0";

const STYLES = ["mirrored", "leaning", "lopsided"];

// Typical asymmetry of each style, and how fast a style becomes unlikely with the distance from it.
const CENTERS = [0, 0.08, 0.16];
const SHARPNESS = 40;

// Side to which the image is resized, in pixels.
const SIDE = 32;

// What is printed goes to the host's log: a plugin has no other output. `error` is left to what ends a call.
const print = (level) => (...values) => log.write(level, values.map(String).join(" "));
const [debug, info, warn] = [print("debug"), print("info"), print("warn")];
globalThis.console = { debug, log: info, info, warn, error: warn };

/** Returns `call`, which writes an uncaught exception to the log. A thrown text is the call's own error. */
function reported(call) {
  return (...values) => {
    try {
      return call(...values);
    } catch (error) {
      if (error instanceof Error) {
        const places = error.stack.split("\n").filter((place) => place.includes("plugin.js")).slice(0, 5);
        log.write("error", `${error.name}: ${error.message} (in ${places.join(" < ")})`);
      }
      throw error;
    }
  };
}

/** Returns the mean difference in lightness, from 0 to 1, between an image's pixels and those of its mirror image. */
function asymmetry({ rgb }) {
  if (rgb.length !== 3 * SIDE * SIDE) throw `${rgb.length} bytes are not an image of ${SIDE} x ${SIDE}`;
  const lightness = (x, y) => {
    const at = 3 * (SIDE * y + x);
    return (rgb[at] + rgb[at + 1] + rgb[at + 2]) / 765;
  };
  let sum = 0;
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE / 2; x++) sum += Math.abs(lightness(x, y) - lightness(SIDE - 1 - x, y));
  }
  return sum / (SIDE * SIDE / 2);
}

/** Returns the natural logarithms of the probabilities that the logits stand for. */
function logSoftmax(logits) {
  const top = Math.max(...logits);
  const normalizer = top + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
  return logits.map((logit) => logit - normalizer);
}

/** The export that every plugin has. */
export const description = {
  describe: reported(() => {
    return { name: "symmetry", version: "0.1.0", media: ["image"], encoders: [], options: [], properties: [] };
  }),
};

/** The kind of plugin: the world is `classifier-plugin`. */
export const classifier = {
  styles: reported(() => STYLES),
  classify: reported((batch) => {
    const rows = batch.len();
    const data = new Float32Array(rows * STYLES.length);
    for (let i = 0; i < rows; i++) {
      const found = asymmetry(batch.imageResized(i, SIDE, SIDE));
      const logits = CENTERS.map((center) => -SHARPNESS * Math.abs(found - center));
      data.set(logSoftmax(logits), i * STYLES.length);
    }
    return { rows, cols: STYLES.length, data };
  }),
};
