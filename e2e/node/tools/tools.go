//go:build tools

// Package tools keeps the programs that the suites run in go.mod.
package tools

import _ "sigs.k8s.io/cri-tools/cmd/crictl"
