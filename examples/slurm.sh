#!/bin/bash
# Stage 3 at Large on 4 machines of 8 GPUs, which share the run folder.
# SIGTERM comes 5 minutes before the end.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue

export OMP_NUM_THREADS=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280  # seconds from SIGTERM to SIGKILL; torchrun's own are 30
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
  -m vlmo.cli train large-stage3 --run-dir "$SCRATCH/runs/large-stage3" --trainer.engine.data-parallel fsdp
