#!/bin/sh
# Builds the real prometheus and promtool of go.mod, once per version.
#
# Out: the directory of the two programs, as the last line of stdout. Progress goes to stderr.
set -eu
cd "$(dirname "$0")"
. ../programs.sh
cached monitoring-v0.316.0 "the real Prometheus of the tests is"
if [ ! -f "$bin/complete" ]; then
    echo "building Prometheus v0.316.0 into the cache (about 4 minutes on 2 cores, once)" >&2
    for name in prometheus promtool; do
        # The web page has no assets; the API is whole.
        program "$name" "github.com/prometheus/prometheus/cmd/$name" -tags remove_all_sd,enable_kubernetes_sd,enable_dns_sd -ldflags "-s -w"
    done
    touch "$bin/complete"
fi
echo "$bin"
