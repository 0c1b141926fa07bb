// Package secret has the one type for passwords, tokens and API keys.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// A Secret is a password or token. However it is printed, logged or marshalled it
// reads ***; only [Secret.Reveal] gives it away. The zero Secret is empty.
type Secret struct {
	// A pointer, since fmt prints unexported fields of other people's structs
	// without asking for a String method.
	s *string
}

const redacted = "***"

// New wraps s.
func New(s string) Secret { return Secret{&s} }

// Reveal returns the secret itself.
func (s Secret) Reveal() string {
	if s.s == nil {
		return ""
	}
	return *s.s
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.s == nil || *s.s == "" }

// String returns ***.
func (Secret) String() string { return redacted }

// GoString returns ***.
func (Secret) GoString() string { return redacted }

// Format writes *** for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText returns ***.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "***".
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue returns ***.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
