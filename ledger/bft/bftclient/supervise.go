package bftclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Supervisor says which process to keep running.
type Supervisor struct {
	Exe  string   // the program: os.Executable()
	Args []string // such as ledger, run, --dir, DIR
	Env  []string // beyond this process's
	Log  *slog.Logger
	// Pause before a restart; it doubles up to Most while the process ends early. 0: one second, up to one minute.
	Pause, Most time.Duration
	Grace       time.Duration // to end before it is killed; 0: 20 s
	// Ended is told why the process ended by itself, with the last line that it said; nil: only the log is.
	Ended func(error)
}

// steady is how long a process must run for its next end to count as the first.
const steady = 5 * time.Minute

// Supervise starts the engine's process, passes its log on, starts it again when it ends, and stops it with ctx: it returns when
// the process is gone, with the last error if it never ran. The process ends too when this one is killed, as its standard input
// then closes ([Child]). Two engines in one folder are kept apart by the lock on their database.
func Supervise(ctx context.Context, s Supervisor) error {
	if s.Pause == 0 {
		s.Pause = time.Second
	}
	if s.Most == 0 {
		s.Most = time.Minute
	}
	if s.Grace == 0 {
		s.Grace = 20 * time.Second
	}
	pause := s.Pause
	for {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steady {
			pause = s.Pause
		}
		if s.Ended != nil {
			s.Ended(err)
		}
		s.Log.Warn("the ledger's engine ended; it is started again", "err", err, "in", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, s.Most)
	}
}

func (s *Supervisor) once(ctx context.Context) error {
	cmd := exec.Command(s.Exe, s.Args...)
	cmd.Env = append(os.Environ(), s.Env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", s.Exe, err), w.Close())
	}
	var lines sync.WaitGroup
	last := ""
	lines.Go(func() {
		r := bufio.NewScanner(out)
		r.Buffer(make([]byte, 4096), 64<<10)
		for r.Scan() {
			last = r.Text()
			s.Log.Info("ledger", "line", last)
		}
		_, _ = io.Copy(io.Discard, out) // a line too long: the process must not hang on it
	})
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = in.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM) // where there are no signals, the closed input says the same
		select {
		case err = <-ended:
		case <-time.After(s.Grace):
			s.Log.Warn("the ledger's engine did not end and is killed; it loses nothing")
			_ = cmd.Process.Kill()
			err = <-ended
		}
	}
	_ = w.Close()
	lines.Wait()
	if err != nil && last != "" {
		return fmt.Errorf("%s (%w)", strings.TrimPrefix(last, "weft: "), err)
	}
	return err
}

// Child returns a context that ends when the supervisor does: its end closes in, which is the process's standard input. The
// goroutine behind it lasts as long as the process.
func Child(ctx context.Context, in io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	return ctx
}
