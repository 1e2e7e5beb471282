package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weft": main})
}

// TestScripts runs the command line as users see it: testdata/*.txtar, each in
// a folder of its own. Beside testscript's own commands there are
//
//	await REGEXP weft ARGS…     run again and again until what it prints matches, for at most 20 s
//	expand FROM TO              write a file with $VARIABLES replaced
//	field VAR PATH              set VAR to a field of the JSON on the last standard output, such as listen.0
//	mode FILE OCTAL             the permissions are these
//	secret VAR FILE             set VAR to the private key in a key file
//	serve VAR TEXT              serve TEXT by HTTP on this host until the script ends, and set VAR to the address
//	sigkill                     kill all that runs in the background
//	sigterm                     send SIGTERM, twice, to all that runs in the background
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// What belongs to the user who runs the test must not be touched.
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "home", "state"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "home", "config"))
			return os.MkdirAll(filepath.Join(e.WorkDir, "home"), 0o755)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			if path, ok := strings.CutPrefix(cond, "exists:"); ok {
				_, err := os.Stat(path)
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":   await,
			"field":   field,
			"expand":  expand,
			"mode":    mode,
			"secret":  secret,
			"serve":   serve,
			"sigkill": sigkill,
			"sigterm": sigterm,
		},
	})
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP COMMAND…")
	}
	re := regexp.MustCompile("(?m)" + args[0])
	deadline := time.Now().Add(20 * time.Second)
	var out []byte
	for {
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Dir = ts.Getenv("WORK")
		cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "HOME="+ts.Getenv("HOME"))
		if path, err := lookPath(ts.Getenv("PATH"), args[1]); err == nil {
			cmd.Path, cmd.Err = path, nil
		}
		out, _ = cmd.CombinedOutput()
		if re.Match(out) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after 20 s %q does not match; the last was:\n%s", args[0], out)
		}
		time.Sleep(50 * time.Millisecond) // another process is awaited: there is nothing to wait on
	}
}

func lookPath(path, name string) (string, error) {
	for dir := range strings.SplitSeq(path, string(filepath.ListSeparator)) {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", exec.ErrNotFound
}

func field(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: field VAR PATH")
	}
	var v any
	d := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile("stdout"))))
	d.UseNumber()
	ts.Check(d.Decode(&v))
	for part := range strings.SplitSeq(args[1], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(x) {
				ts.Fatalf("%s: there is no %s in %v", args[1], part, x)
			}
			v = x[i]
		}
	}
	if v == nil || v == "" {
		ts.Fatalf("%s is not there", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: mode FILE OCTAL")
	}
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", fi.Mode().Perm()); (got == args[1]) == neg {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

func secret(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: secret VAR FILE")
	}
	key := regexp.MustCompile("(?m)^[0-9a-f]{64}$").FindString(ts.ReadFile(args[1]))
	if key == "" {
		ts.Fatalf("there is no key in %s", args[1])
	}
	ts.Setenv(args[0], key)
}

func sigterm(ts *testscript.TestScript, neg bool, args []string) {
	for _, cmd := range ts.BackgroundCmds() {
		for range 2 { // as timeout(1) does, to the process and then to its group
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
				ts.Check(err)
			}
			time.Sleep(time.Millisecond) // so that they are two and not one that is pending
		}
	}
}

func sigkill(ts *testscript.TestScript, neg bool, args []string) {
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Kill())
	}
}

func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: serve VAR TEXT")
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, args[1]) }))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.Listener.Addr().String())
}

func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: expand FROM TO")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o644))
}
