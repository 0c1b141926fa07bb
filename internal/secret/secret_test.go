package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const canary = "hunter2-canary"

// However a secret is printed, also as an unexported field of somebody's struct.
func TestSecretNeverShows(t *testing.T) {
	s := New(canary)
	type outer struct {
		hidden Secret
		Open   Secret
		List   []Secret
		Ptr    *Secret
	}
	o := outer{s, s, []Secret{s}, &s}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T", "%10s", "%p"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", o)
		fmt.Fprintf(&out, verb+"\n", map[string]Secret{"k": s})
		fmt.Fprintf(&out, verb+"\n", errors.Join(fmt.Errorf("with %v", s)))
	}
	fmt.Fprintln(&out, s, s.String(), s.GoString(), o)
	for _, v := range []any{s, o, map[string]Secret{"k": s}} {
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(j)
	}
	text, err := s.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "secret", s, "outer", o)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "secret", s, "outer", o)
	if strings.Contains(out.String(), canary) || strings.Contains(out.String(), fmt.Sprintf("%x", canary)) {
		t.Fatalf("the secret shows:\n%s", out.String())
	}
	if s.Reveal() != canary || s.IsZero() || !(Secret{}).IsZero() || (Secret{}).Reveal() != "" || !New("").IsZero() {
		t.Fatal("Reveal or IsZero is wrong")
	}
}
