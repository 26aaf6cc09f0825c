#!/usr/bin/env bash
# The batch script of a SLURM job: starts one process on each node and, where a restart can help,
# queues the job again. `retina-jax launch --kind=slurm` puts its #SBATCH lines before it.
# usage: sbatch --nodes=N --ntasks-per-node=1 --exclusive --requeue --open-mode=append \
#            --signal=TERM@300 scripts/cluster/slurm.sh [SRUN_OPTION ...] -- COMMAND [ARGUMENT ...]
set -u

srun_options=()
while [ "${1---}" != -- ]; do
    srun_options+=("$1")
    shift
done
shift
if [ $# = 0 ]; then
    echo "error: no command; write it after --" >&2
    exit 2
fi

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit 1
export RETINA_JAX_COORDINATOR="${hosts%%$'\n'*}:$((61440 + SLURM_JOB_ID % 4096))"
export RETINA_JAX_NUM_PROCESSES="$SLURM_JOB_NUM_NODES"
srun_options+=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none)
srun_options+=(--kill-on-bad-exit=0 --wait=600)

# srun reports the highest exit code of all processes. 2, 3 and 4 are final; as 252 to 254 they
# outrank the codes of peers that abort because of them. SLURM signals this shell too: the trap
# keeps it waiting for the command, which saves and exits with 143.
# shellcheck disable=SC2016
process='
trap : TERM INT
export RETINA_JAX_PROCESS_ID="$SLURM_PROCID"
"$@"
code=$?
case $code in 2 | 3 | 4) code=$((code + 250)) ;; esac
exit "$code"'

trap : TERM
srun "${srun_options[@]}" bash -c "$process" retina-jax "$@"
code=$?
case $code in 252 | 253 | 254) code=$((code - 250)) ;; esac

faults_file="retina-jax-$SLURM_JOB_ID.faults"
case $code in
0 | 2 | 3 | 4)
    rm -f "$faults_file"
    exit "$code"
    ;;
143) ;; # the time limit or a preemption
*)
    faults=$(($(cat "$faults_file" 2>/dev/null || echo 0) + 1))
    if [ "$faults" -gt "${RETINA_JAX_MAX_RESTARTS:-20}" ]; then
        echo "stopped: exit code $code after $((faults - 1)) restarts" >&2
        rm -f "$faults_file"
        exit "$code"
    fi
    echo "$faults" >"$faults_file"
    ;;
esac

# a job that its user cancels ends like one that is preempted
case $(scontrol show job "$SLURM_JOB_ID" --oneliner) in
*JobState=CANCELLED*)
    rm -f "$faults_file"
    exit "$code"
    ;;
esac
echo "exit code $code: queueing job $SLURM_JOB_ID again" >&2
scontrol requeue "$SLURM_JOB_ID" ||
    echo "stopped: scontrol cannot requeue the job; submit it again to resume" >&2
exit "$code"
