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
    height: int = Field(description="height of the original image in pixels, after EXIF rotation")
    width: int
    detections: list[Detection]


class Answer(BaseModel):
    """The detections in each image of a request, in the order of the request."""

    images: list[Image]


class Problem(BaseModel):
    """The reason why a request failed."""

    error: str = Field(description="one line that states the problem")


class Figures(BaseModel):
    """Counts since the server started."""

    uptime_seconds: float
    answers: dict[str, int] = Field(description="number of responses of /detect, by status code")
    images: int = Field(description="number of images that the network has processed")
    batches: int
    images_per_batch: float
    latency_ms: dict[str, float] = Field(
        description="p50, p95 and p99 of the latest 1,000 requests that succeeded"
    )


class Health(BaseModel):
    """The state of the server and its settings."""

    status: Literal["starting", "ready", "stopping"]
    model: str
    classes: list[str]
    threshold: float = Field(description="minimum score of a detection")
    batch_size: int
    buckets: list[tuple[int, int]] = Field(description="height and width of each input shape")
    batched_from: list[int] = Field(
        description="for each bucket, the smallest number of waiting images for which a batch is "
        "faster than one image at a time, measured at startup"
    )
    waiting: int = Field(description="images that wait for the network")
    figures: Figures
