package registry_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/broker/brokertest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/llm/prompt"
)

// crowd has programs change one label at the same time: each change is made for what
// the one before it left, so that the label remembers them all.
func crowd(t *testing.T, addr string, programs int) {
	t.Helper()
	conf := kafka.Config{Brokers: []string{addr}}
	open := func() *registry.Registry { return registry.New("app", &conf) }
	if _, err := open().Read(t.Context()); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("read a topic that is not there: %v", err)
	}
	var wg sync.WaitGroup
	for i := range programs {
		wg.Go(func() {
			v := prompt.Must(prompt.Config{Name: "p", User: fmt.Sprint(i, " {{.Event}}")})
			r := open()
			if err := r.Publish(t.Context(), v, ""); err != nil {
				t.Error(err)
				return
			}
			err := r.Update(t.Context(), func(reg *prompt.Registry) ([]prompt.Record, error) {
				return reg.SetLabel("p", prompt.Canary, v.Version(), 50, time.Now(), "")
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	reg, err := open().Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	labels := reg.Labels("p")
	if len(reg.Versions("p")) != programs || len(labels) != 1 || len(labels[0].Earlier) != programs-1 {
		t.Errorf("%d versions and the label %+v, want %d and a label that was %d others before", len(reg.Versions("p")), labels, programs, programs-1)
	}

	// A change that is refused, or is none, writes nothing.
	refused := errors.New("refused")
	err = open().Update(t.Context(), func(*prompt.Registry) ([]prompt.Record, error) { return []prompt.Record{{Key: "x"}}, refused })
	if !errors.Is(err, refused) {
		t.Errorf("a refused change: %v", err)
	}
	calls := 0
	err = open().Update(t.Context(), func(*prompt.Registry) ([]prompt.Record, error) { calls++; return nil, nil })
	if err != nil || calls != 1 {
		t.Errorf("no change: %v after %d calls", err, calls)
	}
}

func TestChangesComeOneAfterTheOther(t *testing.T) {
	t.Parallel()
	crowd(t, brokertest.Embedded(t).Addr(), 6)
}
