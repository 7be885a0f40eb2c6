#!/usr/bin/env bash
# Installs what the builds and the node VM need on a Debian 12 or 13 machine. Quick when all of it is there.
#
#   e2e/node/setup-host.sh
set -euo pipefail
name=setup
cd "$(dirname "$0")"
. ./lib.sh

# What is looked for, and the package that brings it. A path is a file; a word is a program.
needs=(
    gcc:gcc g++:g++ make:make pkg-config:pkg-config protoc:protobuf-compiler git:git python3:python3
    /usr/include/x86_64-linux-gnu/sys/types.h:libc6-dev
    # the guest's kernel and busybox
    flex:flex bison:bison bc:bc xz:xz-utils bzip2:bzip2 patch:patch
    /usr/include/libelf.h:libelf-dev /usr/include/openssl/ssl.h:libssl-dev
    # the agent's tests
    /bin/busybox:busybox-static
    # the node's image
    mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs cpio:cpio zstd:zstd depmod:kmod dpkg-source:dpkg-dev
    /usr/share/keyrings/debian-archive-trixie-stable.gpg:debian-archive-keyring
    # unit tests of pods, on a network of their own
    /usr/lib/cni/bridge:containernetworking-plugins ip:iproute2 iptables:iptables /bin/busybox:busybox-static
    # the node VM
    ssh:openssh-client flock:util-linux curl:curl
)

export PATH=$PATH:/usr/sbin:/sbin
is_there() { case $1 in /*) [ -e "$1" ] ;; *) command -v "$1" >/dev/null ;; esac; }
missing() { local need; for need in "${needs[@]}"; do is_there "${need%%:*}" || echo "${need#*:}"; done | sort -u; }

# older A B: whether version A is older than B
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]; }

[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); only x86_64 is supported"
mapfile -t packages < <(missing)
if [ ${#packages[@]} != 0 ]; then
    command -v apt-get >/dev/null || die "needs ${packages[*]}; install them, as there is no apt-get here"
    [ "$(id -u)" = 0 ] || die "needs ${packages[*]}; run as root: apt-get install ${packages[*]}"
    install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; }
    log=$cache/setup.log
    update() { in_time "reading Debian's package lists" "$log" apt-get update -qq || die "apt-get update; is the Debian archive reachable?"; }
    fresh=0
    if [ -z "$(find /var/lib/apt/lists -name '*_Packages*' -print -quit)" ]; then update; fresh=1; fi
    if ! in_time "installing ${packages[*]}" "$log" install; then
        [ $fresh = 0 ] || die "apt-get install; its output is above"
        say "the package lists may be old; once more with new ones"
        update
        in_time "installing ${packages[*]}" "$log" install || die "apt-get install; its output is above"
    fi
    mapfile -t packages < <(missing)
    [ ${#packages[@]} = 0 ] || die "still missing after the installation: ${packages[*]}"
fi
(archive_uri) >/dev/null

wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' ../../rust-toolchain.toml)
command -v cargo >/dev/null || die "Rust is missing; install rustup, then run this again (it brings Rust $wanted by itself)"
found=$(cd ../.. && rustc --version 2>/dev/null | cut -d' ' -f2) || true
[ -n "$found" ] || die "Rust $wanted does not run here; try 'rustup toolchain install $wanted'"
older "$found" "$wanted" && die "Rust $found is too old; run 'rustup toolchain install $wanted'"

command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
found=$(go env GOVERSION | sed 's/^go//')
older "$found" 1.26 && die "Go $found is too old; install Go 1.26 or newer"
exit 0
