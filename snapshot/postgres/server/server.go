// Package server reaches one PostgreSQL server: it connects and runs client programs there, turns what goes wrong into
// errors that say what to do, knows the sessions that are in the way, and tells the databases that we make from all
// others, by their names and comments.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

const (
	// AppName is how our sessions call themselves in pg_stat_activity.
	AppName = "nodevisor"
	// connectTimeout bounds one attempt to connect: nothing of ours runs where that takes longer.
	connectTimeout = 10 * time.Second
	// LockTimeout bounds the wait for a lock of a session of ours: another's lock must be named, not waited for.
	LockTimeout = 30 * time.Second
	// cancelGrace is how long a cancelled statement may take to end before the line is broken.
	cancelGrace = 5 * time.Second
	// maxPassword caps a password's file, in bytes.
	maxPassword = 4 << 10
)

// Server is one PostgreSQL server, reached as one role by one connection string. It holds no connection and no password:
// both are fetched when they are needed, so that a password that was changed holds at once.
type Server struct {
	source   string // the source's name: a part of the credential's
	role     string // what the connection string is for: "", admin, scratch
	dsn      string
	password string // the file with the password; "" = a credential, or what libpq and pgx find
	bin      string // where client programs lie; "" = PATH
	database string // the database that is meant where none is named; "" = the connection string's
	admin    *Server
	scratch  *Server
}

// Config says how a server is reached, for one source. DSNs hold no password.
type Config struct {
	Source       string // its name: a part of the credential's
	DSN          string // a connection string or URI of libpq
	PasswordFile string // absolute; "" = a credential, or what libpq and pgx find
	AdminDSN     string // where databases are created and renamed; "" = the same server, database postgres
	ScratchDSN   string // for databases that live for the time of a comparison; "" = as AdminDSN
	Bin          string // where client programs lie; "" = PATH
}

// New gives the server of a source; its admin and scratch ways fall back on it. It does no I/O.
func New(c Config) *Server {
	v := &Server{source: c.Source, dsn: c.DSN, password: c.PasswordFile, bin: c.Bin}
	other := func(role, dsn string, base *Server) *Server {
		if dsn == "" {
			return base
		}
		w := &Server{source: c.Source, role: role, dsn: dsn, bin: c.Bin}
		if user(dsn) == user(c.DSN) { // the file holds one role's password
			w.password = c.PasswordFile
		}
		return w
	}
	v.admin = other("admin", c.AdminDSN, v.In("postgres"))
	v.scratch = other("scratch", c.ScratchDSN, v.admin)
	return v
}

// In is the same way, with that database meant where none is named; "" changes nothing.
func (v *Server) In(database string) *Server {
	w := *v
	w.database = cmp.Or(database, v.database)
	return &w
}

// At is the server that another connection string leads to, for the same source.
func (v *Server) At(dsn string) *Server {
	c := Config{Source: v.source, DSN: dsn, Bin: v.bin}
	if user(dsn) == user(v.dsn) { // the file holds one role's password
		c.PasswordFile = v.password
	}
	return New(c)
}

// Source is the name of the source that it is reached for.
func (v *Server) Source() string { return v.source }

func user(dsn string) string {
	all, _ := parseDSN(dsn) // checked by Validate
	return all["user"]
}

// OnAdmin is the way to the server on which databases are created and renamed.
func (v *Server) OnAdmin() *Server { return v.admin }

// OnScratch is the server for databases that live for the time of a comparison.
func (v *Server) OnScratch() *Server { return v.scratch }

// Admin connects for CREATE, ALTER and DROP DATABASE: by admin_dsn, or to the database postgres of the same server.
func (v *Server) Admin(ctx context.Context) (*pgx.Conn, error) { return v.admin.Connect(ctx, "") }

// Scratch connects for the creation of scratch databases: by scratch_dsn, or as Admin.
func (v *Server) Scratch(ctx context.Context) (*pgx.Conn, error) { return v.scratch.Connect(ctx, "") }

// Where shows user@host:port/database, never a password.
func (v *Server) Where() string {
	text := shown(v.dsn)
	if v.database != "" {
		text = text[:strings.LastIndexByte(text, '/')+1] + v.database
	}
	return text
}

