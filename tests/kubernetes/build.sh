#!/bin/sh
# Builds the real etcd, kube-apiserver, kube-controller-manager and kubectl of go.mod, once per version.
#
# Out: the directory of the four programs, as the last line of stdout. Progress goes to stderr.
set -eu
cd "$(dirname "$0")"
. ../programs.sh
cached kubernetes-v1.37.2 "the real Kubernetes of the tests is"
if [ ! -f "$bin/complete" ]; then
    version=k8s.io/component-base/version
    flags="-s -w -X $version.gitVersion=v1.37.2 -X $version.gitMajor=1 -X $version.gitMinor=37"
    echo "building Kubernetes v1.37.2 and etcd into the cache (about 8 minutes on 2 cores, once)" >&2
    program etcd go.etcd.io/etcd/server/v3 -ldflags "$flags"
    for name in kube-apiserver kube-controller-manager kubectl; do
        program "$name" "k8s.io/kubernetes/cmd/$name" -ldflags "$flags"
    done
    touch "$bin/complete"
fi
echo "$bin"
