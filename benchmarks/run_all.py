"""Run every benchmark again, one after another, each in a process of its own (several hours on 2 cores)."""

import subprocess
import sys

from common import ROOT

SCRIPTS = (
    "pq_speed.py",
    "bootstrap.py",
    "loader.py",
    "rcnn_speed.py",
    "fusion_speed.py",
    "centre_speed.py",
    "merge_speed.py",
    "transformer_speed.py",
    "transformer_training.py",
    "demo.py",
    "nuclei.py",
    "accuracy.py",
    "detr_steps.py",
    "first_hour.py",
    "cpu_defaults.py",
    "predict_speed.py",
    "preparing_speed.py",
    "runtime_wheel.py",
)

for script in SCRIPTS:
    print(f"== benchmarks/{script}", flush=True)
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / script)], check=True, cwd=ROOT)
