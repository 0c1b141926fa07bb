//go:build race

package sim

// The race detector makes a schedule ten times as dear.
const defaultSchedules = 10
