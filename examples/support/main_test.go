package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The whole example, on an embedded broker, with the scripted model.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := run(ctx, config{model: "script", timeout: 30 * time.Second}, os.Stdout); err != nil {
		fmt.Println(err)
	}
	// Output:
	// t1 escalated
	// t1 outage critical: "The service is down for all of us since eight."; reply: "We are looking into it."
	// t2 billing high: "I was charged twice in March."; reply: "We are checking your invoice."
	// t2 escalated
	// t3 account low: "I have a new phone and cannot log in any more."; reply: "You can set up a new device with your recovery code."
	// t4 escalated
	// t4 outage critical: "It is still down, and our shop is closed because of it."; reply: "Thank you for your patience. We are looking into it."
	// t5 other low: "I just wanted to say that I like the new design."; reply: "Thank you for writing."
	// t6 dead letter: violation after 3 attempts
	// t7 billing high: "The invoice is still wrong."; reply: "Thank you for your patience. We are checking your invoice."
	// t7 escalated
	// t8 account high: "How do I change my password?"; reply: "Thank you for your patience. You find that in your settings."
	// t8 escalated
	// 1 dead letters replayed
	// t6 billing low: "My invoice is wrong by the way."; reply: "We are checking your invoice." (replay of support.triage.dlq)
}

// A model that nobody may ask costs no ticket.
func TestNoModel(t *testing.T) {
	t.Parallel()
	input := filepath.Join(t.TempDir(), "tickets.jsonl")
	if err := os.WriteFile(input, []byte(`{"id":"x","customer":"c","text":"down"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	server := refusing(t)
	if err := run(ctx, config{input: input, modelURL: server + "/v1", model: "m", timeout: time.Second}, &out); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "x not triaged: breaker-open") {
		t.Error(s)
	}
}

// refusing returns the URL of a server that refuses every key.
func refusing(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error":{"message":"no key"}}`, http.StatusUnauthorized)
	}))
	t.Cleanup(s.Close)
	return s.URL
}
