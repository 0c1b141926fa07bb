package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestIsUnreachable(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"refused", fmt.Errorf("unable to dial: %w", refused), true},
		{"no such host", &net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}, false},
		{"resolver", &net.OpError{Op: "dial", Err: &net.DNSError{IsTemporary: true}}, true},
		{"closed", fmt.Errorf("read: %w", net.ErrClosed), true},
		{"an answer", kerr.NotLeaderForPartition, false},
		{"given up", context.Canceled, false},
		{"anything else", errors.New("no"), false},
	} {
		if got := IsUnreachable(tt.err); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
		if tt.want && !passing(tt.err) {
			t.Errorf("%s does not pass", tt.name)
		}
	}
}

// While brokers refuse connections a client neither spins nor floods the log.
func TestOutageIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		var logged bytes.Buffer
		conf := Config{Brokers: []string{"127.0.0.1:1"}, Logger: slog.New(slog.NewTextHandler(&logged, nil)), Dialer: func(context.Context, string, string) (net.Conn, error) {
			dials++
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}}
		cl, err := kgo.NewClient(append(conf.PlainOpts(nil), kgo.RequestRetries(0))...)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		began := time.Now()
		for range 100 {
			if err := cl.Ping(t.Context()); err == nil {
				t.Fatal("it answers")
			}
		}
		took := time.Since(began)
		if most := int(took/dialPause) + 1; dials > most {
			t.Errorf("%d dials in %v", dials, took)
		}
		if lines, most := strings.Count(logged.String(), "unable to open connection"), int(took/repeatAfter)+1; lines > most || !strings.Contains(logged.String(), "repeated=") {
			t.Errorf("%d lines in %v:\n%s", lines, took, &logged)
		}
	})
}
