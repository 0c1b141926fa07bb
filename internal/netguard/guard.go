// Package netguard checks the addresses that clients of configured endpoints dial.
package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
)

// ErrAddress is in the chain of errors of connections that were refused for their
// address.
var ErrAddress = errors.New("address refused")

// A Guard checks the addresses a host name turned out to have, at the moment they
// are dialled, so that no second answer of the name service can differ. It is safe for
// concurrent use.
type Guard struct {
	literal netip.Addr // the host of the URL, if it is an address
	local   bool       // the host of the URL is localhost
	private bool       // private and loopback addresses are allowed
	plain   bool       // the connection is not encrypted
}

// New returns the guard of an endpoint. Loopback and private addresses are refused,
// unless u names them itself or allowPrivate is set.
func New(u *url.URL, allowPrivate bool) *Guard {
	g := &Guard{private: allowPrivate, plain: u.Scheme == "http"}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		g.literal = a.Unmap().WithZone("")
	}
	g.local = isLocalhost(u.Hostname())
	return g
}

func isLocalhost(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// Named reports whether a host names a machine on this network itself.
func Named(host string) bool {
	if isLocalhost(host) {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && !public(a.Unmap())
}

// Dial connects to an address that the guard allows; see [net.Dialer].
func (g *Guard) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error { return g.check(address) }}
	return d.DialContext(ctx, network, address)
}

// check returns an error for an address, ip:port, that must not be dialled.
func (g *Guard) check(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %q is no IP address", ErrAddress, address)
	}
	a := ap.Addr().Unmap().WithZone("")
	switch {
	case g.literal.IsValid():
		if a != g.literal {
			return fmt.Errorf("%w: %s is not the endpoint's %s", ErrAddress, a, g.literal)
		}
	case metadata(a):
		return fmt.Errorf("%w: %s belongs to the link or to a cloud's metadata service; name it in the endpoint's URL if it is meant", ErrAddress, a)
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%w: %s is no address of a machine", ErrAddress, a)
	case g.local:
		if !a.IsLoopback() {
			return fmt.Errorf("%w: localhost leads to %s", ErrAddress, a)
		}
	case !g.private && !public(a):
		return fmt.Errorf("%w: %s is private; set AllowPrivate if the server is in your own network", ErrAddress, a)
	}
	if g.plain && public(a) {
		return fmt.Errorf("%w: %s is public and the connection is not encrypted; use https", ErrAddress, a)
	}
	return nil
}

// The metadata services of clouds that are not at link-local addresses.
var metadataAddrs = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // Amazon
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle
}

func metadata(a netip.Addr) bool {
	if slices.Contains(metadataAddrs, a) {
		return true
	}
	if v4, ok := embedded(a); ok {
		return metadata(v4)
	}
	return a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast()
}

// Ranges that are not public and for which netip has no method.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // shared by carriers
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), // documentation
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("100::/64"),
}

// public reports whether an address belongs to the whole internet.
func public(a netip.Addr) bool {
	if v4, ok := embedded(a); ok {
		return public(v4)
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return false
		}
	}
	return a.IsGlobalUnicast() && !a.IsPrivate()
}

// Prefixes of IPv6 under which IPv4 addresses are reached.
var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

// embedded returns the IPv4 address inside an IPv6 one.
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixTo4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}
