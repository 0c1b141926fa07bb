package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// An arm is one of the programs under measurement.
type arm struct {
	name string
	jobs []string // what it can do
	// exactAfterKill says that the arm promises exact output over kill -9.
	exactAfterKill bool
	// changelog is the topic that backs the state of the count job of an app.
	changelog func(app string) string
	// build makes the program and returns the command that starts it.
	build func(ctx context.Context, bin string) (argv []string, err error)
}

// ours is the arm that the others are compared with.
const ours = "millrace"

var arms = []arm{
	{
		name: ours, jobs: []string{"pass", "count"}, exactAfterKill: true,
		changelog: func(app string) string { return app + ".counts-table" },
		build:     buildGo(ours),
	},
	{
		name: "kafka-streams", jobs: []string{"pass", "count"}, exactAfterKill: true,
		changelog: func(app string) string { return app + "-counts-changelog" },
		build:     buildMaven,
	},
	{
		name: "goka", jobs: []string{"pass", "count"},
		changelog: func(app string) string { return app + "-table" },
		build:     buildGo("goka"),
	},
	{
		name: "bare", jobs: []string{"pass"}, exactAfterKill: true,
		build: buildGo("bare"),
	},
}

func (a *arm) does(job string) bool { return slices.Contains(a.jobs, job) }

// chooseArms returns the named arms in the order of their names' list.
func chooseArms(list string) ([]arm, error) {
	if list == "all" {
		return arms, nil
	}
	var chosen []arm
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(arms, func(a arm) bool { return a.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-arms: %q is none of millrace, kafka-streams, goka, bare", name)
		}
		chosen = append(chosen, arms[i])
	}
	return chosen, nil
}

func buildGo(dir string) func(context.Context, string) ([]string, error) {
	return func(ctx context.Context, bin string) ([]string, error) {
		program := filepath.Join(bin, dir)
		return []string{program}, runQuiet(ctx, ".", "go", "build", "-o", program, "./"+dir)
	}
}

func buildMaven(ctx context.Context, _ string) ([]string, error) {
	err := runQuiet(ctx, "kafka-streams", "mvn", "-B", "-q", "package",
		"dependency:copy-dependencies", "-DoutputDirectory=target/libs")
	return []string{
		"java", "-Xms1g", "-Xmx1g",
		"-cp", "kafka-streams/target/bench-kafka-streams-1.jar:kafka-streams/target/libs/*",
		"millrace.bench.Main",
	}, err
}

func (h *harness) build(ctx context.Context, a arm) (err error) {
	if h.commands[a.name] != nil {
		return nil
	}
	logf("build %s", a.name)
	h.commands[a.name], err = a.build(ctx, filepath.Join(h.cfg.dir, "bin"))
	return err
}

func runQuiet(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// A job is one thing that an arm does: the arguments every arm takes.
type job struct {
	kind    string // "pass" or "count"
	in, out string
	app     string
	dir     string // state directory
}

// start runs an arm on a job.
func (h *harness) start(ctx context.Context, a arm, j job) (*process, error) {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, err
	}
	argv := append(slices.Clone(h.commands[a.name]),
		"-brokers", h.brokers, "-job", j.kind, "-in", j.in, "-out", j.out,
		"-app", j.app, "-dir", j.dir, "-threads", strconv.Itoa(h.cfg.threads))
	return startProcess(ctx, a.name, argv)
}
