#!/usr/bin/env bash
# Runs critest in a node VM that e2e/in-node.sh started, and judges the result. Reports and logs are left in target/critest.
#
#   VM=name e2e/critest/run.sh host|vm
#
# FOCUS=REGEXP runs only the specs whose names match, and judges nothing but failures.
set -euo pipefail
cd "$(dirname "$0")/../.."
handler=$1
node=e2e/node/vm
out=target/critest
mkdir -p "$out"
started=$SECONDS

# critest NAME ARGS...: one run in the node, shown as it goes on; its log and its report come to $out/NAME.*
critest() {
    local report=$1 endpoint=unix:///run/cofferdam/cofferdam.sock status=0
    shift
    rm -f "$out/$report.xml" "$out/$report.log"
    "$node" run "$(printf '%q ' critest --runtime-endpoint "$endpoint" --image-endpoint "$endpoint" --runtime-handler "$handler" \
        --ginkgo.v --ginkgo.no-color --ginkgo.seed=1 --ginkgo.timeout=90m --ginkgo.junit-report="/root/$report.xml" "$@")" 2>&1 |
        tee "$out/$report.log" | awk -v prefix="[critest $report] " -v start="$(date +%s)" '
            /^Will run / {print prefix $0}
            /^\[It\] |^\[k8s.io\] / {spec = $0}
            /^• / {ended++}
            /^• \[(FAILED|PANICKED|TIMEDOUT|INTERRUPTED)/ {failed++; print prefix "failed: " spec}
            /^• / && (ended % 10 == 0) {print prefix ended " specs, " failed + 0 " failed, " systime() - start " s"}
            {fflush()}' || status=$?
    # A run with failed specs has a report; one that broke off has none.
    "$node" run "cat /root/$report.xml" >"$out/$report.xml" || {
        tail -n 20 "$out/$report.log"
        echo "critest left no report; its log is $out/$report.log"
        exit 1
    }
}

websocket=(-websocket-exec -websocket-attach -websocket-portforward)
skip=$(e2e/critest/judge.py skip "$handler")
skips=()
[ -z "$skip" ] || skips=(--ginkgo.skip "$skip")
if [ -n "${FOCUS:-}" ]; then
    critest "$handler-focus" --ginkgo.focus "$FOCUS" "${skips[@]}" "${websocket[@]}"
    exec e2e/critest/judge.py show "$out/$handler-focus.xml"
fi
critest "$handler" "${skips[@]}" "${websocket[@]}"
critest "$handler-spdy" --ginkgo.focus '\[k8s\.io\] Streaming ' "${skips[@]}"
e2e/critest/judge.py judge "$handler" $((SECONDS - started)) "$out/$handler.xml" "$out/$handler-spdy.xml"
