package kafka

import "github.com/millrace/millrace/internal/secret"

// A Secret is a password or token that prints as ***.
type Secret = secret.Secret

// NewSecret wraps s.
func NewSecret(s string) Secret { return secret.New(s) }
