package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// A view shows the progress of a run: a table that is drawn over itself on a
// terminal, else a line now and then.
type view struct {
	out   io.Writer
	demo  *demo
	live  bool
	width int
	lines int // of the table on the screen
}

func newView(out io.Writer, d *demo) *view {
	v := &view{out: out, demo: d, width: 100}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		v.live = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
			v.width = w
		}
	}
	fmt.Fprintf(out, "Millrace demo: %d events, model: %s, broker: %s, seed %d\n", d.total, d.sum.model, d.sum.broker, d.opts.seed)
	return v
}

func (v *view) interval() time.Duration {
	if v.live {
		return 200 * time.Millisecond
	}
	return time.Second
}

func (v *view) show() {
	if v.live {
		v.draw(v.table())
		return
	}
	s, t, c := v.demo.progress.get(), v.demo.audit.Tally(), v.demo.ledger.Stats()
	line := fmt.Sprintf("%5.1fs  sent %d/%d  enriched %d  dead-lettered %d  fallbacks %d  waiting %d  duplicates %d  model calls %d",
		time.Since(v.demo.started).Seconds(), s.sent, v.demo.total, t.Enriched, t.DeadLettered, t.Fallbacks, t.Lost, t.Duplicates, c.Calls)
	if v.demo.opts.kill > 0 {
		line += fmt.Sprintf("  kills %d/%d", s.kills, v.demo.opts.kill)
	}
	fmt.Fprintln(v.out, line)
}

func (v *view) table() []string {
	d := v.demo
	s, t, c := d.progress.get(), d.audit.Tally(), d.ledger.Stats()
	rows := []string{
		fmt.Sprintf("%-14s %s %d of %d sent, %.1f s", "events", bar(t.Done(), d.total), s.sent, d.total, time.Since(d.started).Seconds()),
		fmt.Sprintf("%-14s %d", "enriched", t.Enriched),
		fmt.Sprintf("%-14s %d", "dead-lettered", t.DeadLettered),
		fmt.Sprintf("%-14s %d", "fallbacks", t.Fallbacks),
		fmt.Sprintf("%-14s %d", "waiting", t.Lost),
		fmt.Sprintf("%-14s %d", "duplicates", t.Duplicates),
		fmt.Sprintf("%-14s p50 %s, p99 %s", "latency", round(t.P50), round(t.P99)),
		fmt.Sprintf("%-14s %d, %d running; %d refused, %d unusable, %d cut off, %d given up", "model calls", c.Calls, c.Running, c.Refused, c.Unusable, c.Broken, c.Gone),
		fmt.Sprintf("%-14s %d, interrupted %d", "paid twice", c.PaidTwice, c.Interrupted),
	}
	if d.opts.kill > 0 {
		rows = append(rows, fmt.Sprintf("%-14s %d of %d", "kills", s.kills, d.opts.kill))
	}
	for _, p := range d.audit.PerProduct() {
		rows = append(rows, fmt.Sprintf("%-14s %s %d", p.Product, bar(int(p.Sentences), d.total), p.Sentences))
	}
	return rows
}

// bar draws a share in 20 columns.
func bar(n, of int) string {
	const width = 20
	full := min(width, n*width/max(1, of))
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// draw replaces the table on the screen.
func (v *view) draw(rows []string) {
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.lines)
	}
	for _, r := range rows {
		if runes := []rune(r); len(runes) > v.width-1 {
			r = string(runes[:v.width-1])
		}
		b.WriteString(r + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	v.lines = len(rows)
	_, _ = io.WriteString(v.out, b.String()) // nobody to tell if the screen is gone
}

// close shows the last state.
func (v *view) close() { v.show() }
