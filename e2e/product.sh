# How the product gets into a node VM: shared by in-node.sh and in-cluster.sh.
# shellcheck shell=bash
# Sourced from the clone's root after `node`, `product` and `say` are set.

# Lays the product, the suite's program and the tests' configuration out in the folder $product.
lay_out_product() {
    rm -rf "$product"
    mkdir -p "$product"
    cp -a --sparse=always target/dist/. "$product/"
    install -D -m 755 "${CARGO_TARGET_DIR:-target}/release/cofferdam-e2e" "$product/usr/local/bin/cofferdam-e2e"
    install -D -m 644 e2e/node-config.toml "$product/etc/cofferdam/conf.d/50-e2e.toml"
}

# Copies what was laid out into the running node, and starts the daemon.
install_product() {
    "$node" run 'cp -a --no-preserve=ownership --sparse=always /product/. / && systemctl daemon-reload && systemctl enable --quiet cofferdam && systemctl start cofferdam' || {
        "$node" run 'journalctl -u cofferdam -o cat --no-pager | tail -30' || true
        say "cofferdam.service does not start; its journal is above"
        exit 1
    }
}

# Puts what was laid out into a node that runs already, and starts the daemon anew.
renew_product() {
    tar -C "$product" -cSf - . | "$node" run 'tar -C / --no-same-owner --unlink-first -xSf - && systemctl daemon-reload && systemctl restart cofferdam' || {
        say "the product cannot be renewed in the node: 'VM=$VM $node stop' ends it, and the next run starts another"
        exit 1
    }
}
