//go:build tools

// Package tools names the program that `kubectl top` needs, so that `go mod tidy` keeps what it needs.
package tools

import _ "sigs.k8s.io/metrics-server/cmd/metrics-server"
