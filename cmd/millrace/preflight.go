package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// checkModel asks a model server for its list of models, so that a wrong address,
// key or name is told before anything runs. Servers that have no such list pass.
func checkModel(ctx context.Context, url, model string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/models", nil)
	if err != nil {
		return fmt.Errorf("model server: %w", err)
	}
	if key := os.Getenv(keyVariable); key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("model server: %w", err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<20)) // half a list is no list
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("model server: %s; set %s", resp.Status, keyVariable)
	case http.StatusBadGateway:
		var e struct {
			Error struct{ Message string }
		}
		_ = json.Unmarshal(body, &e)
		return fmt.Errorf("%s; check -model-url", e.Error.Message)
	default:
		return nil
	}
	var list struct {
		Data []struct{ ID string }
	}
	if json.Unmarshal(body, &list) != nil || len(list.Data) == 0 {
		return nil
	}
	var names []string
	for _, m := range list.Data {
		names = append(names, m.ID)
	}
	if slices.Contains(names, model) {
		return nil
	}
	if len(names) > 10 {
		names = append(names[:10], "...")
	}
	return usagef("-model %q: the server does not have it; it has %s", model, strings.Join(names, ", "))
}
