#!/usr/bin/env bash
# Builds docker/Dockerfile.cpu as trtq:cpu and runs the demo in it: with Docker where its engine runs, else with buildah
# (as root). Where no image registry can be reached, the base image is made from Debian's packages first.
#   docker/cpu_image.sh            or: make docker-cpu
set -euo pipefail
cd "$(dirname "$0")/.."

base="${PYTHON_IMAGE:-python:3.12-slim}"
image=trtq:cpu
# shellcheck disable=SC2016  # the shell in the container makes the folder
demo='cd "$(mktemp -d)" && time (trtq demo demo && trtq build demo/model.onnx --int8)'

has_docker() { docker info >/dev/null 2>&1; }

# A Debian with python3, made from packages. Its certificates and pip settings are this machine's.
make_base() {
    local container root
    root="$(mktemp -d)"
    echo "making ${1} from Debian's packages, as no image registry can be reached"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "${root}" >/dev/null
    rm -rf "${root}"/var/cache/apt/archives/*.deb "${root}"/var/lib/apt/lists/*
    cp --parents /etc/ssl/certs/ca-certificates.crt "${root}"
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "${root}/etc/"
    container="$(buildah from scratch)"
    buildah add --quiet "${container}" "${root}" / >/dev/null
    buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${container}"
    buildah commit --quiet --rm "${container}" "$1" >/dev/null
    rm -rf "${root}"
}

if has_docker; then
    docker build --file docker/Dockerfile.cpu --build-arg "PYTHON_IMAGE=${base}" --tag "${image}" .
    docker run --rm --entrypoint bash "${image}" -c "${demo}"
    docker image inspect --format "${image} {{.Size}} bytes" "${image}"
    exit
fi

command -v buildah >/dev/null || {
    echo "no Docker engine runs here, and there is no buildah: apt-get install buildah debootstrap" >&2
    exit 5
}
export BUILDAH_ISOLATION=chroot
if ! buildah pull --quiet "docker.io/library/${base}" >/dev/null 2>&1; then
    base=localhost/trtq-base
    buildah inspect --type image "${base}" >/dev/null 2>&1 || make_base "${base}"
fi
buildah bud --pull-never --format docker --file docker/Dockerfile.cpu --build-arg "PYTHON_IMAGE=${base}" --tag "${image}" .
container="$(buildah from --pull-never "${image}")"
trap 'buildah rm "${container}" >/dev/null' EXIT
buildah run "${container}" -- bash -c "${demo}"
buildah images --format "${image} {{.Size}}" "${image}"
