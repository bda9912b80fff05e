#!/usr/bin/env bash
# The image, built and run as a cluster would, without a container engine's daemon.
#
# In: ${CARGO_TARGET_DIR:-target}/debug/headroom, already built; buildah, podman, runc and skopeo. Out: a line per fact, and a
# failure at the first that does not hold. It builds the Dockerfile's final stage, cut from the Dockerfile itself, over the tree
# that .ci/image-root makes, as the build stage does. It never pulls, and never touches the user's images: storage is a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/../.."

not_run() {
    echo "############ image test: NOT RUN: $* ############" >&2
    exit 0
}
for program in buildah podman runc skopeo; do
    command -v "$program" >/dev/null || not_run "'$program' is not on the PATH (apt-get install buildah podman runc skopeo)"
done
[ "$(id -u)" = 0 ] || not_run "limits of memory and CPU need root"
binary=${CARGO_TARGET_DIR:-target}/debug/headroom
[ -x "$binary" ] || { echo "error: $binary is missing: cargo build --bin headroom" >&2; exit 1; }

work=$(mktemp -d)
storage=(--storage-driver vfs --root "$work/storage" --runroot "$work/run")
image=localhost/headroom:test
# runc, as crun refuses hybrid cgroups; the ulimits, as without CAP_SYS_RESOURCE podman may not raise them.
# From the temporary folder, as the monitor of a container leaves a file `oom` where it was started.
engine() { (cd "$work" && podman "${storage[@]}" --cgroup-manager cgroupfs --runtime runc "$@"); }
locked=(--ulimit nofile=20000:20000 --ulimit nproc=10000:10000 --network host --read-only --cap-drop=all
    --security-opt=no-new-privileges --pull=never)

end() {
    local name
    for name in headroom-limits headroom-memory; do
        engine rm --force --time 1 "$name" >/dev/null 2>&1 || true
    done
    rm -rf "$work"
}
trap end EXIT

