#!/usr/bin/env bash
# launch/local.sh N -- medjax train …
#
# Starts N processes of one run on this machine. They work together by jax.distributed.
#   MEDJAX_DEVICES_PER_PROCESS   devices of each process (default 1): virtual devices on a CPU, GPUs on a GPU machine
# Lines of process 0 are printed as they are. Lines of the other processes begin with the number of their process.
# Ctrl-C and SIGTERM reach all processes as SIGTERM, so the run ends in a saved step. A second one kills them.
# If one process fails, the script ends the others and exits with the code of the failed process.
set -u

usage() {
    echo "use: $0 N -- COMMAND [ARGUMENT…]      for example: $0 2 -- medjax train --config configs/tiny.py …" >&2
    exit 2
}

[[ $# -ge 3 && $1 =~ ^[1-9][0-9]*$ && $2 == -- ]] || usage
processes=$1
shift 2
per_process=${MEDJAX_DEVICES_PER_PROCESS:-1}

taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=$((20000 + RANDOM % 12000)) # below the ports that systems assign by themselves
while taken "$port"; do port=$((port + 1)); done
export MEDJAX_COORDINATOR=127.0.0.1:$port MEDJAX_PROCESSES=$processes JAX_NUM_CPU_DEVICES=$per_process

pids=()
for ((rank = 0; rank < processes; rank++)); do
    export MEDJAX_PROCESS=$rank
    JAX_LOCAL_DEVICE_IDS=$(seq -s, $((rank * per_process)) $(((rank + 1) * per_process - 1)))
    export JAX_LOCAL_DEVICE_IDS # chooses GPUs; a CPU process has its own devices in any case
    if ((rank == 0)); then
        "$@" &
    else
        "$@" > >(sed -u "s/^/[$rank] /") 2> >(sed -u "s/^/[$rank] /" >&2) &
    fi
    pids+=($!)
done

send() { for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null; done; }
interrupted=0
# shellcheck disable=SC2329  # the trap calls it
interrupt() {
    interrupted=$((interrupted + 1))
    if ((interrupted == 1)); then send TERM; else send KILL; fi
}
trap interrupt INT TERM

# A process has ended when kill -0 no longer finds it. Bash keeps its exit code for `wait`.
left=("${!pids[@]}")
code=0
deadline=
while ((${#left[@]})); do
    running=()
    for rank in "${left[@]}"; do
        if kill -0 "${pids[rank]}" 2>/dev/null; then
            running+=("$rank")
            continue
        fi
        { wait "${pids[rank]}"; } 2>/dev/null
        ended=$?
        if ((ended && !code)); then
            code=$ended
            if ((processes > 1 && !interrupted)); then
                echo "$0: process $rank of $processes ended with code $ended; ending the others" >&2
            fi
            deadline=$((SECONDS + 5)) # other processes may make the same mistake: time for their messages
        fi
    done
    left=(${running[@]+"${running[@]}"})
    if [[ -n $deadline ]] && ((SECONDS > deadline && !interrupted)); then send KILL; fi
    ((${#left[@]})) && sleep 0.2
done
exit "$code"
