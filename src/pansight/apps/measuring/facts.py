"""run.json: what a training ran on, how large its network is, how much memory it took, and what ended it."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pansight.files import read_json, write_json

FACTS = "run.json"
ENDINGS = {
    "steps": "",
    "time": ", stopped by the clock",
    "patience": ", stopped early: no evaluation was better (train.patience)",
}
"""What is said of a training that was ended by its steps, the clock, or by patience."""


def write_facts(folder: Path, model: nn.Module, accelerator: Accelerator, others: Mapping[str, Any]) -> None:
    """run.json of a training that begins or goes on; the memory that earlier sessions took stays."""
    parameters = list(model.parameters())
    facts = {
        "hardware": hardware(accelerator),
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "parameters": sum(parameter.numel() for parameter in parameters),
    }
    earlier = read_facts(folder)
    kept = {key: earlier[key] for key in ("memory_bytes",) if key in earlier}
    write_json(folder / FACTS, facts | kept | dict(others))


def add_ending(folder: Path, stopped_by: str, device: torch.device) -> None:
    """What ended the training, a key of ENDINGS, and the most memory that a session of it took."""
    facts = read_facts(folder)
    most = max(peak_memory(device), facts.get("memory_bytes", 0))
    write_json(folder / FACTS, facts | {"stopped_by": stopped_by, "memory_bytes": most})


def read_facts(folder: Path) -> dict[str, Any]:
    """Empty where there is no file yet. Raises PansightError where it is damaged."""
    content = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    return content if isinstance(content, dict) else {}


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has taken: of the accelerator, or, on a CPU, of the machine; 0: unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def hardware(accelerator: Accelerator) -> str:
    """What the run runs on: the device, and how many processes or threads."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} × {torch.cuda.get_device_name(accelerator.device)}"
    if accelerator.device.type != "cpu":
        return f"{accelerator.num_processes} × {accelerator.device.type}"
    return f"CPU ({platform.machine()}), {accelerator.num_processes} × {torch.get_num_threads()} threads"
