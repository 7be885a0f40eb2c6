#!/usr/bin/env bash
# The images of the benchmarks' pulls, as a docker-registry's storage folder. Prints its name.
#
#   e2e/node/build-bench-images.sh
set -euo pipefail
name=bench-images
cd "$(dirname "$0")"
. ./lib.sh

images=$cache/bench-images-$(hash_of build-bench-images.sh bench_images.py registry.py)
lock bench-images
if [ ! -d "$images" ]; then
    rm -rf "$images.new"
    mkdir -p "$images.new"
    in_time "making the images of the benchmarks' pulls (about a minute)" "$cache/bench-images.log" \
        python3 -B bench_images.py "$images.new" || die "bench_images.py"
    mv "$images.new" "$images"
fi
echo "$images"
