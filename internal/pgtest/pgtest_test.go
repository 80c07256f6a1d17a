package pgtest_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
)

func TestStartAtAFreePort(t *testing.T) {
	c := pgtest.Start(t, pgtest.TCP())
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.Port))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	assert.Equal(t, []string{"1"}, c.Query("postgres", "SELECT 1"), "and on its socket")
}

func TestStartIsQuickAndReal(t *testing.T) {
	begin := time.Now()
	c := pgtest.Start(t)
	t.Logf("up after %s", time.Since(begin))
	c.Create("chain", "CREATE TABLE blocks (height bigint PRIMARY KEY, hash text); INSERT INTO blocks SELECT n, md5(n::text) FROM generate_series(1, 10) n")
	assert.Equal(t, []string{"10 55"}, c.Query("chain", "SELECT count(*), sum(height)::bigint FROM blocks"))

	c.StopServer()
	c.StartServer()
	assert.Equal(t, []string{"10"}, c.Query("chain", "SELECT count(*) FROM blocks"))
}
