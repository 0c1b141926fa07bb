// Package safehttp is the HTTP client of the providers: it talks to the endpoint of
// the operator's configuration and to nothing else, bounds what it reads, and turns
// what went wrong into errors that hold neither keys nor texts.
package safehttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/netguard"
	"github.com/millrace/millrace/llm"
)

// DefaultMaxAnswer bounds an HTTP answer when the endpoint does not say, in bytes.
const DefaultMaxAnswer = 4 << 20

// Errors of requests that reached no usable answer.
var (
	ErrTooLarge = errors.New("the answer is larger than the limit; raise Endpoint.MaxAnswer if it has to be")
	errRedirect = errors.New("the endpoint redirects, which is not followed; set Endpoint.URL to where it leads if that is right")
	errNoObject = errors.New("the answer is not one of a model: no JSON object")
	errForeign  = errors.New("request to another host than the endpoint's")
)

// Auth is how a provider wants its key: the header's name and what precedes the key.
type Auth struct{ Header, Prefix string }

// A Client makes requests to one endpoint. It is safe for concurrent use.
type Client struct {
	http   *http.Client
	base   *url.URL
	key    llm.Key
	auth   Auth
	header http.Header
	max    int64
	next   http.RoundTripper
}

// New returns a client for an endpoint whose URL is base if it has none. It reports
// everything that is wrong with the endpoint.
func New(e llm.Endpoint, base string, auth Auth) (*Client, error) {
	if e.URL == "" {
		e.URL = base
	}
	u, err := parse(e.URL)
	if err != nil {
		return nil, err
	}
	if e.MaxAnswer < 0 {
		return nil, fmt.Errorf("endpoint %s: MaxAnswer %d is negative; it is a number of bytes", u, e.MaxAnswer)
	}
	if e.MaxAnswer == 0 {
		e.MaxAnswer = DefaultMaxAnswer
	}
	if e.KeyHeader != "" {
		auth = Auth{Header: e.KeyHeader}
	}
	c := &Client{base: u, key: e.Key, auth: auth, header: e.Header.Clone(), max: e.MaxAnswer}
	transport, err := newTransport(e, u)
	if err != nil {
		return nil, err
	}
	c.next = transport
	if e.Transport != nil {
		c.next = e.Transport(c.next)
	}
	c.http = &http.Client{
		Transport:     c,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func parse(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("endpoint: the URL cannot be read; it must be like https://host/path") // url's error shows it, with a password
	}
	what := ""
	switch {
	case u.User != nil:
		what = "holds a password; use Endpoint.Key"
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		what = "has a query or a fragment; leave them out"
	case u.Scheme != "http" && u.Scheme != "https":
		what = "must begin with https:// or http://"
	case u.Hostname() == "":
		what = "names no host"
	}
	if what != "" {
		return nil, fmt.Errorf("endpoint %s://%s: the URL %s", u.Scheme, u.Host, what)
	}
	if !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
	}
	return u, nil
}

