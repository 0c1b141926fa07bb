package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConnection(t *testing.T) {
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(passwordVariable, "")
	for _, tt := range []struct{ args, want string }{
		{"-brokers a:1,b:2", ""},
		{"-brokers a:1 -sasl scram-sha-512 -sasl-user u -sasl-password-file " + password, ""},
		{"-brokers a:1 -tls -sasl PLAIN -sasl-password-file " + password, ""},
		{"", "-brokers: name the Kafka cluster"},
		{"-brokers nohost", "write it as host:port"},
		{"-brokers a:1 -sasl PLAIN -sasl-password-file " + password, "set TLS"},
		{"-brokers a:1 -sasl NTLM -sasl-password-file " + password, "not known"},
		{"-brokers a:1 -sasl SCRAM-SHA-256", "set " + passwordVariable},
		{"-brokers a:1 -sasl-user u", "need -sasl"},
		{"-brokers a:1 -tls-ca " + password, "no certificate"},
		{"-brokers a:1 -tls-cert " + password, "-tls-cert and -tls-key"},
	} {
		var c connection
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		c.flags(fs)
		if err := fs.Parse(strings.Fields(tt.args)); err != nil {
			t.Fatal(err)
		}
		cfg, err := c.config()
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error %v, want %q", tt.args, err, tt.want)
		case err != nil && strings.Contains(err.Error(), "hush"):
			t.Errorf("%s: the password is in the error", tt.args)
		}
		if cfg.SASL != nil {
			got, err := cfg.SASL.Credentials(t.Context())
			if err != nil || got.Password.Reveal() != "hush" {
				t.Errorf("%s: %v", tt.args, err)
			}
		}
	}
}
