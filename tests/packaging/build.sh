#!/bin/sh
# Builds helm and kustomize of go.mod, once per version, and fetches the definitions that the manifests use of cert-manager and
# the Prometheus Operator.
#
# Out: the directory of the two programs and of definitions/, as the last line of stdout. Progress goes to stderr.
set -eu
cd "$(dirname "$0")"
. ../programs.sh
cached packaging "helm and kustomize of the tests are"

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
    program kustomize sigs.k8s.io/kustomize/kustomize/v5 -ldflags "$flags"
    program helm helm.sh/helm/v3/cmd/helm -ldflags "$flags"
    definitions github.com/cert-manager/cert-manager@v1.19.0 deploy/crds \
        cert-manager.io_certificates.yaml cert-manager.io_issuers.yaml
    definitions github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd \
        monitoring.coreos.com_podmonitors.yaml monitoring.coreos.com_prometheusrules.yaml \
        monitoring.coreos.com_servicemonitors.yaml
    touch "$bin/complete"
fi
echo "$bin"
