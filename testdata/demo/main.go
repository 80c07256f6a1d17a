// Demo carries out one upgrade of a running node before the reader's eyes: it builds the supervisor and two versions of
// a node, starts the first, lets the chain reach the height of the plan, and prints what happened when. Everything lies
// in a temporary directory and is gone afterwards.
//
// With -postgres the node's blocks lie in a PostgreSQL database, on a throw-away server. The upgrade clones it; a second
// upgrade damages it on purpose and is rolled back, and the database is shown to be what it was.
//
//	go run ./testdata/demo [-postgres] [-v] [-keep]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	upgradeName   = "v2"
	upgradeHeight = 20
	blockTime     = 150 * time.Millisecond
	probation     = 2 * time.Second
	storyLimit    = 3 * time.Minute // without the builds: a busy machine takes its time
	stopLimit     = time.Minute
	pollInterval  = 50 * time.Millisecond
)

// status is what the demo reads of `supervisor status --json`.
type status struct {
	State   string `json:"state"`
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Height  *int64 `json:"height"`
	Hold    *struct {
		Reason string `json:"reason"`
		Hint   string `json:"hint"`
	} `json:"hold"`
	Upgrade *struct {
		Name  string `json:"name"`
		Phase string `json:"phase"`
	} `json:"upgrade"`
	LastUpgrade *lastUpgrade `json:"last_upgrade"`
}

type lastUpgrade struct {
	Name       string  `json:"name"`
	From       string  `json:"from"`
	To         string  `json:"to"`
	Result     string  `json:"result"`
	DowntimeMS float64 `json:"downtime_ms"`
	Snapshot   *string `json:"snapshot"`
	Phases     []struct {
		Phase string  `json:"phase"`
		MS    float64 `json:"ms"`
	} `json:"phases"`
}

// demo is one run of it: its directory, and the environment that every command gets.
type demo struct {
	dir, supervisor string
	env             []string
	verbose         bool
	pg              *cluster // nil: the blocks are in files alone
	over            bool     // run has ended by itself
	upgrades        string   // what the chain will ask for
	run             *exec.Cmd
	ended           chan error // what `supervisor run` ended with
	node            int        // the node's pid, as last seen
}

func main() {
	verbose := flag.Bool("v", false, "show the output of the supervisor and the node")
	keep := flag.Bool("keep", false, "keep the directory")
	postgres := flag.Bool("postgres", false, "the blocks lie in PostgreSQL; a bad upgrade follows, and is rolled back")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := tell(ctx, *postgres, *verbose, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo failed:", err)
		os.Exit(1)
	}
}

func tell(ctx context.Context, postgres, verbose, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "nodevisor-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if keep {
			fmt.Println("\nkept:", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	d := &demo{dir: dir, supervisor: filepath.Join(dir, "bin", "supervisor"), verbose: verbose, ended: make(chan error, 1)}
	if err := d.build(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storyLimit)
	defer cancel()
	d.upgrades = fmt.Sprintf("%s@%d", upgradeName, upgradeHeight)
	if postgres {
		var more context.CancelFunc
		ctx, more = context.WithTimeout(context.WithoutCancel(ctx), 4*storyLimit)
		defer more()
		d.upgrades += fmt.Sprintf(";%s@%d", badName, badHeight)
		defer func() {
			if d.pg != nil {
				err = errors.Join(err, d.pg.stop())
			}
		}()
		if err := d.preparePostgres(ctx); err != nil {
			return err
		}
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	last, err := d.watch(ctx)
	if err == nil {
		report(last)
	}
	if err == nil && postgres {
		err = d.tellPostgres(ctx)
	}
	if stopErr := d.stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		d.showLog()
	}
	return err
}

func (d *demo) home() string { return filepath.Join(d.dir, "home") }

func (d *demo) binary(version string) string { return filepath.Join(d.dir, "bin", version, "fakenode") }

// build makes the three programs.
func (d *demo) build(ctx context.Context) error {
	fmt.Println("building the supervisor and versions of a node ...")
	for out, args := range map[string][]string{
		"supervisor":  {"./cmd/supervisor"},
		"fetch":       {"./cmd/fetch"},
		"v1/fakenode": {"-ldflags", "-X main.version=v1", "./internal/fakenode"},
		"v2/fakenode": {"-ldflags", "-X main.version=v2", "./internal/fakenode"},
		"v3/fakenode": {"-ldflags", "-X main.version=v3", "./internal/fakenode"},
	} {
		args = append([]string{"build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(d.dir, "bin", out)}, args...)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot build %s: %w\n%s", out, err, text)
		}
	}
	return nil
}

// prepare makes the home, installs the first version and stages the second.
func (d *demo) prepare(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	rpc := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); !steers(name) {
			d.env = append(d.env, e)
		}
	}
	d.env = append(d.env, "DAEMON_HOME="+d.home(), "DAEMON_NAME=fakenode",
		"SUPERVISOR_UPGRADE_PROBATION_UP="+probation.String(), "FAKENODE_BLOCK_TIME="+blockTime.String(),
		"FAKENODE_UPGRADE="+d.upgrades)

	v1 := d.binary("v1")
	if _, err := d.output(ctx, v1, "init", "--rpc", rpc); err != nil {
		return err
	}
	fmt.Print("\n$ export DAEMON_HOME=", d.home(), " DAEMON_NAME=fakenode\n")
	for _, args := range [][]string{{"init", v1}, {"upgrade", "add", upgradeName, d.binary(upgradeName)}} {
		fmt.Println("$ supervisor", strings.Join(args, " "))
		if _, err := d.output(ctx, d.supervisor, args...); err != nil {
			return err
		}
	}
	return nil
}

