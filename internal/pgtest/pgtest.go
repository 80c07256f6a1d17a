// Package pgtest starts throw-away PostgreSQL clusters for tests.
//
// A cluster listens on a unix socket in a short directory of its own, as an unprivileged user where the test is run by
// root (PostgreSQL refuses root). It is made by copying a template that the first test of a machine's boot initialised:
// initdb takes most of a second, the copy a twentieth.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// A Cluster is a running server. Its superuser is "postgres", trusted on the socket.
type Cluster struct {
	Dir  string // holds the socket, the data directory and the log; also the host of a DSN
	Bin  string // the server's programs
	Port int    // part of the socket's name
	cred *syscall.SysProcAttr
	tb   testing.TB
}

// Option changes the cluster before it starts.
type Option func(*settings)

type settings struct {
	conf []string // lines of postgresql.conf
	hba  []string // lines of pg_hba.conf, instead of trust on the socket
	tcp  bool
	tls  bool
}

// Conf adds lines to postgresql.conf.
func Conf(lines ...string) Option { return func(s *settings) { s.conf = append(s.conf, lines...) } }

// HBA replaces pg_hba.conf.
func HBA(lines ...string) Option { return func(s *settings) { s.hba = append(s.hba, lines...) } }

// Bin is the directory of the newest server's programs: PG_BIN, else Debian's. A machine without one fails the test.
func Bin(tb testing.TB) string {
	tb.Helper()
	if dir := os.Getenv("PG_BIN"); dir != "" {
		return dir
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // the pattern is well-formed: no error
	if len(found) == 0 {
		path, err := exec.LookPath("initdb")
		require.NoError(tb, err, "no PostgreSQL server is installed: make deps")
		return filepath.Dir(path)
	}
	major := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) // else 0: the oldest
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return major(a) - major(b) }))
}

// Start starts a cluster that ends with the test.
func Start(tb testing.TB, options ...Option) *Cluster {
	tb.Helper()
	var set settings
	for _, o := range options {
		o(&set)
	}
	c := &Cluster{Bin: Bin(tb), Port: 5432, tb: tb}
	dir, err := os.MkdirTemp("/tmp", "pg") // short: the path of a socket has 107 bytes at most
	require.NoError(tb, err)
	c.Dir = dir
	tb.Cleanup(func() {
		c.Stop()
		require.NoError(tb, os.RemoveAll(dir))
	})
	c.asUnprivileged(dir)
	c.initialise()
	conf := []string{
		"listen_addresses = ''", "unix_socket_directories = '" + dir + "'", "fsync = off", "synchronous_commit = off", "full_page_writes = off",
		"wal_level = logical", "max_prepared_transactions = 10", "shared_buffers = 64MB", "max_wal_size = 256MB", "logging_collector = off",
	}
	if set.tls {
		c.certify()
	}
	if set.hba != nil {
		c.write("data/pg_hba.conf", strings.Join(set.hba, "\n")+"\n")
	}
	conf = append(conf, set.conf...)
	if set.tcp {
		c.startAtFreePort(conf)
		return c
	}
	c.write("data/postgresql.conf", strings.Join(conf, "\n")+"\n")
	c.StartServer()
	return c
}

