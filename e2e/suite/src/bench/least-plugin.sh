#!/bin/sh
# A CNI plugin that does the least that a pod needs: an interface with an address, joined to nothing.
set -e
[ "$CNI_COMMAND" = ADD ] || exit 0
nsenter --net="$CNI_NETNS" ip -batch - <<END
link add $CNI_IFNAME type dummy
address add 10.222.0.2/24 dev $CNI_IFNAME
link set $CNI_IFNAME up
END
echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "'"$CNI_IFNAME"'", "sandbox": "'"$CNI_NETNS"'"}],
    "ips": [{"address": "10.222.0.2/24", "interface": 0}]}'
