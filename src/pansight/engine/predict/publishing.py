"""A model as a folder that can be given away, with a model card, and the same folder on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import huggingface_hub
import tomli_w

from pansight.config import Config, flatten, read_config
from pansight.engine.checkpoint import CONFIG
from pansight.engine.evaluate import EVALUATION
from pansight.engine.predict.card import Facts, model_card
from pansight.errors import PansightError
from pansight.files import read_json, replacing_folder, write_text
from pansight.models import MODELS
from pansight.nn.backbones.hub import bounded_downloads
from pansight.types import LabelSpace
from pansight.weights.huggingface.export import CARD
from pansight.weights.native import HUB_ID, licence_of, write_model

RECIPE = "recipe.toml"
RUN_FACTS = "run.json"


def save_pretrained(
    folder: str | Path,
    model: Any,
    name: str,
    options: Mapping[str, Any],
    source: str = "",
    licence: str = "",
    data_licence: str = "",
    where: str = "",
) -> None:
    """Write config.json, model.safetensors, the model card README.md and, of a run, its recipe.toml.

    source: what the model was loaded from: a run gives the card its scores and settings. licence, data_licence: of the
    weights and of the data, in the hub's words (mit, apache-2.0, cc-by-4.0, other …); "": as far as is known. where:
    what the card tells a reader to load; "": the folder's name.
    The folder appears whole or not at all, in place of one that stands there. Raises PansightError as `save_model`.
    """
    config = _run_config(source)
    facts = _facts(name, model.labels, source, config)
    facts = replace(facts, licence=licence or facts.licence, data_licence=data_licence)
    with replacing_folder(folder) as temporary:
        write_model(temporary, model, name, options)
        write_text(temporary / CARD, model_card(facts, where or Path(folder).name))
        if config is not None:
            write_text(temporary / RECIPE, tomli_w.dumps(_without_folders(config.to_dict())))


def push_to_hub(
    hub_id: str,
    model: Any,
    name: str,
    options: Mapping[str, Any],
    source: str = "",
    licence: str = "",
    data_licence: str = "",
    private: bool = True,
    token: str | None = None,
    message: str = "",
) -> str:
    """Upload what `save_pretrained` writes as one commit → the address of the model on the hub.

    hub_id: owner/name, made if it does not exist, private unless told otherwise. token: None: the one that `hf auth
    login` keeps or HF_TOKEN. Raises PansightError where the hub refuses or does not answer; then no file was changed.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise PansightError(where=hub_id, expected="owner/name, as the hub calls a model", found=hub_id)
    api = huggingface_hub.HfApi(token=token, library_name="pansight")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_pretrained(folder, model, name, options, source, licence, data_licence, where=hub_id)
        try:
            with bounded_downloads() as answers:  # the client would ask for minutes where nobody answers
                if not answers:
                    raise ConnectionError("it does not answer")
                api.create_repo(hub_id, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=hub_id, folder_path=folder, commit_message=message or f"{name}, written by pansight"
                )
        except Exception as error:  # the client raises its own types, its HTTP library's, OSError and ValueError
            reason = (f"{error}".strip().splitlines() or [type(error).__name__])[0][:160]
            hint = "hf auth login, or HF_TOKEN, says who you are"
            raise PansightError("the hub did not take the model", where=hub_id, reason=reason, hint=hint) from error
    return str(commit.repo_url)


def _facts(name: str, labels: LabelSpace, source: str, config: Config | None) -> Facts:
    """What the run at `source`, or the folder of a saved model there, says of itself."""
    about = (MODELS[name].build.__doc__ or name).strip().splitlines()[0]
    record = _json(source, EVALUATION)
    facts = Facts(name, about, labels, record=record, machine=_json(source, RUN_FACTS))
    if config is None:
        return replace(facts, licence=_licence(source, name), origin=_origin(source))
    start = config.model.weights
    known = _licence(start, name) if start else ""
    terms = f", whose weights are under {known}" if known else ""
    settings = flatten(_without_folders(config.to_dict()))
    usual = flatten(Config().to_dict())
    return replace(
        facts,
        origin=f"Fine-tuned from {_last_part(start)}{terms}." if start else "",
        data=_last_part(config.data.source),
        settings={key: value for key, value in settings.items() if usual.get(key) != value},
    )


def _run_config(source: str) -> Config | None:
    """The settings of the run at `source`; None: it is no run."""
    path = Path(source) / CONFIG
    return read_config(path) if source and path.is_file() else None


def _json(source: str, file: str) -> dict[str, Any]:
    path = Path(source) / file
    content = read_json(path) if source and path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _licence(source: str, name: str) -> str:
    """The tag of the licence of what a model was loaded from; "" where it is not known."""
    known = licence_of(source, name) if source else None
    return known.tag if known else ""


def _origin(source: str) -> str:
    if not source:
        return ""
    return f"Converted from {_last_part(source)}." if Path(source).exists() else f"Taken from {source} on the hub."


def _without_folders(value: Any) -> Any:
    """Settings, however nested: of a path of the machine that trained, only the last part is anybody's business."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return _last_part(value) if isinstance(value, str) else value


def _last_part(place: str) -> str:
    """The name of a file or folder; a hub id, and any other text, stays whole."""
    path = PurePath(place)
    is_place = path.is_absolute() or place.startswith(("~", ".", "..")) or len(path.parts) > 2
    return path.name if is_place or (len(path.parts) > 1 and Path(place).exists()) else place
