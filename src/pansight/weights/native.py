"""Our own saved models: a folder with ``config.json`` (model, options, labels, input) and ``model.safetensors``.

A folder is replaced as a whole: it is written under a temporary name beside its place and then moved there. This takes
two moves; between them the previous folder has the name ``.NAME.old``, where ``standing_folder`` finds it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import save_file

from pansight.errors import PansightError
from pansight.files import read_json, replacing_folder, standing_folder, write_json
from pansight.models import entry, networks_of
from pansight.nn.backbones.hub import bounded_downloads
from pansight.nn.input import Input, PixelStatistics
from pansight.ops.resize import ResizeRule
from pansight.weights import huggingface, licences
from pansight.weights.fitting import build_to_fit, labels_of, without_pretrained
from pansight.weights.unpickle import read_tensors

FORMAT_VERSION = 1
CONFIG = "config.json"
TENSORS = "model.safetensors"
PATTERNS = [CONFIG, "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "README.md"]
PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def save_model(folder: str | Path, model: Any, name: str, options: Mapping[str, Any]) -> None:
    """Write the folder as a whole, in place of the one that may stand there.

    name, options: what ``models.build(name, model.labels, **options)`` built the model from; options must be JSON.
    Raises PansightError where an option is no JSON or the folder cannot be written (nothing half-written remains).
    """
    with replacing_folder(folder) as temporary:
        write_model(temporary, model, name, options)


def write_model(folder: Path, model: Any, name: str, options: Mapping[str, Any]) -> None:
    """The two files of a model, into a folder that exists (see ``replacing_folder``).

    Raises PansightError where an option is no JSON, OSError where a file cannot be written.
    """
    # Random weights suffice where the saved ones follow, and loading must not need the network. What the pretrained
    # weights expect of the input is the reason for writing it down.
    options = without_pretrained(options)
    inputs = {network: _input_of(each) for network, each in networks_of(model, name).items()}
    config = {
        "format_version": FORMAT_VERSION,
        "pansight": version("pansight"),
        "model": name,
        "options": options,
        "labels": model.labels.to_json(),
        "input": inputs.get("", inputs),  # of several networks, by their names
    }
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise PansightError(where=folder, expected="options that JSON can hold", found=error) from error
    # contiguous: channels_last weights are views with other strides, which safetensors refuses
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    try:
        save_file(state, folder / TENSORS)
    except SafetensorError as error:
        raise OSError(f"{TENSORS}: {error}") from error  # replacing_folder names the folder
    write_json(folder / CONFIG, config)


def _input_of(model: Any) -> dict[str, Any]:
    given: Input = model.input
    return {
        "mean": given.mean.flatten().tolist(),
        "scale": given.scale.flatten().tolist(),
        "bgr": given.bgr,
        "black_padding": given.black_padding,
        "resize": given.resize._asdict(),
    }


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved model of ours, or nothing: what saving another one there may replace."""
    if not any(folder.iterdir()):
        return True
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    return isinstance(config, dict) and "format_version" in config


def load_folder(folder: Path, source: str | None = None) -> tuple[Any, str, dict[str, Any]]:
    """A folder that ``save_model`` or transformers wrote → (model in eval mode on the CPU, name, options).

    What config.json holds decides. source: what the user called the folder, for messages about foreign ones.
    Raises PansightError where a file is missing, damaged or of a later format, or a tensor has another shape.
    """
    config = read_json(folder / CONFIG)
    if huggingface.is_foreign(config):
        return huggingface.load_folder(folder, source)
    keys = ("format_version", "model", "options", "labels", "input")
    if not isinstance(config, dict) or any(key not in config for key in keys):
        raise PansightError(f"expected a saved model with the keys {', '.join(keys)}", where=folder / CONFIG)
    if config["format_version"] != FORMAT_VERSION:
        found = config["format_version"]
        raise PansightError(where=folder / CONFIG, expected=f"format_version {FORMAT_VERSION}", found=found)
    name, options = config["model"], config["options"]
    if not isinstance(name, str) or not isinstance(options, dict):
        found = f"{name!r:.80} and {options!r:.80}"
        raise PansightError(where=folder / CONFIG, expected="the name of a model and a table of options", found=found)
    entry(name)  # raises where there is no such model, before the tensors are read
    labels = labels_of(config["labels"], f"{folder / CONFIG}")
    state = read_tensors(folder / TENSORS)
    model = build_to_fit(name, labels, options, state, f"{folder / TENSORS}", f"{folder / CONFIG}")
    for network, each in networks_of(model, name).items():
        _restore_input(each, _saved_input(config["input"], network), folder / CONFIG)
    return model, name, options


