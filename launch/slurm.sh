#!/usr/bin/env bash
# sbatch slurm.sh
#
# One training on several nodes of a SLURM cluster. Copy this file, state your run in it, and submit the copy from a
# folder that all nodes share. SLURM starts one process for each GPU, and jax finds the others by itself.
#   A preemption, and the end of the time limit, reach the run as SIGTERM: it saves its step, and the job is queued
#   again. So is a run that hangs (code 75) or loses a node, at most RESTARTS times. A user's mistake (code 2) or a bug
#   (70) ends the job.
# A probe job that follows:  sbatch --dependency=afterok:$(sbatch --parsable slurm.sh) --array=… slurm_probes.sh
#SBATCH --job-name=medjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u

# ---- The run -------------------------------------------------------------------------------------------------------
RECIPE=rad_dino_vitb14          # a file, or the name of a shipped recipe
DATA=(data/demo)                # (PATH), or one for each source: (nih=PATH mimic=PATH)
RUN=runs/pod                    # the folder of the run, on a disk that all nodes share
OVERRIDES=()                    # (--config.optim.lr=1e-4 …)
RESTARTS=20
# --------------------------------------------------------------------------------------------------------------------

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax} # the next start compiles nothing

data=()
for one in "${DATA[@]}"; do data+=(--data "$one"); done
trap : TERM # srun passes the signal to the processes; this script waits for them
srun --kill-on-bad-exit=1 medjax train --config "$RECIPE" "${data[@]}" --workdir "$RUN" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
code=$?

[[ $code -eq 0 && -f $RUN/DONE ]] && exit 0
if [[ $code -eq 2 || $code -eq 70 ]]; then
    echo "$0: the run ended with code $code, see above; starting it again would not help" >&2
    exit "$code"
fi
if ((${SLURM_RESTART_COUNT:-0} >= RESTARTS)); then
    echo "$0: the run is not finished after $RESTARTS restarts" >&2
    exit 1
fi
echo "$0: the run is not finished (code $code); the job is queued again" >&2
scontrol requeue "$SLURM_JOB_ID"
