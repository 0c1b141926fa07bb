package kafka

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func startFeed(t testing.TB, cfg FeedConfig) *Feed {
	t.Helper()
	if cfg.Group == "" {
		cfg.Group = "app.task"
	}
	if cfg.Inputs == nil {
		cfg.Inputs = []string{"in"}
	}
	f, err := NewFeed(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFeedPassesBatchesByReference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type batch [1]int
		var got []*batch
		f := startFeed(t, FeedConfig{
			Inputs: []string{"a", "b"}, Loop: true, Outputs: []string{"out"}, Persist: true, Partition: 7,
			Handle: func(b any) { got = append(got, b.(*batch)) },
		})
		sent := []*batch{{1}, {2}, {3}}
		for i, topic := range []string{"a", "b", LoopTopic("app.task")} {
			if err := f.Process(topic, sent[i]); err != nil {
				t.Fatal(err)
			}
			if len(got) != i+1 || got[i] != sent[i] {
				t.Fatalf("after %s: got %v, want the same pointer as %p", topic, got, sent[i])
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Close takes no time (goka sleeps five seconds when a session ends by itself) and
// leaves no goroutine behind: the bubble fails otherwise.
func TestFeedCloseIsImmediateAndIdempotent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		f := startFeed(t, FeedConfig{Persist: true, Handle: func(any) {}})
		for range 2 {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Fatalf("start and close took %v of fake time", d)
		}
		if err := f.Process("in", 1); !errors.Is(err, ErrFeedClosed) {
			t.Fatalf("Process after Close: %v", err)
		}
		if err := f.Start(t.Context()); !errors.Is(err, ErrFeedClosed) {
			t.Fatalf("Start after Close: %v", err)
		}

		unstarted, err := NewFeed(FeedConfig{Group: "g", Inputs: []string{"in"}, Handle: func(any) {}})
		if err != nil {
			t.Fatal(err)
		}
		if err := unstarted.Process("in", 1); !errors.Is(err, ErrFeedClosed) {
			t.Fatalf("Process before Start: %v", err)
		}
		if err := unstarted.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFeedOutlivesStartContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := NewFeed(FeedConfig{Group: "g", Inputs: []string{"in"}, Handle: func(any) {}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if err := f.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if err := f.Process("in", 1); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFeedPanicReachesTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		f := startFeed(t, FeedConfig{Handle: func(b any) {
			if b == 2 {
				panic(boom)
			}
		}})
		for i := range 5 {
			err := f.Process("in", i)
			var p *PanicError
			if want := i == 2; errors.As(err, &p) != want {
				t.Fatalf("batch %d: %v", i, err)
			}
			if i == 2 && (!errors.Is(err, boom) || !strings.Contains(err.Error(), "goka_test.go")) {
				t.Fatalf("cause or stack lost: %v", err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A processor that dies must not leave a caller waiting: goka ends it when a
// message has an unknown topic, and here also when Handle ends the goroutine.
func TestFeedProcessNeverHangs(t *testing.T) {
	t.Run("processor dies", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			f := startFeed(t, FeedConfig{Handle: func(any) { t.Error("called") }})
			err := f.Process("unknown", 1)
			if err == nil || !strings.Contains(err.Error(), "cannot handle topic unknown") {
				t.Fatalf("got %v", err)
			}
			if err := f.Process("in", 1); err == nil || errors.Is(err, ErrFeedClosed) {
				t.Fatalf("the cause is lost: %v", err)
			}
			if err := f.Close(); err == nil {
				t.Fatal("Close hides why the processor died")
			}
			if d := time.Since(start); d > 0 {
				t.Fatalf("took %v", d)
			}
		})
	})
	t.Run("goroutine ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			f := startFeed(t, FeedConfig{Handle: func(any) { runtime.Goexit() }})
			var p *PanicError
			if err := f.Process("in", 1); !errors.As(err, &p) {
				t.Fatalf("got %v", err)
			}
			if err := f.Process("in", 1); err == nil {
				t.Fatal("the feed has lost its goroutine and goes on")
			}
			_ = f.Close()
			if d := time.Since(start); d > 0 {
				t.Fatalf("took %v", d) // goka waits a minute for a message that never ends
			}
		})
	})
	t.Run("closed under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			release, entered := make(chan struct{}), make(chan struct{})
			f := startFeed(t, FeedConfig{Handle: func(any) { close(entered); <-release }})
			done := f.Begin("in", 1)
			<-entered
			if err := <-f.Begin("in", 2); !errors.Is(err, ErrFeedBusy) {
				t.Fatalf("second batch: %v", err)
			}
			closed := make(chan error, 1)
			go func() { closed <- f.Close() }()
			synctest.Wait()
			if len(closed) > 0 {
				t.Fatal("Close did not wait for the batch")
			}
			close(release)
			if err := <-done; err != nil {
				t.Fatalf("the batch was processed: %v", err)
			}
			if err := <-closed; err != nil {
				t.Fatal(err)
			}
		})
	})
}