func newTransport(e llm.Endpoint, u *url.URL) (*http.Transport, error) {
	target, proxy, err := dialled(e, u)
	if err != nil {
		return nil, err
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.TLS != nil {
		tlsConfig = e.TLS.Clone()
		tlsConfig.MinVersion = max(tlsConfig.MinVersion, tls.VersionTLS12)
		if tlsConfig.InsecureSkipVerify && tlsConfig.VerifyConnection == nil && tlsConfig.VerifyPeerCertificate == nil {
			return nil, fmt.Errorf("endpoint %s: TLS without verification; set TLS.RootCAs to the authority of the server", u)
		}
	}
	t := &http.Transport{
		DialContext:            e.Dial,
		TLSClientConfig:        tlsConfig,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    1 << 16, // as many as there were calls at once: the limit is not here
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		// A connection per call that runs: most requests and answers are short.
		ReadBufferSize:  2 << 10,
		WriteBufferSize: 2 << 10,
	}
	if proxy != nil {
		t.Proxy = http.ProxyURL(proxy)
	}
	if e.Dial == nil {
		t.DialContext = netguard.New(target, e.AllowPrivate || proxy != nil).Dial
	}
	return t, nil
}

// dialled returns the URL whose host is dialled: the endpoint's, or its proxy's.
func dialled(e llm.Endpoint, u *url.URL) (target, proxy *url.URL, err error) {
	if e.Proxy == nil {
		return u, nil, nil
	}
	proxy, err = e.Proxy(&http.Request{Method: http.MethodPost, URL: u, Host: u.Host, Header: http.Header{}})
	if err != nil {
		return nil, nil, fmt.Errorf("endpoint %s: the proxy's URL cannot be read; correct it", u)
	}
	if proxy == nil {
		return u, nil, nil
	}
	if u.Scheme != "https" && !e.AllowPrivate && !netguard.Named(u.Hostname()) {
		return nil, nil, fmt.Errorf("endpoint %s: unencrypted through a proxy; use https, or set AllowPrivate if the network is yours", u)
	}
	return proxy, proxy, nil
}

// BaseURL returns where the API begins, with a slash at the end.
func (c *Client) BaseURL() string { return c.base.String() }

// HTTP returns the client to hand to an SDK. Its answers are read already.
func (c *Client) HTTP() *http.Client { return c.http }

// CloseIdle closes connections that are not in use.
func (c *Client) CloseIdle() {
	if t, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// RoundTrip sends a request to the endpoint and reads the whole answer. What it saw
// goes to the [Exchange] of the request's context.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	x, _ := req.Context().Value(exchangeKey{}).(*Exchange)
	if x == nil {
		x = &Exchange{} // an SDK's own request
	}
	out, err := c.prepare(req, x)
	if err == nil {
		var resp *http.Response
		if resp, err = c.send(out, x); err == nil {
			resp.Request = req
			return resp, nil
		}
	} else if req.Body != nil {
		_ = req.Body.Close()
	}
	x.err = err
	return nil, err
}

func (c *Client) prepare(req *http.Request, x *Exchange) (*http.Request, error) {
	if req.URL.Scheme != c.base.Scheme || req.URL.Host != c.base.Host {
		return nil, errForeign
	}
	out := req.Clone(req.Context())
	for _, extra := range []http.Header{c.header, llm.HeaderFrom(req.Context())} {
		for name, values := range extra {
			if name = http.CanonicalHeaderKey(name); len(out.Header[name]) == 0 {
				out.Header[name] = values
			}
		}
	}
	// SDKs get no key, or one that means nothing.
	for _, name := range []string{"Authorization", "X-Api-Key", "X-Goog-Api-Key", c.auth.Header} {
		out.Header.Del(name)
	}
	if c.key == nil {
		return out, nil
	}
	key, err := c.key()
	if err == nil && key.IsZero() {
		err = errors.New("the key is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", llm.ErrKey, err)
	}
	x.key = key
	out.Header.Set(c.auth.Header, c.auth.Prefix+key.Reveal())
	return out, nil
}

func (c *Client) send(req *http.Request, x *Exchange) (*http.Response, error) {
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	x.status, x.header, x.at = resp.StatusCode, resp.Header, time.Now()
	x.body, err = c.read(resp)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, errRedirect
	}
	if x.Answered() && !bytes.HasPrefix(bytes.TrimLeft(x.body, " \t\r\n"), []byte("{")) {
		return nil, errNoObject // SDKs differ in what they make of it; one panics
	}
	resp.Body = io.NopCloser(bytes.NewReader(x.body))
	resp.ContentLength = int64(len(x.body))
	return resp, nil
}

func (c *Client) read(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	if resp.ContentLength > c.max {
		return nil, ErrTooLarge
	}
	var buf bytes.Buffer
	if resp.ContentLength > 0 {
		buf.Grow(int(resp.ContentLength) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, c.max+1))
	if n > c.max {
		return nil, ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return buf.Bytes(), nil
}

// Header returns a copy of h without what could hold a secret, for a response.
func Header(h http.Header) http.Header {
	out := maps.Clone(h)
	for _, name := range []string{"Set-Cookie", "Authorization", "X-Api-Key", "X-Goog-Api-Key", "Api-Key"} {
		delete(out, name)
	}
	return out
}

type exchangeKey struct{}

// Begin returns a context for one attempt and the exchange that will tell of it.
func (c *Client) Begin(ctx context.Context) (context.Context, *Exchange) {
	x := &Exchange{}
	return context.WithValue(ctx, exchangeKey{}, x), x
}
