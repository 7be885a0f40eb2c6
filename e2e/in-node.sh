#!/usr/bin/env bash
# Runs something in a node VM, a fresh one unless it says otherwise, with Cofferdam installed and running.
#
#   e2e/in-node.sh demo | test [NAME] | critest [host|vm] | kubelet | bench | soak | shell
#   e2e/in-node.sh one NAME    tests in a node that goes on running, for the next time
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?usage: e2e/in-node.sh demo|test|one|critest|kubelet|bench|soak|shell}
shift
journal=target/e2e/cofferdam.log
[ "$what" != kubelet ] || journal=target/kubelet-smoke/cofferdam.log
if [ "$what" = critest ]; then
    case ${1:-} in
    host | vm) ;;
    '') # Both, each in a node of its own: one leaves a processor idle most of the time.
        unset VM
        e2e/in-node.sh critest host &
        status=0
        e2e/in-node.sh critest vm || status=$?
        wait $! || status=$?
        exit $status
        ;;
    *) echo "critest knows no handler '$1': say HANDLER=host or HANDLER=vm, or nothing for both" >&2; exit 2 ;;
    esac
    VM=${VM:-critest-$1} journal=target/critest/$1-daemon.log
fi
export VM=${VM:-$what}
node=e2e/node/vm
product=target/product-$VM
say() { printf '\033[1m[%s] %s\033[0m\n' "$what" "$*"; }

say "preparing the node's image (minutes the first time, then cached in ${COFFERDAM_CACHE:-$HOME/.cache/cofferdam})"
image=$(e2e/node/build-image.sh)

. e2e/product.sh
lay_out_product
if [ "$what" = critest ]; then
    critest=$(e2e/node/build-critest.sh "$image")
    install -D -m 755 "$critest" "$product/usr/local/bin/critest"
    # The node's own chain has plugins that no spec needs, which take most of a pod's time in emulation.
    install -D -m 644 e2e/critest/network.conflist "$product/etc/cni/net.d/00-critest.conflist"
fi
if [ "$what" = bench ]; then
    mkdir -p "$product/var/lib/docker-registry"
    cp -a "$(e2e/node/build-bench-images.sh)/." "$product/var/lib/docker-registry/"
    cp -a "$(e2e/node/build-workloads-image.sh)/." "$product/var/lib/docker-registry/"
fi
if [ "$what" = kubelet ]; then
    install -D -m 755 "$(e2e/node/build-kubernetes.sh kubelet)/kubelet" "$product/usr/local/bin/kubelet"
    install -D -m 644 e2e/kubelet/kubelet.yaml "$product/etc/kubernetes/kubelet.yaml"
    install -D -m 644 e2e/kubelet/kubelet.service "$product/etc/systemd/system/kubelet.service"
fi

if [ "$what" = one ] && "$node" alive >/dev/null 2>&1; then
    say "putting the product into the node VM that runs ('VM=$VM $node stop' ends it)"
    renew_product
else
    say "starting the node VM"
    [ "$what" = one ] || trap '"$node" stop >/dev/null 2>&1 || true' EXIT
    "$node" start --product "$product"
    "$node" wait
    say "installing Cofferdam in it and starting cofferdam.service"
    install_product
fi
status=0
case $what in
demo) "$node" run 'cofferdam-e2e demo' || status=$? ;;
test | one) "$node" run "cofferdam-e2e test ${1:-}" || status=$? ;;
critest) e2e/critest/run.sh "$1" || status=$? ;;
kubelet) "$node" run 'cofferdam-e2e kubelet' || status=$? ;;
bench)
    machine="$(nproc) cores of $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo), node VM with 2 vCPUs under $("$node" accel 2>/dev/null || echo 'QEMU')"
    # What is measured of some rows only (BENCH_ARGS='--rows pulls') is added to the report that is there.
    tar c -C docs benchmarks.json benchmarks.md | "$node" run 'mkdir -p /root/bench && tar x -C /root/bench'
    "$node" run "cofferdam-e2e bench --out /root/bench --machine '$machine' ${BENCH_ARGS:-}" || status=$?
    if [ $status = 0 ]; then
        "$node" run 'cat /root/bench/benchmarks.json' >docs/benchmarks.json
        "$node" run 'cat /root/bench/benchmarks.md' >docs/benchmarks.md
    fi
    ;;
soak) "$node" run "cofferdam-e2e soak ${SOAK_ARGS:-}" || status=$? ;;
shell) "$node" shell || true ;;
*) say "unknown: $what"; exit 2 ;;
esac
if [ $status != 0 ]; then
    mkdir -p "$(dirname "$journal")"
    "$node" run 'journalctl -u cofferdam -o short-precise --no-pager' >"$journal" 2>&1 || true
    [ "$what" != kubelet ] || "$node" run 'journalctl -u kubelet -o short-precise --no-pager' >"$(dirname "$journal")/kubelet.log" 2>&1 || true
    # What the emulator does to a node is no verdict on what ran in it, so that is run once more. e2e/node/vm says why a kernel in
    # emulation may die of an int3, by which Linux patches itself; a node that died otherwise failed. e2e/suite/src/emulator.rs says
    # what the other slips are, and runs the one test again in a suite.
    slip=
    if ! "$node" alive; then
        ! "$node" console | grep 'Oops: int3' >/dev/null || slip="the node's kernel died of an int3 of its own, a slip of the emulator"
    elif [ "$what" != test ] && grep -qE 'KVM_RUN failed: Bad address .*rip 0xffffffff[c-f]|pod died .*crashed with a triple fault' "$journal" && [[ "$("$node" accel)" = *tcg ]]; then
        slip="the emulator slipped, as the journal says"
    fi
    if [ -n "$slip" ] && [ -z "${AGAIN:-}" ] && [ "$what" != one ]; then
        mv "$journal" "$journal.slip"
        say "failed, and $slip: once more, in a new node; the journal of this one is in $journal.slip"
        "$node" stop >/dev/null 2>&1 || true
        AGAIN=1 exec e2e/in-node.sh "$what" "$@"
    fi
    say "failed; the daemon's journal is in $journal; 'make node' gives a shell on such a node, docs/troubleshooting.md says where to look"
fi
exit $status
