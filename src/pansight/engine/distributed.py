"""Devices and processes: the Accelerator, a few collective operations, precision, memory and repeatability."""

from __future__ import annotations

import importlib.util
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.types import Batch, Instances, PanopticSegmentation, Prediction

Result = TypeVar("Result")

SPLITTING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What accelerate launch sets in the environment for engines that give each process a part of the weights."""

BUCKET = 1 << 24
"""Gradients are added up in flat tensors of about so many numbers."""

SYNC_BN_DEVICES = ("cuda", "xpu", "hpu")

MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",  # what the C library says
    "bad_alloc",  # C++
    "bad allocation",  # C++ on Windows
    "could not create a primitive",  # oneDNN, which gives no reason; a primitive that is not there at all says so
    "could not create a memory",  # oneDNN
    "could not allocate",
    "failed to allocate",
    "ALLOC_FAILED",  # cuBLAS, cuDNN, cuFFT, cuSPARSE
)
"""By which plain RuntimeErrors of allocators and of libraries below torch are known, in whatever case: they have no
type of their own. `is_out_of_memory` alone reads them."""


def make_accelerator(precision: str = "fp32", folder: Path | None = None, trackers: Sequence[str] = ()) -> Accelerator:
    """The processes of torchrun or accelerate launch, or this one alone; CPU where there is no accelerator.

    trackers: names that Accelerate knows; "auto" is tensorboard where installed. They write into `folder`.
    Raises PansightError for fp16 without a CUDA device, for trackers that are not installed, and where Accelerate is
    told to split the model itself over the processes.
    """
    for variable, engine in SPLITTING.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            expected = "a whole model in each process (accelerate launch --multi_gpu, or torchrun)"
            raise PansightError(where=variable, expected=expected, found=engine, hint="see docs/scale.md")
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if precision == "fp16" and not torch.cuda.is_available():
        raise PansightError("fp16 needs a CUDA device, found none", where="train.precision", hint="use bf16 or fp32")
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
        raise PansightError("trackers or devices", reason=str(error).splitlines()[0]) from error


def speaker(accelerator: Accelerator) -> Callable[..., None]:
    """What lines for the user are printed with: `print` in the first process, `silent` in all others."""
    return print if accelerator.is_main_process else silent


def silent(*values: object) -> None:
    """Prints nothing."""


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


@contextmanager
def _together() -> Iterator[None]:
    """Around what all processes do at once. Raises PansightError where one of them is gone, whose own error is told by
    itself: backends raise a plain RuntimeError then, of which nobody could read what to do.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PansightError("another process of this run has ended", hint="its own message says why") from error


def wait_for_everyone(accelerator: Accelerator) -> None:
    """Returns once every process has come here."""
    with _together():
        accelerator.wait_for_everyone()


def largest(values: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Each value's maximum over the processes, so that all of them decide alike."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    with _together():
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor.tolist()


def sums(values: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Each value's sum over the processes, which all have values of the same names."""
    if accelerator.num_processes == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    with _together():
        torch.distributed.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


def gather(value: Any, accelerator: Accelerator) -> list[Any]:
    """The value of each process, in the order of their ranks, on all of them."""
    if accelerator.num_processes == 1:
        return [value]
    with _together():
        return gather_object([value])


def sum_gradients(parameters: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Replace each gradient by its sum over the processes; a process without one counts as zero.

    The sum and not the mean, because the loss of each process is already divided by the counts of all of them. Done
    once a step, after the last micro-batch, instead of by DistributedDataParallel in the middle of a backward pass: so
    a process that runs out of memory or meets a NaN can tell the others before they wait for its gradients, and
    branches that an image does not reach need no special care.
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
            with _together():
                torch.distributed.all_reduce(flat)
            parts = flat.split([g.numel() for g in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
            bucket = []


def average_statistics(statistics: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Replace the running statistics of BatchNorm by their means over the processes, so that all have the same.

    The mean and not those of the first process, because each has seen images of its own and all of them count. After
    every step, because a run that is saved at any step must go on as one that was not.
    """
    if accelerator.num_processes == 1 or not statistics:
        return
    flat = torch.cat([tensor.flatten().double() for tensor in statistics])  # counters, all the same, stay exact
    with _together():
        torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    for tensor, mean in zip(statistics, flat.split([t.numel() for t in statistics]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def clip_gradients(model: nn.Module, limit: float, accelerator: Accelerator) -> float:
    """Scale all gradients to a common L2 norm of at most `limit` (0: any); returns the norm they had."""
    norm = accelerator.clip_grad_norm_(model.parameters(), limit or float("inf"))
    assert isinstance(norm, Tensor)  # None only under engines that we do not use
    return float(norm)


def synchronise_batch_norm(model: nn.Module, accelerator: Accelerator) -> None:
    """BatchNorm, timm's with an activation too, takes its statistics over all processes from now on.

    Frozen BatchNorm is no BatchNorm of torch's and stays as it is. Raises PansightError where the processes compute on
    a device that cannot do it; with one process there is nothing to do.
    """
    if accelerator.num_processes == 1:
        return
    if accelerator.device.type not in SYNC_BN_DEVICES:
        known = ", ".join(SYNC_BN_DEVICES)
        raise PansightError(
            where="train.sync_bn", expected=f"processes on {known}", found=f"them on {accelerator.device.type}"
        )
    convert_sync_batchnorm(model)


def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Parameters and buffers of the first process to all."""
    if accelerator.num_processes > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            with _together():
                torch.distributed.broadcast(tensor.data, 0)


@contextmanager
def tracking(folder: Path) -> Iterator[None]:
    """Errors of the disk in a tracker's writing threads, and in calls of it, as one PansightError that names `folder`.

    TensorBoard writes from a thread of its own, whose traceback Python would print beside the line of the command.
    """
    caught: list[OSError] = []
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, OSError):
            caught.append(arguments.exc_value)
        else:
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
    if caught:  # in the last lines: no call of the tracker came after them
        raise tracker_failure(folder, caught[0])


def shows_pictures(accelerator: Accelerator) -> bool:
    """Whether this process has a tracker that takes pictures."""
    named = {tracker.name for tracker in accelerator.trackers}
    return accelerator.is_main_process and bool(named & {"tensorboard", "wandb"})


def track_pictures(pictures: Sequence[Tensor], step: int, accelerator: Accelerator) -> None:
    """uint8 (3, H, W) pictures to every tracker that takes them; each has a place of its own, whatever its size."""
    arrays = [picture.permute(1, 2, 0).numpy() for picture in pictures]  # (H, W, 3)
    for tracker in accelerator.trackers:
        named = {f"evaluation/image {number}": array for number, array in enumerate(arrays)}
        if tracker.name == "tensorboard":
            stacks = {name: array[None] for name, array in named.items()}  # (1, H, W, 3)
            tracker.log_images(stacks, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [array] for name, array in named.items()}, step=step)


def tracker_failure(folder: Path, error: OSError) -> PansightError:
    return PansightError("the trackers cannot write", where=folder, reason=error.strerror or error, code="cannot_write")


def unless_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """What `compute` gives, or None, with the accelerator's memory cleared, where memory runs out."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside the except block: the traceback would keep the tensors of the failed pass alive
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Of the accelerator or of the CPU's allocator, whatever type that raises."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(text.lower() in said for text in MEMORY_MESSAGES)


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
