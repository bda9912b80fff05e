#!/bin/sh
# Builds the real etcd, kube-apiserver, kube-controller-manager and kubectl of go.mod, once per version.
#
# Out: the directory of the four programs, as the last line of stdout. Progress goes to stderr.
# The directory is keyed by the hash of go.mod and go.sum and lives outside the checkout:
# $HEADROOM_CACHE, else $XDG_CACHE_HOME/headroom, else ~/.cache/headroom.
set -eu
cd "$(dirname "$0")"
command -v go >/dev/null 2>&1 || {
    echo "error: the real Kubernetes of the tests is built with Go 1.26 or newer, and 'go' is not on the PATH" >&2
    exit 1
}
cache=${HEADROOM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headroom}
key=$(cat go.mod go.sum build.sh | sha256sum | cut -c1-12)
bin=$cache/kubernetes-v1.37.2-$key
if [ ! -f "$bin/complete" ]; then
    mkdir -p "$bin"
    version=k8s.io/component-base/version
    flags="-s -w -X $version.gitVersion=v1.37.2 -X $version.gitMajor=1 -X $version.gitMinor=37"
    echo "building Kubernetes v1.37.2 and etcd into the cache (about 8 minutes on 2 cores, once)" >&2
    for package in go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kube-apiserver \
        k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kubectl; do
        name=${package##*/}
        [ "$name" = v3 ] && name=etcd
        [ -x "$bin/$name" ] && continue
        echo "  $(date -u +%H:%M:%S) $name" >&2
        # Renamed when whole: a build that was cut never looks like a program.
        GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -ldflags "$flags" -o "$bin/$name.part" "$package" >&2
        mv "$bin/$name.part" "$bin/$name"
    done
    touch "$bin/complete"
fi
echo "$bin"