// Connect opens a session in a database; "" is the connection string's own. Times are UTC, a lock is waited for 30 s at
// most, and the server notices within a second that we are gone, also amid a statement. The caller closes it.
func (v *Server) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	cfg, err := v.Settings(database)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, v.Explain(ctx, "connect to", err)
	}
	// Not in the start-up packet: servers before 14 don't know the parameter, and would refuse the session.
	const gone = "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
	if _, err := conn.Exec(ctx, gone); err != nil {
		_ = conn.Close(ctx)
		return nil, v.Explain(ctx, "connect to", err)
	}
	return conn, nil
}

// Settings are the connection string with what every session of ours has, in a database; "" is the connection string's own.
// The password is among them.
func (v *Server) Settings(database string) (*pgx.ConnConfig, error) {
	if errs := CheckDSN(v.key(), v.dsn); len(errs) > 0 {
		return nil, &hint.Error{Op: "use database of source", Path: v.source, Err: errors.Join(errs...), Hint: "correct " + v.key() + " in [[snapshot.source]]"}
	}
	cfg, err := pgx.ParseConfig(v.dsn)
	if err != nil { // its text shows the connection string, which holds no password
		return nil, &hint.Error{Op: "use database of source", Path: v.source, Err: err, Hint: "correct " + v.key() + " in [[snapshot.source]]"}
	}
	password, err := v.secret()
	if err != nil {
		return nil, err
	}
	cfg.Password = cmp.Or(password, cfg.Password)
	cfg.Database = cmp.Or(database, v.database, cfg.Database)
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > connectTimeout {
		cfg.ConnectTimeout = connectTimeout
	}
	for key := range cfg.RuntimeParams {
		if lower := strings.ToLower(key); lower == "timezone" || lower == "application_name" || slices.Contains(libpqOnly, lower) {
			delete(cfg.RuntimeParams, key)
		}
	}
	cfg.RuntimeParams["application_name"] = AppName
	cfg.RuntimeParams["timezone"] = "UTC"
	cfg.RuntimeParams["lock_timeout"] = strconv.FormatInt(LockTimeout.Milliseconds(), 10)
	cfg.RuntimeParams["statement_timeout"] = "0"      // a role's default must not end a long copy: contexts bound ours
	cfg.RuntimeParams["synchronous_commit"] = "local" // on the disk, and no waiting for a standby that may be gone
	// A context's end cancels the statement on the server, which then tidies up, instead of breaking the line alone.
	cfg.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelGrace}
	}
	return cfg, nil
}

// Close ends a session, also where the context has ended.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing depends on it: the server ends the session when the line is gone
}

// key is the connection string's name in the configuration.
func (v *Server) key() string {
	if v.role == "" {
		return "dsn"
	}
	return v.role + "_dsn"
}

// secret reads the password: from password_file, or from a credential that systemd handed over (systemd.exec(5),
// LoadCredential=), called <source>.password, <source>.admin.password or <source>.scratch.password. "" leaves it to what
// pgx finds: PGPASSWORD, PGPASSFILE, ~/.pgpass.
func (v *Server) secret() (string, error) {
	path := v.password
	if path == "" {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", nil
		}
		name := v.source
		if v.role != "" {
			name += "." + v.role
		}
		path = filepath.Join(dir, name+".password")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
	} else if err := CheckPasswordFile(path); err != nil {
		return "", err
	}
	text, err := capped.ReadFile(path, maxPassword)
	text = strings.TrimRight(text, "\r\n")
	switch {
	case err != nil:
	case text == "":
		err = errors.New("it is empty")
	case strings.ContainsAny(text, "\n\x00"):
		err = errors.New("it holds more than one line")
	}
	if err != nil {
		return "", &hint.Error{Op: "read password from", Path: path, Err: hint.Cause(err), Hint: "put the password alone into it, and: chmod 600 " + hint.Quote(path)}
	}
	return text, nil
}

