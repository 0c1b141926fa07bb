package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// budgetSuite lets two instances with a partition and 32 slots each spend the budget of
// one tenant, on a model whose calls cost all that they can. What is paid is what the
// model counts, a millionth of a dollar for a token.
func (h *harness) budgetSuite(ctx context.Context) error {
	const partitions, slots, events, budget = 2, 32, 4_000, 1_000_000
	defer func(n int) { h.cfg.partitions = n }(h.cfg.partitions)
	h.cfg.partitions = partitions
	args := []string{"-slots", strconv.Itoa(slots), "-budget", strconv.Itoa(budget)}
	for round := range h.cfg.llmRounds {
		err := h.measureAsking(ctx, "enrich", 0, []string{"-latency", "200ms", "-greedy"}, args, func(r *asking) error {
			second, err := r.again(ctx)
			if err != nil {
				return err
			}
			defer func() {
				if err := errors.Join(second.stop(), os.RemoveAll(r.secondDir())); err != nil {
					logf("%v", err)
				}
			}()
			if err := newDataset(events, llmKeys, partitions).load(ctx, h.client, r.j.in, 0, events); err != nil {
				return err
			}
			end, err := r.settled(ctx, second)
			if err != nil {
				return err
			}
			if err := r.out.await(ctx, int64(end.Answered), r.app); err != nil {
				return fmt.Errorf("%d answers: %w", end.Answered, err)
			}
			h.report.add("budget", ours, "overspent", "$", round, max(0, float64(end.Tokens-budget)/1e6))
			h.report.add("budget", ours, "spent", "of 1", round, float64(end.Tokens)/budget)
			h.report.add("budget", ours, "answers", "", round, float64(end.Answered))
			h.report.add("budget", ours, "calls at once, at most", "", round, float64(end.Most))
			return nil
		})
		if err != nil {
			return fmt.Errorf("budget: %w", err)
		}
		logf("budget: round %d: %s", round+1, h.report.line("budget", ours, round))
	}
	return nil
}

func (r *asking) secondDir() string { return r.j.dir + "-second" }

// again starts another instance of the program of a run, with a state directory of its
// own, and waits until it has a partition.
func (r *asking) again(ctx context.Context) (*process, error) {
	argv := append([]string{}, r.app.cmd.Args...)
	for i := range argv {
		if argv[i] == r.j.dir {
			argv[i] = r.secondDir()
			if err := os.MkdirAll(argv[i], 0o700); err != nil {
				return nil, err
			}
		}
	}
	p, err := startProcess(ctx, "llm", argv)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ready:
		return p, nil
	case <-p.exited:
		err = p.failed()
	case <-time.After(stalledAfter):
		err = fmt.Errorf("the second instance is not ready after %v\n%s", stalledAfter, p.stderr.String())
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.kill()
	return nil, err
}

// settled waits until the model has been asked and is asked nothing any more.
func (r *asking) settled(ctx context.Context, others ...*process) (modelStats, error) {
	const quiet = 5 * time.Second
	var last modelStats
	since := time.Now()
	for began := time.Now(); time.Since(began) < 3*time.Minute; {
		now, err := r.model.stats(ctx)
		for _, p := range append(others, r.app) {
			err = errors.Join(err, p.failed())
		}
		if err != nil {
			return now, err
		}
		if now.Running > 0 || now.Answered != last.Answered {
			since = time.Now()
		}
		if last = now; now.Answered > 0 && time.Since(since) >= quiet {
			return now, nil
		}
		if err := pause(ctx, sampleEvery); err != nil {
			return now, err
		}
	}
	return last, errors.New("the model is asked without end")
}
