"""Which browser a request comes from: told by a secret cookie, and by the user's name."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from typing import Any

COOKIE = "segapp"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes, as token_urlsafe writes them


def browser_of(request: Any) -> str:
    """An id of the browser (64 hex characters) that a request comes from; "" where nothing tells.

    request: a gr.Request, a starlette or FastAPI Request, or a mapping of headers whose names are
    in lower case. The id is a SHA-256 of the cookie's secret, so whoever reads it can't act for the
    browser, and of the user's name from the Authorization header: another user at the same browser
    is another one. A client with a name and no cookie counts as one browser of that user.
    """
    headers = getattr(request, "headers", request)
    secret = cookie_secret(headers.get("cookie") or "")
    named = credentials(headers.get("authorization") or "")
    if not secret and named is None:
        return ""
    name = "" if named is None else named[0]
    return hashlib.sha256(f"segapp browser\0{secret}\0{name}".encode()).hexdigest()


def cookie_secret(cookies: str) -> str:
    """The secret in a Cookie header, or "" where there is none that looks like ours."""
    for pair in cookies.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE and _SECRET.fullmatch(value):
            return value
    return ""


def new_cookie(secure: bool) -> str:
    """A Set-Cookie header with a fresh secret. `secure`: the browser may send it over TLS only."""
    mark = "; Secure" if secure else ""
    return f"{COOKIE}={secrets.token_urlsafe(32)}; HttpOnly; SameSite=Lax; Path=/{mark}"


def credentials(authorization: str) -> tuple[str, str] | None:
    """Name and password of an Authorization header by RFC 7617 (UTF-8), or None if it is not one.

    authorization: the header as HTTP libraries give it, a character for each byte.
    """
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        plain = base64.b64decode(token.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    name, colon, password = plain.partition(":")
    return (name, password) if colon and name else None
