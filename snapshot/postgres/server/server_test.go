package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/internal/proc"
	"nodevisor/snapshot/manifest"
)

func writeFile(t testing.TB, path, text string, mode os.FileMode) string {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func TestConnectIsASessionThatCanBeToldApart(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", "ALTER ROLE postgres SET statement_timeout = '1s'; ALTER ROLE postgres SET timezone = 'Asia/Tokyo'")
	v := New(Config{Source: "chain", DSN: c.DSN("chain") + " application_name=other gssencmode=disable"})
	for want, connect := range map[string]func(context.Context) (*pgx.Conn, error){
		"chain":     func(ctx context.Context) (*pgx.Conn, error) { return v.Connect(ctx, "") },
		"template1": func(ctx context.Context) (*pgx.Conn, error) { return v.Connect(ctx, "template1") },
		"postgres":  v.Admin,
	} {
		conn, err := connect(t.Context())
		require.NoError(t, err)
		rows, err := conn.Query(t.Context(), `SELECT current_database()::text UNION ALL SELECT current_setting(s) FROM unnest(
			ARRAY['application_name', 'timezone', 'lock_timeout', 'statement_timeout', 'synchronous_commit', 'client_connection_check_interval']) s`)
		require.NoError(t, err)
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		assert.Equal(t, []string{want, "nodevisor", "UTC", "30s", "0", "local", "1s"}, got)
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestPasswordsComeFromWhereTheyMay(t *testing.T) {
	pgtest.CleanEnv(t)
	c := pgtest.Start(t, pgtest.TLS())
	c.Exec("postgres", "CREATE ROLE node LOGIN PASSWORD 's3cret pass'")
	c.Create("chain", "")
	dsn := c.TCPDSN("chain", "node") + " sslmode=verify-full sslrootcert=" + c.CA()
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "password"), "s3cret pass\n", 0o600)
	pgpass := writeFile(t, filepath.Join(dir, "pgpass"), fmt.Sprintf("127.0.0.1:%d:chain:node:s3cret pass\n", c.Port), 0o600)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "credentials"), 0o700))
	writeFile(t, filepath.Join(dir, "credentials", "src.password"), "s3cret pass", 0o400)

	for name, use := range map[string]func(t *testing.T, o *Config){
		"password_file": func(_ *testing.T, o *Config) { o.PasswordFile = file },
		"PGPASSWORD":    func(t *testing.T, _ *Config) { t.Setenv("PGPASSWORD", "s3cret pass") },
		"PGPASSFILE":    func(t *testing.T, _ *Config) { t.Setenv("PGPASSFILE", pgpass) },
		"credential":    func(t *testing.T, _ *Config) { t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(dir, "credentials")) },
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.CleanEnv(t)
			o := Config{Source: "src", DSN: dsn}
			use(t, &o)
			v := New(o)
			for _, connect := range []func() (*pgx.Conn, error){
				func() (*pgx.Conn, error) { return v.Connect(t.Context(), "") },
				func() (*pgx.Conn, error) { return v.Admin(t.Context()) }, // the password file's line is for chain alone
			} {
				conn, err := connect()
				require.NoError(t, err)
				require.NoError(t, conn.Close(t.Context()))
			}
			cmd, err := v.Program("psql", "", "-XAtc", "SELECT current_user, current_database(), ssl, current_setting('timezone') FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
			require.NoError(t, err)
			assert.NotContains(t, strings.Join(cmd.Args, " "), "s3cret")
			for _, env := range cmd.Env {
				assert.NotRegexp(t, "^(GOPATH|SUPERVISOR_|TERM)", env, "a minimal environment")
			}
			res, err := proc.Output(t.Context(), cmd, 1<<10)
			require.NoError(t, err, "%s", res.Stderr)
			assert.Equal(t, "node|chain|t|UTC\n", string(res.Stdout))
		})
	}
}

func TestPasswordFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"readable by others": {"x", 0o644, "others may read it"},
		"group":              {"x", 0o640, "others may read it"},
		"empty":              {"\n", 0o600, "it is empty"},
		"two lines":          {"x\ny\n", 0o600, "more than one line"},
		"too long":           {strings.Repeat("x", maxPassword+1), 0o600, "larger than 4096 bytes"},
	} {
		path := writeFile(t, filepath.Join(dir, strings.ReplaceAll(name, " ", "-")), tc.text, tc.mode)
		v := New(Config{Source: "src", DSN: "host=127.0.0.1 port=1 user=u dbname=d", PasswordFile: path})
		_, err := v.Connect(t.Context(), "")
		require.ErrorContains(t, err, tc.want, name)
		assert.NotEmpty(t, hint.Of(err), name)
		_, err = v.Program("psql", "")
		require.ErrorContains(t, err, tc.want, name)
	}
	v := New(Config{Source: "src", DSN: "host=127.0.0.1", PasswordFile: filepath.Join(dir, "none")})
	_, err := v.Connect(t.Context(), "")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = New(Config{DSN: "host=127.0.0.1", PasswordFile: dir}).Connect(t.Context(), "")
	require.ErrorContains(t, err, "no regular file")
}

