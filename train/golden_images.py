#!/usr/bin/env python3
"""Writes tests/golden/images: small images of every kind, and what Pillow and transformers make of them.

    python train/golden_images.py [OUTPUT_DIR]

cases.json lists the cases; each names an image, the processor's settings and a binary PPM with the expected pixels after
resize and crop, or an .f32 file with the final planar floats. Needs Pillow, transformers 4.57 and, for the JPEG layouts
that Pillow cannot write, libturbojpeg. The committed files were written with the versions that cases.json records.
"""

import ctypes
import ctypes.util
import io
import json
import os
import pathlib
import struct
import sys
import zlib

import numpy as np
import PIL
import transformers
from PIL import Image, ImageOps, PngImagePlugin
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/golden/images"
CASES = []

# Settings of a case; anything not named takes these.
DEFAULTS = dict(do_pad=False, do_resize=True, shortest_edge=40, height=0, width=0, do_center_crop=True, crop_height=40,
                crop_width=40, resample=3)


# ---- pictures ----

def picture(width, height, seed=0, channels=3):
    """Smooth gradients, hard edges and some noise: each shows another kind of resampling mistake."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(channels):
        a, b, phase = rng.uniform(1, 6, 2).tolist() + [rng.uniform(0, 6)]
        plane = 128 + 90 * np.sin(a * x / max(width, 2) * 3 + b * y / max(height, 2) * 3 + phase)
        left, top = rng.integers(0, max(width - 4, 1)), rng.integers(0, max(height - 4, 1))
        plane[top:top + max(height // 3, 1), left:left + max(width // 4, 1)] = rng.integers(0, 2) * 255
        planes.append(plane + rng.normal(0, 4, plane.shape))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def rgb(width, height, seed=0):
    return Image.fromarray(picture(width, height, seed))


# ---- files ----

def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_block(orientation, order="<", prefix=b""):
    """A TIFF header and one directory with tags 0x010F (Make) and 0x0112 (Orientation)."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    make = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc\0")
    tag = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return prefix + head + struct.pack(order + "H", 2) + make + tag + struct.pack(order + "I", 0)


def turbojpeg(array, subsampling, pixel_format, environment=()):
    """JPEG layouts Pillow does not write. subsampling: TJSAMP_*; pixel_format: TJPF_RGB 0, TJPF_CMYK 11."""
    library = ctypes.CDLL(ctypes.util.find_library("turbojpeg") or "libturbojpeg.so.0")
    libc = ctypes.CDLL(None)
    library.tjInitCompress.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitCompress())
    for name in environment:
        libc.setenv(name.encode(), b"1", 1)  # the library reads the C environment
    data, size = ctypes.c_void_p(None), ctypes.c_ulong(0)
    array = np.ascontiguousarray(array)
    height, width, channels = array.shape
    failed = library.tjCompress2(handle, array.ctypes.data_as(ctypes.c_void_p), width, width * channels, height,
                                 pixel_format, ctypes.byref(data), ctypes.byref(size), subsampling, 85, 0)
    for name in environment:
        libc.unsetenv(name.encode())
    assert not failed, "tjCompress2"
    result = ctypes.string_at(data, size.value)
    library.tjFree(data)
    library.tjDestroy(handle)
    return result


