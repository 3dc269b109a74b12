"""Answers of a service, as its description states them."""

from pydantic import BaseModel, Field


class FaceAnswer(BaseModel):
    """A face of a photo."""

    box: list[float] = Field(description="left, top, right, bottom in pixels of the upright photo")
    score: float | None = Field(description="of the detector, 0 to 1; null where nothing is looked for")
    landmarks: list[list[float]] | None = Field(
        description="x, y of left eye, right eye, nose and the mouth's left and right corner, in pixels"
    )


class Detected(BaseModel):
    """The faces of a photo."""

    found: int = Field(description="faces in the photo; of too many the surest are listed")
    main: int | None = Field(description="number of the main face in the list: large, and near the centre")
    faces: list[FaceAnswer] = Field(description="the surest first")


class EmbeddedFace(FaceAnswer):
    """A face with its embedding."""

    embedding: list[float] = Field(description="D numbers, of length 1")
    norm: float = Field(description="length of the network's raw output")


class EmbeddedAnswer(BaseModel):
    """The faces of a photo with their embeddings."""

    found: int
    main: int | None
    faces: list[EmbeddedFace]


class Threshold(BaseModel):
    """From which cosine on two faces are taken for one person."""

    cosine: float
    fmr: float = Field(description="share of pairs of two people that reach it, at most")
    fnmr: float | None = Field(description="share of pairs of one person that do not")
    measured_on: str
    meaning: list[str] = Field(description="the same in sentences")


class Verified(BaseModel):
    """Two photos' main faces, compared."""

    cosine: float
    same: bool | None = Field(description="null where the model has no threshold")
    threshold: Threshold | None
    first: FaceAnswer
    second: FaceAnswer


class MatchAnswer(BaseModel):
    """Somebody known who is near to a face."""

    cosine: float
    match: bool | None = Field(description="whether the threshold is reached; null where there is none")
    identity: str | None
    label: int | None = None
    path: str | None = Field(None, description="of the picture in the gallery's source")
    number: int | None = Field(None, description="of somebody enrolled, for /forget")
    picture: str | None = Field(None, description="data: address of a JPEG, where pictures were asked for")


class SearchedFace(FaceAnswer):
    """A face, and who is near to it."""

    matches: list[MatchAnswer] = Field(description="the nearest first")


class Searched(BaseModel):
    """The faces of a photo, and who is near to each."""

    found: int
    main: int | None
    faces: list[SearchedFace]
    known: int = Field(description="faces that were compared with")
    threshold: Threshold | None


class EnrolledAnswer(BaseModel):
    """Somebody was enrolled."""

    number: int = Field(description="by which this entry can be forgotten")
    identity: str
    known: int
    face: FaceAnswer


class ForgottenAnswer(BaseModel):
    """Entries were forgotten."""

    forgotten: int
    known: int


class About(BaseModel):
    """The service."""

    model: str
    sha256: str
    image_size: int
    embedding_dim: int
    aligned: bool = Field(description="whether faces are looked for; otherwise the whole picture counts")
    known: int | None = Field(description="faces that can be found; null without a gallery")
    enrolls: bool
    threshold: Threshold | None
    request_bytes: int
    photo_pixels: int
