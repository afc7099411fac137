#!/bin/bash
# Fit recordings over several machines of a SLURM cluster:
#
#     sbatch examples/fit_slurm.sh animal1 animal2 --preset sensorium+ --out out/cluster
#
# Not yet run on a cluster: the tests run it with an imitation of srun. Partition and account are yours to add. The same
# line goes on where a job was stopped, also with other numbers of machines and GPUs. All machines have to see the
# recordings and the folder of the run.

#SBATCH --job-name=v1fast-fit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log
#SBATCH --requeue

set -euo pipefail

# A task is a rank. Since SLURM 22.05 srun does not take over --cpus-per-task by itself.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# Where a task fails, the others would wait for it: --kill-on-bad-exit ends them.
srun --kill-on-bad-exit=1 v1fast fit "$@" --devices "$SLURM_NTASKS_PER_NODE" --num-nodes "$SLURM_JOB_NUM_NODES"
