"""The page that reports share: one HTML file that holds everything and asks for nothing."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import segapp
from segapp.files import write_text

INK, SOFT, LINE, ACCENT, SECOND = "#1c2126", "#5b6670", "#d5dbe0", "#17607f", "#b4501e"
PIXELS_PER_INCH = 96  # of a drawing on the page, as its text is measured
_QUALITY = 80  # of WebP
_PLAIN = 2000  # bytes as WebP, below which PNG may be smaller; it takes ten times as long
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')
_PLACES = re.compile(r' (?:d|x|y|transform)="[^"]*"')
_LONG = re.compile(r"\d+\.\d{3,}")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be found, and takes the page's font
    "svg.hashsalt": "segapp",
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4ad",
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": "#9aa4ad",
    "ytick.color": "#9aa4ad",
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def write_page(path: Path, template: str, **facts: Any) -> None:
    """Fill a template of this package and write it. Text is escaped, whatever it says; only what is
    Markup already, such as drawings, is not. Raises OutputError."""
    made = datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z").lstrip("0")
    page = _templates().get_template(template)
    write_text(path, page.render(made=made, version=segapp.__version__, **facts))


@cache
def _templates() -> Environment:
    """Kept, as compiling them takes longer than filling one."""
    environment = Environment(
        loader=PackageLoader("segapp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "p_value": p_value}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """0.8911 → "0.891"; None → "–"; thousands are set apart, a minus is one."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", " ").replace("-", "−")


def two_digits(value: float) -> str:
    """0.00047 → "0.00047", 1.234 → "1.2", 118.85 → "119"."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Like `number`, with a plus."""
    return number(value, digits) if value is None or value < 0 else f"+{number(value, digits)}"


def p_value(value: float | None) -> str:
    """0.0123 → "0.012", no smaller than "< 0.001"; None → "–"."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib draws in the page's style inside of this."""
    import matplotlib  # half a second that only those pay who draw

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's fonts have it
        yield


def svg(figure: Any, name: str, alt: str) -> Markup:
    """A matplotlib figure as inline SVG, the same for the same figure; to be called in `drawing`.

    name: unique on the page, as the drawing's identifiers begin with it. alt: what it shows, in
    words, for those who can't see it.
    """
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    body = text.getvalue().split("<svg", 1)[1].split(">", 1)[1]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    used = set(_REFERENCE.findall(body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = _REFERENCE.sub(lambda m: m[0].replace(f"#{m[1]}", f"#{name}-{m[1]}"), body)
    body = re.sub(r"\s+", " ", body.replace("xlink:href", "href"))
    body = _PLACES.sub(lambda m: _LONG.sub(lambda n: f"{float(n[0]):.2f}", m[0]), body)
    width, height = figure.get_size_inches()
    head = '<svg role="img" aria-label="{}" viewBox="0 0 {:.0f} {:.0f}" style="max-width:{:.0f}px">'
    points = (72 * width, 72 * height, PIXELS_PER_INCH * width)
    return Markup(head).format(alt, *points) + Markup(body)


def data_uri(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 → a picture inside of the page, as WebP or PNG, whichever is smaller."""
    image = Image.fromarray(picture)
    kind, content = "webp", _encoded(image, "webp", quality=_QUALITY, method=4)
    if len(content) < _PLAIN:
        ways = (kind, content), ("png", _encoded(image, "png"))
        kind, content = min(ways, key=lambda way: len(way[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def file_uri(path: Path, longest: int) -> tuple[str, tuple[int, int]]:
    """A picture file as `data_uri`, made smaller where a side has more than `longest` pixels, and
    its (width, height). Raises OSError."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return data_uri(np.asarray(image)), image.size
