#!/usr/bin/env python3
"""Writes the images of the benchmarks' pulls into a docker-registry's storage folder.

    e2e/node/bench_images.py STORAGE

Files of many sizes, half of which compress well, and the same bytes in each run. The store's own benchmark
(image-store/benches/pull) pulls images of the same shapes.
"""
import random
import sys

from registry import Layer, Registry, push

THEN = 1_700_000_000


class Words:
    """Text that compresses to about a third."""

    def __init__(self, source):
        self.source = source
        self.known = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(4096)]

    def text(self, size):
        return " ".join(self.source.choices(self.known, k=size // 4 + 1)).encode()[:size]


def large(seed, random_kb, text_kb):
    """Files of many sizes, some random and some text: what unpacking costs depends on both."""
    source = random.Random(seed)
    words, layer = Words(source), Layer()
    layer.folder(f"of-{seed}", mtime=THEN)
    for kind, kilobytes in [("random", random_kb), ("text", text_kb)]:
        left, number = kilobytes * 1000, 0
        while left > 0:
            size = min(left, source.choice([2_000, 12_000, 40_000, 150_000, 1_000_000]))
            data = source.randbytes(size) if kind == "random" else words.text(size)
            layer.file(f"of-{seed}/{kind}-{number:05}", data, mtime=THEN)
            left -= size
            number += 1
    return layer.raw()


def small(files):
    source = random.Random(files)
    words, layer = Words(source), Layer()
    for number in range(files):
        folder = f"module-{number // 50:04}"
        if number % 50 == 0:
            layer.folder(folder, mtime=THEN)
        layer.file(f"{folder}/file-{number:06}.js", words.text(source.randrange(3000)), mtime=THEN)
    return layer.raw()


def main():
    registry = Registry(sys.argv[1])
    seeds = iter(range(1, 1000))

    def image(name, layers, how="gzip"):
        push(registry, f"cofferdam/bench/{name}", "1", layers, {"Cmd": ["sh"]}, how=how)

    # No layer is in two images: one that is there is not pulled again.
    image("60mb-5-layers", [large(next(seeds), 8_000, 10_000) for _ in range(5)])
    image("300mb-5-layers", [large(next(seeds), 40_000, 50_000) for _ in range(5)])
    image("20-layers", [large(next(seeds), 2_000, 2_500) for _ in range(20)])
    image("many-small-files", [small(100_000)])
    image("zstd", [large(next(seeds), 8_000, 10_000) for _ in range(5)], how="zstd")


if __name__ == "__main__":
    main()
