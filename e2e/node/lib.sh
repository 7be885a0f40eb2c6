# Shared by the scripts of this folder: words, the cache, and apt over other suites without touching the machine's own apt.
# shellcheck shell=bash
# Sourced after `name` is set, which starts every line that is said.

cache=${COFFERDAM_CACHE:-$HOME/.cache/cofferdam}
mkdir -p "$cache"
suite=trixie

say() { printf '[%s] %s\n' "$name" "$*" >&2; }
die() { say "failed: $*"; exit 1; }

# hash_of FILE...: a short hash of files' contents and of folders' files with their names
hash_of() {
    local path
    for path; do
        if [ -d "$path" ]; then (cd "$path" && find . -type f -o -type l | LC_ALL=C sort | tr '\n' '\0' | xargs -0 sha256sum); else cat "$path"; fi
    done | sha256sum | cut -c1-16
}

# lock NAME: one build of a thing at a time, also from several clones
lock() {
    exec 9>"$cache/$1.lock"
    flock -n 9 || { say "another build of this is running; waiting for it"; flock 9; }
}

# in_time TEXT LOG COMMAND...: runs a long command with its output in LOG, says every 20 s that it still runs, shows LOG's end if it fails
in_time() {
    local text=$1 log=$2 started=$SECONDS job
    shift 2
    say "$text"
    "$@" >"$log" 2>&1 </dev/null &
    job=$!
    while kill -0 $job 2>/dev/null; do
        timeout 20 tail -s 0.2 --pid=$job -f /dev/null && break
        say "... $((SECONDS - started)) s: $(tail -n1 "$log" | tr -d '\r' | cut -c1-100)"
    done
    wait $job || { tail -25 "$log" >&2; say "the log is $log"; return 1; }
}

# The archive's address comes from the machine's own apt settings; only the suite is ours.
archive_uri() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/*$' ||
        die "no Debian archive in this machine's apt sources; run 'apt-get update' once"
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# apt_get SUITES ARGS...: apt-get with lists of its own for these suites (binary and source packages)
apt_get() { run_apt apt-get "$@"; }
apt_cache() { run_apt apt-cache "$@"; }
run_apt() {
    local program=$1 suites=$2 root s uri
    shift 2
    root=$cache/apt-${suites// /-}
    mkdir -p "$root/lists/partial" "$root/cache/archives/partial"
    if [ ! -s "$root/sources.list" ]; then
        uri=$(archive_uri)
        for s in $suites; do printf 'deb [signed-by=%s] %s %s main\ndeb-src [signed-by=%s] %s %s main\n' "$keyring" "$uri" "$s" "$keyring" "$uri" "$s"; done >"$root/sources.list"
    fi
    "$program" -o "Dir::Etc::sourcelist=$root/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::Lists=$root/lists" \
        -o "Dir::Cache=$root/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# write_disk FOLDER FILE [SIZE]: an ext4 file system with the folder's files, sparse ones kept sparse
write_disk() {
    rm -f "$2"
    truncate -s "${3:-16G}" "$2"
    mkfs.ext4 -q -F -m 0 -O '^has_journal,^metadata_csum,^resize_inode' -E root_owner=0:0,nodiscard -d "$1" "$2"
}
