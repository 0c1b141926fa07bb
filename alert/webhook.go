package alert

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/netguard"
	"github.com/millrace/millrace/llm"
)

// WebhookConfig configures [Webhook]. URL is required.
type WebhookConfig struct {
	// URL takes a POST for each alert. It is configuration of the operator, and may be a
	// secret: it is in no log and no error. The address that it leads to is checked when
	// it is dialled: private and loopback ones are refused, unless URL names them itself
	// or AllowPrivate is set, and plain HTTP to public ones. Redirects are not followed.
	URL          string
	AllowPrivate bool
	// Token, if not nil, is sent as bearer token; it is asked for with every request.
	Token llm.Key
	// Timeout bounds one request, default 5 s.
	Timeout time.Duration
	// Attempts is how often an alert is tried, default 4. Before attempt n+1 the sink
	// pauses for a random time of up to Backoff*2^(n-1), default 500 ms, or as long as
	// the answer's Retry-After says. Answers of 4xx other than 408 and 429 are final.
	Attempts int
	Backoff  time.Duration
	// Body makes the body of an alert, as a chat wants it; nil sends the alert as JSON.
	Body func(Alert) ([]byte, error)
	// TLS replaces the settings for TLS; at least version 1.2 is used. Dial replaces the
	// dialer and with it the check of addresses, for tests.
	TLS  *tls.Config
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Webhook returns a sink that posts alerts to a URL as application/json. An alert has
// its [Alert.ID] and state in the header Idempotency-Key, so that a receiver can drop
// what an attempt without an answer has brought already.
func Webhook(c WebhookConfig) (Sink, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return nil, errors.New("alert webhook: the URL must be like https://host/path, and hold no password (use Token)") // url's error shows it
	}
	if c.Timeout < 0 || c.Attempts < 0 || c.Backoff < 0 {
		return nil, fmt.Errorf("alert webhook: Timeout %s, Attempts %d, Backoff %s: none may be negative", c.Timeout, c.Attempts, c.Backoff)
	}
	def(&c.Timeout, 5*time.Second)
	def(&c.Attempts, 4)
	def(&c.Backoff, 500*time.Millisecond)
	if c.Body == nil {
		c.Body = func(a Alert) ([]byte, error) { return json.Marshal(a) }
	}
	if c.Dial == nil {
		c.Dial = netguard.New(u, c.AllowPrivate).Dial
	}
	t := &http.Transport{DialContext: c.Dial, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute}
	if c.TLS != nil {
		t.TLSClientConfig = c.TLS.Clone()
		t.TLSClientConfig.MinVersion = max(t.TLSClientConfig.MinVersion, tls.VersionTLS12)
	}
	w := &webhook{WebhookConfig: c, client: &http.Client{
		Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return w.send, nil
}

type webhook struct {
	WebhookConfig
	client *http.Client
}

// send posts an alert until the receiver takes it.
func (w *webhook) send(ctx context.Context, a Alert) error {
	body, err := w.Body(a)
	if err != nil {
		return fmt.Errorf("alert webhook: body: %w", err)
	}
	for n := 1; ; n++ {
		retry, wait, err := w.post(ctx, a, body)
		switch {
		case err == nil:
			return nil
		case !retry || n >= w.Attempts:
			return fmt.Errorf("alert webhook: attempt %d: %w", n, err)
		}
		select {
		case <-time.After(max(wait, rand.N(w.Backoff<<min(n-1, 6)))):
		case <-ctx.Done():
			return fmt.Errorf("alert webhook: gave up after attempt %d: %w", n, err)
		}
	}
}

// maxBody bounds what is read of an answer, so that the connection can be used again.
const maxBody = 64 << 10

// post makes one attempt. It says whether there may be another, and how long the
// receiver wants to be left alone before.
func (w *webhook) post(ctx context.Context, a Alert, body []byte) (retry bool, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return false, 0, errors.New("the request cannot be made")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", fmt.Sprintf("%s/%s/%d", a.ID(), a.State, a.At.UnixMilli()))
	if w.Token != nil {
		token, err := w.Token()
		if err != nil {
			return true, 0, fmt.Errorf("token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL
		}
		return !errors.Is(err, netguard.ErrAddress), 0, errors.New(strings.ReplaceAll(err.Error(), w.URL, "***"))
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	if resp.StatusCode/100 == 2 {
		return false, 0, nil
	}
	wait = llm.ParseRetryAfter(resp.Header, time.Now())
	final := resp.StatusCode < 500 && resp.StatusCode != http.StatusRequestTimeout && resp.StatusCode != http.StatusTooManyRequests
	return !final, wait, fmt.Errorf("the receiver answered %s", resp.Status)
}
