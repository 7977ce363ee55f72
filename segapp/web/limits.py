"""How much a request's body may hold, and what its parts may be called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

SMALL_BODY = 1 << 20  # bytes: calls, not files
MAX_PART_HEADERS = 4 << 10  # bytes before a part's content; Gradio's own end is at twice that
MAX_FILE_NAME = 255  # bytes, as on most file systems


class Refusal(MultiPartException):
    """Why a request is answered with an error instead of being passed on.

    It is an error of multipart forms because Gradio's upload deletes its temporary files on those
    only, not when the connection ends or anything else goes wrong.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None):
        super().__init__(reason)
        self.status = status
        self.headers = headers or {}


class Body:
    """A request's body on its way to the app, refused above `limit` bytes.

    `check` is given each chunk and whether it is the last; it raises Refusal. After a refusal or
    a lost connection, `refusal` tells, and the app reads nothing more.
    """

    def __init__(
        self, receive: Receive, limit: int, check: Callable[[bytes, bool], Any] | None = None
    ):
        self._receive, self._limit, self._check = receive, limit, check
        self._size, self._complete = 0, False
        self.refusal: Refusal | None = None

    async def __call__(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        message = await self._receive()
        try:
            if message["type"] == "http.request" and not self._complete:
                self._size += len(message.get("body", b""))
                self._complete = not message.get("more_body", False)
                if self._size > self._limit:
                    raise too_large(self._limit)
                if self._check is not None:
                    self._check(message.get("body", b""), self._complete)
            elif message["type"] == "http.disconnect" and not self._complete and self._check:
                raise Refusal(400, "The upload was not complete.")
        except Refusal as refusal:
            self.refusal = refusal
            raise
        return message

    async def read(self) -> bytes:
        """The whole body at once. Raises Refusal."""
        parts: list[bytes] = []
        while not self._complete:
            message = await self()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The request was not complete.")
            parts.append(message.get("body", b""))
        return b"".join(parts)


def too_large(limit: int) -> Refusal:
    """limit: bytes."""
    size = f"{limit / (1 << 20):.0f} MB" if limit >= 1 << 20 else f"{limit} bytes"
    return Refusal(413, f"Too large: at most {size} at once.")


def check_length(content_length: str | None, limit: int) -> None:
    """Raises Refusal where a Content-Length header promises more than `limit` bytes."""
    if content_length and content_length.isdecimal() and int(content_length) > limit:
        raise too_large(limit)


def replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives a body which was read already, then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


class FormCheck:
    """Looks over a multipart upload as it streams through, before Gradio parses it.

    Raises Refusal for what Gradio would choke on or leave lying around: endless part headers or
    file names, a form that never ends, files under another name than "files".
    """

    def __init__(self, content_type: str):
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise Refusal(400, "An upload must be a multipart/form-data form with a boundary.")
        self._header_bytes = 0
        self._field, self._disposition, self._ended = b"", b"", False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_end": self._on_end,
                },
                max_header_size=MAX_PART_HEADERS,
            )
        except FormParserError as error:
            raise Refusal(400, "The form's boundary is too long.") from error
        self._value = bytearray()

    def __call__(self, chunk: bytes, last: bool) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refusal(400, "The upload is not a form that can be read.") from error
        if last and not self._ended:
            raise Refusal(400, "The upload was not complete.")

    def _on_part_begin(self) -> None:
        self._header_bytes, self._disposition = 0, b""

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_PART_HEADERS:
            raise Refusal(400, "A file's name or header is too long.")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field = b""
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            return
        if len(name) > MAX_FILE_NAME:
            raise Refusal(400, f"A file's name is too long: at most {MAX_FILE_NAME} bytes.")
        if b"\0" in name:
            raise Refusal(400, "A file's name has a NUL in it.")
        if options.get(b"name") != b"files":
            raise Refusal(400, 'A file must be in the form\'s field "files".')

    def _on_end(self) -> None:
        self._ended = True
