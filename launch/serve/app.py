"""The HTTP interface of a service: what can be asked, and how it is answered."""

import base64
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from dist_train.data.reject import Reject
from dist_train.embed.enrolled import Enrolled, check_identity
from dist_train.errors import UserError, WorkError
from launch.serve.answers import (
    About,
    Detected,
    EmbeddedAnswer,
    EmbeddedFace,
    EnrolledAnswer,
    FaceAnswer,
    ForgottenAnswer,
    MatchAnswer,
    Searched,
    SearchedFace,
    Threshold,
    Verified,
)
from launch.serve.batcher import FullError
from launch.serve.finder import Face
from launch.serve.form import read_form
from launch.serve.guard import Guard, fault, full
from launch.serve.known import Hit, Known
from launch.serve.metrics import CONTENT_TYPE
from launch.serve.pages import page, reference
from launch.serve.pipeline import Done, Embedded, Task
from launch.serve.service import Service

MOST_MATCHES = 50
_MOST_PICTURES = 100  # in one answer
_PICTURES_SHARE = 0.25  # of the time of a request, after which no more of them are read
_OPEN = ("/", "/healthz", "/docs", "/openapi.json")
_FILE = {"type": "string", "format": "binary"}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        401: "the token is missing or wrong",
        408: "the body came too slowly",
        413: "too many bytes, or too many pixels",
        422: "a field is missing or wrong, or the file is no picture that can be used",
        429: "too many wait already",
        503: "no answer in time, or the disk refuses",
    }.items()
}


