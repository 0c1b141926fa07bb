package llm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/millrace/millrace/internal/secret"
)

// A Secret is an API key. However it is printed, logged or encoded, it reads ***.
type Secret = secret.Secret

// NewSecret hides s.
func NewSecret(s string) Secret { return secret.New(s) }

// A Key returns an API key. It is asked for every attempt, so that keys can change
// while the program runs; it must be safe for concurrent use. Its errors must not
// hold the key.
type Key func() (Secret, error)

// StaticKey returns a [Key] that never changes.
func StaticKey(s Secret) Key { return func() (Secret, error) { return s, nil } }

// KeyFromEnv returns a [Key] that reads an environment variable. An empty variable
// is an error.
func KeyFromEnv(name string) Key {
	return func() (Secret, error) {
		v := strings.TrimSpace(os.Getenv(name))
		if v == "" {
			return Secret{}, fmt.Errorf("API key: environment variable %s is empty; set it to the provider's key", name)
		}
		return NewSecret(v), nil
	}
}

// maxKeyFile is the largest file of a key, in bytes: tokens of identity providers
// have a few thousand.
const maxKeyFile = 64 << 10

// KeyFromFile returns a [Key] that reads a file, as mounted by secret managers,
// without the white space around its content. An empty file is an error.
func KeyFromFile(path string) Key {
	return func() (Secret, error) {
		f, err := os.Open(path)
		if err != nil {
			return Secret{}, fmt.Errorf("API key: %w; write the provider's key to that file", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
		switch {
		case err != nil:
			return Secret{}, fmt.Errorf("API key: %w", err)
		case len(b) > maxKeyFile:
			return Secret{}, fmt.Errorf("API key: file %s is larger than %d bytes; it holds something else", path, maxKeyFile)
		}
		v := strings.TrimSpace(string(b))
		if v == "" {
			return Secret{}, fmt.Errorf("API key: file %s is empty; write the provider's key to it", path)
		}
		return NewSecret(v), nil
	}
}

// ErrKey is in the chain of errors of attempts that found no usable key.
var ErrKey = errors.New("no usable API key")
