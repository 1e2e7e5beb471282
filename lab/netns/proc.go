//go:build linux && !router

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs in a node's namespace, its output in a log file.
type Process struct {
	Name string
	Pid  int
	Log  string // path of the file with its standard output and error

	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; read it after done
}

// Usage is what a process has used so far.
type Usage struct {
	CPU time.Duration // user and system time, its waited-for children included
	RSS int64         // bytes resident now
}

// hertz is the kernel's USER_HZ, the unit of /proc/PID/stat. It is 100 on every architecture that Linux still supports.
const hertz = 100

// Spawn starts a program in the node's namespace. It is killed when the world closes, or dies.
func (w *World) Spawn(node, name string, argv ...string) (*Process, error) {
	n, err := w.node(node)
	if err != nil {
		return nil, err
	}
	logPath := filepath.Join(n.Dir, name+".log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s on %s: %w", name, node, err)
	}
	defer out.Close()
	cmd := w.command(context.Background(), n, argv)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, node, err)
	}
	p := &Process{Name: name, Pid: cmd.Process.Pid, Log: logPath, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	w.mu.Lock()
	w.procs = append(w.procs, p)
	w.mu.Unlock()
	return p, nil
}

// command prepares argv for the node's namespace. `ip netns exec` replaces itself by the program, so its pid is the program's.
func (w *World) command(ctx context.Context, n *Node, argv []string) *exec.Cmd {
	args := []string{"netns", "exec", n.Namespace}
	if n.resolv != "" { // `ip netns exec` has made a mount namespace for it: nobody else sees this, and it leaves nothing
		args = append(args, "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, n.resolv)
	}
	args = append(args, argv...)
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Dir = n.Dir
	cmd.Env = append(os.Environ(), "WEFT_LAB_NODE="+n.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// Exec runs a program in the node's namespace and returns its standard output. On failure the error carries what it said.
func (w *World) Exec(ctx context.Context, node string, argv ...string) ([]byte, error) {
	n, err := w.node(node)
	if err != nil {
		return nil, err
	}
	var out, errOut bytes.Buffer
	cmd := w.command(ctx, n, argv)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(errOut.String())
		if said == "" {
			said = strings.TrimSpace(out.String())
		}
		return out.Bytes(), fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), node, err, said)
	}
	return out.Bytes(), nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends sig to the process and whatever it started.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	return syscall.Kill(-p.Pid, sig)
}

// Stop asks the process to end and waits; one that has not after limit is killed, and that is an error.
func (p *Process) Stop(limit time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return p.err
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-p.done:
		return p.err
	case <-t.C:
		p.Kill()
		return fmt.Errorf("%s (pid %d) did not end within %v of SIGTERM", p.Name, p.Pid, limit)
	}
}

// Kill ends the process at once (SIGKILL) and waits for it.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// WaitLine waits until the process has written a line that starts with prefix, and returns it.
func (p *Process) WaitLine(ctx context.Context, prefix string) (string, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(p.Log)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, prefix) && strings.HasSuffix(line, "\n") {
				return strings.TrimSpace(line), nil
			}
		}
		select {
		case <-p.done:
			return "", fmt.Errorf("%s ended before it was ready: %v\n%s", p.Name, p.err, tail(p.Log, 20))
		case <-ctx.Done():
			return "", fmt.Errorf("%s did not say %q: %w\n%s", p.Name, prefix, ctx.Err(), tail(p.Log, 20))
		case <-tick.C:
		}
	}
}

// Usage reads what the process uses.
func (p *Process) Usage() (Usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	if err != nil {
		return Usage{}, fmt.Errorf("read the use of %s: %w", p.Name, err)
	}
	// The name, in brackets, may hold anything; fields are counted from its end. See proc_pid_stat(5).
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 22 {
		return Usage{}, fmt.Errorf("read the use of %s: short stat line", p.Name)
	}
	var ticks int64
	for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("read the use of %s: %w", p.Name, err)
		}
		ticks += v
	}
	pages, err := strconv.ParseInt(f[21], 10, 64)
	if err != nil {
		return Usage{}, fmt.Errorf("read the use of %s: %w", p.Name, err)
	}
	return Usage{CPU: time.Duration(ticks) * time.Second / hertz, RSS: pages * int64(os.Getpagesize())}, nil
}

// WriteLogs writes the end of every process's log, for people who ask why a run failed.
func (w *World) WriteLogs(out io.Writer, lines int) {
	w.mu.Lock()
	procs := append([]*Process(nil), w.procs...)
	w.mu.Unlock()
	seen := map[string]bool{}
	for _, p := range procs {
		if seen[p.Log] {
			continue
		}
		seen[p.Log] = true
		rel, _ := filepath.Rel(w.Dir, p.Log)
		fmt.Fprintf(out, "--- %s\n%s", rel, tail(p.Log, lines))
	}
}

func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error() + "\n"
	}
	all := strings.SplitAfter(string(b), "\n")
	return strings.Join(all[max(0, len(all)-lines-1):], "")
}

// pidsIn lists the processes, but this one, whose network namespace is one of those inodes.
func pidsIn(inodes map[string]bool) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, d := range dirs {
		if target, err := os.Readlink(d); err == nil && inodes[target] {
			if pid, err := strconv.Atoi(strings.Split(d, "/")[2]); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killIn kills every process whose network namespace is one of those inodes.
func killIn(inodes map[string]bool, grace time.Duration) {
	deadline := time.Now().Add(grace)
	for sig := syscall.SIGTERM; ; {
		pids := pidsIn(inodes)
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			if sig == syscall.SIGKILL {
				return // unkillable: in the kernel's hands
			}
			sig, deadline = syscall.SIGKILL, time.Now().Add(2*time.Second)
		}
		for _, pid := range pids {
			syscall.Kill(pid, sig)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
