"""Reference for reading images: small files of every format, and the pixels that Pillow reads from them.

    python tests/reference/make_images.py        # needs numpy, pillow, safetensors; writes images/ and images.safetensors

Tensors: for each file of images/ its pixels, [height, width, 3] u8: turned upright by its EXIF orientation, the first
frame, transparency composited on white. Metadata `cut`: for each file the lengths to which it can be cut so that Pillow
refuses it, as JSON.
"""
import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file

OUT = Path(__file__).with_name("images")
ORIENTATION = 0x112


def painting(width=20, height=12):
    """Four differently colored quarters, so that every turn and every mirroring shows, and a smooth ramp."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([np.where(x < width // 2, 200, 40), np.where(y < height // 2, 180, 60), 90 + 4 * x], axis=2)
    return Image.fromarray(rgb.astype(np.uint8))


def oriented(number):
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


def write():
    plain = painting()
    ramp = Image.fromarray((np.mgrid[:12, :20][1] * 12 + 10).astype(np.uint8))
    clear = plain.copy()
    clear.putalpha(ramp)
    gray = Image.merge("LA", [plain.convert("L"), ramp])
    palette = plain.quantize(16)
    gif = {"save_all": True, "append_images": [ImageOps.invert(plain).quantize(16)], "duration": 100}
    for number in range(1, 9):
        plain.save(OUT / f"exif-{number}.jpg", quality=95, subsampling=0, exif=oriented(number))
    plain.save(OUT / "progressive.jpg", quality=95, subsampling=0, progressive=True)
    plain.convert("L").save(OUT / "gray.jfif", "JPEG", quality=95)
    plain.save(OUT / "exif.png", exif=oriented(6))
    clear.save(OUT / "clear.png")
    gray.save(OUT / "clear-gray.png")
    palette.save(OUT / "clear-palette.png", transparency=bytes(range(0, 256, 16)))
    plain.save(OUT / "color-key.png", transparency=plain.getpixel((0, 0)))
    plain.save(OUT / "lossless.webp", lossless=True)
    plain.save(OUT / "lossy.webp", quality=95)
    plain.save(OUT / "exif.webp", lossless=True, exif=oriented(8))
    clear.save(OUT / "clear.webp", lossless=True, exact=True)
    plain.save(OUT / "animated.webp", lossless=True, save_all=True, append_images=[ImageOps.invert(plain)])
    palette.save(OUT / "animated.gif", **gif)
    palette.save(OUT / "clear.gif", transparency=3)
    palette.save(OUT / "interlaced.gif", interlace=1)
    plain.save(OUT / "plain.bmp")
    palette.save(OUT / "palette.bmp")
    plain.save(OUT / "plain.tiff")
    plain.save(OUT / "lzw.tif", compression="tiff_lzw")
    plain.save(OUT / "deflate.tif", compression="tiff_adobe_deflate")
    clear.save(OUT / "clear.tif")
    plain.save(OUT / "exif.tif", tiffinfo={ORIENTATION: 3})
    plain.save(OUT / "pages.tif", save_all=True, append_images=[ImageOps.invert(plain)])


def read(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.ascontiguousarray(image.convert("RGB"))


def refuses(data):
    try:
        read(data)
    except (OSError, SyntaxError, ValueError):
        return True
    return False


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    write()
    tensors, cut = {}, {}
    for file in sorted(OUT.iterdir()):
        data = file.read_bytes()
        tensors[file.name] = read(data)
        lengths = sorted({len(data) * tenths // 10 for tenths in range(1, 10)} | {len(data) - n for n in (1, 2, 8, 20)})
        cut[file.name] = [n for n in lengths if refuses(data[:n])]
        print(f"{file.name:20} {len(data):6} bytes {tensors[file.name].shape}, refused at {cut[file.name]}")
    save_file(tensors, OUT.with_suffix(".safetensors"), metadata={"cut": json.dumps(cut)})


if __name__ == "__main__":
    main()
