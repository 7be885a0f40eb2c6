#!/usr/bin/env bash
# Builds the guest's kernel: Debian's linux-source with allnoconfig + config.fragment, as an uncompressed vmlinux.
#
#   guest/kernel/build.sh OUT
#
# The result is cached by a hash of this folder in ${COFFERDAM_CACHE:-~/.cache/cofferdam}.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: guest/kernel/build.sh OUT}
cache=${COFFERDAM_CACHE:-$HOME/.cache/cofferdam}
suite=trixie package=linux-source-6.12

say() { printf '[kernel] %s\n' "$*" >&2; }
die() { say "failed: $*"; exit 1; }

key=$(cat "$here/build.sh" "$here/config.fragment" "$here"/*.patch | sha256sum | cut -c1-16)
done_dir=$cache/guest-kernel-$key
mkdir -p "$cache"
if [ ! -f "$done_dir/vmlinux" ]; then # Who finds it built waits for nobody.
    exec 9>"$cache/guest-kernel.lock"
    flock -n 9 || { say "another build holds $cache/guest-kernel.lock; waiting for it"; flock 9; }
fi

if [ ! -f "$done_dir/vmlinux" ]; then
    for tool in make gcc flex bison bc xz patch; do
        command -v $tool >/dev/null || die "'$tool' is missing; run e2e/node/setup-host.sh, which installs what the builds need"
    done
    work=$cache/guest-kernel-$key.tmp
    rm -rf "$work"; mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    log=$work/log
    # The archive's address comes from the machine's own apt settings; only the suite is ours.
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/*$') ||
        die "no Debian archive in this machine's apt sources; run 'apt-get update' once"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] $uri $suite main" >"$work/apt/sources.list"
    apt=(apt-get -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root)
    say "fetching $package from Debian $suite"
    { "${apt[@]}" update -qq && (cd "$work" && "${apt[@]}" download "$package"); } >"$log" 2>&1 ||
        { tail -20 "$log" >&2; die "cannot fetch $package; is the Debian archive reachable?"; }
    say "unpacking"
    dpkg -x "$work"/"$package"_*.deb "$work/deb"
    tar -C "$work" -xf "$work/deb/usr/src/$package.tar.xz"
    src=$work/$package
    # The jitter random number generator tests itself at each boot, longer than any other driver takes; IPsec's generator goes
    # on without it. It stays in the kernel, and nothing starts it.
    sed -i '/^module_init(jent_mod_init);$/d' "$src/crypto/jitterentropy-kcapi.c"
    ! grep -q '^module_init(jent' "$src/crypto/jitterentropy-kcapi.c" || die "jitterentropy-kcapi.c has changed"
    for change in "$here"/*.patch; do
        patch -s -d "$src" -p1 <"$change" >"$log" 2>&1 || { cat "$log" >&2; die "$change does not fit"; }
    done
    (cd "$src" && make -s allnoconfig && KCONFIG_CONFIG=.config scripts/kconfig/merge_config.sh -m .config "$here/config.fragment" &&
        make -s olddefconfig) >"$log" 2>&1 || { tail -20 "$log" >&2; die "the configuration step; log above"; }
    missing=$(grep -E '^CONFIG_' "$here/config.fragment" | grep -vxFf "$src/.config" || true)
    [ -z "$missing" ] || die "these options of config.fragment did not survive (a dependency is missing): $(echo $missing)"
    say "compiling with $(nproc) jobs (about 5 minutes on 2 cores)"
    started=$SECONDS
    make -C "$src" -s -j"$(nproc)" KBUILD_BUILD_TIMESTAMP='1970-01-01' KBUILD_BUILD_USER=cofferdam KBUILD_BUILD_HOST=cofferdam vmlinux >"$log" 2>&1 &
    job=$!
    while kill -0 $job 2>/dev/null; do
        sleep 1
        (((SECONDS - started) % 30)) || say "compiling, $((SECONDS - started)) s, $(find "$src" -name '*.o' | wc -l) objects"
    done
    wait $job || { tail -30 "$log" >&2; die "the compilation; log above"; }
    mkdir -p "$done_dir.new"
    strip -o "$done_dir.new/vmlinux" "$src/vmlinux"
    cp "$src/.config" "$done_dir.new/config"
    rm -rf "$done_dir"; mv "$done_dir.new" "$done_dir"; rm -rf "$work"
    say "built in $((SECONDS - started)) s: $(du -h "$done_dir/vmlinux" | cut -f1)"
fi
mkdir -p "$(dirname "$out")"
cp "$done_dir/vmlinux" "$out"
