package pgtest_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"nodevisor/internal/pgtest"
)

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
