#!/bin/sh
# Builds helm and kustomize of go.mod, once per version, and fetches the definitions that the manifests use of cert-manager and
# the Prometheus Operator.
#
# Out: the directory of the two programs and of definitions/, as the last line of stdout. Progress goes to stderr.
# The directory is keyed by the hash of go.mod, go.sum and this file and lives outside the checkout:
# $HEADROOM_CACHE, else $XDG_CACHE_HOME/headroom, else ~/.cache/headroom.
set -eu
cd "$(dirname "$0")"
command -v go >/dev/null 2>&1 || {
    echo "error: helm and kustomize of the tests are built with Go 1.26 or newer, and 'go' is not on the PATH" >&2
    exit 1
}
cache=${HEADROOM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headroom}
key=$(cat go.mod go.sum build.sh | sha256sum | cut -c1-12)
bin=$cache/packaging-$key

# definitions MODULE@VERSION DIRECTORY FILE...: copies files of a Go module, whose zip is checked by the checksum database.
definitions() {
    directory=$(go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')/$2
    shift 2
    for file in "$@"; do
        install -m 644 "$directory/$file" "$bin/definitions/$file"
    done
}

if [ ! -f "$bin/complete" ]; then
    mkdir -p "$bin/definitions"
    # A release of Helm is told for which Kubernetes it renders; without a cluster it has no other way to know.
    kubernetes=helm.sh/helm/v3/pkg/chartutil.k8sVersion
    flags="-s -w -X ${kubernetes}Major=1 -X ${kubernetes}Minor=37"
    echo "building helm and kustomize into the cache (about 2 minutes on 2 cores, once)" >&2
    for package in sigs.k8s.io/kustomize/kustomize/v5 helm.sh/helm/v3/cmd/helm; do
        name=${package##*/}
        [ "$name" = v5 ] && name=kustomize
        [ -x "$bin/$name" ] && continue
        echo "  $(date -u +%H:%M:%S) $name" >&2
        # Renamed when whole: a build that was cut never looks like a program.
        GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -ldflags "$flags" -o "$bin/$name.part" "$package" >&2
        mv "$bin/$name.part" "$bin/$name"
    done
    definitions github.com/cert-manager/cert-manager@v1.19.0 deploy/crds \
        cert-manager.io_certificates.yaml cert-manager.io_issuers.yaml
    definitions github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd \
        monitoring.coreos.com_podmonitors.yaml monitoring.coreos.com_prometheusrules.yaml \
        monitoring.coreos.com_servicemonitors.yaml
    touch "$bin/complete"
fi
echo "$bin"