func TestErrorsSayWhatToDo(t *testing.T) {
	pgtest.CleanEnv(t)
	c := pgtest.Start(t, pgtest.TLS())
	c.Exec("postgres", "CREATE ROLE node LOGIN PASSWORD 'right'")
	c.Create("chain", "")
	t.Setenv("PGPASSWORD", "wrong")
	tls := " sslmode=verify-full sslrootcert=" + c.CA()
	other := pgtest.Start(t, pgtest.TLS()) // its authority signed nothing of ours
	for name, tc := range map[string]struct {
		dsn, password, want, hint string
		away                      bool
	}{
		"wrong password":    {c.TCPDSN("chain", "node") + tls, "wrong", "the password is wrong or missing", "password_file", false},
		"no password":       {c.TCPDSN("chain", "node") + tls, "", "the password is wrong or missing", "password_file", false},
		"no such database":  {c.TCPDSN("chian", "node") + tls, "right", "no such database", "dbname in dsn", false},
		"no such role":      {fmt.Sprintf("host=%s port=%d user=nobody dbname=chain", c.Dir, c.Port), "", "no such role", "correct user", false},
		"not let in":        {c.TCPDSN("chain", "node") + " sslmode=disable", "right", "pg_hba.conf", "pg_hba.conf", false},
		"another authority": {c.TCPDSN("chain", "node") + " sslmode=verify-full sslrootcert=" + other.CA(), "right", "TLS", "sslrootcert", false},
		"nobody listens":    {"host=127.0.0.1 port=1 user=node dbname=chain", "right", "doesn't answer", "systemctl start postgresql", true},
		"no socket":         {"host=" + t.TempDir() + " user=node dbname=chain", "right", "doesn't answer", "systemctl start postgresql", true},
		"several hosts":     {"host=a,b user=node dbname=chain", "right", "several hosts", "correct dsn", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PGPASSWORD", tc.password)
			_, err := New(Config{Source: "src", DSN: tc.dsn}).Connect(t.Context(), "")
			require.ErrorContains(t, err, tc.want)
			assert.Contains(t, hint.Of(err), tc.hint)
			assert.Equal(t, tc.away, errors.Is(err, manifest.ErrAway))
			for _, secret := range []string{"right", "=wrong"} {
				assert.NotContains(t, err.Error(), secret)
			}
		})
	}
}

func TestErrorsOfABusyServer(t *testing.T) {
	c := pgtest.Start(t, pgtest.Conf("max_connections = 5", "superuser_reserved_connections = 2", "max_wal_senders = 0", "autovacuum = off"))
	c.Exec("postgres", "CREATE ROLE node LOGIN")
	v := New(Config{Source: "src", DSN: strings.Replace(c.DSN("postgres"), "user=postgres", "user=node", 1)})
	var err error
	for range 6 {
		var conn *pgx.Conn
		if conn, err = v.Connect(t.Context(), ""); err != nil {
			break
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	require.ErrorContains(t, err, "no connection left")
	assert.Contains(t, hint.Of(err), "max_connections")
}

func TestAConnectionThatBreaksIsAServerThatIsAway(t *testing.T) {
	c := pgtest.Start(t)
	v := New(Config{Source: "src", DSN: c.DSN("postgres")})
	conn, err := v.Connect(t.Context(), "")
	require.NoError(t, err)
	c.StopServer()
	_, err = conn.Exec(t.Context(), "SELECT 1")
	require.ErrorIs(t, v.Explain(t.Context(), "ask", err), manifest.ErrAway)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("second signal"))
	err = v.Explain(ctx, "ask", err)
	require.ErrorContains(t, err, "second signal")
	require.NotErrorIs(t, err, manifest.ErrAway, "it was us who left")
}

func TestCancellationEndsTheStatementOnTheServer(t *testing.T) {
	c := pgtest.Start(t)
	v := New(Config{Source: "src", DSN: c.DSN("postgres")})
	conn, err := v.Connect(t.Context(), "")
	require.NoError(t, err)
	defer conn.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err = conn.Exec(ctx, "SELECT pg_sleep(60)")
	require.Error(t, err)
	assert.Less(t, time.Since(begin), 10*time.Second)
	waitFor(t, "the statement's end", func() bool {
		return c.Query("postgres", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'")[0] == "0"
	})
}

// waitFor waits for a fact.
func waitFor(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !fact(); time.Sleep(20 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "in vain: %s", what)
	}
}

func TestClientPrograms(t *testing.T) {
	v := New(Config{Source: "src", DSN: "host=127.0.0.1 port=1 user=u"})
	client, err := v.CheckClient(t.Context(), "pg_dump", "15.18")
	require.NoError(t, err)
	assert.Regexp(t, `^\d+\.\d+`, client)
	_, err = v.CheckClient(t.Context(), "pg_dump", "99.1")
	require.ErrorContains(t, err, "older than the server's 99.1")
	assert.Contains(t, hint.Of(err), "version 99 or newer")

	empty := New(Config{Source: "src", DSN: "host=127.0.0.1 port=1 user=u", Bin: t.TempDir()})
	_, err = empty.ClientVersion(t.Context(), "pg_dump")
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Contains(t, hint.Of(err), "pg_bin")
	_, err = empty.Program("pg_dump", "")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestMajor(t *testing.T) {
	for text, want := range map[string]int{"15.18": 15, "9.6.24": 9, "17beta1": 17, "18": 18, "": 0, "devel": 0} {
		assert.Equal(t, want, Major(text), text)
	}
}
