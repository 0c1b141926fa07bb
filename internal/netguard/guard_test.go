package netguard

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, url string
		private   bool
		address   string
		want      string // part of the error, "" for none
	}{
		{"public", "https://api.example.com", false, "93.184.216.34:443", ""},
		{"public IPv6", "https://api.example.com", false, "[2606:2800:220:1::1]:443", ""},
		{"loopback", "https://api.example.com", false, "127.0.0.1:443", "is private"},
		{"loopback IPv6", "https://api.example.com", false, "[::1]:443", "is private"},
		{"mapped loopback", "https://api.example.com", false, "[::ffff:127.0.0.1]:443", "is private"},
		{"private", "https://api.example.com", false, "10.1.2.3:443", "is private"},
		{"private B", "https://api.example.com", false, "172.16.0.1:443", "is private"},
		{"private C", "https://api.example.com", false, "192.168.0.1:443", "is private"},
		{"unique local", "https://api.example.com", false, "[fd12::1]:443", "is private"},
		{"carrier", "https://api.example.com", false, "100.64.0.1:443", "is private"},
		{"NAT64 of loopback", "https://api.example.com", false, "[64:ff9b::7f00:1]:443", "is private"},
		{"6to4 of private", "https://api.example.com", false, "[2002:0a00:0001::1]:443", "is private"},
		{"metadata", "https://api.example.com", false, "169.254.169.254:80", "metadata"},
		{"metadata IPv6", "https://api.example.com", true, "[fd00:ec2::254]:80", "metadata"},
		{"metadata Alibaba", "https://api.example.com", true, "100.100.100.200:80", "metadata"},
		{"metadata Azure", "https://api.example.com", true, "168.63.129.16:80", "metadata"},
		{"metadata with AllowPrivate", "https://api.example.com", true, "169.254.169.254:80", "metadata"},
		{"NAT64 of metadata", "https://api.example.com", true, "[64:ff9b::a9fe:a9fe]:80", "metadata"},
		{"zone", "https://api.example.com", true, "[fe80::1%eth0]:80", "metadata"},
		{"unspecified", "https://api.example.com", true, "0.0.0.0:80", "no address of a machine"},
		{"multicast", "https://api.example.com", true, "239.0.0.1:80", "no address of a machine"},
		{"private allowed", "http://vllm.models", true, "10.1.2.3:8000", ""},
		{"loopback allowed", "http://vllm.models", true, "127.0.0.1:8000", ""},
		{"localhost", "http://localhost:11434", false, "127.0.0.1:11434", ""},
		{"localhost IPv6", "http://LOCALHOST.:11434", false, "[::1]:11434", ""},
		{"localhost elsewhere", "http://localhost:11434", false, "10.0.0.1:11434", "localhost leads to"},
		{"literal", "http://10.0.0.7:8000", false, "10.0.0.7:8000", ""},
		{"literal IPv6", "http://[fd12::7]:8000", false, "[fd12::7]:8000", ""},
		{"literal metadata", "http://169.254.169.254", false, "169.254.169.254:80", ""},
		{"other literal", "http://10.0.0.7:8000", true, "10.0.0.8:8000", "is not the endpoint's"},
		{"plain and public", "http://api.example.com", false, "93.184.216.34:80", "not encrypted"},
		{"plain, public, allowed private", "http://api.example.com", true, "93.184.216.34:80", "not encrypted"},
		{"plain public literal", "http://93.184.216.34", false, "93.184.216.34:80", "not encrypted"},
		{"no address", "https://api.example.com", false, "/run/socket", "no IP address"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(row.url)
			if err != nil {
				t.Fatal(err)
			}
			err = New(u, row.private).check(row.address)
			switch {
			case row.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case row.want != "" && (!errors.Is(err, ErrAddress) || !strings.Contains(err.Error(), row.want)):
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

// A name that turns out to lead to this machine is refused at the moment it is
// dialled, whatever an earlier answer of the name service was.
func TestNameOfThisMachine(t *testing.T) {
	t.Parallel()
	ts := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the server was reached") }))
	defer ts.Close()
	u, _ := url.Parse("https://api.example.com")
	_, err := New(u, false).Dial(t.Context(), "tcp", ts.Listener.Addr().String())
	if !errors.Is(err, ErrAddress) {
		t.Fatal(err)
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" {
		t.Fatalf("%T", err)
	}
}
