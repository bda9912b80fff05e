# For the build.sh of a folder with a go.mod, which says `. ../programs.sh`: builds its programs once per version, outside the checkout.
#
# The directory is keyed by the hash of go.mod, go.sum, build.sh and this file: $HEADROOM_CACHE, else $XDG_CACHE_HOME/headroom,
# else ~/.cache/headroom. build.sh prints it as the last line of stdout; progress goes to stderr.

# cached NAME WHAT: sets $bin, the directory. WHAT is built with Go, which has to be there.
cached() {
    command -v go >/dev/null 2>&1 || {
        echo "error: $2 built with Go 1.26 or newer, and 'go' is not on the PATH" >&2
        exit 1
    }
    bin=${HEADROOM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headroom}/$1-$(cat go.mod go.sum build.sh ../programs.sh | sha256sum | cut -c1-12)
    mkdir -p "$bin"
}

# program NAME PACKAGE [FLAGS OF go build]: builds one into $bin, unless it is there.
program() {
    name=$1 package=$2
    shift 2
    [ -x "$bin/$name" ] && return
    echo "  $(date -u +%H:%M:%S) $name" >&2
    # Renamed when whole: a build that was cut never looks like a program.
    GOFLAGS=-mod=readonly CGO_ENABLED=0 go build "$@" -o "$bin/$name.part" "$package" >&2
    mv "$bin/$name.part" "$bin/$name"
}
