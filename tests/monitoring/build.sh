#!/bin/sh
# Builds the real prometheus and promtool of go.mod, once per version.
#
# Out: the directory of the two programs, as the last line of stdout. Progress goes to stderr.
# The directory is keyed by the hash of go.mod, go.sum and this file and lives outside the checkout:
# $HEADROOM_CACHE, else $XDG_CACHE_HOME/headroom, else ~/.cache/headroom.
set -eu
cd "$(dirname "$0")"
command -v go >/dev/null 2>&1 || {
    echo "error: the real Prometheus of the tests is built with Go 1.26 or newer, and 'go' is not on the PATH" >&2
    exit 1
}
cache=${HEADROOM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headroom}
key=$(cat go.mod go.sum build.sh | sha256sum | cut -c1-12)
bin=$cache/monitoring-v0.316.0-$key
if [ ! -f "$bin/complete" ]; then
    mkdir -p "$bin"
    echo "building Prometheus v0.316.0 into the cache (about 4 minutes on 2 cores, once)" >&2
    for package in github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool; do
        name=${package##*/}
        [ -x "$bin/$name" ] && continue
        echo "  $(date -u +%H:%M:%S) $name" >&2
        # Renamed when whole: a build that was cut never looks like a program. The web page has no assets; the API is whole.
        GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -tags remove_all_sd,enable_kubernetes_sd,enable_dns_sd \
            -ldflags "-s -w" -o "$bin/$name.part" "$package" >&2
        mv "$bin/$name.part" "$bin/$name"
    done
    touch "$bin/complete"
fi
echo "$bin"
