#!/usr/bin/env bash
# sbatch --array=1-$(./probes.sh --print 2>/dev/null | wc -l) slurm_probes.sh ./probes.sh
#
# Probe jobs as an array of SLURM: task N runs line N of what a copy of launch/probes.sh prints. The tasks share the
# features of a run; none encodes what another has encoded. A task that is preempted is queued again and goes on.
#SBATCH --job-name=medjax-probes
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -u

[[ $# -eq 1 && -x $1 && -n ${SLURM_ARRAY_TASK_ID-} ]] || {
    echo "use: sbatch --array=1-N $0 COPY_OF_PROBES_SH   (N: the number of lines that it prints with --print)" >&2
    exit 2
}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
command=$("$1" --print 2>/dev/null | sed -n "${SLURM_ARRAY_TASK_ID}p")
[[ -n $command ]] || {
    echo "$0: $1 prints no line $SLURM_ARRAY_TASK_ID" >&2
    exit 2
}
eval "exec $command" # the line is quoted for a shell
