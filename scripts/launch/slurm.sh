#!/bin/bash
# sbatch scripts/launch/slurm.sh CONFIG [key=value ...]
#
# From the root of the repository, with its environment activated.
# 10 minutes before its time is over, Slurm sends SIGUSR1 to every process of the job step. The ranks save and end with
# exit code 75, and the job is queued again. Set the 600 seconds to several times what a checkpoint takes.

#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500} RANKS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}

# The launcher has no handler for SIGUSR1, which would kill it: it has to ignore it. Ranks, which it starts, would ignore
# it too, but they install a handler.
srun bash -c '
  trap "" USR1
  exec composer -n "$RANKS_PER_NODE" --world_size $((SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) \
    --node_rank "$SLURM_NODEID" train.py "$@"
' bash "$@" autoresume=true
code=$?

# 75: saved. 138 and 143: SIGUSR1 or SIGTERM came before the run had begun to train.
case $code in
  75 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
