"""Image + id map pairs per second on one core: our loader against PIL + transforms.v2, same files, same output size.

    .venv/bin/python benchmarks/loader.py

Each pair is a 640×480 JPEG and a panoptic PNG (about 20 segments with natural borders), read, resized to 640×640,
flipped with probability 1/2 and put into a batch of 4. Ours is the path that training takes: CocoPanoptic[i] with all
its checks, transforms, collate. The other is what people write: PIL, tv_tensors, transforms.v2, normalised float. They
take turns, one thread each, in CPU time; the figure is the median over the rounds. Writes results/loader.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import PIL
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from common import save
from pansight.data import CocoPanoptic
from pansight.data.formats.coco_panoptic import PanopticWriter
from pansight.data.loader import collate
from pansight.data.transforms import HorizontalFlip, resize_sample
from pansight.ops.idmap import present_ids
from pansight.types import LabelSpace, PanopticSegmentation, Segment

HEIGHT, WIDTH, SIDE, IMAGES, BATCH, ROUNDS = 480, 640, 640, 32, 4, 9
LABELS = LabelSpace.from_names(["thing"], ["stuff"])


def write_data(folder: Path) -> None:
    """Random photos with the file sizes of real ones (100–200 kB), and maps with wavy borders, as COCO panoptic."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    with PanopticWriter(folder / "panoptic_train.json", LABELS) as writer:
        for n in range(IMAGES):
            ids = random_map(rng)
            image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
            for size, amount in ((8, 60), (32, 25), (160, 15), (480, 12)):  # detail at every scale, as in photos
                noise = rng.normal(0, amount, (size, size * 4 // 3, 3)).astype(np.float32)
                image += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            shade = rng.integers(40, 216, (64, 3))[ids % 64]
            pixels = np.clip(image + shade, 0, 255).astype(np.uint8)
            name = f"{n:012d}.jpg"
            (folder / "images" / name).write_bytes(imagecodecs.jpeg8_encode(pixels, level=90))
            segments = tuple(Segment(int(i), int(i) % 2) for i in present_ids(ids) if i)
            writer.add(n, name, PanopticSegmentation(torch.from_numpy(ids), segments))


def random_map(rng: np.random.Generator) -> np.ndarray:
    """int32 (H, W): a Voronoi diagram of 20 points, bent by noise; one cell is void."""
    bend = rng.normal(0, 25, (12, 16, 2)).astype(np.float32)
    field = cv2.resize(bend, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 3, (120, 160, 2)).astype(np.float32), (WIDTH, HEIGHT))
    yx = np.stack(np.mgrid[:HEIGHT, :WIDTH], -1) + field + fine  # (H, W, 2)
    points = rng.uniform(0, 1, (20, 2)) * (HEIGHT, WIDTH)
    nearest = ((yx[:, :, None] - points) ** 2).sum(-1).argmin(-1)  # (H, W)
    numbers = np.concatenate([[0], rng.choice(256**3 - 1, 19, replace=False) + 1]).astype(np.int32)
    return numbers[nearest]


def ours(folder: Path) -> Callable[[int], None]:
    dataset = CocoPanoptic(folder / "panoptic_train.json", folder / "images", folder / "panoptic_train")
    flip = HorizontalFlip()

    def batch(step: int) -> None:
        rng = np.random.default_rng(step)
        chosen = [(step * BATCH + k) % IMAGES for k in range(BATCH)]
        result = collate([flip(resize_sample(dataset[i], SIDE, SIDE, "pillow"), rng) for i in chosen], 32)
        assert result.images.shape == (BATCH, 3, SIDE, SIDE)
        assert result.truths[0].ids.shape == (SIDE, SIDE)

    return batch


def peers(folder: Path, backend: str) -> Callable[[int], None]:
    """backend "pil": photos stay PIL images until the end, as in torchvision's reference scripts by default; "tensor":
    they become uint8 tensors first, as its documentation advises. The resized photos are the same to rounding."""
    rows = json.loads((folder / "panoptic_train.json").read_text())["annotations"]
    photos = [folder / "images" / f"{row['image_id']:012d}.jpg" for row in rows]
    maps = [folder / "panoptic_train" / row["file_name"] for row in rows]
    early, late = ([], [v2.ToImage()]) if backend == "pil" else ([v2.ToImage()], [])
    transform = v2.Compose(
        [
            *early,
            v2.Resize((SIDE, SIDE), antialias=True),
            v2.RandomHorizontalFlip(),
            *late,
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def pair(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(photos[index]) as photo, Image.open(maps[index]) as coded:
            image = photo.convert("RGB")
            rgb = np.asarray(coded.convert("RGB")).astype(np.int32)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        return transform(image, tv_tensors.Mask(torch.from_numpy(ids)))

    def batch(step: int) -> None:
        pairs = [pair((step * BATCH + k) % IMAGES) for k in range(BATCH)]
        images, ids = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        assert images.shape == (BATCH, 3, SIDE, SIDE)
        assert ids.shape == (BATCH, SIDE, SIDE)

    return batch


def pairs_per_second(batch: Callable[[int], None]) -> float:
    """Over one pass through the data, in CPU time: other work on the machine must not count."""
    start = time.process_time()
    for step in range(IMAGES // BATCH):
        batch(step)
    return IMAGES / (time.process_time() - start)


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        sizes = [f.stat().st_size for f in (folder / "images").iterdir()]
        maps = [f.stat().st_size for f in (folder / "panoptic_train").iterdir()]
        runners = {
            "pansight": ours(folder),
            "PIL + transforms.v2": peers(folder, "pil"),
            "PIL + transforms.v2 on tensors": peers(folder, "tensor"),
        }
        for batch in runners.values():
            pairs_per_second(batch)  # warm caches
        figures: dict[str, list[float]] = {key: [] for key in runners}
        for _ in range(ROUNDS):
            for key, batch in runners.items():
                figures[key].append(pairs_per_second(batch))
    own = figures["pansight"]
    rows = [
        {
            "what": key,
            "pairs_per_second": round(statistics.median(values), 1),
            "spread": [round(min(values), 1), round(max(values), 1)],
            "ratio": round(statistics.median(a / b for a, b in zip(own, values)), 2),  # ours over this one
        }
        for key, values in figures.items()
    ]
    record = {
        "what": f"{WIDTH}x{HEIGHT} JPEG + panoptic PNG to a flipped {SIDE}x{SIDE} pair in batches of {BATCH}, one core",
        "target_ratio": 3.0,
        "rows": rows,
        "mean_bytes": {"jpeg": round(statistics.mean(sizes)), "png": round(statistics.mean(maps))},
        "versions": {"opencv": cv2.__version__, "imagecodecs": imagecodecs.__version__, "pillow": PIL.__version__},
    }
    print(json.dumps(rows, indent=1))
    save("loader", record)


if __name__ == "__main__":
    main()
