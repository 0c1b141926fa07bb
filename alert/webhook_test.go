package alert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/alert"
	"github.com/millrace/millrace/llm"
)

var raised = alert.Alert{
	Kind: alert.NoMoney, State: alert.Raised, Severity: alert.Critical, App: "app", Instance: "i", Step: "triage", Subject: "openai/m",
	Since: time.Unix(1, 0).UTC(), At: time.Unix(1, 0).UTC(), Message: "no credit", Action: alert.NoMoney.Action(),
}

// webhook returns a sink for a handler, in a synctest bubble: there are no sockets.
func webhook(t *testing.T, c alert.WebhookConfig, h http.HandlerFunc) alert.Sink {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	conns := make(chan net.Conn)
	srv.Listener = &listener{conns: conns, closed: make(chan struct{})}
	srv.Start()
	t.Cleanup(srv.Close)
	c.URL = "http://127.0.0.1:1/hook/s3cret"
	c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case conns <- there:
			return here, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	sink, err := alert.Webhook(c)
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
}

// A receiver that fails, hangs or throttles is asked again, and gets the same alert.
func TestWebhookTriesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		var keys []string
		sink := webhook(t, alert.WebhookConfig{Token: llm.StaticKey(llm.NewSecret("t0ken"))}, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			got := alert.Alert{}
			if err == nil {
				err = json.Unmarshal(body, &got)
			}
			if err != nil || got != raised || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "Bearer t0ken" {
				t.Errorf("got %s, %v, %v", body, err, r.Header)
			}
			keys = append(keys, r.Header.Get("Idempotency-Key"))
			switch n.Add(1) {
			case 1:
				w.WriteHeader(http.StatusInternalServerError)
			case 2:
				<-r.Context().Done() // hangs
			case 3:
				w.Header().Set("Retry-After", "3")
				w.WriteHeader(http.StatusTooManyRequests)
			}
		})
		began := time.Now()
		if err := sink(t.Context(), raised); err != nil || n.Load() != 4 {
			t.Errorf("%v after %d requests", err, n.Load())
		}
		if took := time.Since(began); took < 8*time.Second || took > 13*time.Second {
			t.Errorf("it took %s, want one timeout of 5 s, the 3 s asked for, and pauses", took)
		}
		if keys[0] == "" || keys[0] != keys[3] {
			t.Errorf("keys %q", keys)
		}
	})
}

// A receiver that always hangs costs four timeouts at most, or the time of the context.
func TestWebhookGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sink := webhook(t, alert.WebhookConfig{}, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // the server notices the end of the connection behind it
			<-r.Context().Done()
		})
		began := time.Now()
		err := sink(t.Context(), raised)
		if took := time.Since(began); err == nil || took > 30*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the URL is in the error: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if err := sink(ctx, raised); err == nil || time.Since(began) > time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// What will not change is not tried again: a refusal, a redirect.
func TestWebhookRefused(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden, http.StatusTemporaryRedirect} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			sink := webhook(t, alert.WebhookConfig{}, func(w http.ResponseWriter, _ *http.Request) {
				n++
				w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
				w.WriteHeader(status)
			})
			if err := sink(t.Context(), raised); err == nil || n != 1 {
				t.Errorf("%d: %v after %d requests", status, err, n)
			}
		})
	}
}

// A name that leads into the operator's network is not dialled.
func TestWebhookAddress(t *testing.T) {
	t.Parallel()
	name, err := os.Hostname()
	if err == nil {
		_, err = net.DefaultResolver.LookupHost(t.Context(), name)
	}
	if err != nil {
		t.Logf("this machine has no name that leads to it: %v", err)
	} else {
		sink, err := alert.Webhook(alert.WebhookConfig{URL: "http://" + name + ":9/"})
		if err != nil {
			t.Fatal(err)
		}
		if err := sink(t.Context(), raised); err == nil || !strings.Contains(err.Error(), "address refused") {
			t.Errorf("%v", err)
		}
	}
	for _, url := range []string{"", "ftp://x/", "https://", "https://user:pa55@x/", "://pa55"} {
		if _, err := alert.Webhook(alert.WebhookConfig{URL: url}); err == nil || strings.Contains(err.Error(), "pa55") {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := alert.Webhook(alert.WebhookConfig{URL: "https://x/", Attempts: -1}); err == nil {
		t.Error("negative attempts pass")
	}
}

func TestWebhookBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		body := ""
		sink := webhook(t, alert.WebhookConfig{Body: func(a alert.Alert) ([]byte, error) { return json.Marshal(map[string]string{"text": a.Message}) }},
			func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				body = string(b)
			})
		if err := sink(t.Context(), raised); err != nil || body != `{"text":"no credit"}` {
			t.Errorf("%v, sent %s", err, body)
		}
	})
	sink, err := alert.Webhook(alert.WebhookConfig{URL: "https://x/", Body: func(alert.Alert) ([]byte, error) { return nil, errors.New("no template") }})
	if err != nil {
		t.Fatal(err)
	}
	if err := sink(t.Context(), raised); err == nil || !strings.Contains(err.Error(), "no template") {
		t.Errorf("%v", err)
	}
}

func TestSlog(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	sink := alert.Slog(slog.New(slog.NewTextHandler(&buf, nil)))
	resolved := raised
	resolved.State = alert.Resolved
	for _, a := range []alert.Alert{raised, resolved} {
		if err := sink(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(buf.String(), "\n")
	if !strings.Contains(lines[0], "level=ERROR") || !strings.Contains(lines[0], "kind=no_money") || !strings.Contains(lines[0], "subject=openai/m") || !strings.Contains(lines[1], "level=INFO") {
		t.Errorf("logged %s", buf.String())
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	if err := (alert.Rules{}).Validate(); err != nil {
		t.Error(err)
	}
	if d := (alert.Rules{OldestPending: -1}).WithDefaults(); d.OldestPending != -1 || d.DeadLetterRate != 0.05 {
		t.Errorf("%+v", d)
	}
	for _, r := range []alert.Rules{{DeadLetterRate: 2}, {DriftRise: 1.5}, {Window: -1}, {Interval: -1}} {
		if r.Validate() == nil {
			t.Errorf("%+v passes", r)
		}
	}
	for _, k := range []alert.Kind{alert.BreakerOpen, alert.NoMoney, alert.Auth, alert.BudgetExhausted, alert.DeadLetterRate, alert.OldestPending, alert.Drift, alert.TaskParked} {
		if k.Action() == "" {
			t.Errorf("%s has no action", k)
		}
	}
}
