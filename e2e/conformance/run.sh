#!/usr/bin/env bash
# Runs Kubernetes' node tests against the cluster that e2e/in-cluster.sh started, and judges the
# result. They run on this machine: only what they start runs in the emulated node. Reports and logs
# are left in target/conformance/HANDLER.
#
#   VM=name KUBECONFIG=file e2e/conformance/run.sh vm|host|containerd PROGRAMS [FOCUS]
#
# PROGRAMS is the folder that e2e/node/build-conformance.sh made. FOCUS, a regular expression, runs
# only the specs whose names match, and judges nothing but failures. PROCS (2) specs run at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
handler=$1 programs=$2 focus=${3:-}
node=e2e/node/vm
out=$PWD/target/conformance/$handler
judge=$PWD/e2e/conformance/judge.py
case $handler in containerd) endpoint=unix:///run/containerd/containerd.sock ;; *) endpoint=unix:///run/cofferdam/cofferdam.sock ;; esac
say() { printf '[conformance %s] %s\n' "$handler" "$*"; }

rm -rf "$out"
mkdir -p "$out"

# Pulled before the first spec: a pull takes long in emulation, and specs wait for their pods only.
say "pulling the images into the node"
while read -r image; do
    "$node" run "crictl -r $endpoint -i $endpoint pull registry.k8s.io/$image" </dev/null >>"$out/pull.log" 2>&1 ||
        { tail -n 3 "$out/pull.log"; say "failed: the node cannot pull registry.k8s.io/$image"; exit 1; }
done <"$programs/images"

# e2e_node.test knows no kubeconfig, only an address and a token.
kubectl create serviceaccount conformance --namespace=kube-system >/dev/null
kubectl create clusterrolebinding conformance --clusterrole=cluster-admin --serviceaccount=kube-system:conformance >/dev/null
token=$(kubectl create token conformance --namespace=kube-system --duration=24h)
server=$(kubectl config view --minify --output='jsonpath={.clusters[0].cluster.server}')

# Its check of the machine is about the kubelet's, which this is not: it is asked for Linux alone.
echo 'os: Linux' >"$out/system.yaml"
options=(--host="$server" --bearer-token="$token" --node-name="${NODE%%,*}" --dns-domain=cluster.local
    --start-services=false --prepull-images=false --system-spec-file="$out/system.yaml" --container-runtime-endpoint="$endpoint")

# Specs look at /sys/fs/cgroup to know how the node's cgroups are laid out. The node's are version 2.
in_cgroup2() {
    if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then "$@"; else
        unshare --mount sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' sh "$@"
    fi
}

# What is left out would change files and services of this machine instead of the kubelet's.
left_out=$("$judge" left-out "$handler")
[ -n "$left_out" ] || { say "failed: known.toml leaves nothing out"; exit 1; }

# Times of specs are those of a real node: one that fails is run once more, and the judge says which.
started=$SECONDS
status=0
# Ginkgo runs a program in the folder where it lies, and this one makes folders there.
mkdir "$out/work"
ln -s "$programs/e2e_node.test" "$out/work/"
in_cgroup2 "$programs/ginkgo" --procs="${PROCS:-2}" --no-color -v --seed=1 --timeout=10h --flake-attempts=2 \
    --label-filter=NodeConformance ${focus:+--focus="$focus"} --skip="$left_out" \
    --output-dir="$out" --junit-report=junit.xml --json-report=report.json "$out/work/e2e_node.test" -- "${options[@]}" 2>&1 |
    tee "$out/run.log" | awk -v prefix="[conformance $handler] " -v start="$(date +%s)" '
    /^Running in parallel|^Will run / {print prefix $0}
    /^• / {ended++}
    /^• \[(FAILED|PANICKED|TIMEDOUT|INTERRUPTED)/ {failed++; name = 1}
    name && /\[It\]/ {print prefix "failed: " $0; name = 0}
    /^• / && (ended % 10 == 0) {print prefix ended " specs, " failed + 0 " failed, " systime() - start " s"}
    {fflush()}' || status=$?
[ -s "$out/report.json" ] || { tail -n 20 "$out/run.log"; say "the tests left no report; their log is $out/run.log"; exit 1; }
if [ -n "$focus" ]; then exec "$judge" show "$handler" "$out/report.json"; fi
exec "$judge" judge "$handler" $((SECONDS - started)) "$out/report.json"
