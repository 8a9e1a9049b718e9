#!/usr/bin/env bash
# Training on several nodes of a Slurm cluster:  sbatch examples/cluster/slurm.sh
# The run folder and the data must lie where every node sees them. A job that ran out of time and is submitted again,
# or was preempted and is queued again, goes on from its last checkpoint.
#SBATCH --job-name=pansight
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

DATA=${DATA:-data}
OUT=${OUT:-runs/cluster}
PER_NODE=${PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

if [ -e "$OUT/checkpoints/last" ]; then
  ARGUMENTS=(--resume)
else
  ARGUMENTS=(--model mask2former_swin_tiny --data "$DATA" --train.batch-size 32 --data.workers 6)
fi

# one launcher a node; the launchers of all nodes meet at the first one
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$PER_NODE" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$HEAD:29500" \
  -m pansight.apps.cli train "${ARGUMENTS[@]}" --out "$OUT"
