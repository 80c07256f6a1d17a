package server

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
)

// What CREATE DATABASE doesn't copy is recorded, and comes back as it was.
func TestDescribedAndGivenBack(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", `CREATE ROLE "own""er" LOGIN; CREATE ROLE "re=ader"; CREATE ROLE plain`)
	c.Exec("postgres", `CREATE DATABASE chain OWNER "own""er" CONNECTION LIMIT 50`)
	for _, stmt := range []string{
		"SET search_path TO \"$user\", public, \"we,ird\"\"\"", "SET work_mem TO '5MB'", "SET my.setting TO 'it''s; x'", "SET statement_timeout TO 0",
		"SET session_preload_libraries TO ''", "SET datestyle TO 'ISO, DMY'",
	} {
		c.Exec("postgres", "ALTER DATABASE chain "+stmt)
	}
	c.Exec("postgres", `ALTER ROLE "re=ader" IN DATABASE chain SET work_mem TO '7MB'; COMMENT ON DATABASE chain IS 'it''s the chain';
		REVOKE TEMP ON DATABASE chain FROM PUBLIC; GRANT CREATE, CONNECT ON DATABASE chain TO "re=ader" WITH GRANT OPTION; GRANT TEMP ON DATABASE chain TO plain`)
	c.Exec("postgres", "CREATE DATABASE defaults")
	conn := c.Connect("postgres")
	for _, name := range []string{"chain", "defaults"} {
		want, err := Describe(t.Context(), conn, name)
		require.NoError(t, err)
		copied := name + "_copy"
		c.Exec("postgres", "CREATE DATABASE "+copied+" ALLOW_CONNECTIONS false CONNECTION LIMIT 3")
		c.Exec("postgres", "COMMENT ON DATABASE "+copied+" IS 'ours'; ALTER DATABASE "+copied+" OWNER TO "+Quote(want.Owner))
		require.NoError(t, Bestow(t.Context(), conn, copied, want))
		got, err := Describe(t.Context(), conn, copied)
		require.NoError(t, err)
		if want.Grants == nil { // the defaults, said aloud
			assert.ElementsMatch(t, []string{"=Tc/postgres", "postgres=CTc/postgres"}, got.Grants)
			got.Grants = nil
		}
		assert.ElementsMatch(t, want.Grants, got.Grants)
		got.Name, got.OID, got.Size, got.Grants = want.Name, want.OID, want.Size, want.Grants
		assert.Equal(t, want, got)
		assert.Equal(t, []string{"true"}, c.Query("postgres", "SELECT datallowconn FROM pg_database WHERE datname = '"+copied+"'"))
	}
	assert.Equal(t, []string{"50"}, c.Query("postgres", "SELECT datconnlimit FROM pg_database WHERE datname = 'chain_copy'"))
	_, err := grantSteps("x", "nonsense")
	require.Error(t, err)
	_, err = grantSteps("x", "a=Z/b")
	require.ErrorContains(t, err, "unknown privilege")
}
