// Command weft is a node of an internet that its neighbourhood owns, and the
// command line that looks after one. It starts package cli and turns SIGINT and
// SIGTERM into the end of its context; a second signal, a while later, ends the
// process at once. Nothing imports it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"weft/cli"
)

// grace is how long further signals are taken for the first one. Whoever signals
// a whole process group, as timeout(1) does, signals twice.
const grace = time.Second

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		time.Sleep(grace)
		stop()
	})
	return cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
