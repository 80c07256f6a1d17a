package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
)

func TestParseDSNAgreesWithTheDriver(t *testing.T) {
	pgtest.CleanEnv(t)
	for _, dsn := range []string{
		"host=/var/run/postgresql dbname=kwild user=kwild",
		"  host = localhost\tport=5433 dbname = 'my chain' user='o\\'neil' ",
		`host=h dbname=back\\slash\ blank user=u`,
		"postgres://u@h:5433/db?sslmode=disable",
		"postgresql://u%40x@h/d%2Fb?application_name=x",
		"postgresql:///db?host=/tmp&user=u&port=7",
		"postgresql://u@[::1]:5433/db?sslmode=disable",
		"host=h database=alias user=u",
	} {
		all, err := parseDSN(dsn)
		require.NoError(t, err, dsn)
		cfg, err := pgx.ParseConfig(dsn)
		require.NoError(t, err, dsn)
		assert.Equal(t, []string{cfg.Host, cfg.Database, cfg.User}, []string{all["host"], all["dbname"], all["user"]}, dsn)
	}
}

// FuzzParseDSN: the driver and our own reading lead to the same database, and no secret gets past the check.
func FuzzParseDSN(f *testing.F) {
	for _, dsn := range []string{
		"host=/var/run/postgresql dbname=kwild user=kwild", `  host = localhost port=5433 dbname = 'my chain' user='o\'neil' `,
		"postgresql://u%40x@[::1]:5433/d%2Fb?application_name=x&sslmode=disable", "postgresql:///db?host=/tmp&user=u&port=7",
		"postgres://u:hunter2@h/db", "host=h PASSWORD=hunter2", "postgresql://h/db?host=h2&dbname=db2&user=u2", "postgresql://;db?host=",
		"host=h user=kw\\", "postgres://2@or2@", "postgresql://a+b@h,/d+b?user=c+d&port=", "postgres://[::1]x/db", "postgres:// u @h: 5 /db? user=%20",
	} {
		f.Add(dsn)
	}
	for _, name := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSERVICE", "PGSERVICEFILE"} {
		f.Setenv(name, "")
	}
	f.Setenv("HOME", f.TempDir())
	f.Fuzz(func(t *testing.T, dsn string) {
		shown(dsn)
		if len(CheckDSN("dsn", dsn)) > 0 {
			return
		}
		all, err := parseDSN(dsn)
		require.NoError(t, err)
		cfg, err := pgx.ParseConfig(dsn)
		if err != nil {
			return
		}
		require.Empty(t, cfg.Password)
		for key := range cfg.RuntimeParams {
			if key != strings.ToLower(key) {
				return // no keyword, and no parameter either: the server refuses the connection
			}
		}
		for _, pair := range [][2]string{{all["host"], cfg.Host}, {all["dbname"], cfg.Database}, {all["user"], cfg.User}} {
			if want := pair[0]; want != "" { // else both have a default
				require.Equal(t, want, pair[1], "%q", dsn)
			}
		}
	})
}

func TestDSNsThatAreRefused(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u@h/db?a=b=c":               "no keyword=value",
		"postgres://u@h/db?hunter2":             "no keyword=value",
		"postgres://[::1/db":                    "no URI",
		"postgres://u%00@h/db":                  "no URI",
		"host=h user=u password=hunter2":        "holds a password",
		"host=h user=u password = 'hunter2'":    "holds a password",
		"host=h PASSWORD=hunter2":               "holds a password",
		"postgres://u:hunter2@h/db":             "holds a password",
		"postgres://u@h/db?password=hunter2":    "holds a password",
		"postgres://h/db?host=a,b":              "several hosts",
		"postgres://h/db?host=a&host=b":         "stands twice",
		"postgres://u@h/db?sslpassword=hunter2": "holds a sslpassword",
		"hunter2":                               "no list of keyword=value",
		"host=h 'hunter2":                       "no list of keyword=value",
		"host='hunter2":                         "has no end",
		"postgres://u:hunter2@h:port/db":        "holds a password",
		"host=h hostaddr=127.0.0.1":             "hostaddr",
		"host=h\x00hunter2":                     "NUL",
	} {
		err := errors.Join(CheckDSN("dsn", dsn)...)
		require.ErrorContains(t, err, want, dsn)
		assert.NotContains(t, err.Error(), "hunter2")
		_, err = New(Config{DSN: dsn}).Settings("")
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "hunter2")
	}
}

func TestWhere(t *testing.T) {
	pgtest.CleanEnv(t)
	for dsn, want := range map[string]string{
		"host=/run/pg dbname=chain user=node":      "node@/run/pg:5432/chain",
		"postgres://node@db.example:7/chain":       "node@db.example:7/chain",
		"postgres://node:hunter2@db.example/chain": "node@db.example:5432/chain",
		"hunter2": "a database",
	} {
		assert.Equal(t, want, shown(dsn))
	}
	t.Setenv("PGHOST", "10.1.2.3")
	assert.Equal(t, "node@10.1.2.3:5432/node", shown("user=node"))
	v := New(Config{DSN: "host=/run/pg dbname=chain user=node"})
	assert.Equal(t, "node@/run/pg:5432/postgres", v.OnAdmin().Where())
	assert.Equal(t, "root@other:5432/x", New(Config{DSN: "host=h", AdminDSN: "host=other user=root dbname=x"}).OnScratch().Where())
}
