#!/bin/bash
# Any verb on the nodes of one Slurm job:  sbatch cluster/slurm.sh infer --bundle RUN --dataset DATA --output CATALOG
# Change: 1. the lines of #SBATCH: nodes, CPUs and GPUs of a node, time, partition and account of your site.
# Change: 2. how your site brings the environment: ENVIRONMENT, or a module or container in its place.
# Change: 3. the file system: DATA and outputs must be seen by all nodes. Cut off by the time limit? The same command resumes.
#SBATCH --job-name=gampen-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

ENVIRONMENT=${ENVIRONMENT:-$HOME/gampen_ray/.venv}
source "$ENVIRONMENT/bin/activate"

# Others have accounts on these nodes too: the token is this job's own, in a file that you alone can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm-$SLURM_JOB_ID"
(umask 077; mkdir -p "$HOME/.ray"; python -c "import secrets; print(secrets.token_hex(32), end='')" > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$((20000 + SLURM_JOB_ID % 10000))

# The same command on every node: one is the head, on which the verb runs once all have come.
export RAY_ADDRESS=$address RAY_USAGE_STATS_ENABLED=0
srun --kill-on-bad-exit=1 ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    -- gampen-ray "$@" &
wait $!
