//go:build tools

// Package tools names the Kubernetes program that the kubelet smoke runs, so that `go mod tidy` keeps what it needs.
package tools

import _ "k8s.io/kubernetes/cmd/kubelet"
