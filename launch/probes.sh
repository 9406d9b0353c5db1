#!/usr/bin/env bash
# launch/probes.sh [--print]
#
# Probe jobs: runs, data sets, and one line of probes for each job. Copy this file, state your jobs in it, and start the
# copy. It probes one job after the other on this machine, and then writes the report of each run.
#   --print   prints the commands, one a line, for a scheduler, and starts nothing
# Jobs of one run share its features, on this machine or on others: none encodes what another has encoded. A result that
# exists is not computed again. So a job that was stopped goes on when it is started again. A job that fails does not
# stop the others; the exit code is then 1. Ctrl-C and SIGTERM end all.
set -u

# ---- The jobs ------------------------------------------------------------------------------------------------------
RUNS=(runs/demo)      # --workdir of medjax train
DATA=(data/demo)      # each run is probed on each data set
WHICH=(--steps all)   # of the exports; () is the newest one, and (--follow) all of a training that still runs

jobs_of() {           # job OPTION…   the options of medjax probe, without --run, --data and the exports
    job --probes knn,linear
    job --probes few_shot,robustness --baselines none
}
# --------------------------------------------------------------------------------------------------------------------

mistake() {
    echo "$0: $1" >&2
    exit 2
}

[[ $# -eq 0 || ($# -eq 1 && $1 == --print) ]] || mistake "use: $0 [--print]; the jobs are stated in this file"
((${#RUNS[@]})) || mistake 'there is no run in it; state them in RUNS=(…)'
((${#DATA[@]})) || mistake 'there is no data set in it; state them in DATA=(…)'
count=0
job() { count=$((count + 1)); }
jobs_of
((count)) || mistake 'there is no job in it; state them in jobs_of(): job OPTION…'

all() { # COMMAND…   the command for each run, each data set and each job
    local one data
    for one in "${RUNS[@]}"; do
        for data in "${DATA[@]}"; do
            job() { "$command" medjax probe --run "$one" --data "$data" ${WHICH[@]+"${WHICH[@]}"} "$@"; }
            jobs_of
        done
    done
}

if [[ ${1-} == --print ]]; then
    show() { printf '%q ' "$@" | sed 's/ $//'; echo; }
    command=show
    all
    for one in "${RUNS[@]}"; do echo "# when all of them have ended: $(show medjax report --run "$one")" >&2; done
    exit 0
fi
command -v medjax >/dev/null || mistake "there is no command medjax; install it, or activate its environment"

child=
stop() {
    trap '' INT TERM
    [[ -z $child ]] || { kill -TERM "$child" 2>/dev/null; wait "$child"; }
    echo "$0: stopped; the same command goes on" >&2
    exit 130
}
trap stop INT TERM

failed=0
start() {
    echo "$0: $*" >&2
    "$@" &
    child=$!
    wait "$child" || failed=$((failed + 1))
    child=
}
command=start
all
for one in "${RUNS[@]}"; do
    [[ ! -d $one/probes ]] || start medjax report --run "$one"
done
if ((failed)); then
    echo "$0: $failed command(s) failed, see above" >&2
    exit 1
fi
