#!/usr/bin/env bash
# launch/grid.sh [--print]
#
# A grid of runs: a recipe, the data, and one line of overrides for each run. Copy this file, state your runs in it, and
# start the copy. It trains the runs one after the other on this machine, and then compares all of them on one page.
#   --print   prints the commands, one a line, for a scheduler, and starts nothing
# A run that is finished is not repeated, and a run that was stopped goes on. A run that fails does not stop the others;
# the exit code is then 1. Ctrl-C and SIGTERM end the grid after the step of the present run, which is saved. A second
# one kills the run.
set -u

# ---- The grid ------------------------------------------------------------------------------------------------------
RECIPE=demo           # of all runs: a file, or the name of a shipped recipe
DATA=(data/demo)      # (PATH), or one for each source: (nih=PATH mimic=PATH)
RUNS=runs/grid        # each run is a folder of this one

grid() {              # run NAME OVERRIDE…
    run lr_3e-4 --config.optim.lr=3e-4
    run lr_1e-3 --config.optim.lr=1e-3
    run lr_1e-3_short --config.optim.lr=1e-3 --config.total_steps=200
}
# --------------------------------------------------------------------------------------------------------------------

mistake() {
    echo "$0: $1" >&2
    exit 2
}

names=()
run() {
    local name=${1-} other
    [[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9._=+-]*$ ]] ||
        mistake "run '$name': a run needs a name of letters, digits and . _ = + -, as it is the name of a folder"
    for other in ${names[@]+"${names[@]}"}; do
        [[ $other != "$name" ]] || mistake "run $name: two runs have this name; give one of them another"
    done
    names+=("$name")
}

[[ $# -eq 0 || ($# -eq 1 && $1 == --print) ]] || mistake "use: $0 [--print]; the runs are stated in this file"
grid # the first time for the names alone, so that a mistake is found before the first run
((${#names[@]})) || mistake 'there is no run in it; state them in grid(): run NAME OVERRIDE…'
data=()
for one in ${DATA[@]+"${DATA[@]}"}; do data+=(--data "$one"); done

place() { echo "$RUNS/$1"; }
folders=()
for name in "${names[@]}"; do folders+=("$(place "$name")"); done
compare=(medjax compare "${folders[@]}" --out "$RUNS/compare.html")

if [[ ${1-} == --print ]]; then
    show() { printf '%q ' "$@" | sed 's/ $//'; echo; }
    run() { show medjax train --config "$RECIPE" ${data[@]+"${data[@]}"} --workdir "$(place "$1")" "${@:2}"; }
    grid
    echo "# when all of them have ended: $(show "${compare[@]}")" >&2
    exit 0
fi
command -v medjax >/dev/null || mistake "there is no command medjax; install it, or activate its environment"

child=
interrupted=0
# shellcheck disable=SC2329  # the trap calls it
stop() {
    interrupted=$((interrupted + 1))
    [[ -z $child ]] || kill "-$( ((interrupted == 1)) && echo TERM || echo KILL)" "$child" 2>/dev/null
}
trap stop INT TERM

failed=()
number=0
run() {
    ((interrupted)) && return
    number=$((number + 1))
    echo "$0: run $number of ${#names[@]}, $1" >&2
    medjax train --config "$RECIPE" ${data[@]+"${data[@]}"} --workdir "$(place "$1")" "${@:2}" &
    child=$!
    wait "$child"
    local code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`, and the run still saves its step
        wait "$child"
        code=$?
    done
    child=
    ((interrupted)) && return
    if ((code)); then
        echo "$0: run $1 ended with code $code" >&2
        failed+=("$1")
    elif [[ ! -f $(place "$1")/DONE ]]; then
        echo "$0: run $1 was stopped before its end" >&2
        failed+=("$1")
    fi
}
grid
if ((interrupted)); then
    echo "$0: stopped; the same command goes on" >&2
    exit 130
fi

begun=()
for folder in "${folders[@]}"; do [[ -f $folder/config.json ]] && begun+=("$folder"); done
code=0
if ((${#begun[@]} > 1)); then
    medjax compare "${begun[@]}" --out "$RUNS/compare.html" || code=1
fi
if ((${#failed[@]})); then
    echo "$0: ${#failed[@]} of ${#names[@]} runs failed: ${failed[*]}" >&2
    code=1
fi
exit "$code"