def without_segment(jpeg, marker):
    """The JPEG less its segments of one marker."""
    out, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        length = 2 + struct.unpack(">H", jpeg[at + 2:at + 4])[0]
        if jpeg[at + 1] != marker:
            out += jpeg[at:at + length]
        at += length
    return out + jpeg[at:]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, depth, colour, interlaced=False, chunks=(), tail=()):
    """A PNG of any colour type and depth from samples [height, width, channels]; filter types take turns."""
    height, width, channels = samples.shape
    bytes_per_pixel = max(1, channels * depth // 8)

    def packed(rows):
        raw = b""
        previous = None
        for index, row in enumerate(rows):
            if depth == 16:
                line = row.astype(">u2").tobytes()
            elif depth == 8:
                line = row.astype(np.uint8).tobytes()
            else:
                bits = "".join(format(int(v), f"0{depth}b") for v in row.reshape(-1))
                bits += "0" * (-len(bits) % 8)
                line = bytes(int(bits[i:i + 8], 2) for i in range(0, len(bits), 8))
            line = np.frombuffer(line, np.uint8).astype(np.int32)
            above = previous if previous is not None else np.zeros_like(line)
            left = np.concatenate([np.zeros(bytes_per_pixel, np.int32), line])[:len(line)]
            corner = np.concatenate([np.zeros(bytes_per_pixel, np.int32), above])[:len(line)]
            guess = left + above - corner
            near = [abs(guess - left), abs(guess - above), abs(guess - corner)]
            paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left,
                             np.where(near[1] <= near[2], above, corner))
            filters = [0 * line, left, above, (left + above) // 2, paeth]
            raw += bytes([index % 5]) + ((line - filters[index % 5]) % 256).astype(np.uint8).tobytes()
            previous = line
        return raw

    if interlaced:  # Adam7
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        body = b""
        for y, x, step_y, step_x in passes:
            part = samples[y::step_y, x::step_x]
            if part.size:
                body += packed(part)
    else:
        body = packed(samples)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    data = zlib.compress(body, 9)
    half = len(data) // 2  # two IDAT chunks, split anywhere
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(png_chunk(*c) for c in chunks) +
            png_chunk(b"IDAT", data[:half]) + png_chunk(b"IDAT", data[half:]) + b"".join(png_chunk(*c) for c in tail) +
            png_chunk(b"IEND", b""))


def riff_chunk(kind, data):
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_with_offset_frame(canvas, frame, left, top, alpha=False):
    """An animation whose first frame covers part of the canvas only."""
    def u24(value):
        return struct.pack("<I", value)[:3]
    body = b"".join(save(frame, "WEBP", lossless=True)[12:][at:] for at in [0])
    if body[:4] == b"VP8X":
        body = body[18:]
    anmf = u24(left // 2) + u24(top // 2) + u24(frame.width - 1) + u24(frame.height - 1) + u24(100) + b"\x00" + body
    flags = 0x02 | (0x10 if alpha else 0)
    chunks = riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + u24(canvas[0] - 1) + u24(canvas[1] - 1))
    chunks += riff_chunk(b"ANIM", b"\x40\x80\xc0\xff" + b"\0\0")
    chunks += riff_chunk(b"ANMF", anmf) + riff_chunk(b"ANMF", anmf)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


# ---- cases ----

