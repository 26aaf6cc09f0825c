"""The JSON of the API, as /openapi.json describes it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Detection(BaseModel):
    """One detected object."""

    box: tuple[float, float, float, float] = Field(
        description="x1, y1, x2, y2 in pixels of the original image, after EXIF rotation; "
        "width = x2 - x1"
    )
    score: float = Field(ge=0, le=1)
    label: int = Field(ge=0, description="number of the class, from 0")
    name: str = Field(description="name of the class")
    category_id: int = Field(description="id of the class in the training data (COCO)")


class Image(BaseModel):
    """The detections of one image, highest score first."""

    source: str = Field(description="file name in the request")
    height: int = Field(description="of the original image, pixels, after EXIF rotation")
    width: int
    detections: list[Detection]


class Answer(BaseModel):
    """The images of a request, in its order."""

    images: list[Image]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="one line that names the value and the limit")


class Figures(BaseModel):
    """Counts since the server started."""

    uptime_seconds: float
    answers: dict[str, int] = Field(description="answers of /detect by status code")
    images: int = Field(description="images that the network has seen")
    batches: int
    images_per_batch: float
    latency_ms: dict[str, float] = Field(
        description="p50, p95 and p99 of the latest 1,000 answers with detections"
    )


class Health(BaseModel):
    """Whether the server answers, and with what."""

    status: Literal["starting", "ready", "stopping"]
    model: str
    classes: list[str]
    threshold: float = Field(description="smallest score of a detection")
    batch_size: int
    buckets: list[tuple[int, int]] = Field(description="height and width of the input shapes")
    batched_from: list[int] = Field(
        description="by bucket, the number of waiting images from which a batch is faster than one "
        "image after the other, as measured at the start"
    )
    waiting: int = Field(description="images that wait for the network")
    figures: Figures
