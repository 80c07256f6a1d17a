package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

const openNoFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// textOptions are what the text of a value depends on and pg_dump leaves to the server's defaults, which differ between
// databases: with these a value is dumped, restored and compared in one form.
const textOptions = "-c bytea_output=hex -c lc_monetary=C -c default_transaction_read_only=off -c array_nulls=on"

// A clientRun is one run of pg_dump or pg_restore.
type clientRun struct {
	server   *server.Server
	log      *slog.Logger
	op       string // for errors: "dump"
	program  string
	database string
	version  string // the server's; "" = not known
	beside   bool   // the node runs: it goes first
	observe  manifest.Observe
	phase    string
	total    int64 // bytes, as good as they are known
}

// run runs the program to its end, at low priority where the node runs beside it. Its warnings are logged. The error says
// what it complained of first, and what to do.
func (c *clientRun) run(ctx context.Context, args ...string) error {
	cmd, err := c.server.Program(c.program, c.database, args...)
	if err != nil {
		return err
	}
	addOptions(cmd, c.version)
	if c.beside {
		kind(cmd)
	}
	stop := c.watch(ctx)
	res, err := proc.Output(ctx, cmd, 4<<10)
	stop()
	for line := range bytes.Lines(res.Stderr) {
		if text := string(bytes.TrimSpace(line)); strings.Contains(text, " warning: ") {
			c.log.Warn("a client program warns", "program", c.program, "text", text)
		}
	}
	if err != nil {
		return c.explain(ctx, err, string(res.Stderr))
	}
	c.observe(c.phase, c.total, c.total)
	return nil
}

// addOptions joins textOptions to the options that the connection string has. The server is to notice when the program was
// killed, also while its session waits for a lock; servers before 14 don't know how.
func addOptions(cmd *exec.Cmd, version string) {
	options := ""
	if server.Major(version) >= 14 {
		options = "-c client_connection_check_interval=1s "
	}
	for _, kv := range cmd.Env {
		if v, ok := strings.CutPrefix(kv, "PGOPTIONS="); ok {
			options += v + " "
		}
	}
	cmd.Env = append(cmd.Env, "PGOPTIONS="+options+textOptions)
}

// kind makes room for the node. Machines without these programs do without.
func kind(cmd *exec.Cmd) {
	for _, wrap := range [][]string{{"ionice", "-c", "2", "-n", "7"}, {"nice", "-n", "10"}} {
		if path, err := exec.LookPath(wrap[0]); err == nil {
			cmd.Args = append(append(wrap, cmd.Path), cmd.Args[1:]...)
			cmd.Path = path
		}
	}
}

// explain turns a failed run into an error that names the first complaint, keeps the exit code and all of the tail
// (proc.Tail), and says what to do.
func (c *clientRun) explain(ctx context.Context, err error, stderr string) error {
	if cause := manifest.Interrupted(ctx, c.op); cause != nil {
		return cause
	}
	complaint := firstComplaint(stderr)
	if complaint != "" {
		err = &complaintError{complaint, err}
	}
	e := &hint.Error{Op: c.op, Path: c.server.Where(), Err: err}
	has := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(stderr, t) {
				return true
			}
		}
		return false
	}
	switch {
	case has("lock timeout"), has("LOCK TABLE") && has("statement timeout"): // --lock-wait-timeout is a statement_timeout
		e.Hint = "another session holds a lock: SELECT pid, application_name, query FROM pg_stat_activity WHERE state <> 'idle'"
	case has("server version mismatch"):
		e.Hint = "install PostgreSQL's client programs of the server's version or newer, and set [snapshot] pg_bin to their directory"
	case has("password authentication failed", "no password supplied"):
		e.Hint = "put the role's password into password_file, PGPASSFILE or the credential " + c.server.Source() + ".password"
	case has("No space left on device", "could not extend file", "Disk quota exceeded"):
		e.Hint = "make room: supervisor snapshot prune; on the server's side where its data lies"
	case has("row-level security"):
		e.Hint = "the role doesn't see every row: ALTER ROLE … BYPASSRLS, or name a role that does in dsn"
	case has("permission denied", "must be owner"):
		e.Hint = "the role lacks a right: supervisor doctor (it lists the rights that are needed)"
	case has("could not connect", "connection to server", "terminating connection", "server closed the connection", "no connection to the server"):
		e.Err = fmt.Errorf("%w: %w", manifest.ErrAway, err)
		e.Hint = "wait until it has started: pg_isready"
	}
	return e
}

// A complaintError shows a program's first complaint instead of its last line, which is a detail of it.
type complaintError struct {
	text string
	err  error
}

func (e *complaintError) Error() string {
	var exit *proc.ExitError
	if errors.As(e.err, &exit) && exit.Result.Code > 0 {
		return fmt.Sprintf("exit code %d: %s", exit.Result.Code, e.text)
	}
	return e.text
}

func (e *complaintError) Unwrap() error { return e.err }

// firstComplaint is the first line of a program's error output that is an error, with its detail; cut to 500 bytes.
func firstComplaint(stderr string) string {
	const longest = 500
	at := strings.Index(stderr, " error: ")
	if at < 0 {
		return ""
	}
	begin := strings.LastIndexByte(stderr[:at], '\n') + 1
	text, rest, _ := strings.Cut(stderr[begin:], "\n")
	for _, more := range []string{"DETAIL", " detail: "} {
		if next, _, _ := strings.Cut(rest, "\n"); strings.Contains(next, more) {
			text += ": " + strings.TrimSpace(next)
		}
	}
	if len(text) > longest {
		text = text[:longest] + "..."
	}
	return text
}

// withoutZstd tells that pg_dump was built without it.
func withoutZstd(err error) bool {
	tail := proc.Tail(err)
	return strings.Contains(tail, "zstd") && (strings.Contains(tail, "not support") || strings.Contains(tail, "nvalid"))
}

// watch reports how far our sessions are with their COPYs. Where the server doesn't tell, nothing is reported. The
// caller calls stop when the program has ended.
func (c *clientRun) watch(ctx context.Context) (stop func()) {
	c.observe(c.phase, 0, c.total)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.poll(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// poll sums up what each COPY has processed: those that have ended are no longer listed, and count with their last.
func (c *clientRun) poll(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	select { // a short run needs no session for this
	case <-ctx.Done():
		return
	case <-tick.C:
	}
	conn, err := c.server.Connect(ctx, c.database)
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the session ends with us
	type key struct{ pid, rel uint32 }
	seen := map[key]int64{}
	for {
		rows, err := conn.Query(ctx, `SELECT p.pid, p.relid, p.bytes_processed FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid)
			WHERE p.datname = current_database() AND a.application_name = $1`, server.AppName)
		if err != nil {
			return
		}
		for rows.Next() {
			var k key
			var n int64
			if rows.Scan(&k.pid, &k.rel, &n) == nil {
				seen[k] = max(seen[k], n)
			}
		}
		if rows.Err() != nil {
			return
		}
		done := int64(0)
		for _, n := range seen {
			done += n
		}
		c.observe(c.phase, min(done, c.total), c.total)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ownerOf is who owns a file.
func ownerOf(info os.FileInfo) (uid, gid uint32) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid, st.Gid
	}
	return 0, 0
}
