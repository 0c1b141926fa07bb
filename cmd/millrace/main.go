// Command millrace is Millrace's command-line tool: a demo on real data and the
// model server behind it. Run "millrace help" for the commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

// The exit codes.
const (
	exitOK          = 0
	exitFailed      = 1 // the command failed, or a run broke a guarantee
	exitUsage       = 2
	exitInterrupted = 130
)

// stdio are the streams of a command.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// A command is one subcommand. Its run returns an error that says what failed,
// where, and what to do.
type command struct {
	name, args, summary string
	hidden              bool
	run                 func(ctx context.Context, args []string, std stdio) error
}

func commands() []command {
	return []command{
		{name: "conversations", args: "export [flags]", summary: "export the conversations of a step as JSON lines", run: conversationsCommand},
		{name: "demo", args: "[flags]", summary: "enrich review sentences with a real model, exactly once", run: demoCommand},
		{name: "dlq", args: "COMMAND [flags]", summary: "list, show and replay dead letters", run: dlqCommand},
		{name: "model-server", args: "[flags]", summary: "serve the demo's model, with faults on demand", run: modelServerCommand},
		{name: "prompts", args: "COMMAND [flags]", summary: "list, show, publish and label the prompts of an application", run: promptsCommand},
		{name: "version", summary: "print the version", run: versionCommand},
		{name: workerCommandName, hidden: true, run: workerCommand},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := dispatch(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// usageError is a mistake on the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errInterrupted ends a command that the user stopped.
var errInterrupted = errors.New("interrupted")

func dispatch(ctx context.Context, args []string, std stdio) int {
	name := "help"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "help", "-h", "-help", "--help":
		fmt.Fprint(std.out, help())
		return exitOK
	}
	for _, c := range commands() {
		if c.name == name {
			return report(name, c.run(ctx, args, std), std.err)
		}
	}
	fmt.Fprintf(std.err, "millrace: there is no command %q\n\n%s", name, help())
	return exitUsage
}

// report prints the error of a command and returns the exit code.
func report(name string, err error, to io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errInterrupted):
		fmt.Fprintf(to, "millrace %s: %v\n", name, err)
		return exitInterrupted
	}
	fmt.Fprintf(to, "millrace %s: %v\n", name, err)
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(to, "Run \"millrace %s -h\" for its flags.\n", name)
		return exitUsage
	}
	return exitFailed
}

func help() string {
	var b strings.Builder
	b.WriteString("Millrace: stream processing on Kafka with exactly-once model calls.\n\nUsage: millrace COMMAND\n\n")
	for _, c := range commands() {
		if !c.hidden {
			fmt.Fprintf(&b, "  %-26s %s\n", c.name+" "+c.args, c.summary)
		}
	}
	b.WriteString("\nRun \"millrace COMMAND -h\" for the flags of a command.\n")
	return b.String()
}

// parse parses the flags of a command that takes no arguments.
func parse(fs *flag.FlagSet, args []string, std stdio) error {
	fs.SetOutput(io.Discard)
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(std.out)
		fmt.Fprintf(std.out, "Usage: millrace %s [flags]\n\n", fs.Name())
		fs.PrintDefaults()
		return err
	case err != nil:
		return usageError{err}
	case fs.NArg() > 0:
		return usagef("unexpected argument %q", fs.Arg(0))
	}
	return nil
}

func versionCommand(_ context.Context, args []string, std stdio) error {
	if err := parse(flag.NewFlagSet("version", flag.ContinueOnError), args, std); err != nil {
		return err
	}
	version, revision, goVersion := "(unknown)", "", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = info.Main.Version, info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value
			}
		}
	}
	_, err := fmt.Fprintf(std.out, "millrace %s%s %s\n", version, revision, goVersion)
	return err
}
