#!/bin/sh
# Draws the dashboards with Grafana's own components in headless Chromium: draw.sh PROMETHEUS_URL DIRECTORY
#
# Needs Node.js 20 or newer with npm, and Chromium ($CHROMIUM, else /usr/bin/chromium). The libraries are installed once per
# version of package.json, outside the checkout: $HEADROOM_CACHE, else $XDG_CACHE_HOME/headroom, else ~/.cache/headroom.
set -eu
prometheus=$1
pictures=$2
here=$(cd "$(dirname "$0")" && pwd)
for program in node npm "${CHROMIUM:-/usr/bin/chromium}"; do
    command -v "$program" >/dev/null 2>&1 || { echo "error: the pictures need '$program'" >&2; exit 1; }
done
cache=${HEADROOM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headroom}
page=$cache/pictures-$(sha256sum "$here/package.json" | cut -c1-12)
mkdir -p "$page" "$pictures"
cp "$here/package.json" "$page/"
if [ ! -f "$page/complete" ]; then
    echo "installing Grafana's libraries into the cache (a minute, once)" >&2
    (cd "$page" && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --legacy-peer-deps >&2)
    touch "$page/complete"
fi
cp "$here"/index.html "$here"/main.tsx "$here"/shot.mjs "$here"/vite.config.js "$page/"
mkdir -p "$page/public/boards" "$page/public/public/build"
cp "$here"/../../dashboards/*.json "$page/public/boards/"
cp -r "$page/node_modules/@grafana/ui/dist/public/img" "$page/public/public/build/"
cd "$page"
npx vite build --logLevel error >&2
# Not by npx, which would not pass the signal on.
node node_modules/vite/bin/vite.js preview --host 127.0.0.1 --port 18100 --strictPort --logLevel error >&2 &
server=$!
trap 'kill $server' EXIT
sleep 3
for board in service-runtime scaling adapter; do
    for width in 1400 1024; do
        node shot.mjs "http://127.0.0.1:18100/?board=$board&prometheus=$prometheus&from=now-5m" "$pictures/$board-$width.png" "$width"
    done
done
