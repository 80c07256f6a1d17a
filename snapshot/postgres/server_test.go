package postgres

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
)

func TestConnectIsASessionThatCanBeToldApart(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", "")
	v := newServer(Options{Name: "chain", Config: Config{DSN: c.DSN("chain")}})
	for want, connect := range map[string]func() (map[string]string, error){
		"chain":    func() (map[string]string, error) { return settingsOf(v.Connect(t.Context(), "")) },
		"postgres": func() (map[string]string, error) { return settingsOf(v.Admin(t.Context())) },
	} {
		got, err := connect()
		require.NoError(t, err)
		assert.Equal(t, map[string]string{"database": want, "application_name": "nodevisor", "timezone": "UTC", "lock_timeout": "30s"}, got)
	}
}

func settingsOf(conn *pgx.Conn, err error) (map[string]string, error) {
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.Background())
	all := map[string]string{}
	var name string
	if err := conn.QueryRow(context.Background(), "SELECT current_database()").Scan(&name); err != nil {
		return nil, err
	}
	all["database"] = name
	for _, key := range []string{"application_name", "timezone", "lock_timeout"} {
		if err := conn.QueryRow(context.Background(), "SELECT current_setting($1)", key).Scan(&name); err != nil {
			return nil, err
		}
		all[key] = name
	}
	return all, nil
}
