"""What the server is sent and what it answers, typed; the OpenAPI document is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Options = dict[str, bool | int | float | str]
"""Of the model's decode: thresholds and the task, by name. GET /v1/models lists those of each model."""
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A field that nobody knows is an error: it may be a misspelled one."""

    model_config = ConfigDict(extra="forbid")


class Base64Request(Strict):
    """A photo in base64, and how it is predicted."""

    image: str = Field(description="A JPEG, PNG, WebP, BMP or TIFF in base64; also as a data: address.")
    model: str | None = Field(None, description="The name of a model; the first one where left out.")
    options: Options = Field({}, description="Thresholds and task of the model's decode.")
    score: Share = Field(0.5, description="Objects below it are left out, of a model without panoptic maps.")


PHOTO_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "A JPEG, PNG, WebP, BMP or TIFF."},
        "model": {"type": "string"},
        "options": {"type": "string", "description": 'JSON: {"score_threshold": 0.7}'},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
}


class OptionInfo(BaseModel):
    """An option of a model's decode."""

    name: str
    meaning: str
    kind: str
    low: float | None
    high: float | None
    choices: list[str]
    default: bool | int | float | str | None = Field(description="Where the model says it; null: the model's own.")


class ClassInfo(BaseModel):
    """A class, as in COCO panoptic."""

    id: int
    name: str
    isthing: int
    color: list[int]


class ModelInfo(BaseModel):
    """A model that is served."""

    name: str
    system: str
    produces: list[str]
    tasks: list[str]
    options: list[OptionInfo]
    classes: list[ClassInfo]


class Models(BaseModel):
    """All of them; the first one answers where no name is given."""

    models: list[ModelInfo]


class ImageInfo(BaseModel):
    """An image, as in COCO panoptic."""

    id: int
    file_name: str
    width: int
    height: int


class SegmentInfo(BaseModel):
    """A segment, as in COCO panoptic. Without a score the model gives none."""

    id: int
    category_id: int
    area: int
    bbox: list[int] = Field(description="x, y, width, height in pixels")
    iscrowd: int
    score: float | None = None


class Annotation(BaseModel):
    """The segments of an image, as in COCO panoptic."""

    image_id: int
    file_name: str
    segments_info: list[SegmentInfo]


class PanopticAnswer(BaseModel):
    """COCO panoptic: the JSON, and the PNG whose colours are the ids of its segments (R + 256·G + 65536·B)."""

    model: str
    images: list[ImageInfo]
    annotations: list[Annotation]
    categories: list[ClassInfo]
    png: str = Field(description="base64")


class SegmentationParameters(BaseModel):
    """As the task image-segmentation of Hugging Face has them."""

    subtask: Literal["panoptic", "instance", "semantic"] | None = None
    threshold: Share | None = None
    mask_threshold: Share | None = None
    overlap_mask_area_threshold: Share | None = None


class SegmentationRequest(BaseModel):
    """As the task image-segmentation of Hugging Face has it."""

    inputs: str = Field(description="A photo in base64.")
    parameters: SegmentationParameters | None = None


class LabelledMask(BaseModel):
    """A segment, as the task image-segmentation of Hugging Face has it."""

    label: str
    score: float | None
    mask: str = Field(description="A PNG in base64, of the size of the photo: 255 where the segment is, else 0.")


class Health(BaseModel):
    """Whether the server is ready."""

    status: Literal["ok"]
    models: list[str]
