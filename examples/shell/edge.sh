#!/bin/sh
# Edge AI: downloads the bundle of the server to a device, and predicts there without the server. Usage: edge.sh [URL]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
url=${1:-${SERVER_URL:-http://127.0.0.1:8000}}
device=$(mktemp -d)
trap 'rm -rf "$device"' EXIT
"$root/bin/edge" update "$url/edge" --device "$device"
"$root/bin/edge" predict --device "$device" 5.1 3.5 1.4 0.2
