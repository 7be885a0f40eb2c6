//go:build tools

// Package tools names the add-on for NetworkPolicies that the cluster's tests run, so that
// `go mod tidy` keeps what it needs.
package tools

import _ "sigs.k8s.io/kube-network-policies/cmd"
