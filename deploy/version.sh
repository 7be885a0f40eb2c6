#!/usr/bin/env bash
# Prints the version of what is built here: the workspace's, and the commit; ".dirty" if files differ from it.
#
#   deploy/version.sh                 VERSION=1.2.3 in the environment counts instead
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${VERSION:-}" ]; then
    release=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    commit=${COFFERDAM_COMMIT:-$(git rev-parse --short=12 HEAD)}
    dirty=$([ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || echo .dirty)
    VERSION=$release-$commit$dirty
fi
# A folder's name, a label's value, an image's tag.
[[ $VERSION =~ ^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$ ]] || { echo "VERSION=$VERSION is no version's name" >&2; exit 1; }
printf '%s\n' "$VERSION"
