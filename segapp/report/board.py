"""What the picture sheets share: a page with a heading and a legend, pictures of one size."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from segapp.report.overlay import display_size

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

SIDE, GAP, MARGIN = 240, 14, 24  # pixels: of a picture, between pictures, around all
HEADER = 76
INK, SOFT, PAPER, EMPTY = (30, 30, 30), (110, 110, 110), (255, 255, 255), (228, 228, 228)


def headed_page(
    width: int, height: int, heading: str, entries: Sequence[tuple[str, Colour]]
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty page, and what draws on it: a heading and a legend of (text, colour) in its first
    MARGIN + HEADER pixels."""
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), heading, INK, ImageFont.load_default(24))
    font, x, y = ImageFont.load_default(16), MARGIN, MARGIN + 38
    for n, (text, colour) in enumerate(entries):
        if x + 60 + font.getlength(text) > width - MARGIN:
            draw.text((x, y), f"and {len(entries) - n} more", SOFT, font)
            break
        draw.rectangle((x, y + 2, x + 15, y + 17), colour if any(colour) else PAPER, SOFT)
        draw.text((x + 22, y), text, INK, font)
        x += 46 + int(font.getlength(text))
    return page, draw


def fitted(
    picture: Image.Image, aspect: float, how: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The picture at its largest within SIDE × SIDE. aspect: height of a pixel over its width."""
    return picture.resize(display_size(picture.height, picture.width, aspect, SIDE), how)


def cut_front(text: str, font: Font, width: int = SIDE) -> str:
    """The end of a name says most: "…/images/z045.png"."""
    if font.getlength(text) <= width:
        return text
    while font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def wrapped(text: str, font: Font, width: int, lines: int) -> list[str]:
    """The words in up to `lines` lines of `width` pixels; "…" ends what has no room."""
    done = [""]
    for word in text.split():
        longer = f"{done[-1]} {word}".strip()
        if font.getlength(longer + "…") <= width or not done[-1]:
            done[-1] = longer
        elif len(done) < lines:
            done.append(word)
        else:
            done[-1] += "…"
            break
    return done
