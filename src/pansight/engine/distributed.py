"""Devices and processes: the Accelerator, a few collective operations, precision, memory and repeatability."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.types import Batch, Instances, PanopticSegmentation, Prediction

BUCKET = 1 << 24
"""Gradients are averaged in flat tensors of about so many numbers."""

MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def make_accelerator(precision: str = "fp32", folder: Path | None = None, trackers: Sequence[str] = ()) -> Accelerator:
    """The processes of torchrun or accelerate launch, or this one alone; CPU where there is no accelerator.

    trackers: names that Accelerate knows; "auto" is tensorboard where installed. They write into `folder`.
    Raises PansightError for fp16 without a CUDA device and for trackers that are not installed.
    """
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if precision == "fp16" and not torch.cuda.is_available():
        raise PansightError("train.precision: fp16 needs a CUDA device, found none; use bf16 or fp32")
    names: list[Any] = [n for n in trackers if n != "auto"]
    if "auto" in trackers and importlib.util.find_spec("tensorboard") is not None:
        names.append("tensorboard")
    try:
        # only the gradient scaler of fp16 is Accelerate's business; autocast stands in the loop
        return Accelerator(
            cpu=on_cpu,
            mixed_precision="fp16" if precision == "fp16" else "no",
            log_with=names or None,
            project_dir=None if folder is None else str(folder),
        )
    except (ValueError, ImportError) as error:
        raise PansightError(f"trackers or devices: {str(error).splitlines()[0]}") from error


def resolve_precision(precision: str, device: torch.device) -> str:
    """auto → bf16 where the device computes in it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: on other CPUs bf16 is emulated and slower than fp32."""
    return bool(torch.backends.mkldnn.is_available()) and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """precision fp32, bf16 or fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; copies of pinned memory overlap with what is computed."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return replace(
        batch,
        images=move(batch.images),
        valid=move(batch.valid),
        truths=tuple(PanopticSegmentation(move(t.ids), t.segments) for t in batch.truths),
    )


def to_cpu(prediction: Prediction) -> Prediction:
    """The prediction with every tensor on the CPU."""
    panoptic, semantic, instances = prediction.panoptic, prediction.semantic, prediction.instances
    if panoptic is not None:
        panoptic = PanopticSegmentation(panoptic.ids.cpu(), panoptic.segments)
    if instances is not None:
        masks = None if instances.masks is None else instances.masks.cpu()
        instances = Instances(instances.boxes_xyxy.cpu(), instances.labels.cpu(), instances.scores.cpu(), masks)
    return Prediction(panoptic, None if semantic is None else semantic.cpu(), instances)


def largest(values: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Each value's maximum over the processes, so that all of them decide alike."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor.tolist()


def mean(values: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Each value's mean over the processes."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(tensor)
    return (tensor / accelerator.num_processes).tolist()


def gather(value: Any, accelerator: Accelerator) -> list[Any]:
    """The value of each process, in the order of their ranks, on all of them."""
    return [value] if accelerator.num_processes == 1 else gather_object([value])


def average_gradients(parameters: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Replace each gradient by its mean over the processes; a process without one counts as zero.

    Done once a step, after the last micro-batch, instead of by DistributedDataParallel in the middle of a backward
    pass: so a process that runs out of memory or meets a NaN can tell the others before they wait for its gradients,
    and branches that an image does not reach need no special care.
    """
    if accelerator.num_processes == 1:
        return
    bucket: list[Tensor] = []
    trained = [p for p in parameters if p.requires_grad]
    for number, parameter in enumerate(trained, 1):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if number == len(trained) or sum(g.numel() for g in bucket) >= BUCKET:
            flat = torch.cat([g.flatten() for g in bucket])  # (numbers of the bucket,)
            torch.distributed.all_reduce(flat)
            flat /= accelerator.num_processes
            parts = flat.split([g.numel() for g in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
            bucket = []


def clip_gradients(model: nn.Module, limit: float, accelerator: Accelerator) -> float:
    """Scale all gradients to a common L2 norm of at most `limit` (0: any); returns the norm they had."""
    norm = accelerator.clip_grad_norm_(model.parameters(), limit or float("inf"))
    assert isinstance(norm, Tensor)  # None only under engines that we do not use
    return float(norm)


def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Parameters and buffers of the first process to all."""
    if accelerator.num_processes > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            torch.distributed.broadcast(tensor.data, 0)


def is_out_of_memory(error: Exception) -> bool:
    """Of the accelerator or of the CPU's allocator, whatever type that raises."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_MESSAGES)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all randomness of a step a pure function of (seed, step, rank).

    So a resumed run needs no state of any generator, and a step can be repeated after running out of memory.
    """
    torch_seed, numpy_seed = np.random.SeedSequence((seed, step, rank)).generate_state(2)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))  # noqa: NPY002 (libraries draw from the global generator)
    random.seed(int(torch_seed))


@contextmanager
def repeatable(device: torch.device, everywhere: bool) -> Iterator[None]:
    """Only operations that give the same bits again: always on the CPU, on an accelerator where asked for."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    try:
        if everywhere or device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
            memory.fill_uninitialized_memory = False  # a second pass over every new tensor
        torch.backends.cudnn.benchmark = device.type == "cuda" and not everywhere
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
