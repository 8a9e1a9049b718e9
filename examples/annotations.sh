#!/usr/bin/env bash
# A tour of the commands about data and figures, on generated images; takes half a minute. It writes to runs/tour.
#   examples/annotations.sh
set -euo pipefail
cd "$(dirname "$0")/.."
pansight=.venv/bin/pansight
tour=runs/tour
rm -rf "$tour" && mkdir -p "$tour"

# 60 images of shapes as COCO panoptic, then as a YOLO user would have them
.venv/bin/python - <<PY
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
export_coco_panoptic(Shapes(60), "$tour/shapes")
PY
$pansight convert "$tour/shapes" --as yolo_seg --to "$tour/yolo"

# any annotations → COCO panoptic: YOLO does not say what is a thing, so we do; the rest becomes one stuff class
$pansight convert "$tour/yolo" --to "$tour/data" --things square,circle,triangle --fill background
$pansight check "$tour/data"
$pansight split "$tour/data" --val 0.2 --seed 0 --out "$tour/parts"

# two "models": the truth itself, and the truth moved by two pixels with a tenth of the objects lost
.venv/bin/python - <<PY
import numpy as np
import torch
from pansight.data import open_dataset
from pansight.data.formats.coco_panoptic import write_coco_panoptic
from pansight.types import PanopticSegmentation

dataset, rng = open_dataset("$tour/parts", split="val"), np.random.default_rng(0)

def predict(shift, lost):
    for index in range(len(dataset)):
        truth = dataset[index].truth
        ids = torch.roll(truth.ids, (shift, shift), (0, 1))
        kept = tuple(s for s in truth.segments if rng.random() >= lost)
        ids = torch.where(torch.isin(ids, torch.tensor([s.id for s in kept], dtype=torch.int32)), ids, 0)
        yield dataset.image_id(index), dataset.file_name(index), PanopticSegmentation(ids.int(), kept)

write_coco_panoptic("$tour/good.json", predict(0, 0.0), dataset.labels)
write_coco_panoptic("$tour/poor.json", predict(2, 0.1), dataset.labels)
PY
truth=$tour/parts/annotations/panoptic_val.json
$pansight evaluate --gt "$truth" --pred "$tour/good.json" --json "$tour/good/evaluation.json"
$pansight evaluate --gt "$truth" --pred "$tour/poor.json" --json "$tour/poor/evaluation.json" \
  --boundary --table "$tour/segments.parquet" --report "$tour/report.html" --images "$tour/parts/val"

# in parts, as a cluster would, then joined
for part in 1 2 3; do
  $pansight evaluate --gt "$truth" --pred "$tour/poor.json" --shard $part/3 --partial "$tour/part$part.json" >/dev/null
done
$pansight evaluate --merge "$tour"/part?.json --json "$tour/merged.json"

# which is better? exit code 1 where a threshold is missed, for use in CI
$pansight compare "$tour/good" "$tour/poor" --out "$tour/comparison.html"
if $pansight compare "$tour/good" "$tour/poor" --out "$tour/comparison.html" --overwrite --fail-worse >/dev/null; then
  echo "expected the poor one to fail" && exit 1
fi
echo "pages: $tour/report.html $tour/comparison.html"
