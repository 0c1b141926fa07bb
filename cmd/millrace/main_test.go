package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
)

// The demo starts workers by its own executable: in tests that is this binary. A test
// kills a replay.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == workerCommandName || os.Args[1] == "dlq") {
		main()
	}
	os.Exit(m.Run())
}

// call runs a command line.
func call(ctx context.Context, stdin string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = dispatch(ctx, args, stdio{strings.NewReader(stdin), &o, &e})
	return code, o.String(), e.String()
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, args string
		code       int
		out, err   string // parts
	}{
		{"nothing", "", exitOK, "millrace COMMAND", ""},
		{"help", "help", exitOK, "model-server", ""},
		{"unknown", "demon", exitUsage, "", `no command "demon"`},
		{"version", "version", exitOK, "millrace ", ""},
		{"version with argument", "version x", exitUsage, "", `unexpected argument "x"`},
		{"flags of demo", "demo -h", exitOK, "-fault-rate", ""},
		{"unknown flag", "demo --bogus", exitUsage, "", "-bogus"},
		{"number that is none", "demo --kill many", exitUsage, "", `"many"`},
		{"all mistakes at once", "demo --fault-rate 2 --kill -1 --rate -1 --latency -1s --model= --brokers nohost --model-url x", exitUsage, "", "-fault-rate 2"},
		{"NaN", "demo --fault-rate NaN", exitUsage, "", "from 0 to 1"},
		{"faults of a foreign model", "demo --fault-rate 0.1 --model-url http://127.0.0.1:1", exitUsage, "", "leave it out with -model-url"},
		{"a provider of nothing", "demo --provider vllm", exitUsage, "", "-provider says what serves"},
		{"no time for the model", "demo --model-timeout 1ms", exitUsage, "", "-model-timeout 1ms"},
		{"no such input", "demo --input testdata/none.tsv", exitUsage, "", "none.tsv"},
		{"empty input", "demo --input -", exitUsage, "", "no events"},
		{"no broker", "demo --brokers 127.0.0.1:1", exitFailed, "", "no broker answers at [127.0.0.1:1]"},
		{"no model server", "demo --model-url http://127.0.0.1:1", exitFailed, "", "check -model-url"},
		{"unknown model", "demo --model gpt", exitUsage, "", "it has vader"},
		{"directory of something else", "demo --dir testdata/foreign", exitUsage, "", "holds no demo"},
		{"model server, both kinds of fault", "model-server --fault-rate 0.1 --hang 0.1", exitUsage, "", "use it or the flags"},
		{"model server, more than all", "model-server --hang 1 --cut 1", exitUsage, "", "add up"},
		{"model server, no address", "model-server --addr 256.0.0.1:0", exitFailed, "", "choose another address"},
		{"dead letters, no command", "dlq", exitUsage, "", "list, show or replay"},
		{"dead letters, help", "dlq -h", exitOK, "millrace dlq COMMAND", ""},
		{"dead letters, unknown command", "dlq drop", exitUsage, "", `no command "drop"`},
		{"dead letters, mistakes", "dlq list --since x --at t/0 --limit -1", exitUsage, "", "-app: name the application"},
		{"dead letters, none chosen", "dlq replay --app a --brokers a:1", exitUsage, "", "or replay -all"},
		{"dead letters, no rate", "dlq replay --app a --brokers a:1 --all --rate 0", exitUsage, "", "-rate 0"},
		{"dead letters, no broker", "dlq list --app a --brokers 127.0.0.1:1", exitFailed, "", "no broker answers at [127.0.0.1:1]"},
		{"dead letters, no letter", "dlq show --app a --brokers a:1", exitUsage, "", "-at: name one letter"},
		{"worker by hand", workerCommandName, exitUsage, "", "started by"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, out, errs := call(t.Context(), "", strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) || (errs != "") != (tt.err != "") {
				t.Errorf("code %d, want %d; out %q; err %q", code, tt.code, out, errs)
			}
			if tt.name == "all mistakes at once" {
				for _, flag := range []string{"-kill", "-rate", "-latency", "-model:", "-brokers", "-model-url"} {
					if !strings.Contains(errs, "\n"+flag) {
						t.Errorf("%s is not reported", flag)
					}
				}
			}
		})
	}
}
