"""The headers of every answer: what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

_READER = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "frame-ancestors": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
}
# What Gradio's page works with: it writes styles into the page as it runs, and makes functions of
# the templates of its HTML parts (of its own text, not of what is filled in). The scripts that
# stand in it when it leaves are allowed by their hashes, so none that gets in later runs.
_PAGE = {
    "default-src": "'none'",
    "script-src": "'self' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "frame-src": "'self'",
    "frame-ancestors": "'self'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'none'",
}
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_INLINE = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
# Files of the program; everything else may be a patient's.
_PROGRAM = ("/assets/", "/static/", "/reader/static/")


def policy(path: str, page: bytes = b"") -> str:
    """The Content-Security-Policy of what lies under a path.

    page: the HTML that is about to leave; the scripts in it may run, and no other inline script.
    """
    rules = dict(_READER if path.startswith("/reader/") else _PAGE)
    for script in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        rules["script-src"] += f" 'sha256-{digest}'"
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def secured(
    headers: Iterable[tuple[bytes, bytes]], path: str, page: bytes = b""
) -> list[tuple[bytes, bytes]]:
    """An answer's headers with ours in place of its own of the same names, and without any that
    would let pages of other sites read it. page: see `policy`."""
    ours = {
        **_ALWAYS,
        "content-security-policy": policy(path, page),
        "cache-control": "no-cache" if path.startswith(_PROGRAM) else "no-store",
    }
    replaced = {name.encode() for name in (*ours, "server")}
    kept = [
        (name, value)
        for name, value in headers
        if name.lower() not in replaced and not name.lower().startswith(b"access-control-")
    ]
    return [*kept, *((name.encode(), value.encode()) for name, value in ours.items())]