// steers says whether a variable of the caller's would change what the demo shows.
func steers(name string) bool {
	for _, prefix := range []string{"DAEMON_", "COSMOVISOR_", "SUPERVISOR_", "FAKENODE_", "UNSAFE_SKIP_BACKUP", "NOTIFY_SOCKET", "WATCHDOG_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// output runs a command to its end and returns its stdout. The error carries its stderr.
func (d *demo) output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = d.env, &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("cannot run %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}

func (d *demo) logPath() string { return filepath.Join(d.dir, "run.log") }

// start runs the supervisor, in a process group of its own: a Ctrl-C is handled here, once.
func (d *demo) start(more ...string) error {
	args := append([]string{"run", "start"}, more...)
	fmt.Print("$ supervisor ", strings.Join(args, " "), "\n\n")
	d.over = false
	d.run = exec.Command(d.supervisor, args...)
	d.run.Env, d.run.SysProcAttr = d.env, &syscall.SysProcAttr{Setpgid: true}
	if d.verbose {
		d.run.Stdout, d.run.Stderr = os.Stdout, os.Stderr
	} else {
		log, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer log.Close() //nolint:errcheck // the child has its own descriptor
		d.run.Stdout, d.run.Stderr = log, log
	}
	if err := d.run.Start(); err != nil {
		return err
	}
	go func() { d.ended <- d.run.Wait() }()
	return nil
}

// watch prints every change until the upgrade is committed.
func (d *demo) watch(ctx context.Context) (*lastUpgrade, error) {
	began, shown := time.Now(), ""
	for {
		select {
		case err := <-d.ended:
			d.ended <- err
			return nil, fmt.Errorf("supervisor run ended: %w", err)
		case <-ctx.Done():
			return nil, fmt.Errorf("the upgrade wasn't committed in time; last seen: %s: %w", shown, context.Cause(ctx))
		case <-time.After(pollInterval):
		}
		out, err := d.output(ctx, d.supervisor, "status", "--json")
		var s status
		if json.Unmarshal(out, &s) != nil || s.State == "" {
			if err != nil && shown != "" && ctx.Err() == nil {
				return nil, err
			}
			continue // the socket isn't there yet
		}
		d.node = s.PID
		if s.Hold != nil {
			return nil, fmt.Errorf("held: %s (%s)", s.Hold.Reason, s.Hold.Hint)
		}
		if now := s.describe(); now != shown {
			fmt.Printf("%6.2f s  %s%s\n", time.Since(began).Seconds(), now, s.at())
			shown = now
		}
		if u := s.LastUpgrade; u != nil && u.Name == upgradeName {
			if u.Result != "committed" || s.Version != upgradeName {
				return nil, fmt.Errorf("the upgrade ended as %q, running %s", u.Result, s.Version)
			}
			return u, nil
		}
	}
}

func (s *status) describe() string {
	text := fmt.Sprintf("%-9s %-8s", s.State, s.Version)
	if s.Upgrade != nil {
		text += fmt.Sprintf("  upgrade %s: %s", s.Upgrade.Name, s.Upgrade.Phase)
	}
	return text
}

func (s *status) at() string {
	if s.Height == nil {
		return ""
	}
	return fmt.Sprintf("  (height %d)", *s.Height)
}

// stop ends the supervisor as an operator would. What doesn't end in time is killed, and that is a failure.
func (d *demo) stop() error {
	if d.over {
		return d.endNode()
	}
	_ = d.run.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-d.ended:
		if err != nil {
			err = fmt.Errorf("supervisor run ended: %w", err)
		}
		return errors.Join(err, d.endNode())
	case <-time.After(stopLimit):
		_ = d.run.Process.Kill()
		<-d.ended //nolint:errcheck // killed: its code says nothing
		return errors.Join(fmt.Errorf("supervisor run didn't stop within %v", stopLimit), d.endNode())
	}
}

// endNode kills a node that the supervisor left behind: only if the pid is still one of this demo's programs.
func (d *demo) endNode() error {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", d.node))
	if err != nil || !strings.HasPrefix(exe, d.dir+string(filepath.Separator)) {
		return nil
	}
	return errors.Join(fmt.Errorf("node %d was left behind", d.node), syscall.Kill(d.node, syscall.SIGKILL))
}

// showLog prints the end of what the supervisor and the node wrote.
func (d *demo) showLog() {
	const most = 4 << 10
	data, err := os.ReadFile(d.logPath())
	if err != nil {
		return
	}
	fmt.Fprintf(os.Stderr, "\nthe end of the log:\n%s\n", data[max(0, len(data)-most):])
}

// report prints the upgrade as a table.
func report(u *lastUpgrade) {
	fmt.Printf("\nupgrade %s: from %s to %s, %s\n\n", u.Name, u.From, u.To, u.Result)
	fmt.Printf("  %-14s %10s\n", "phase", "ms")
	for _, p := range u.Phases {
		fmt.Printf("  %-14s %10.1f\n", p.Phase, p.MS)
	}
	fmt.Printf("\n  the node was down for %.0f ms", u.DowntimeMS)
	if u.Snapshot != nil {
		fmt.Printf(", snapshot %s", *u.Snapshot)
	}
	fmt.Println()
}
