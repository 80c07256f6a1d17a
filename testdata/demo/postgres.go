package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	badName   = "v3" // its migration damages the table
	badHeight = 60
	ballast   = 200_000 // rows beside the blocks, so that there is something to copy
)

// cluster is a throw-away PostgreSQL server on a socket in the demo's directory.
type cluster struct {
	dir, bin string
	as       *syscall.SysProcAttr // PostgreSQL refuses root
}

// startCluster makes and starts one with the newest server that is installed.
func startCluster(ctx context.Context, dir string) (*cluster, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // the pattern is well-formed
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if pg := os.Getenv("PG_BIN"); pg != "" {
		found = []string{filepath.Join(pg, "initdb")}
	}
	if len(found) == 0 {
		return nil, errors.New("no PostgreSQL server is installed: make deps")
	}
	c := &cluster{dir: dir, bin: filepath.Dir(found[len(found)-1])}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if err := c.becomePostgres(); err != nil {
			return nil, err
		}
	}
	conf := fmt.Sprintf("-c listen_addresses= -c unix_socket_directories=%s -c wal_level=logical -c max_prepared_transactions=10", dir)
	return c, errors.Join(
		c.run(ctx, "initdb", "-D", c.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"),
		c.run(ctx, "pg_ctl", "-D", c.data(), "-l", filepath.Join(dir, "log"), "-w", "-s", "-o", conf, "start"))
}

func (c *cluster) becomePostgres() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return err
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	c.as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return errors.Join(uerr, gerr, os.Chown(c.dir, int(uid), int(gid)), os.Chmod(filepath.Dir(c.dir), 0o755))
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

func (c *cluster) dsn(database string) string {
	return fmt.Sprintf("host=%s user=postgres dbname=%s", c.dir, database)
}

func (c *cluster) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, program), args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Env = c.dir, c.as, []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + c.dir}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s: %w\n%s", program, err, out)
	}
	return nil
}

func (c *cluster) stop() error {
	return c.run(context.Background(), "pg_ctl", "-D", c.data(), "-w", "-s", "-m", "immediate", "stop")
}

