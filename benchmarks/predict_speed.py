"""Many photos from files to files: `pansight predict` beside the obvious script → results/predict_speed.json.

    python benchmarks/predict_speed.py [--photos 200] [--only mask_rcnn mask2former] [--threads 2] [--repeats 1] [--dry]

Photos of 640×480 are JPEG files; written are a picture with what was found for each, and one file of the results: COCO
results with run lengths (Mask R-CNN), COCO panoptic (Mask2Former). The script is what the documents of torchvision and
transformers show: one photo after another, in float32. Both have the same weights, random but scaled (rcnn_speed) or
solved for (hf_models) so that they find about what a trained network finds. Each contender is a process of its own,
timed from its start to its end, in turns; its peak memory is that of the process.

exact computes in float32 as the script does. fast is `--speed fast`; what it chose stands in the row. Where the CPU
does not compute in bfloat16, float32 stays.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import merge_rows, peak_resident_mib

HEIGHT, WIDTH = 480, 640
CONTENDERS = ("script", "exact", "fast")
SYSTEMS = {"mask_rcnn": "torchvision", "mask2former": "transformers"}
SCORE = 0.5
"""Objects of at least this score are drawn, by all."""


# --- the same photos and weights for all -----------------------------------------------------------------------------


def write_photos(folder: Path, count: int) -> None:
    from PIL import Image

    import hf_models

    folder.mkdir()
    for number in range(count):
        drawn = hf_models.scene(HEIGHT, WIDTH, hf_models.KEPT - 1, seed=number + 1)
        Image.fromarray(drawn.image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.jpg", quality=95)


def write_weights(name: str, path: Path) -> None:
    import torch

    if name == "mask_rcnn":
        from rcnn_speed import torchvision_model

        torch.save(torchvision_model(800).state_dict(), path)
        return
    import hf_models

    hf_models.save("mask2former_r50", hf_models.scene(HEIGHT, WIDTH, hf_models.KEPT - 1, seed=1), path)


# --- the obvious scripts ---------------------------------------------------------------------------------------------


def torchvision_script(weights: Path, photos: Path, out: Path) -> int:
    import numpy as np
    import torch
    from pycocotools import mask as coco_mask
    from torchvision.io import read_image, write_png
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    model.load_state_dict(torch.load(weights))
    model.eval()
    rows: list[dict[str, Any]] = []
    for path in sorted(photos.iterdir()):
        image = read_image(str(path))
        with torch.no_grad():
            found = model([image / 255])[0]
        masks = found["masks"][:, 0] > 0.5
        for mask, box, label, score in zip(masks, found["boxes"], found["labels"], found["scores"]):
            code = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            x1, y1, x2, y2 = box.tolist()
            row = {"image_id": path.stem, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            code = {"size": code["size"], "counts": code["counts"].decode()}
            rows.append({**row, "score": float(score), "segmentation": code})
        sure = found["scores"] >= SCORE
        picture = draw_segmentation_masks(image, masks[sure], alpha=0.5)
        names = [f"{int(label)} {score:.2f}" for label, score in zip(found["labels"][sure], found["scores"][sure])]
        write_png(draw_bounding_boxes(picture, found["boxes"][sure], names), str(out / f"{path.stem}.png"))
    (out / "instances.json").write_text(json.dumps(rows))
    return len(rows)


def transformers_script(weights: Path, photos: Path, out: Path) -> int:
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.utils import draw_segmentation_masks
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(weights).eval()
    processor = AutoImageProcessor.from_pretrained(weights)
    annotations: list[dict[str, Any]] = []
    for path in sorted(photos.iterdir()):
        image = Image.open(path).convert("RGB")
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (found,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[image.size[::-1]])
        ids = found["segmentation"].numpy().astype(np.int64) + 1  # -1, or 0 in older versions, is void
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(colours).save(out / f"{path.stem}.png")
        annotations.append({"file_name": f"{path.stem}.png", "segments_info": found["segments_info"]})
        masks = [found["segmentation"] == segment["id"] for segment in found["segments_info"]]
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        picture = draw_segmentation_masks(tensor, torch.stack(masks), alpha=0.5) if masks else tensor
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(out / f"{path.stem}_overlay.png")
    (out / "predictions.json").write_text(json.dumps({"annotations": annotations}, default=float))
    return sum(len(each["segments_info"]) for each in annotations)


SCRIPTS = {"mask_rcnn": torchvision_script, "mask2former": transformers_script}


def ours(name: str, speed: str, weights: Path, photos: Path, out: Path) -> tuple[int, str]:
    """(the number of what is in the files, what was chosen)."""
    from pansight.apps.photos import Pace, predict

    task = {"mask_rcnn": "instance", "mask2former": "panoptic"}[name]
    results = predict(weights, [photos], out, decode_options={"task": task}, pace=Pace(speed))
    file = next(path for path in (out / "instances.json", out / "predictions.json") if path.is_file())
    annotations = json.loads(file.read_text())["annotations"]
    return sum(len(each.get("segments_info", (each,))) for each in annotations), results.speed


# --- measuring -------------------------------------------------------------------------------------------------------


def work(name: str, contender: str, weights: str, photos: str, out: str, threads: str) -> None:
    """What a process of its own does; its last line is what it found and its peak memory."""
    import torch

    torch.set_num_threads(int(threads))
    chosen = ""
    if contender == "script":
        count = SCRIPTS[name](Path(weights), Path(photos), Path(out))
    else:
        count, chosen = ours(name, contender, Path(weights), Path(photos), Path(out))
    print(json.dumps({"found": count, "chosen": chosen, "mib": peak_resident_mib()}))


def timed(name: str, contender: str, weights: Path, photos: Path, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        job = [name, contender, str(weights), str(photos), out, str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--work", *job], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        seconds = time.perf_counter() - start
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def rows_of(name: str, photos: Path, count: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        write_weights(name, weights)
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(repeats):
            for contender in CONTENDERS:
                runs[contender].append(timed(name, contender, weights, photos, threads))
    seconds = {contender: statistics.median(run["seconds"] for run in done) for contender, done in runs.items()}
    return [
        {
            "what": name,
            "beside": SYSTEMS[name],
            "settings": contender,
            "photos": count,
            "repeats": repeats,
            "script_seconds": seconds["script"],
            "our_seconds": seconds[contender],
            "time_ratio": seconds[contender] / seconds["script"],
            "script_mib": max(run["mib"] for run in runs["script"]),
            "our_mib": max(run["mib"] for run in runs[contender]),
            "script_found": runs["script"][-1]["found"],
            "our_found": runs[contender][-1]["found"],
            "chosen": runs[contender][-1]["chosen"],
        }
        for contender in CONTENDERS[1:]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_photos(photos, args.photos)
        for name in args.only:
            rows = rows_of(name, photos, args.photos, args.threads, args.repeats)
            for row in rows:
                print(
                    json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}), flush=True
                )
            if not args.dry:
                merge_rows("predict_speed", {"size": [HEIGHT, WIDTH], "threads": args.threads}, rows)


if __name__ == "__main__":
    main()
