# What a node has for Kubernetes' node tests beside what every node of the cluster has.
# shellcheck shell=bash
# Sourced by in-cluster.sh after the product is laid out; $conformance has the tests' images.

cp -a "$conformance/registry/." "$product/var/lib/docker-registry/"

# The tests start a registry of their own at the node's port 5000, so the node's moves to 5005.
overlay=e2e/node/overlay/etc
moved() { mkdir -p "$(dirname "$product/etc/$2")" && sed 's/127\.0\.0\.1:5000/127.0.0.1:5005/' "$1" >"$product/etc/$2"; }
moved $overlay/docker/registry/config.yml docker/registry/config.yml
moved $overlay/containerd/certs.d/registry.k8s.io/hosts.toml containerd/certs.d/registry.k8s.io/hosts.toml
moved e2e/node-config.toml cofferdam/conf.d/50-e2e.toml
cat >"$product/etc/cofferdam/conf.d/60-conformance.toml" <<END
default_handler = "${handler/containerd/host}"

# The tests' registry, without TLS. containerd takes that for granted of localhost.
[registries."localhost:5000"]
plain_http = true
END
# Specs of RuntimeClasses ask for a runtime of this name, which Kubernetes' own test nodes have.
cat $overlay/containerd/config.toml - >"$product/etc/containerd/config.toml" <<'END'

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.test-handler]
      runtime_type = "io.containerd.runc.v2"
END

prepare_conformance() {
    "$node" run 'systemctl restart docker-registry && until curl -sf -o /dev/null http://127.0.0.1:5005/v2/; do sleep 0.2; done'
    [ "$handler" = containerd ] || return 0
    "$node" run 'systemctl disable --quiet --now cofferdam'
}
