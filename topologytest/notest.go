package topologytest

import (
	"fmt"
	"testing"
)

// NoTest returns the testing.TB of a driver outside of a test, in an Example or a
// program: failures panic with an error, and nothing is logged. The driver is not
// closed by itself; see [Driver.Close].
func NoTest() testing.TB { return noTest{} }

// noTest has the methods that a driver calls.
type noTest struct{ testing.TB }

func (noTest) Helper()                           {}
func (noTest) Cleanup(func())                    {}
func (noTest) Logf(string, ...any)               {}
func (noTest) Errorf(format string, args ...any) { panic(fmt.Errorf(format, args...)) }
func (noTest) Fatalf(format string, args ...any) { panic(fmt.Errorf(format, args...)) }
