#!/usr/bin/env bash
# One certificate authority, and the certificates and kubeconfigs of a cluster, in a folder.
#
#   e2e/cluster/certificates.sh DIR NODE=ADDRESS...
#
# EC keys: RSA is slow in an emulated node. Files of a node NODE are in DIR/NODE.
set -euo pipefail
dir=${1:?usage: certificates.sh DIR NODE=ADDRESS...}
shift
# Where the API server is for the nodes and their pods (control-plane.sh, join.sh).
server=198.51.100.1
service=10.96.0.1
mkdir -p "$dir"
cd "$dir"

key() { [ -f "$1.key" ] || openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# certificate NAME SUBJECT EXTENSION...
certificate() {
    local name=$1 subject=$2
    shift 2
    key "$name"
    openssl req -new -key "$name.key" -subj "$subject" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$name.crt" \
            -extfile <(printf '%s\n' basicConstraints=CA:FALSE keyUsage=digitalSignature "$@") 2>/dev/null
}

# kubeconfig FILE SUBJECT ADDRESS: a client's certificate, and the kubeconfig that holds it
kubeconfig() {
    certificate "$1" "$2" extendedKeyUsage=clientAuth
    cat >"$1.conf" <<END
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {server: "https://$3:6443", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
- name: $(basename "$1")
  user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}
contexts:
- name: lab
  context: {cluster: lab, user: $(basename "$1")}
current-context: lab
END
}

key ca
openssl req -x509 -new -key ca.key -subj /CN=lab-ca -days 3650 -out ca.crt \
    -addext keyUsage=critical,digitalSignature,keyCertSign -addext basicConstraints=critical,CA:TRUE
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth "subjectAltName=$names,IP:127.0.0.1,IP:$server,IP:$service"
certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client extendedKeyUsage=clientAuth
certificate front-proxy-client /CN=front-proxy-client extendedKeyUsage=clientAuth
key sa
openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
kubeconfig admin /O=system:masters/CN=admin 127.0.0.1
kubeconfig controller-manager /O=system:masters/CN=system:kube-controller-manager 127.0.0.1
kubeconfig scheduler /CN=system:kube-scheduler 127.0.0.1
for node; do
    mkdir -p "${node%=*}"
    certificate "${node%=*}/kubelet-server" "/CN=${node%=*}" extendedKeyUsage=serverAuth "subjectAltName=DNS:${node%=*},IP:${node#*=},IP:127.0.0.1"
    kubeconfig "${node%=*}/kubelet" "/O=system:nodes/CN=system:node:${node%=*}" "$server"
    kubeconfig "${node%=*}/kube-proxy" /CN=system:kube-proxy "$server"
done
chmod 600 ./*.key ./*.conf