def upright(data):
    """As transformers' load_image opens a file."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def processor(settings, finish):
    size = {"shortest_edge": settings["shortest_edge"]}
    if not settings["shortest_edge"]:
        size = {"height": settings["height"], "width": settings["width"]}
    kind = LlavaImageProcessor if settings["do_pad"] else CLIPImageProcessor
    extra = {"do_pad": True} if settings["do_pad"] else {}
    return kind(do_resize=settings["do_resize"], size=size, resample=settings["resample"],
                do_center_crop=settings["do_center_crop"],
                crop_size={"height": settings["crop_height"], "width": settings["crop_width"]},
                do_rescale=finish, do_normalize=finish, **extra)


def case(name, data, finish=False, source=None, variant="", **changes):
    """Writes the image and its expectation. `source`: the RGB to expect where Pillow's own varies by version."""
    settings = {**DEFAULTS, **changes}
    (OUT / name).write_bytes(data)
    image = np.asarray(upright(data)) if source is None else source
    # Said outright because transformers takes 3 x N x 3 pixels for channels first.
    values = processor(settings, finish)(image, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    stem = name.replace(".", "_") + (f"_{variant}" if variant else "")
    if finish:
        expected = stem + ".f32"
        (OUT / expected).write_bytes(values.astype("<f4").tobytes())
    else:
        expected = stem + ".ppm"
        assert values.dtype == np.uint8 and values.shape == (3, settings["crop_height"], settings["crop_width"])
        header = f"P6 {settings['crop_width']} {settings['crop_height']} 255\n".encode()
        (OUT / expected).write_bytes(header + values.transpose(1, 2, 0).tobytes())
    CASES.append({"image": name, "expected": expected, **settings})


def jpeg_cases():
    photo = rgb(97, 75, 1)
    for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
        case(f"jpeg_{name}.jpg", save(photo, "JPEG", subsampling=subsampling, quality=90))
    case("jpeg_440.jpg", turbojpeg(picture(97, 75, 2), 4, 0))
    case("jpeg_411.jpg", turbojpeg(picture(97, 75, 3), 5, 0))
    case("jpeg_arithmetic.jpg", turbojpeg(picture(97, 75, 4), 2, 0, ["TJ_ARITHMETIC"]))
    case("jpeg_grey.jpg", save(photo.convert("L"), "JPEG"))
    case("jpeg_progressive.jpg", save(photo, "JPEG", progressive=True))
    case("jpeg_progressive_grey.jpg", save(photo.convert("L"), "JPEG", progressive=True))
    case("jpeg_quality_5.jpg", save(photo, "JPEG", quality=5))
    case("jpeg_quality_100.jpg", save(photo, "JPEG", quality=100))
    case("jpeg_restarts.jpg", save(photo, "JPEG", restart_marker_blocks=2))
    case("jpeg_keep_rgb.jpg", save(photo, "JPEG", keep_rgb=True))
    case("jpeg_optimised_icc.jpg", save(photo, "JPEG", optimize=True, icc_profile=bytes(66000), comment=b"x" * 300))
    inks = Image.fromarray(picture(80, 90, 5, 4), "CMYK")
    adobe = save(inks, "JPEG", quality=92)
    case("jpeg_cmyk_adobe.jpg", adobe)
    case("jpeg_cmyk_plain.jpg", without_segment(adobe, 0xEE))
    case("jpeg_ycck.jpg", turbojpeg(picture(80, 90, 6, 4), 2, 11))
    for orientation in range(1, 9):
        block = exif_block(orientation, "<" if orientation % 2 else ">", b"Exif\0\0")
        case(f"jpeg_orientation_{orientation}.jpg", save(rgb(70, 50, 7), "JPEG", quality=60, exif=block))
    block = exif_block(9, "<", b"Exif\0\0")
    case("jpeg_orientation_bad.jpg", save(rgb(70, 50, 7), "JPEG", quality=60, exif=block))
    # Shapes.
    case("jpeg_1x1.jpg", save(rgb(1, 1), "JPEG"))
    case("jpeg_1x20000.jpg", save(rgb(1, 20000), "JPEG", quality=20))
    case("jpeg_1x20000.jpg", save(rgb(1, 20000), "JPEG", quality=20), variant="pad", do_pad=True)
    case("jpeg_20000x1.jpg", save(rgb(20000, 1), "JPEG", quality=20))
    case("jpeg_20000x1.jpg", save(rgb(20000, 1), "JPEG", quality=20), variant="exact", shortest_edge=0, height=48, width=48)
    case("jpeg_900x7.jpg", save(rgb(900, 7, 8), "JPEG"))
    case("jpeg_640x427.jpg", save(rgb(640, 427, 9), "JPEG", quality=40), shortest_edge=112, crop_height=112, crop_width=112)


def png_cases():
    grey, colour, palette, grey_alpha, colour_alpha = 0, 2, 3, 4, 6
    table = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint8)

    def samples(channels, depth, seed=11, size=(61, 53)):
        wide = picture(*size, seed, channels).astype(np.uint32)
        low = picture(*size, seed + 1, channels).astype(np.uint32)
        return wide >> (8 - depth) if depth < 8 else wide if depth == 8 else wide << 8 | low

    for depth in (1, 2, 4, 8, 16):
        for interlaced in (False, True):
            tail = "_interlaced" if interlaced else ""
            values = samples(1, depth)
            truth = None
            if depth == 16:  # the high byte; Pillow's way with 16-bit grey varies by version
                truth = np.repeat((values >> 8).astype(np.uint8), 3, axis=2)
            case(f"png_grey{depth}{tail}.png", png(values, depth, grey, interlaced), source=truth)
            if depth <= 8:
                chunks = [(b"PLTE", table[:2 ** depth].tobytes())]
                case(f"png_palette{depth}{tail}.png", png(values, depth, palette, interlaced, chunks))
            if depth >= 8:
                case(f"png_rgb{depth}{tail}.png", png(samples(3, depth), depth, colour, interlaced))
                case(f"png_rgba{depth}{tail}.png", png(samples(4, depth), depth, colour_alpha, interlaced))
            if depth >= 8 and not interlaced:
                case(f"png_grey_alpha{depth}.png", png(samples(2, depth), depth, grey_alpha))
    case("png_trns_grey.png", png(samples(1, 8), 8, grey, chunks=[(b"tRNS", struct.pack(">H", 128))]))
    case("png_trns_rgb.png", png(samples(3, 8), 8, colour, chunks=[(b"tRNS", struct.pack(">HHH", 0, 0, 0))]))
    chunks = [(b"PLTE", table.tobytes()), (b"tRNS", bytes(range(0, 256, 2)))]
    case("png_trns_palette.png", png(samples(1, 8), 8, palette, chunks=chunks))
    case("png_gamma.png", png(samples(3, 8), 8, colour, chunks=[(b"gAMA", struct.pack(">I", 100000))]))
    case("png_exif.png", png(samples(3, 8), 8, colour, chunks=[(b"eXIf", exif_block(6, ">"))]))
    case("png_exif_after.png", png(samples(3, 8), 8, colour, tail=[(b"eXIf", exif_block(7))]))
    buffer = io.BytesIO()
    rgb(40, 60, 12).save(buffer, "PNG", save_all=True, append_images=[rgb(40, 60, 13)], duration=100)
    case("png_animated.png", buffer.getvalue())
    case("jpeg_named.png", save(rgb(50, 40, 14), "JPEG"))  # kind by content, not by name


