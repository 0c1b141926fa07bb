package llm

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
)

// An Endpoint says where a provider is and how it is reached. It is configuration
// of the operator of a program: nothing in it may come from events.
//
// Its addresses are checked when they are dialled. Loopback and private ones are
// refused, unless URL names them itself (an IP address, or localhost) or
// AllowPrivate is set; link-local ones, where clouds keep their metadata, are
// refused unless URL is that very address. Redirects are not followed. The key and
// the events never travel unencrypted to a public address.
type Endpoint struct {
	// URL is where the API begins, as in "http://localhost:11434/v1"; empty means
	// the provider's own. It must hold no password and no query.
	URL string
	// Key is the API key; nil sends none, as local servers want it.
	Key Key
	// KeyHeader is the header the key is sent in, as it is; empty means the
	// provider's own way. (Azure: "Api-Key".)
	KeyHeader string
	// Header is added to every request, as gateways want it. It must hold no secret:
	// only Key is kept out of errors and recordings.
	Header http.Header
	// AllowPrivate permits private and loopback addresses, for model servers in the
	// operator's own network.
	AllowPrivate bool
	// MaxAnswer bounds the size of an HTTP answer, after decompression, in bytes;
	// 0 means 4 MiB. Longer ones end in class [TooLarge].
	MaxAnswer int64
	// Proxy names the proxy for a request, as [http.ProxyFromEnvironment] does; nil
	// means none, whatever the environment says. It is asked once. With a proxy, the
	// addresses behind it are the proxy's to check.
	Proxy func(*http.Request) (*url.URL, error)
	// TLS replaces the settings for TLS, as for a private authority; at least
	// version 1.2 is used.
	TLS *tls.Config
	// Dial replaces the dialer and with it the check of addresses, for tests.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Transport, if not nil, wraps the transport, for recordings and traces. What it
	// sees holds the key.
	Transport func(http.RoundTripper) http.RoundTripper
}

type headerKey struct{}

// WithHeader returns a context whose model calls carry the headers of h besides
// those of the endpoint, as labels and trace context. They cannot replace what the
// provider's protocol sets.
func WithHeader(ctx context.Context, h http.Header) context.Context {
	return context.WithValue(ctx, headerKey{}, h)
}

// HeaderFrom returns what [WithHeader] set, or nil.
func HeaderFrom(ctx context.Context) http.Header {
	h, _ := ctx.Value(headerKey{}).(http.Header)
	return h
}
