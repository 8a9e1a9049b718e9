"""Functions that all benchmarks share: places of data and results, facts of the machine, medians, peak memory."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("PANSIGHT_DATA", ROOT.parent / "shared" / "data"))


def machine() -> dict[str, Any]:
    """The facts that a figure depends on; no names or paths of the machine."""
    import torch  # here, so that a benchmark of lean processes does not carry it

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        flags = info.read_text()
        names = [line.split(":", 1)[1].strip() for line in flags.splitlines() if line.startswith("model name")]
        cpu = f"{names[0] if names else cpu}{', AMX' if 'amx_bf16' in flags else ''}" + (
            ", AVX512-BF16" if "avx512_bf16" in flags else ""
        )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_resident_mib() -> float:
    """The most memory that this process has had so far."""
    # VmHWM, not getrusage: the latter starts at what the parent process had when it forked
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def save(name: str, record: dict[str, Any]) -> Path:
    """Write `record`, with the machine's facts, to benchmarks/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **record}, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def merge_rows(
    name: str, facts: dict[str, Any], rows: list[dict[str, Any]], key: tuple[str, ...] = ("what", "settings")
) -> None:
    """Add `rows` to benchmarks/results/NAME.json, in place of those with the same `key`: long runs can be cut short."""
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {tuple(row[k] for k in key): row for row in old}
    new |= {tuple(row[k] for k in key): row for row in rows}
    save(name, {**facts, "rows": list(new.values())})


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PAIRS = (("float32", "float32"), ("fast", "float32"), ("fast", "fast"))
"""(our setting, theirs) of the rows that two libraries are compared in."""


def ratio_row(
    what: str, beside: str, pair: tuple[str, str], seconds: tuple[float, float], mib: tuple[float, float]
) -> dict[str, Any]:
    """A row of time and memory; pair: one of PAIRS; seconds, mib: (ours, theirs)."""
    return {
        "what": what,
        "beside": beside,
        "settings": " / ".join(pair),
        "ours_ms": 1000 * seconds[0],
        "theirs_ms": 1000 * seconds[1],
        "time_ratio": seconds[0] / seconds[1],
        "ours_mib": mib[0],
        "theirs_mib": mib[1],
        "memory_ratio": mib[0] / mib[1],
    }


Name = TypeVar("Name")


def alternate(
    contenders: dict[Name, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """Median seconds of each contender, run in turns so that drifts of the machine hit all alike.

    clock: for one thread `time.process_time` counts the time on the processor, which others do not change.
    """
    for run in contenders.values():
        for _ in range(warmup):
            run()
    seconds: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
