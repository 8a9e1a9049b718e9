"""Write our models as folders that transformers loads, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pansight.errors import PansightError
from pansight.files import read_json, write_json, write_text
from pansight.models import MODELS
from pansight.types import LabelSpace
from pansight.weights.huggingface import CONFIG, PROCESSOR, SYSTEMS, TENSORS, is_foreign, system
from pansight.weights.huggingface.eomt import rounded
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


class Prepared(NamedTuple):
    """A model as the files of a folder of transformers, not written yet."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    processor: dict[str, Any]
    labels: LabelSpace


def prepare(model: Any, name: str, options: Mapping[str, Any], source: str) -> Prepared:
    """source: where the model comes from, for messages.

    Raises PansightError where transformers has no such model, or would not load it, or with other results.
    """
    system_of_name = exporter(name, source)
    try:
        config, state, processor = system_of_name.export(model, name, options)
    except PansightError as error:
        raise error.at(source) from error
    except (LookupError, AttributeError, TypeError) as error:
        found = f"another ({type(error).__name__}: {error})"
        raise PansightError(where=source, expected=f"a {name} that transformers has", found=found) from error
    if "attn_mask_probs" in state:  # of EoMT; transformers would draw at random what is neither 0 nor 1
        state["attn_mask_probs"] = rounded(state["attn_mask_probs"])
    config = {"dtype": "float32", **config, **label_entries(model.labels)}
    # clone: safetensors refuses tensors that share memory
    tensors = {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in state.items()}
    return Prepared(name, config, tensors, processor, model.labels)


def write_folder(
    folder: Path, model: Any, name: str, options: Mapping[str, Any], source: str, notes: str, licence: Licence | None
) -> str:
    """`prepare`, then `write_prepared`."""
    return write_prepared(folder, prepare(model, name, options, source), notes, licence)


def write_prepared(folder: Path, prepared: Prepared, notes: str, licence: Licence | None) -> str:
    """Write the files of a model into a folder that exists (see `replacing_folder`) → the class of transformers.

    notes: Markdown for the model card, such as figures and where the model comes from. Raises OSError where a file
    cannot be written.
    """
    try:
        save_file(prepared.tensors, folder / TENSORS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{TENSORS}: {error}") from error
    write_json(folder / CONFIG, prepared.config)
    write_json(folder / PROCESSOR, prepared.processor)
    architecture = str(prepared.config["architectures"][0])
    write_text(folder / CARD, model_card(prepared.name, architecture, prepared.labels, notes, licence))
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