fact() { echo "  ok: $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
same() { [ "$2" = "$3" ] || fail "$1: '$2', expected '$3'"; fact "$1: $2"; }

build() { # build TAG: the final stage; prints the digest of its manifest
    local context=$work/context-$1
    mkdir "$context"
    .ci/image-root "$binary" "$context/out"
    sed -n '/^FROM scratch$/,$p' Dockerfile | sed 's|^COPY --from=build /out/ /$|COPY out/ /|' >"$context/Dockerfile"
    grep -q '^COPY out/ /$' "$context/Dockerfile" || fail "the Dockerfile has no final stage of the known form"
    buildah "${storage[@]}" bud --quiet --isolation chroot --pull-never --no-cache --timestamp 0 --build-arg REVISION=test \
        --tag "localhost/headroom:$1" "$context" >/dev/null
    skopeo copy --quiet "containers-storage:[vfs@$work/storage+$work/run]localhost/headroom:$1" "oci:$work/oci-$1:x"
    rm -rf "$context"
    skopeo inspect --format '{{.Digest}}' "oci:$work/oci-$1:x"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() { # start NAME PODMAN-OPTION...: the sample service with the agent, until it is ready; sets $service and $agent
    local name=$1
    shift
    service=127.0.0.1:$(free_port) agent=127.0.0.1:$(free_port)
    engine run --detach --name "$name" "${locked[@]}" "$@" "$image" \
        demo --service-only --service-bind "$service" --agent-bind "$agent" >/dev/null
    for _ in $(seq 150); do
        curl --silent --fail --output /dev/null "http://$service/ready" && return
        sleep 0.2
    done
    engine logs "$name" >&2 || true
    fail "$name is not ready"
}

value() { # value SERIES: its number at /metrics, or nothing
    curl --silent --fail "http://$agent/metrics" | awk -v name="$1" '$1 == name { print $2 }'
}

echo "build"
first=$(build test)
second=$(build again)
same "two builds have the same digest" "$first" "$second"

echo "config"
skopeo inspect --config "oci:$work/oci-test:x" >"$work/config.json"
config() { python3 -c "import json, sys; c = json.load(open(sys.argv[1])); print($1)" "$work/config.json"; }
same "user" "$(config 'c["config"]["User"]')" 65532:65532
same "entrypoint" "$(config '" ".join(c["config"]["Entrypoint"])')" /headroom
same "ports" "$(config '" ".join(sorted(c["config"]["ExposedPorts"]))')" "6443/tcp 8080/tcp 9469/tcp"
same "stop signal" "$(config 'c["config"]["StopSignal"]')" SIGTERM
same "licence" "$(config 'c["config"]["Labels"]["org.opencontainers.image.licenses"]')" Apache-2.0
same "revision" "$(config 'c["config"]["Labels"]["org.opencontainers.image.revision"]')" test
same "version" "$(config 'c["config"]["Labels"]["org.opencontainers.image.version"]')" \
    "$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"

echo "content"
container=$(buildah "${storage[@]}" from --pull-never "$image")
tree=$(buildah "${storage[@]}" mount "$container")
(cd "$tree" && find . ! -type d | sort) >"$work/files"
buildah "${storage[@]}" rm "$container" >/dev/null
{
    echo ./etc/ssl/certs/ca-certificates.crt
    echo ./headroom
    ldd "$binary" | grep -o '/[^ ]*' | sed 's/^/./'
} | sort -u >"$work/expected"
diff "$work/expected" "$work/files" >&2 || fail "the image holds other files than the binary, its libraries and the CA certificates"
fact "only the binary, its libraries and the CA certificates: $(wc -l <"$work/files") files"

echo "limits: 128 MiB, 0.5 cores, read-only, no capabilities"
start headroom-limits --memory 128m --memory-swap 128m --cpus 0.5
same "memory limit that the agent sees" "$(value cgroup_memory_limit_bytes)" 134217728
same "CPU limit that the agent sees" "$(value cgroup_cpu_limit_cores)" 0.5
profile=$(curl --silent --fail "http://$agent/debug/pprof/heap" | gzip --decompress --stdout | wc -c)
[ "$profile" -gt 100 ] || fail "/debug/pprof/heap has $profile bytes"
fact "/debug/pprof/heap is a gzipped profile of $profile bytes"
engine stop --time 20 headroom-limits >/dev/null
same "exit code after SIGTERM" "$(engine inspect --format '{{.State.ExitCode}}' headroom-limits)" 0
engine rm headroom-limits >/dev/null

echo "throttling: 0.2 cores under load"
start headroom-limits --memory 128m --memory-swap 128m --cpus 0.2
before=$(value cgroup_cpu_throttled_periods_total)
curl --silent --fail --max-time 120 --output /dev/null --request POST "http://$service/cpu?milliseconds=1000"
for _ in $(seq 100); do # 1 s of CPU takes 50 periods; the work may go on after its answer
    after=$(value cgroup_cpu_throttled_periods_total)
    [ "$after" -ge $((before + 10)) ] && break
    sleep 0.2
done
[ "$after" -ge $((before + 10)) ] || fail "periods throttled: $before before the load, $after after it"
fact "cgroup_cpu_throttled_periods_total went from $before to $after"
engine rm --force --time 1 headroom-limits >/dev/null

echo "memory over the limit"
start headroom-memory --memory 64m --memory-swap 64m --cpus 0.5
curl --silent --output /dev/null --max-time 60 --request POST "http://$service/heap?bytes=201326592&seconds=30" || true
for _ in $(seq 150); do
    [ "$(engine inspect --format '{{.State.Running}}' headroom-memory)" = false ] && break
    sleep 0.2
done
same "running" "$(engine inspect --format '{{.State.Running}}' headroom-memory)" false
same "exit code" "$(engine inspect --format '{{.State.ExitCode}}' headroom-memory)" 137

echo "image test: all facts hold"
