package llm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const canary = "sk-canary-7Qx"

func TestKeysAreReadAtUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	set := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("MILLRACE_TEST_KEY", s)
	}
	for name, key := range map[string]Key{"file": KeyFromFile(path), "environment": KeyFromEnv("MILLRACE_TEST_KEY")} {
		set(canary + "\n")
		first, err := key()
		if err != nil || first.Reveal() != canary {
			t.Fatalf("%s: %v", name, err)
		}
		set(" rotated ")
		if second, err := key(); err != nil || second.Reveal() != "rotated" {
			t.Fatalf("%s: after rotation: %v", name, err)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", first, first, first), canary) {
			t.Fatalf("%s: the key shows", name)
		}
		set(" \n")
		if _, err := key(); err == nil || !strings.Contains(err.Error(), "is empty") {
			t.Fatalf("%s: empty: %v", name, err)
		}
	}
	set(strings.Repeat(canary, maxKeyFile))
	if _, err := KeyFromFile(path)(); err == nil || strings.Contains(err.Error(), canary) {
		t.Fatalf("huge file: %v", err)
	}
	if _, err := KeyFromFile(path + ".none")(); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("missing file: %v", err)
	}
	if s, err := StaticKey(NewSecret(canary))(); err != nil || s.Reveal() != canary {
		t.Fatal(err)
	}
}