def _saved_input(saved: Any, network: str) -> Any:
    """What was saved of the input of a network; of a single one (""), the whole."""
    return saved.get(network) if network and isinstance(saved, dict) else saved


def _restore_input(model: Any, saved: Any, path: Path) -> None:
    """Restore mean, deviation, channel order and resize rule; they are no weights, but weights are useless without
    them.
    """
    try:
        mean, scale = (_three_numbers(saved[key]) for key in ("mean", "scale"))
        flags = saved["bgr"], saved.get("black_padding", model.input.black_padding)
        if not all(isinstance(flag, bool) for flag in flags) or min(scale) <= 0:
            raise ValueError(f"{flags}, scale {scale}")
        pixels = PixelStatistics(mean, tuple(1 / v for v in scale), flags[0])
        restored = Input(_saved_rule(dict(saved["resize"])), pixels, flags[1])
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, PansightError) as error:
        expected = "input with mean, scale, bgr and resize"
        raise PansightError(where=path, expected=expected, found=f"{saved!r:.300}") from error
    # the reciprocal of a reciprocal may differ in the last bit
    restored.scale.view(-1).copy_(restored.scale.new_tensor(scale))
    model.input = restored


def _three_numbers(values: Any) -> tuple[float, ...]:
    """Raises TypeError or ValueError for anything but three finite numbers."""
    if len(values) != 3 or any(isinstance(v, bool | str) or not math.isfinite(v) for v in values):
        raise ValueError("expected three numbers")
    return tuple(float(v) for v in values)


def _saved_rule(saved: dict[str, Any]) -> ResizeRule:
    """The rule of a saved folder. The first folders name no filter: photos were sampled between their four nearest

    pixels then ("plain"), and ``floor`` told torchvision's rounding from detectron2's.
    """
    if "filter" not in saved:
        rounding = "torchvision" if saved.get("floor", False) else "detectron2"
        known = {key: saved[key] for key in ("short", "long", "divisor") if key in saved}
        return ResizeRule(**known, rounding=rounding, filter="plain").checked()
    return ResizeRule(**saved).checked()


def find_folder(path: str | Path) -> Path | None:
    """The saved model meant by a folder: itself, or a run's checkpoints/best, else checkpoints/last. None: no folder.

    Raises PansightError for a folder that holds neither.
    """
    path = standing_folder(path)
    if not path.is_dir():
        return None
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "last"]
    for candidate in map(standing_folder, candidates):
        if (candidate / CONFIG).is_file():
            return candidate
    raise PansightError(
        where=path, expected=f"a saved model ({CONFIG}) or a run (checkpoints/best or last)", found="neither"
    )


def licence_of(weights: str, name: str) -> licences.Licence | None:
    """The licence of a hub id, of a folder by its model card, or of what was published for an official file's model."""
    path = Path(weights)
    if path.is_dir():
        folder = find_folder(path)
        return None if folder is None else licences.of_folder(folder)
    return licences.of_published(name) if path.exists() else licences.of_hub(weights)


def download(hub_id: str) -> Path:
    """Fetch config and tensors of a model on the Hugging Face hub, or find them in its cache → folder.

    Pickled tensors are fetched only where there are no others.
    """
    answers = True
    try:
        with bounded_downloads() as answers:
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=PATTERNS))
            if not any(folder.glob("*.safetensors")):
                folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=PICKLED))
            return folder
    except Exception as error:  # the client raises its own types, its HTTP library's and ValueError
        reason = (f"{error}".strip().splitlines() or [type(error).__name__])[0][:160]
        if not answers:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it does not answer"
            reason = f"{why}, and its cache on this machine has no such model"
        raise PansightError(
            "no such file or folder here, and the hub cannot be reached for it",
            where=hub_id,
            reason=reason,
            hint=f"where there is a network: hf download {hub_id} --local-dir FOLDER; then give that folder",
            code="missing_file",
        ) from error
