"""The addresses below /reader: the page that a scan is read on, and everything it asks for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from segapp.agreement import compare_labels, read_reference, reference_labels, taken_for
from segapp.cases import IGNORE_INDEX
from segapp.corrections import keep_case
from segapp.errors import ScanError, SegappError
from segapp.formats.listing import known_suffix
from segapp.further import training_command
from segapp.measure import measure, measures_json
from segapp.progress import log_bug
from segapp.scan import css
from segapp.takeaway import Reading, write_download
from segapp.web.browsers import browser_of
from segapp.web.result import Result, describe
from segapp.web.session import Session, Sessions

_STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_RAW = "application/octet-stream"


def reader_routes(sessions: Sessions, keepers: Mapping[str, Keeper]) -> APIRouter:
    """The routes. keepers: by the name of its model, what keeps a correction as a training case."""
    router = APIRouter(prefix="/reader")
    # Heavy work on whole volumes: so much of it at once, that many readers fill neither the memory
    # nor the threads that all others need
    few = CapacityLimiter(2)

    async def heavy(function: Any, *arguments: Any) -> Any:
        return await run_sync(partial(_told, function, *arguments), limiter=few)

    def find(request: Request, token: str, index: int) -> tuple[Session, Result]:
        session = sessions.of_token(token, browser_of(request))
        if session is None or not 0 <= index < len(session.results):
            raise HTTPException(404, "This result is no longer kept. Drop the scan again.")
        result = session.results[index]
        if not result.ok:
            raise HTTPException(404, "This scan could not be read.")
        return session, result

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        path = _STATIC / name
        if not re.fullmatch(r"[a-z-]+\.(js|css)", name) or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type=_TYPES[path.suffix])

    @router.get("/{token}/{index}/")
    def page(request: Request, token: str, index: int) -> Response:
        find(request, token, index)
        return FileResponse(_STATIC / "reader.html", media_type=_TYPES[".html"])

    @router.get("/{token}/{index}/meta.json")
    def meta(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        said = meta_of(result, keepers.get(result.model))
        return JSONResponse(said | {"models": len(keepers)})

    @router.get("/{token}/{index}/{name}.bin")
    def voxels(request: Request, token: str, index: int, name: str) -> Response:
        _, result = find(request, token, index)
        path = result.labels_file() if name == "labels" else result.folder / f"{name}.bin"
        if name not in ("image", "labels", "confidence", "reference") or not path.exists():
            raise HTTPException(404)
        return FileResponse(path, media_type=_RAW)

    @router.get("/{token}/{index}/measures.json")
    async def measures(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        return JSONResponse(await heavy(_measured, result))

    @router.post("/{token}/{index}/labels")
    async def correct(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        _need_model(result)
        labels = await _body(request, result.voxels)
        return JSONResponse(await heavy(_corrected, result, labels))

    @router.delete("/{token}/{index}/labels")
    async def restore(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        return JSONResponse(await heavy(_restored, result))

    @router.post("/{token}/{index}/reference")
    async def reference(request: Request, token: str, index: int, name: str) -> Response:
        session, result = find(request, token, index)
        _need_model(result)
        # 8 bytes a voxel and a header: no mask takes more
        mask = await _body(request, 8 * result.voxels + (1 << 20))
        return JSONResponse(await heavy(_compared, session, result, name, mask))

    @router.post("/{token}/{index}/case")
    async def keep(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        keeper = keepers.get(result.model)
        if keeper is None or keeper.folder is None:
            raise HTTPException(403, Keeper(None, result.model).note)
        return JSONResponse(await heavy(_kept, result, keeper))

    @router.get("/{token}/{index}/download/{kind}")
    async def download(request: Request, token: str, index: int, kind: str) -> Response:
        session, result = find(request, token, index)
        path = await heavy(_written, session, result, kind)
        return FileResponse(path, filename=path.name)

    return router


@dataclass(frozen=True)
class Keeper:
    """Where corrections of a model's results are kept, if anywhere, and the model to train on.

    note: what the page says about it.
    """

    folder: Path | None
    name: str
    model: Path | None = None

    @property
    def note(self) -> str:
        if self.folder is None:
            return "Nothing is kept here: the app was started without --root."
        return f"It goes into {self.folder}, a data set for segapp train."


async def _body(request: Request, most: int) -> bytes:
    """A request's body. Raises HTTPException where it is larger than what is asked for can be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, "This is more than belongs to this scan.")
    return bytes(body)


def _told(function: Any, *arguments: Any) -> Any:
    """function(*arguments); what goes wrong is told, without places."""
    try:
        return function(*arguments)
    except SegappError as error:
        reason = error.reason if isinstance(error, ScanError) else str(error)
        raise HTTPException(422, _without_places(reason)) from error
    except MemoryError as error:
        raise HTTPException(507, "Not enough memory for this.") from error
    except FileNotFoundError as error:  # the session was closed meanwhile
        raise HTTPException(404, "This result is no longer kept.") from error
    except HTTPException:
        raise
    except Exception as error:
        log_bug("serving the reader", error)
        raise HTTPException(500, f"This went wrong (unexpected {type(error).__name__}).") from None


