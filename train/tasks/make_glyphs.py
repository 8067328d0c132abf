"""Draw the sheet of glyphs that scenes are pasted from: train/tasks/glyphs.png.

    python3 -m train.tasks.make_glyphs [--emoji FONT] [--letters FONT]

One row of 64 x 64 cells: the objects of `scenes.CLASSES` in their order, from Noto Color Emoji (SIL Open Font License 1.1),
then the signs of `scenes.CHARACTERS` as alpha masks, from DejaVu Sans Bold. The sheet is committed, so that a scene looks the
same on every machine whatever fonts it has; run this only to change the set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from train.tasks.scenes import CHARACTERS, CLASSES, GLYPH, SHEET

EMOJI_SIZE = 109  # the one size of the font's bitmaps


def emoji(font: ImageFont.FreeTypeFont, sign: str) -> Image.Image:
    """The sign, cut to what is visible and centred in a square of GLYPH pixels."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), sign, font=font, embedded_color=True)
    return squared(canvas.crop(canvas.getbbox()), GLYPH)


def squared(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = [max(1, round(v * scale)) for v in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, (side, side))
    canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def letter(font: ImageFont.FreeTypeFont, sign: str) -> Image.Image:
    """White on transparent; capitals and digits fill the cell's height, narrow ones stay narrow."""
    canvas = Image.new("RGBA", (GLYPH, GLYPH))
    ImageDraw.Draw(canvas).text((GLYPH / 2, GLYPH - 2), sign, font=font, fill="white", anchor="ms")
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    parser.add_argument("--letters", type=Path, default=Path("/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"))
    args = parser.parse_args()
    signs = ImageFont.truetype(str(args.emoji), EMOJI_SIZE)
    letters = ImageFont.truetype(str(args.letters), 78)
    cells = [emoji(signs, c.sign) for c in CLASSES] + [letter(letters, c) for c in CHARACTERS]
    sheet = Image.new("RGBA", (GLYPH * len(cells), GLYPH))
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i * GLYPH, 0))
    sheet.quantize(255, Image.Quantize.FASTOCTREE).save(SHEET, optimize=True)
    print(f"{SHEET}: {len(cells)} glyphs, {SHEET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