// Several tasks of a worker run at once, each feed in order.
func TestFeedsRunAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4
		var inside atomic.Int32
		all := make(chan struct{})
		var feeds []*Feed
		for p := range int32(n) {
			feeds = append(feeds, startFeed(t, FeedConfig{Partition: p, Handle: func(any) {
				if inside.Add(1) == n {
					close(all)
				}
				<-all // passes only when every feed is in its callback
			}}))
		}
		var done []<-chan error
		for _, f := range feeds {
			done = append(done, f.Begin("in", 1))
		}
		for i, f := range feeds {
			if err := <-done[i]; err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestFeedConfigErrors(t *testing.T) {
	handle := func(any) {}
	for name, tc := range map[string]struct {
		cfg  FeedConfig
		want string
	}{
		"empty":       {FeedConfig{}, "no group name"},
		"no handle":   {FeedConfig{Group: "g", Inputs: []string{"a"}}, "no Handle"},
		"no input":    {FeedConfig{Group: "g", Handle: handle}, "no input"},
		"input twice": {FeedConfig{Group: "g", Handle: handle, Inputs: []string{"a", "a"}}, "named twice"},
		"own loop":    {FeedConfig{Group: "g", Handle: handle, Inputs: []string{"g-loop"}}, "of the group itself"},
		"own table":   {FeedConfig{Group: "g", Handle: handle, Inputs: []string{"a"}, Outputs: []string{"g-table"}}, "of the group itself"},
		"partition":   {FeedConfig{Group: "g", Handle: handle, Inputs: []string{"a"}, Partition: -1}, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewFeed(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// A feed's footprint decides how many partitions an instance can own.
func TestFeedGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := runtime.NumGoroutine()
		const n = 50
		var feeds []*Feed
		for p := range int32(n) {
			feeds = append(feeds, startFeed(t, FeedConfig{Partition: p, Inputs: []string{"a", "b", "c"}, Loop: true, Persist: true, Handle: func(any) {}}))
		}
		synctest.Wait()
		if per := float64(runtime.NumGoroutine()-before) / n; per > 4.5 {
			t.Errorf("%.1f goroutines per feed, want 4", per)
		}
		for _, f := range feeds {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkFeedProcess(b *testing.B) {
	f := startFeed(b, FeedConfig{Handle: func(any) {}})
	defer f.Close()
	batch := new(int)
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Process("in", batch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFeedStartClose(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		f := startFeed(b, FeedConfig{Persist: true, Handle: func(any) {}})
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleFeed() {
	f, err := NewFeed(FeedConfig{
		Group:  "app.orders-task",
		Inputs: []string{"orders"},
		Handle: func(batch any) { fmt.Println("got", batch) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := f.Start(context.Background()); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(f.Process("orders", []string{"one", "two"}))
	fmt.Println(f.Close())
	// Output:
	// got [one two]
	// <nil>
	// <nil>
}