// query gives the rows of a query, each as text.
func (c *cluster) query(ctx context.Context, database, sql string) ([]string, error) {
	conn, err := pgx.Connect(ctx, c.dsn(database))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing hangs on it
	rows, err := conn.Query(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// content is what is compared: rows and a digest over all of them, of the table of blocks and of the state.
func (d *demo) content(ctx context.Context) (string, error) {
	all, err := d.pg.query(ctx, "node", `SELECT count(*) || ' blocks, ' || md5(string_agg(b::text, chr(10) ORDER BY height)) ||
		', state ' || (SELECT coalesce(md5(string_agg(s::text, chr(10) ORDER BY key)), 'empty') FROM state s) FROM blocks b`)
	return strings.Join(all, "; "), err
}

// preparePostgres starts the server and makes the node's database and the configuration.
func (d *demo) preparePostgres(ctx context.Context) (err error) {
	if d.pg, err = startCluster(ctx, filepath.Join(d.dir, "pg")); err != nil {
		return err
	}
	for _, s := range []struct{ database, sql string }{
		{"postgres", "CREATE DATABASE node"},
		{"node", fmt.Sprintf("CREATE TABLE ballast AS SELECT i, md5(i::text) || md5((-i)::text) AS hash FROM generate_series(1, %d) i", ballast)},
	} {
		if _, err := d.pg.query(ctx, s.database, s.sql); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(`[node]
name = "fakenode"
env = { FAKENODE_POSTGRES = %q }
[version.v3]
env = { FAKENODE_DAMAGE = "true" }
[snapshot]
min_free = "0"
[[snapshot.source]]
name = "data"
kind = "dir"
path = "data"
[[snapshot.source]]
name = "blocks"
kind = "postgres"
dsn = %q
mode = "clone"
fallback = "hold"
after = ["data"]
`, d.pg.dsn("node"), d.pg.dsn("node"))
	file := filepath.Join(d.home(), "supervisor", "supervisor.toml")
	for _, dir := range []string{filepath.Dir(file), filepath.Join(d.home(), "data")} { // a source must be there at the start
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	return os.WriteFile(file, []byte(config), 0o600)
}

// tellPostgres goes on after the good upgrade: a bad one, its rollback, and the proof that nothing is lost.
func (d *demo) tellPostgres(ctx context.Context) error {
	fmt.Printf("\nthe next upgrade, %s, is a bad one: its migration damages the table and exits. The node stands at its height,\nand waits for the binary:\n\n", badName)
	if err := d.await(ctx, func(s *status) bool { return s.State == "waiting-for-binary" }); err != nil {
		return err
	}
	before, err := d.content(ctx)
	if err != nil {
		return err
	}
	fmt.Println("  before:    ", before)
	if err := d.command(ctx, "upgrade", "add", badName, d.binary(badName)); err != nil {
		return err
	}
	if err := d.endsHeld(ctx); err != nil {
		return err
	}
	damaged, err := d.content(ctx)
	if err != nil {
		return err
	}
	fmt.Println("  damaged:   ", damaged)
	if err := d.command(ctx, "rollback", "--yes"); err != nil {
		return err
	}
	after, err := d.content(ctx)
	if err != nil {
		return err
	}
	fmt.Println("  after:     ", after)
	if before == damaged || before != after {
		return fmt.Errorf("the table isn't what it was: %s, damaged %s, now %s", before, damaged, after)
	}
	fmt.Println("\nthe table is what it was. The old version goes on without the plan, and the archives are made beneath it:")
	for _, args := range [][]string{{"upgrade", "skip", badName}, {"resume"}} {
		if err := d.command(ctx, args...); err != nil {
			return err
		}
	}
	return d.proveArchives(ctx)
}

// endsHeld waits until `run` has ended, held.
func (d *demo) endsHeld(ctx context.Context) error {
	select {
	case err := <-d.ended:
		d.over = true
		if d.run.ProcessState.ExitCode() != 79 {
			return fmt.Errorf("supervisor run ended with %d, not held: %w", d.run.ProcessState.ExitCode(), err)
		}
		fmt.Println("  supervisor run ended: held")
		return nil
	case <-ctx.Done():
		return fmt.Errorf("supervisor run didn't hold: %w", context.Cause(ctx))
	}
}

// await waits for a status.
func (d *demo) await(ctx context.Context, fact func(*status) bool) error {
	for {
		select {
		case err := <-d.ended:
			d.ended <- err
			return fmt.Errorf("supervisor run ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", context.Cause(ctx))
		case <-time.After(pollInterval):
		}
		out, _ := d.output(ctx, d.supervisor, "status", "--json") // a hold is an exit code, too
		var s status
		if json.Unmarshal(out, &s) == nil && fact(&s) {
			d.node = s.PID
			return nil
		}
	}
}

// snapshotInfo is what the demo reads of `snapshot list --json`.
type snapshotInfo struct {
	ID, Label, State string
	Sources          []struct{ Name, Kind, Method string }
}

// proveArchives waits until each snapshot is verified, verifies it deep, and looks what is left on the server.
func (d *demo) proveArchives(ctx context.Context) error {
	// The node passes its own plan over, too: every validator of such a chain does so.
	if err := d.start("--unsafe-skip-upgrades", strconv.Itoa(badHeight)); err != nil {
		return err
	}
	var all []snapshotInfo
	err := d.await(ctx, func(*status) bool {
		out, err := d.output(ctx, d.supervisor, "snapshot", "list", "--json")
		return err == nil && json.Unmarshal(out, &all) == nil && len(all) == 2 &&
			!slices.ContainsFunc(all, func(i snapshotInfo) bool { return i.State != "verified" })
	})
	if err != nil {
		return fmt.Errorf("%w; the snapshots are %+v", err, all)
	}
	for _, i := range all {
		if err := d.command(ctx, "snapshot", "verify", i.ID, "--deep"); err != nil {
			return err
		}
	}
	left, err := d.pg.query(ctx, "postgres", `SELECT datname || coalesce(': ' || shobj_description(oid, 'pg_database'), '')
		FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1`)
	if err != nil {
		return err
	}
	fmt.Println("\nwhat is on the server: the node's database, the one that the rollback replaced, and the clone that is kept")
	for _, name := range left {
		fmt.Println("  " + name)
	}
	if len(left) > 3 {
		return errors.New("something was left behind")
	}
	return nil
}

// command shows a command of the supervisor's and runs it.
func (d *demo) command(ctx context.Context, args ...string) error {
	fmt.Println("$ supervisor", strings.Join(args, " "))
	out, err := d.output(ctx, d.supervisor, args...)
	for line := range strings.Lines(string(out)) {
		fmt.Print("  ", line)
	}
	return err
}
