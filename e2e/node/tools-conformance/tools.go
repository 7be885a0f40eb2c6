//go:build tools

// Package tools names what a run of Kubernetes' node tests is built from, so that `go mod tidy`
// keeps what it needs.
package tools

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/e2e_node"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