// CheckPasswordFile refuses a file that others could read, or that another user could have written.
func CheckPasswordFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return &hint.Error{Op: "read password from", Path: path, Err: errors.Unwrap(err), Hint: "put the password alone into it, and: chmod 600 " + hint.Quote(path)}
	}
	if !info.Mode().IsRegular() {
		return hint.New("read password from", path, "it is no regular file", "put the password alone into a file, and name that in password_file")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return hint.New("read password from", path, fmt.Sprintf("others may read it (mode %04o)", mode), "chmod 600 "+hint.Quote(path))
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if me := os.Geteuid(); ok && me != 0 && st.Uid != 0 && int(st.Uid) != me {
		return hint.New("read password from", path, fmt.Sprintf("it belongs to user %d", st.Uid), fmt.Sprintf("chown %d %s", me, hint.Quote(path)))
	}
	return nil
}

// Program prepares a client program (pg_dump, pg_restore, psql) for a database; "" is the connection string's own. The
// connection and the password are in its environment, which holds nothing else but what libpq needs: never in argv. It
// is to be run by package proc, and ends with this process.
func (v *Server) Program(name, database string, args ...string) (*exec.Cmd, error) {
	cfg, err := v.Settings(database)
	if err != nil {
		return nil, err
	}
	path, err := v.program(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	proc.EndWithUs(cmd)
	cmd.Env = passedOn()
	set := func(key, value string) { cmd.Env = append(cmd.Env, key+"="+value) }
	settings, _ := parseDSN(v.dsn) // checked by config
	for key, value := range settings {
		if env, ok := libpqEnv[key]; ok {
			set(env, value)
		}
	}
	set("PGHOST", cfg.Host) // the last one of a name holds
	set("PGPORT", strconv.Itoa(int(cfg.Port)))
	set("PGUSER", cfg.User)
	set("PGDATABASE", cfg.Database)
	set("PGCONNECT_TIMEOUT", strconv.Itoa(int(cfg.ConnectTimeout.Seconds())))
	set("PGAPPNAME", AppName)
	set("PGTZ", "UTC")
	set("LC_ALL", "C")
	if cfg.Password != "" {
		set("PGPASSWORD", cfg.Password)
	}
	return cmd, nil
}

func (v *Server) program(name string) (string, error) {
	path := filepath.Join(v.bin, name)
	if v.bin == "" {
		path = name
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return "", &hint.Error{
			Op: "run", Path: name, Err: err,
			Hint: "install PostgreSQL's client programs (Debian: apt-get install postgresql-client), or set [snapshot] pg_bin to their directory",
		}
	}
	return filepath.Abs(path)
}

// version finds "15.18" in "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "17" in "17beta1".
var version = regexp.MustCompile(`\b(\d+(?:\.\d+)*)`)

// ClientVersion asks a client program for its version, such as "15.18".
func (v *Server) ClientVersion(ctx context.Context, name string) (string, error) {
	path, err := v.program(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.Command(path, "--version")
	cmd.Env = append(passedOn(), "LC_ALL=C")
	res, err := proc.Output(ctx, cmd, 4<<10)
	if err != nil {
		return "", fmt.Errorf("cannot ask %s for its version: %w", name, err)
	}
	_, text, _ := strings.Cut(string(res.Stdout), ")")
	found := version.FindString(text)
	if found == "" {
		return "", fmt.Errorf("cannot ask %s for its version: it said %q", name, res.Stdout)
	}
	return found, nil
}

// Major is the leading number of a version; 0 where there is none. Since PostgreSQL 10 it is what compatibility goes by.
func Major(v string) int {
	n, _ := strconv.Atoi(version.FindString(v[:max(strings.IndexByte(v, '.'), 0)]))
	if n == 0 {
		n, _ = strconv.Atoi(version.FindString(v))
	}
	return n
}

// CheckClient refuses a client program that is older than the server: pg_dump and pg_restore refuse newer servers
// themselves, in the window.
func (v *Server) CheckClient(ctx context.Context, name, serverVersion string) (clientVersion string, err error) {
	client, err := v.ClientVersion(ctx, name)
	if err != nil {
		return "", err
	}
	if Major(client) < Major(serverVersion) {
		return client, &hint.Error{
			Op: "use", Path: name, Err: fmt.Errorf("it is version %s, older than the server's %s", client, serverVersion),
			Hint: fmt.Sprintf("install PostgreSQL's client programs of version %d or newer, and set [snapshot] pg_bin to their directory", Major(serverVersion)),
		}
	}
	return client, nil
}
