"""The addresses below /reader: the page that a scan is read on, and everything it asks for."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from segapp.corrections import Keeper
from segapp.errors import ScanError, SegappError
from segapp.measure import ClassMeasure, measure
from segapp.takeaway import downloads
from segapp.web.guard import browser_of
from segapp.web.result import Result, describe, log_bug
from segapp.web.session import Session, Sessions

_STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_RAW = "application/octet-stream"
# Heavy work on whole volumes: so much of it at once, that many readers don't fill the memory
_HEAVY = threading.BoundedSemaphore(2)


def reader_routes(sessions: Sessions, keepers: Mapping[str, Keeper]) -> APIRouter:
    """The routes. keepers: by the name of its model, what keeps a correction as a training case."""
    router = APIRouter(prefix="/reader")

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
        return JSONResponse(meta_of(result, keepers.get(result.model)))

    @router.get("/{token}/{index}/{name}.bin")
    def voxels(request: Request, token: str, index: int, name: str) -> Response:
        _, result = find(request, token, index)
        path = result.labels_file() if name == "labels" else result.folder / f"{name}.bin"
        if name not in ("image", "labels", "confidence", "reference") or not path.exists():
            raise HTTPException(404)
        return FileResponse(path, media_type=_RAW)

    @router.get("/{token}/{index}/measures.json")
    def measures(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        return JSONResponse(_heavy(_measured, result))

    @router.post("/{token}/{index}/labels")
    async def correct(request: Request, token: str, index: int) -> Response:
        _, result = await run_in_threadpool(find, request, token, index)
        _need_model(result)
        body = await request.body()
        await run_in_threadpool(_heavy, result.correct, body)
        return JSONResponse(await run_in_threadpool(_heavy, _measured, result))

    @router.delete("/{token}/{index}/labels")
    def restore(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        result.restore()
        return JSONResponse(_heavy(_measured, result))

    @router.post("/{token}/{index}/reference")
    async def reference(request: Request, token: str, index: int, name: str) -> Response:
        session, result = await run_in_threadpool(find, request, token, index)
        _need_model(result)
        body = await request.body()
        return JSONResponse(await run_in_threadpool(_heavy, _compared, session, result, name, body))

    @router.post("/{token}/{index}/case")
    def keep(request: Request, token: str, index: int) -> Response:
        _, result = find(request, token, index)
        keeper = keepers.get(result.model)
        if keeper is None or keeper.folder is None:
            raise HTTPException(403, "Nothing is kept here: the app was started without --root.")
        return JSONResponse(_heavy(_kept, result, keeper))

    @router.get("/{token}/{index}/download/{kind}")
    def download(request: Request, token: str, index: int, kind: str) -> Response:
        session, result = find(request, token, index)
        path = _heavy(_written, session, result, kind)
        return FileResponse(path, filename=path.name)

    return router


def _need_model(result: Result) -> None:
    if not result.classes:
        raise HTTPException(409, "There is no segmentation: the app was started without a model.")


def _heavy(function: Any, *arguments: Any) -> Any:
    """function(*arguments), few at a time; what a user can mend is told, without places."""
    with _HEAVY:
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
            raise HTTPException(
                500, f"This went wrong (unexpected {type(error).__name__})."
            ) from None


def _without_places(reason: str) -> str:
    return re.sub(r"(?:/[^\s/:,;]+)+/", "", reason)


def meta_of(result: Result, keeper: Keeper | None) -> dict[str, Any]:
    """What the reader's page is told of a scan before it asks for the voxels."""
    assert result.grid is not None
    facts, outcome, grid = result.facts, result.outcome, result.grid
    kinds = downloads(result.entry, result.shape, bool(result.classes))
    names = {"same": "Segmentation", "csv": "Measurements (CSV)", "report": "Report (HTML)"}
    return {
        "name": result.name,
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
            {"name": c.name, "value": c.value, "colour": "#{:02x}{:02x}{:02x}".format(*c.colour)}
            for c in result.classes
        ],
        "status": outcome.status,
        "reason": outcome.reason,
        "warnings": list(outcome.warnings),
        "facts": describe(result),
        "corrected": result.corrected,
        "has_confidence": bool(result.classes),
        "downloads": [{"kind": kind, "label": names.get(kind, kind)} for kind in kinds],
        "can_keep": bool(keeper and keeper.folder and result.classes),
        "keep_note": keeper.note if keeper else "",
    }


def _measured(result: Result) -> dict[str, Any]:
    _need_model(result)
    segmentation = result.segmentation()
    return measures_json(measure(segmentation), result)


def measures_json(rows: list[ClassMeasure], result: Result) -> dict[str, Any]:
    share = None if result.corrected else result.outcome.range_coverage
    note = None
    if share:
        note = f"Small: a range that holds the true size in about {share:.0%} of scans like these"
    return {
        "unit": next((row.unit for row in rows if row.unit), None),
        "note": note,
        "classes": [asdict(row) for row in rows],
    }


def _compared(session, result, name, body):
    raise NotImplementedError


def _kept(result, keeper):
    raise NotImplementedError


def _written(session, result, kind):
    raise NotImplementedError