def make_app(service: Service, token: str | None) -> ASGIApp:
    """The application that answers for a service.

    Args:
        service: it.
        token: that clients need; None: none.
    """
    app = FastAPI(
        title="headcount",
        description=f"Faces, embeddings and matches by the model {service.model.name}.",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(Exception, _failed)
    _add_pages(app, service)
    _add_photos(app, service)
    known = service.known
    if known is not None:
        _add_search(app, service, known)
        if known.enrolled is not None and known.enrolled.writable:
            _add_enrolling(app, service, known, known.enrolled)
    paths = [str(path) for route in app.routes if (path := getattr(route, "path", None))]
    return Guard(app, service.limits, service.metrics, paths, _OPEN, lambda: service.batcher.full, token)


async def _told(request: Request, error: Exception) -> Response:
    """A refusal as JSON."""
    refused = cast(HTTPException, error)  # the only kind that it is registered for
    return JSONResponse({"error": str(refused.detail)}, refused.status_code, refused.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """A fault as JSON."""
    return fault(request.url.path, error)


def _form(fields: Mapping[str, Mapping[str, Any]], *needed: str) -> dict[str, Any]:
    """The description of a form."""
    schema = {"type": "object", "properties": fields, "required": list(needed)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return page()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return reference(app.openapi())

    @app.get("/healthz", summary="Whether photos are answered")
    async def healthz() -> dict[str, str]:
        if not service.batcher.alive:
            raise HTTPException(503, "the service ends")
        return {"status": "ok"}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/about", summary="What is served")
    async def about() -> About:
        return About(
            model=service.model.name,
            sha256=digest,
            image_size=service.model.image_size,
            embedding_dim=service.model.embedding_dim,
            aligned=service.aligned,
            known=None if service.known is None else len(service.known),
            enrolls=service.enrolls,
            threshold=_threshold(service),
            request_bytes=service.limits.request_bytes,
            photo_pixels=service.limits.photo_pixels,
        )

    digest = service.model.digest()


def _add_photos(app: FastAPI, service: Service) -> None:
    @app.post("/detect", summary="Find faces", responses=_REFUSALS, openapi_extra=_form({"photo": _FILE}, "photo"))
    async def detect(request: Request) -> Detected:
        form = await read_form(request, ["photo"])
        (done,) = await _ask(service, Task(form.photo("photo"), "none"))
        seen = done.seen
        return Detected(found=seen.found, main=seen.main, faces=[FaceAnswer(**_face(face)) for face in seen.faces])

    @app.post("/embed", summary="Embed the faces", responses=_REFUSALS, openapi_extra=_form({"photo": _FILE}, "photo"))
    async def embed(request: Request) -> EmbeddedAnswer:
        form = await read_form(request, ["photo"])
        (done,) = await _ask(service, Task(form.photo("photo")))
        faces = [
            EmbeddedFace(**_face(each.face), embedding=each.unit.tolist(), norm=round(each.norm, 6))
            for each in done.embedded
        ]
        return EmbeddedAnswer(found=done.seen.found, main=done.seen.main, faces=faces)

    @app.post(
        "/verify",
        summary="Compare two photos' main faces",
        responses=_REFUSALS,
        openapi_extra=_form({"first": _FILE, "second": _FILE}, "first", "second"),
    )
    async def verify(request: Request) -> Verified:
        form = await read_form(request, ["first", "second"])
        names = ("first", "second")
        both = await _ask(service, *(Task(form.photo(name), "main") for name in names))
        first, second = (_main(done, name) for done, name in zip(both, names, strict=True))
        cosine = float(first.unit @ second.unit)
        return Verified(
            cosine=round(cosine, 6),
            same=_is_match(service, cosine),
            threshold=_threshold(service),
            first=FaceAnswer(**_face(first.face)),
            second=FaceAnswer(**_face(second.face)),
        )


def _add_search(app: FastAPI, service: Service, known: Known) -> None:
    @app.post(
        "/search",
        summary="Find who a photo shows",
        responses=_REFUSALS,
        openapi_extra=_form(
            {
                "photo": _FILE,
                "k": {"type": "integer", "minimum": 1, "maximum": MOST_MATCHES, "default": 5},
                "pictures": {"type": "boolean", "default": False, "description": "with the pictures of those found"},
            },
            "photo",
        ),
    )
    async def search(request: Request) -> Searched:
        form = await read_form(request, ["photo", "k", "pictures"])
        k, pictures = form.number("k", 5, 1, MOST_MATCHES), form.yes("pictures")
        (done,) = await _ask(service, Task(form.photo("photo"), matches=k))
        hits = [hit for each in done.embedded for hit in each.hits][:_MOST_PICTURES] if pictures else []
        limit_s = _PICTURES_SHARE * service.limits.request_s
        shown = iter(await run_in_threadpool(known.pictures, hits, limit_s) if hits else [])
        faces = [
            SearchedFace(**_face(each.face), matches=[_match(service, hit, next(shown, None)) for hit in each.hits])
            for each in done.embedded
        ]
        return Searched(
            found=done.seen.found, main=done.seen.main, faces=faces, known=len(known), threshold=_threshold(service)
        )


def _add_enrolling(app: FastAPI, service: Service, known: Known, enrolled: Enrolled) -> None:
    @app.post(
        "/enroll",
        summary="Add a photo's main face to the gallery",
        description="Stored are the name, the time and the embedding; the cut-out face only with keep_picture.",
        responses=_REFUSALS,
        openapi_extra=_form(
            {
                "photo": _FILE,
                "identity": {"type": "string"},
                "keep_picture": {"type": "boolean", "default": False},
            },
            "photo",
            "identity",
        ),
    )
    async def enroll(request: Request) -> EnrolledAnswer:
        form = await read_form(request, ["photo", "identity", "keep_picture"])
        keep, identity = form.yes("keep_picture"), form.texts.get("identity", "")
        try:
            check_identity(identity)
        except UserError as error:
            raise HTTPException(422, f"field {error}") from error
        (done,) = await _ask(service, Task(form.photo("photo"), "main"))
        main = _main(done, "photo")
        entry = await _stored(partial(enrolled.add, identity, main.unit, main.face.jpeg() if keep else None))
        return EnrolledAnswer(
            number=entry.number, identity=identity, known=len(known), face=FaceAnswer(**_face(main.face))
        )

    @app.post(
        "/forget",
        summary="Take somebody out again",
        description="All that was enrolled by one name, or one entry by its number.",
        responses=_REFUSALS,
        openapi_extra=_form({"identity": {"type": "string"}, "number": {"type": "integer"}}),
    )
    async def forget(request: Request) -> ForgottenAnswer:
        form = await read_form(request, ["identity", "number"])
        if len({"identity", "number"} & form.texts.keys()) != 1:
            raise HTTPException(422, "expected one of the fields identity and number")
        number = form.number("number", 0, 1, 1 << 53) or None
        count = await _stored(partial(enrolled.forget, form.texts.get("identity"), number))
        if not count:
            raise HTTPException(
                404, "nobody enrolled by that; who is in the gallery's files stays until they are built again"
            )
        return ForgottenAnswer(forgotten=count, known=len(known))


async def _ask(service: Service, *tasks: Task) -> list[Done]:
    """The answers to photos; a refusal if one of them cannot be used."""
    try:
        answers = await service.batcher.ask(tasks)
    except FullError:
        raise full() from None
    found = []
    for answer in answers:
        if isinstance(answer, Reject):
            status = 413 if answer.reason == "too large" else 422
            raise HTTPException(status, f"photo: {answer.reason}: {answer.detail}")
        found.append(answer)
    return found


async def _stored(change: Any) -> Any:  # noqa: ANN401 - any change of the log, and what it gives
    """A change of the log, once it is on the disk."""
    try:
        return await run_in_threadpool(change)
    except UserError as error:
        raise HTTPException(409, str(error)) from error
    except (WorkError, OSError) as error:
        raise HTTPException(503, str(error)) from error


def _main(done: Done, name: str) -> Embedded:
    if not done.embedded:
        raise HTTPException(422, f"field {name}: no face in the photo")
    return done.embedded[0]


def _face(face: Face) -> dict[str, Any]:
    return {"box": face.box, "score": face.score, "landmarks": face.landmarks}


def _is_match(service: Service, cosine: float) -> bool | None:
    return None if service.decision is None else cosine >= service.decision.threshold


def _match(service: Service, hit: Hit, picture: bytes | None) -> MatchAnswer:
    where = hit.match or hit.entry
    return MatchAnswer(
        cosine=round(hit.score, 6),
        match=_is_match(service, hit.score),
        identity=None if where is None else where.identity,
        label=hit.match.label if hit.match else None,
        path=hit.match.place.path if hit.match else None,
        number=hit.entry.number if hit.entry else None,
        picture=None if picture is None else f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}",
    )


def _threshold(service: Service) -> Threshold | None:
    """The threshold, and what it means among all who are known now."""
    if service.decision is None:
        return None
    rows = 0 if service.known is None else len(service.known)
    decision = service.decision._replace(rows=rows)
    lines = decision.told()
    if not rows:
        del lines[1]  # about a search
    return Threshold(
        cosine=decision.threshold,
        fmr=decision.point.fmr,
        fnmr=decision.point.fnmr,
        measured_on=decision.calibration.set,
        meaning=lines,
    )