def _without_places(reason: str) -> str:
    return re.sub(r"(?:/[^\s/:,;]+)+/", "", reason)


def meta_of(result: Result, keeper: Keeper | None) -> dict[str, Any]:
    """What the reader's page is told of a scan before it asks for the voxels."""
    assert result.grid is not None
    facts, outcome, grid = result.facts, result.outcome, result.grid
    can_keep = keeper is not None and keeper.folder is not None and bool(result.classes)
    return {
        "name": result.name,
        "stem": result.entry.name,
        "model": result.model or None,
        "shape": grid.shape,
        "rgb": facts["rgb"],
        "dtype": facts["dtype"],
        "spacing_mm": grid.spacing_mm,
        "to_voxel": grid.to_voxel.tolist(),
        "affine": None if result.affine is None else result.affine.tolist(),
        "main": facts["main"],
        "start": facts["start"],
        "window": facts["window"],
        "ct": facts["ct"],
        "classes": [
            {"name": c.name, "value": c.value, "colour": css(c.colour)} for c in result.classes
        ],
        "status": outcome.status,
        "reason": ("Of the model's own result: " if result.corrected else "") + outcome.reason,
        "warnings": list(outcome.warnings),
        "facts": describe(result),
        "corrected": result.corrected,
        "has_confidence": bool(result.classes),
        "downloads": [asdict(download) for download in result.downloads],
        "can_keep": can_keep,
        "keep_note": keeper.note if keeper else "",
    }


def _need_model(result: Result) -> None:
    if not result.classes:
        raise HTTPException(409, "There is no segmentation: the app was started without a model.")


def _measured(result: Result) -> dict[str, Any]:
    _need_model(result)
    share = None if result.corrected else result.outcome.range_coverage
    return measures_json(measure(result.segmentation()), share, result.corrected)


def _corrected(result: Result, labels: bytes) -> dict[str, Any]:
    result.correct(labels)
    return _measured(result) | {"corrected": result.corrected}


def _restored(result: Result) -> dict[str, Any]:
    result.restore()
    return _measured(result)


def _compared(session: Session, result: Result, name: str, body: bytes) -> dict[str, Any]:
    """A mask that somebody sent, laid beside the result as it stands."""
    folder = session.place("reference")
    path = folder / f"mask{known_suffix(name)}"
    try:
        path.write_bytes(body)
        segmentation = result.segmentation()
        known = (result.classes, result.ignore, result.merged)
        given = read_reference(path)
        mask = reference_labels(given, segmentation.scan, *known)
        warnings = [*filter(None, [taken_for(given, result.classes)]), *given.warnings]
        if ignored := int(np.count_nonzero(mask == IGNORE_INDEX)):
            what = "voxels" if result.facts["volume"] else "pixels"
            said = f"{ignored} {what} have the value {result.ignore}, which training ignored"
            warnings.append(f"{said}; they are not compared")
        if given.affine is None and segmentation.scan.affine is not None:
            warnings.append("the mask has no place in space; only its size was checked")
    except ScanError as error:
        raise ScanError(name, error.problem, error.kind, error.remedy) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    (result.folder / "reference.bin").write_bytes(result.on_grid(mask))
    return {
        "name": name,
        "dice": compare_labels(mask, segmentation.labels, result.classes),
        "warnings": warnings,
    }


def _kept(result: Result, keeper: Keeper) -> dict[str, Any]:
    """The scan and its labels as they stand, as a training case."""
    assert keeper.folder is not None
    segmentation = result.segmentation()
    model_own = replace(segmentation, labels=result.labels(result.folder / "labels.bin"))
    kept = keep_case(
        *(model_own, np.ascontiguousarray(segmentation.labels), result.entry, keeper.folder),
        model_name=keeper.name,
        model=keeper.model,
    )
    command, note = training_command(kept.folder, keeper.model)
    again = (
        " It had been kept before; another mask that it had is in replaced/."
        if kept.replaced
        else ""
    )
    return {
        "folder": str(kept.folder),
        "case": kept.case,
        "cases": kept.cases,
        "command": command,
        "note": note + again,
    }


def _written(session: Session, result: Result, kind: str) -> Path:
    """A file to download, in a folder of its own."""
    if kind not in {d.kind for d in result.downloads}:
        raise HTTPException(404, "There is no such file of this result.")
    if kind == "same" and not result.corrected:
        assert result.outcome.output is not None
        result.outcome.output.stat()  # FileNotFoundError where the session was closed meanwhile
        return result.outcome.output
    segmentation = result.segmentation()
    changed = None
    if result.corrected:
        own = result.labels(result.folder / "labels.bin")
        changed = int(np.count_nonzero(own != segmentation.labels))
    reading = Reading(
        *(result.entry, segmentation, result.outcome_of(segmentation), result.name, result.model),
        corrected_voxels=changed,
    )
    folder = result.folder / f"take-{kind}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return write_download(kind, reading, folder)
