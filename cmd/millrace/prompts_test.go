package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// The prompts of an application are published, labelled and listed from the command
// line, also before the application has run.
func TestPrompts(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	at := []string{"-brokers", strings.Join(cluster.ListenAddrs(), ","), "-app", "support"}
	run := func(want int, stdin, command string, args ...string) (out, errs string) {
		t.Helper()
		code, out, errs := call(t.Context(), stdin, append(append([]string{"prompts", command}, at...), args...)...)
		if code != want {
			t.Fatalf("prompts %s %q: code %d, want %d: %s%s", command, args, code, want, out, errs)
		}
		return out, errs
	}
	system := filepath.Join(t.TempDir(), "system.txt")
	if err := os.WriteFile(system, []byte("You triage.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs := run(exitFailed, "", "list"); !strings.Contains(errs, "does not exist") {
		t.Errorf("list without a topic: %s", errs)
	}
	publish := func(user, note string) string {
		t.Helper()
		out, _ := run(exitOK, user, "publish", "-name", "triage", "-system", system, "-user", "-", "-note", note)
		return strings.TrimSpace(out)
	}
	one := publish("{{.Event}}\n", "first\x1b[31m")
	two := publish("2 {{.Event}}", "second")
	if len(one) != 24 || one == two || publish("{{.Event}}\n", "again") != one {
		t.Errorf("versions %s and %s", one, two)
	}
	if _, errs := run(exitFailed, "{{.Event", "publish", "-name", "triage", "-user", "-"); !strings.Contains(errs, "unclosed") {
		t.Errorf("published what does not parse: %s", errs)
	}
	out, _ := run(exitOK, "", "label", "-name", "triage", "-version", one[:8])
	if want := "prod of prompt triage stands for " + one; !strings.Contains(out, want) {
		t.Errorf("label says %q, want %q", out, want)
	}
	run(exitOK, "", "label", "-name", "triage", "-label", "canary", "-percent", "12.5", "-version", two)
	for want, args := range map[string][]string{
		"a share of 0 percent":    {"-label", "canary", "-version", two},
		"the labels are":          {"-label", "beta", "-version", two},
		"no version or label":     {"-version", "ffff"},
		"has no label \"canary\"": {"-name", "other", "-label", "canary", "-remove"},
	} {
		if _, errs := run(exitFailed, "", "label", append([]string{"-name", "triage"}, args...)...); !strings.Contains(errs, want) {
			t.Errorf("label %q: %s, want %q", args, errs, want)
		}
	}
	out, _ = run(exitOK, "", "list")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || strings.ContainsRune(out, 0x1b) || !strings.Contains(out, "canary 12.5%") || !strings.Contains(out, "first") {
		t.Errorf("list:\n%s", out)
	}
	var list struct {
		Versions []versionJSON
		Labels   []labelJSON
	}
	out, _ = run(exitOK, "", "list", "-json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Versions) != 2 || len(list.Labels) != 2 || list.Labels[0].Percent != 12.5 {
		t.Errorf("%v: %s", err, out)
	}
	out, _ = run(exitOK, "", "show", "-name", "triage")
	if !strings.Contains(out, "version "+one) || !strings.Contains(out, "You triage.") || !strings.Contains(out, "{{.Event}}") {
		t.Errorf("show:\n%s", out)
	}
	var shown versionJSON
	out, _ = run(exitOK, "", "show", "-name", "triage", "-version", "canary", "-json")
	if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.Version != two || shown.User != "2 {{.Event}}" {
		t.Errorf("%v: %s", err, out)
	}
	out, _ = run(exitOK, "", "label", "-name", "triage", "-label", "canary", "-remove")
	if !strings.Contains(out, "has no label canary") {
		t.Errorf("remove says %q", out)
	}
}

func TestPromptsCommandLine(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"prompts":                   "list, show, publish or label",
		"prompts erase":             `no command "erase"`,
		"prompts list":              "-app",
		"prompts show -app a":       "-name",
		"prompts list -app a":       "-brokers",
		"prompts list -app a -name": "-name",
		"prompts publish -app a -name n -brokers b:1":       "-user",
		"prompts label -app a -name n -brokers b:1":         "-remove",
		"prompts publish -app a -name n -brokers b:1 extra": `unexpected argument "extra"`,
	} {
		code, out, errs := call(t.Context(), "", strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%s: code %d, %s%s, want %q", args, code, out, errs, want)
		}
	}
	if code, out, _ := call(t.Context(), "", "prompts", "-h"); code != exitOK || !strings.Contains(out, "publish") {
		t.Errorf("help: %d %s", code, out)
	}
}
