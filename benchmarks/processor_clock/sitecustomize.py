"""Count a training's minutes by the processor that it used, not by the wall: for measuring on a machine that is shared.

    PYTHONPATH=benchmarks/processor_clock OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/systems.py

Python imports this module by itself where its folder is on PYTHONPATH. With one thread and no workers
(`--data.workers 0`) processor time is what a clock shows on a core of its own, so that other work beside it, or a
pause of the process, changes neither the budget nor the milliseconds. Processes that start and watch others keep the
real clock.
"""

import sys
import time

if {"train", "--time-model"} & set(sys.orig_argv):
    time.monotonic = time.perf_counter = time.process_time