// asUnprivileged picks the user that the server runs as.
func (c *Cluster) asUnprivileged(dir string) {
	if os.Geteuid() != 0 {
		return
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	require.NoError(c.tb, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	require.NoError(c.tb, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	require.NoError(c.tb, err)
	require.NoError(c.tb, os.Chown(dir, int(uid), int(gid)))
	c.cred = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	require.NoError(c.tb, os.Chmod(dir, 0o755)) // root's tests connect to the socket in it
}

// initialise makes the data directory. A race for the template is settled by the rename.
func (c *Cluster) initialise() {
	data := filepath.Join(c.Dir, "data")
	version := strings.NewReplacer("/", "_", " ", "_").Replace(strings.TrimSpace(c.run("postgres", "--version")))
	template := filepath.Join("/tmp", fmt.Sprintf("pgtest-%d-%s", os.Geteuid(), version))
	if _, err := os.Stat(template); err != nil {
		c.run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
		tmp, err := os.MkdirTemp("/tmp", filepath.Base(template)+".") // never one that a killed test left half
		require.NoError(c.tb, err)
		defer os.RemoveAll(tmp) //nolint:errcheck // nothing uses it
		made := filepath.Join(tmp, "data")
		require.NoError(c.tb, exec.Command("cp", "-a", data, made).Run())
		_ = os.Rename(made, template) // else another test was first
		return
	}
	require.NoError(c.tb, exec.Command("cp", "-a", template, data).Run())
}

func (c *Cluster) write(name, text string) {
	c.tb.Helper()
	require.NoError(c.tb, os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o644))
}

// run runs one of the server's programs as its user.
func (c *Cluster) run(program string, args ...string) string {
	c.tb.Helper()
	out, err := c.try(program, args...)
	require.NoError(c.tb, err, "%s %s: %s", program, strings.Join(args, " "), out)
	return out
}

// try is run for a program that may fail.
func (c *Cluster) try(program string, args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin, program), args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Env = c.Dir, c.cred, []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// StartServer starts a server that StopServer or Kill ended.
func (c *Cluster) StartServer() {
	c.tb.Helper()
	c.run("pg_ctl", c.startArgs()...)
}

func (c *Cluster) startArgs() []string {
	return []string{"-D", filepath.Join(c.Dir, "data"), "-l", filepath.Join(c.Dir, "log"), "-w", "-s", "-t", "100", "start"}
}

// StopServer ends the server: its sessions are ended, its data is written.
func (c *Cluster) StopServer() {
	c.tb.Helper()
	c.run("pg_ctl", "-D", filepath.Join(c.Dir, "data"), "-w", "-s", "-m", "fast", "stop")
}

// Stop ends the server at once if it runs; what it hadn't written is lost.
func (c *Cluster) Stop() {
	c.tb.Helper()
	if _, err := os.Stat(filepath.Join(c.Dir, "data", "postmaster.pid")); err == nil {
		c.run("pg_ctl", "-D", filepath.Join(c.Dir, "data"), "-w", "-s", "-m", "immediate", "stop")
	}
}

// DSN is a connection string for a database, as the superuser.
func (c *Cluster) DSN(database string) string {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database)
	return fmt.Sprintf("host=%s port=%d user=postgres dbname='%s'", c.Dir, c.Port, quoted)
}

// Connect opens a connection that ends with the test.
func (c *Cluster) Connect(database string) *pgx.Conn {
	c.tb.Helper()
	conn, err := pgx.Connect(context.Background(), c.DSN(database))
	require.NoError(c.tb, err)
	c.tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Exec runs SQL in a database, on a connection of its own.
func (c *Cluster) Exec(database, sql string) {
	c.tb.Helper()
	conn, err := pgx.Connect(context.Background(), c.DSN(database))
	require.NoError(c.tb, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(context.Background(), sql)
	require.NoError(c.tb, err, sql)
}

// Create makes a database and runs SQL in it.
func (c *Cluster) Create(database, sql string) {
	c.tb.Helper()
	c.Exec("postgres", "CREATE DATABASE "+pgx.Identifier{database}.Sanitize())
	c.Exec(database, sql)
}

// Query gives the rows of a query as text.
func (c *Cluster) Query(database, sql string) []string {
	c.tb.Helper()
	conn, err := pgx.Connect(context.Background(), c.DSN(database))
	require.NoError(c.tb, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(context.Background(), sql)
	require.NoError(c.tb, err)
	var all []string
	for rows.Next() {
		values, err := rows.Values()
		require.NoError(c.tb, err)
		all = append(all, strings.Trim(fmt.Sprint(values), "[]"))
	}
	require.NoError(c.tb, rows.Err())
	return all
}

// CleanEnv takes away what libpq would read of the machine, until the test ends.
func CleanEnv(t *testing.T) {
	t.Helper()
	for _, name := range []string{"PGPASSWORD", "PGPASSFILE", "PGHOST", "PGUSER", "PGDATABASE", "PGPORT", "CREDENTIALS_DIRECTORY"} {
		t.Setenv(name, "") // restored at the end
		require.NoError(t, os.Unsetenv(name))
	}
	t.Setenv("HOME", t.TempDir())
}
