"""The model card of a saved model: README.md of its folder, as the Hugging Face hub shows and searches it.

Everything in it comes from the files of the run: the scores and their intervals from evaluation.json, the settings from
config.toml, the machine from run.json. What is not known is said to be unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pansight.types import LabelSpace

UNKNOWN_LICENCE = "# license: not known; state one before you publish"
HEADLINES = {"pq": "PQ", "miou": "mIoU", "mask_ap": "mask AP", "box_ap": "box AP"}
"""The figures that the hub lists beside a model, by the key of its index."""


@dataclass(frozen=True)
class Facts:
    """What a card tells of a model; all but the first three may be unknown.

    name: of MODELS. about: one sentence on the system. licence, data_licence: as the hub tags them (mit, apache-2.0 …);
    "": not known. origin: a sentence on the weights that training started from. data: a name, no path. record:
    evaluation.json. settings: dotted settings of config.toml that are not their defaults. machine: run.json.
    """

    name: str
    about: str
    labels: LabelSpace
    licence: str = ""
    data_licence: str = ""
    origin: str = ""
    data: str = ""
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])


def model_card(facts: Facts, where: str = "FOLDER") -> str:
    """Markdown with the front matter of the hub. where: what a reader gives to `load`: a folder or owner/name."""
    title = f"{facts.name} trained on {facts.data}" if facts.data else facts.name
    parts = [f"---\n{_front_matter(facts)}\n---", f"# {title}", facts.about, *_use(where)]
    parts += ["## Scores", *_scores(facts.record)]
    parts += ["## Training", *_training(facts)]
    parts += ["## Licences", _licences(facts)]
    things = len(facts.labels.things)
    parts += [f"## Classes: {things} things, {len(facts.labels.stuff)} stuff", _classes(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Of HEADLINES those that the record has, as fractions."""
    instances = record.get("instances", {})
    found = {
        "pq": record.get("All", {}).get("pq"),
        "miou": record.get("semantic", {}).get("miou"),
        "mask_ap": instances.get("mask", {}).get("ap"),
        "box_ap": instances.get("box", {}).get("ap"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _front_matter(facts: Facts) -> str:
    figures = headline_figures(facts.record)
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=facts.data or "unknown",
            dataset_name=facts.data or "unknown",
            dataset_split=str(facts.record.get("split", "validation")),
            metric_type=key,
            metric_name=HEADLINES[key],
            metric_value=round(100 * value, 2),
        )
        for key, value in figures.items()
    ]
    data = ModelCardData(
        library_name="pansight",
        pipeline_tag="image-segmentation",
        license=facts.licence or None,
        tags=["panoptic-segmentation", "pansight", facts.name],
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml() + ("" if facts.licence else f"\n{UNKNOWN_LICENCE}")


def _use(where: str) -> Iterator[str]:
    yield "## Use"
    yield (
        "```python\nimport pansight\n\n"
        f'prediction = pansight.load("{where}").predict("photo.jpg")\n'
        'prediction.overlay("overlay.png")\n```'
    )
    yield f"Or, for a folder of photos: `pansight predict {where} PHOTOS --out OUT`."


def _scores(record: Mapping[str, Any]) -> Iterator[str]:
    """A table for each kind of figure; in brackets their 95 % intervals over images."""
    if not headline_figures(record):
        yield "Not measured: the weights came without an evaluation."
        return
    images = len(record.get("image_ids") or record.get("semantic", {}).get("image_ids") or ())
    on = f"On {images} images" if images else "On the validation images"
    yield f"{on}, in percent; in brackets the 95 % interval from resampling the images."
    if record.get("about", {}).get("trained_on"):
        known = record["about"]["trained_on"]
        yield f"{known} of them were trained on, so that these figures are better than on others."
    if "All" in record:
        intervals = record.get("intervals", {})
        rows = [
            [name, *(_figure(record[name][key], intervals.get(name, {}).get(key)) for key in ("pq", "sq", "rq"))]
            for name in ("All", "Things", "Stuff")
            if record[name]["n"]
        ]
        yield _table(["", "PQ", "SQ", "RQ"], rows)
    rows = []
    if "semantic" in record:
        semantic = record["semantic"]
        interval = semantic.get("intervals", {}).get("All", {}).get("iou")
        rows.append([f"mIoU ({semantic['convention']})", _figure(semantic["miou"], interval)])
    instances = record.get("instances", {})
    for kind in ("box", "mask"):
        if kind in instances and instances[kind]["ap"] is not None:
            interval = instances.get("intervals", {}).get(kind, {}).get("All", {}).get("ap")
            rows.append([f"{kind} AP", _figure(instances[kind]["ap"], interval)])
    if rows:
        yield _table(["figure", "percent"], rows)


def _training(facts: Facts) -> Iterator[str]:
    yield facts.origin
    if facts.settings:
        yield "Settings that differ from the defaults; `recipe.toml` beside this card holds all of them:"
        yield "```toml\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in facts.settings.items()) + "\n```"
        yield "Again: `pansight train --recipe recipe.toml --data DATA --out RUN`."
    if facts.machine.get("hardware"):
        millions = facts.machine.get("parameters", 0) / 1e6
        yield f"Trained on {facts.machine['hardware']}; the network has {millions:.1f} million parameters."
    if not (facts.origin or facts.settings):
        yield "Not recorded beside these weights."


def _licences(facts: Facts) -> str:
    unknown = "not known; whoever publishes them has to state it"
    return f"- weights: {facts.licence or unknown}\n- data: {facts.data_licence or unknown}"


def _classes(facts: Facts) -> str:
    """Every class with the figures that were measured for it."""
    record = facts.record
    columns = {
        "PQ": {key: row["pq"] for key, row in record.get("per_class", {}).items()},
        "IoU": {key: row["iou"] for key, row in record.get("semantic", {}).get("per_class", {}).items()},
        "mask AP": {key: row.get("mask") for key, row in record.get("instances", {}).get("per_class", {}).items()},
    }
    measured = {title: figures for title, figures in columns.items() if any(v is not None for v in figures.values())}
    rows = [
        [
            str(category.id),
            category.name.replace("|", "\\|"),
            "thing" if category.is_thing else "stuff",
            *(_figure(figures.get(str(category.source_id))) for figures in measured.values()),
        ]
        for category in facts.labels
    ]
    return _table(["id", "name", "kind", *measured], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(fraction: float | None, interval: list[float] | None = None) -> str:
    if fraction is None:
        return "–"
    bounds = f" ({100 * interval[0]:.1f} … {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * fraction:.1f}{bounds}"


def _toml(value: Any) -> str:
    """A setting as TOML writes it in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(str(k))} = {_toml(v)}' for k, v in value.items())}}}"
    return str(value)
