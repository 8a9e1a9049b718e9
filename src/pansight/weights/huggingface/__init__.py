"""Reading and writing folders of Hugging Face transformers: what all systems share; each has a file of its own here.

A system's file holds ``MODEL_TYPES``; ``load(config, state, labels, source) -> (model, name, options)``; and
``export(model, name, options) -> (config, state, processor)``. `config` is config.json, `state` the tensors under their
names on disk, `processor` is preprocessor_config.json.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from pansight.errors import PansightError
from pansight.files import read_json, safe_join
from pansight.weights.huggingface.labels import label_space
from pansight.weights.huggingface.processor import apply_processor
from pansight.weights.keys import MISFITS, without_prefixes
from pansight.weights.unpickle import read_tensors

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
TENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"

SYSTEMS = {
    "detr": "detr",
    "maskformer": "maskformer",
    "mask2former": "mask2former",
    "eomt": "eomt",
    "eomt_dinov3": "eomt",
}
"""model_type in config.json → the file here that knows it; loaded when it is needed."""


def system(model_type: str) -> Any:
    """The module of a model_type; the caller has looked it up in SYSTEMS."""
    return import_module(f"{__name__}.{SYSTEMS[model_type]}")


def is_foreign(config: Any) -> bool:
    """Whether a config.json is one that transformers wrote (or our export), and not a saved model of ours."""
    return isinstance(config, dict) and "model_type" in config and "format_version" not in config


def load_folder(folder: Path, source: str | None = None) -> tuple[Any, str, dict[str, Any]]:
    """A folder of transformers → (model in eval mode on the CPU, its name in MODELS, its options).

    source: what the user called it, for messages. Raises PansightError, one line with the file, for a model_type that
    is none of ours, missing or damaged tensors, or tensors that do not fit what the config says.
    """
    source = source or str(folder)
    config = read_json(folder / CONFIG)
    model_type = config["model_type"]
    if not isinstance(model_type, str) or model_type not in SYSTEMS:
        known = ", ".join(SYSTEMS)
        raise PansightError(
            where=f"{source}: {CONFIG}", expected=f"a model_type among {known}", found=f"{model_type!r:.80}"
        )
    state = read_state(folder, source)
    labels = label_space(config, f"{source}: {CONFIG}")
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else None
    if isinstance(processor, dict) and processor.get("do_split_image"):
        config = config | {"windows": True}  # the model's, which transformers keeps with the photos' sizes
    try:
        model, name, options = system(model_type).load(config, state, labels, source)
    except MISFITS as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PansightError(
            where=f"{source}: {CONFIG}", expected=f"the settings of a {model_type}", found=f"{found:.200}"
        ) from error
    if processor is not None:
        apply_processor(model, processor, model_type, f"{source}: {PROCESSOR}")
    return model.eval(), name, options


def read_state(folder: Path, source: str | None = None) -> dict[str, Tensor]:
    """The tensors of a folder: one safetensors file, several with an index, or pytorch_model.bin likewise.

    Raises PansightError where there are none, one of several is missing, or a file is damaged or holds code.
    """
    source = source or str(folder)
    for name in (TENSORS, PICKLED):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_parts(folder, index)
    raise PansightError(where=source, expected=f"tensors ({TENSORS}, {TENSORS}.index.json or {PICKLED})", found="none")


def _read_parts(folder: Path, index: Path) -> dict[str, Tensor]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise PansightError(where=index, expected="weight_map, from tensors to files", found="none")
    state: dict[str, Tensor] = {}
    for name in sorted({str(value) for value in places.values()}):
        state |= read_tensors(safe_join(folder, name, index), is_part=True)
    missing = [key for key in places if key not in state]
    if missing:
        raise PansightError(
            where=index, expected=f"tensor {missing[0]} in {places[missing[0]]}", found="none by that name"
        )
    return without_prefixes(state, str(index))[0]
