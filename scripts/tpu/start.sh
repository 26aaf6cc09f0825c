#!/usr/bin/env bash
# Runs a command of retina_jax on one worker of a Cloud TPU, in a container, and prints its output.
# `retina-jax launch --kind=queued-resource` copies this script to every worker and starts it there.
# usage: start.sh RUN IMAGE [MOUNT ...] -- COMMAND [ARGUMENT ...]
# Each MOUNT is a value of docker run's --mount.
#
# The container runs on its own: if the SSH connection breaks, gcloud starts this script again, and
# it follows the existing container of RUN instead of starting a second one.
set -euo pipefail

run=$1 image=$2
shift 2
mounts=()
while [ "${1---}" != -- ]; do
    mounts+=(--mount "$1")
    shift
done
shift

if ! sudo docker container inspect "$run" >/dev/null 2>&1; then
    others=$(sudo docker ps --format '{{.Names}}' --filter label=retina-jax)
    if [ -n "$others" ]; then
        echo "[$HOSTNAME] error: $others holds the TPU; delete the queued resource or set --name"
        echo "[$HOSTNAME] retina-jax exited with code 2"
        exit 2
    fi
    case $image in
    *-docker.pkg.dev/* | gcr.io/* | *.gcr.io/*)
        sudo gcloud auth configure-docker "${image%%/*}" --quiet >/dev/null 2>&1
        ;;
    esac
    sudo docker pull --quiet "$image"
    # the TPU's device files belong to root; JAX_PLATFORMS makes a TPU that fails to start an error
    sudo docker run --detach --name "$run" --label retina-jax --privileged --network=host \
        --user=root --shm-size=8g --stop-timeout=120 --env JAX_PLATFORMS=tpu,cpu \
        "${mounts[@]}" "$image" "$@" >/dev/null
fi
sudo docker logs --follow "$run" 2>&1 | sed --unbuffered "s/^/[$HOSTNAME] /"
code=$(sudo docker wait "$run")
echo "[$HOSTNAME] retina-jax exited with code $code"
exit "$code"
