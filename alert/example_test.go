package alert_test

import (
	"context"
	"fmt"

	"github.com/millrace/millrace/alert"
)

// A sink is a function: this one would page somebody. Give it to millrace.OnAlert.
func ExampleSink() {
	var page alert.Sink = func(_ context.Context, a alert.Alert) error {
		if a.Severity == alert.Critical {
			fmt.Println(a.State, a.Kind, a.Step, a.Subject)
		}
		return nil
	}
	_ = page(context.Background(), alert.Alert{Kind: alert.NoMoney, State: alert.Raised, Severity: alert.Critical, Step: "triage", Subject: "openai/gpt-5-mini"})
	_ = page(context.Background(), alert.Alert{Kind: alert.Drift, State: alert.Raised, Severity: alert.Warning, Step: "triage"})
	// Output: raised no_money triage openai/gpt-5-mini
}
