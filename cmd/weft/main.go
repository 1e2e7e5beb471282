// Command weft is a node of an internet that its neighbourhood owns, and the
// command line that looks after one. It starts package cli and turns SIGINT and
// SIGTERM into the end of its context; a second signal ends the process at
// once. Nothing imports it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"weft/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // from here on signals are what they are by default
	return cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
