"""Write our models as folders that transformers loads, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pansight.errors import PansightError
from pansight.files import read_json, write_json, write_text
from pansight.models import MODELS
from pansight.types import LabelSpace
from pansight.weights.huggingface import CONFIG, PROCESSOR, SYSTEMS, TENSORS, is_foreign, system
from pansight.weights.licences import Licence

CARD = "README.md"


def exporter(name: str, source: str) -> Any:
    """The module that writes models of this name in MODELS: that of its architecture.

    Raises PansightError, listing those that can be written, where transformers has no such model.
    """
    architecture = MODELS[name].architecture
    if architecture not in SYSTEMS:
        known = ", ".join(sorted(set(SYSTEMS.values())))
        raise PansightError(where=source, expected=f"a model that transformers has ({known})", found=name)
    return system(architecture)


def label_entries(labels: LabelSpace) -> dict[str, Any]:
    """What config.json says of the classes: names for transformers, and everything else for us."""
    return {
        "id2label": {str(c.id): c.name for c in labels},
        "label2id": {c.name: c.id for c in labels},
        "num_labels": len(labels),
        "pansight": {"labels": labels.to_json()},
    }


def write_folder(
    folder: Path, model: Any, name: str, options: Mapping[str, Any], source: str, notes: str, licence: Licence | None
) -> str:
    """Write the files of a model into a folder that exists (see `replacing_folder`) → the class of transformers.

    notes: Markdown for the model card, such as figures and where the model comes from. Raises PansightError where
    transformers has no such model, OSError where a file cannot be written.
    """
    config, state, processor = exporter(name, source).export(model, name, options)
    config = {"dtype": "float32", **config, **label_entries(model.labels)}
    # clone: safetensors refuses tensors that share memory
    tensors = {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in state.items()}
    try:
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{TENSORS}: {error}") from error
    write_json(folder / CONFIG, config)
    write_json(folder / PROCESSOR, processor)
    architecture = str(config["architectures"][0])
    write_text(folder / CARD, model_card(name, architecture, model.labels, notes, licence))
    return architecture


def is_export(folder: Path) -> bool:
    """Whether a folder holds a model of transformers, or nothing: what an export may replace."""
    if not any(folder.iterdir()):
        return True
    return (folder / CONFIG).is_file() and is_foreign(read_json(folder / CONFIG))


def model_card(name: str, architecture: str, labels: LabelSpace, notes: str, licence: Licence | None) -> str:
    """README.md of the folder; its front matter states a licence only where one is known."""
    stuff = [c.id for c in labels.stuff]
    stated = f"license: {licence.tag}" if licence else "# license: not known; state one before you publish"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-segmentation",
        stated,
        f"tags: [panoptic-segmentation, pansight, {name}]",
        "---",
        f"# {name}",
        "",
        f"{architecture} with {len(labels.things)} thing and {len(stuff)} stuff classes, written by pansight.",
        *(["", notes.strip()] if notes.strip() else []),
        "",
        "```python",
        f"from transformers import AutoImageProcessor, {architecture}",
        "",
        'processor = AutoImageProcessor.from_pretrained("FOLDER")',
        f'model = {architecture}.from_pretrained("FOLDER")',
        "```",
        "",
        "Ids of the stuff classes, which post-processing wants to be told (`label_ids_to_fuse`, `stuff_classes`):",
        f"{stuff}.",
        "",
        "## Classes",
        "",
        "| id | name | kind |",
        "|---|---|---|",
        *(f"| {c.id} | {c.name.replace('|', ' ')} | {'thing' if c.is_thing else 'stuff'} |" for c in labels),
    ]
    return "\n".join(lines) + "\n"