def webp_cases():
    photo = rgb(83, 64, 21)
    veiled = Image.fromarray(picture(83, 64, 22, 4), "RGBA")
    case("webp_lossy.webp", save(photo, "WEBP", quality=70))
    case("webp_lossless.webp", save(photo, "WEBP", lossless=True))
    case("webp_lossy_alpha.webp", save(veiled, "WEBP", quality=70))
    case("webp_lossless_alpha.webp", save(veiled, "WEBP", lossless=True, exact=True))
    case("webp_exif.webp", save(photo, "WEBP", quality=70, exif=exif_block(8, ">")))
    case("webp_exif_prefixed.webp", save(photo, "WEBP", quality=70, exif=exif_block(5, "<", b"Exif\0\0")))
    case("webp_animated.webp", save(photo, "WEBP", save_all=True, append_images=[rgb(83, 64, 23)], duration=100))
    case("webp_offset_frame.webp", webp_with_offset_frame((90, 70), rgb(40, 30, 24), 20, 10))
    frame = Image.fromarray(picture(40, 30, 25, 4), "RGBA")
    case("webp_offset_frame_alpha.webp", webp_with_offset_frame((90, 70), frame, 30, 22, alpha=True))


def processor_cases():
    wide = save(rgb(120, 60, 31), "PNG")
    tall = save(rgb(57, 131, 32), "PNG")
    small = save(rgb(20, 31, 33), "PNG")
    for name, data in [("wide.png", wide), ("tall.png", tall), ("small.png", small)]:
        case(name, data, variant="bicubic")
        case(name, data, variant="bilinear", resample=2)
        case(name, data, variant="nearest", resample=0)
        case(name, data, variant="exact", shortest_edge=0, height=40, width=56, crop_height=40, crop_width=56,
             do_center_crop=False)
        case(name, data, variant="exact_nearest", resample=0, shortest_edge=0, height=40, width=56, crop_height=33,
             crop_width=37)
        case(name, data, variant="pad", do_pad=True)
        case(name, data, variant="pad_nearest", do_pad=True, resample=0)
        case(name, data, variant="crop_larger", shortest_edge=31, crop_height=60, crop_width=45)
        case(name, data, variant="no_resize", do_resize=False, crop_height=51, crop_width=50)
        case(name, data, variant="same_width", shortest_edge=0, height=48, width=Image.open(io.BytesIO(data)).width)
        case(name, data, variant="flat", shortest_edge=0, height=20, width=90, crop_height=20, crop_width=80)
        case(name, data, variant="flat_pad", do_pad=True, shortest_edge=0, height=20, width=90, crop_height=20,
             crop_width=80)
        case(name, data, variant="floats", finish=True, crop_height=32, crop_width=32)
    case("wide.png", wide, variant="pad_floats", finish=True, do_pad=True, shortest_edge=32, crop_height=32, crop_width=32)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    jpeg_cases()
    png_cases()
    webp_cases()
    processor_cases()
    versions = {"pillow": PIL.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(c) for c in CASES)
    (OUT / "cases.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')
    total = sum(f.stat().st_size for f in OUT.iterdir())
    print(f"{len(CASES)} cases of {len({c['image'] for c in CASES})} images, {total} bytes")


if __name__ == "__main__":
    main()
