//go:build unix

package bftclient

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// Who supervises hears why the engine ended, in the engine's own words, each time.
func TestSupervisorTellsWhy(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told []string
	err := Supervise(ctx, Supervisor{Exe: "/bin/sh", Args: []string{"-c", "echo a line; echo 'weft: update weft' >&2; exit 1"}, Log: slog.New(slog.DiscardHandler),
		Pause: time.Millisecond, Most: time.Millisecond, Ended: func(err error) {
			if told = append(told, err.Error()); len(told) == 2 {
				cancel()
			}
		}})
	if err != nil || len(told) != 2 || !strings.HasPrefix(told[1], "update weft (") {
		t.Errorf("%v, %q", err, told)
	}
}
