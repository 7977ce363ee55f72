"""Requests that other web sites make through a visitor's browser, recognised by their headers."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from segapp.web.limits import Refusal

_PORTS = {"http": 80, "https": 443}
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")


def check_host(headers: Headers, any_host: bool) -> str:
    """The Host header. A page whose name was made to lead here (DNS rebinding) gives itself away.

    any_host: names other than this machine's own are fine, as a password protects the app. Raises
    Refusal: 400 for no Host, several or a malformed one, 421 for a name that is not this machine's.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise Refusal(400, "A request must have one Host header, a name and perhaps a port.")
    if not any_host and not _LOCAL.fullmatch(hosts[0]):
        raise Refusal(
            421,
            "Without a password file the app answers under localhost and 127.0.0.1 only. Open it "
            "under one of these, or start it with --auth-file.",
        )
    return hosts[0]


def check_origin(headers: Headers, method: str, host: str) -> None:
    """Raises Refusal (403) for a request that a page of another site makes.

    Following a link from elsewhere is fine: that page does not see the answer.
    """
    for origin in headers.getlist("origin"):
        if not _same(origin, host):
            raise Refusal(403, "Requests from pages of another site are not answered.")
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        mode, target = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
        if (method, mode, target) != ("GET", "navigate", "document"):
            raise Refusal(403, "Requests from pages of another site are not answered.")


def _same(origin: str, host: str) -> bool:
    try:
        theirs, ours = urlsplit(origin), urlsplit(f"//{host}")
        default = _PORTS.get(theirs.scheme)
        if default is None or theirs.path or theirs.query or theirs.username is not None:
            return False
        return (theirs.hostname, theirs.port or default) == (ours.hostname, ours.port or default)
    except ValueError:  # a port that is none
        return False
