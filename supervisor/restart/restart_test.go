package restart

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"nodevisor/supervisor/child"
)

func config(policy Policy, limit int) Config {
	return Config{Policy: policy, Backoff: time.Second, Max: time.Minute, Reset: 10 * time.Minute, Limit: limit}
}

func restartsWith(policy Policy, limit int) Decider { return New(config(policy, limit), nil) }

func TestRestartPolicies(t *testing.T) {
	ok, failed, killed := child.Exit{}, child.Exit{Code: 1}, child.Exit{Code: -1, Signal: syscall.SIGSEGV}
	for _, tc := range []struct {
		policy  Policy
		exit    child.Exit
		restart bool
		reason  string
	}{
		{Never, ok, false, "exit code 0 after 2s, restart = never"},
		{Never, killed, false, "killed by SIGSEGV after 2s, restart = never"},
		{OnFailure, ok, false, "exit code 0 after 2s, no failure: not restarted"},
		{OnFailure, failed, true, "exit code 1 after 2s, restart 1 in 1s"},
		{OnFailure, killed, true, "killed by SIGSEGV after 2s, restart 1 in 1s"},
		{Always, ok, true, "exit code 0 after 2s, restart 1 in 1s"},
		{Always, killed, true, "killed by SIGSEGV after 2s, restart 1 in 1s"},
		{"", failed, false, "exit code 1 after 2s, restart = never"},
	} {
		r := restartsWith(tc.policy, 0)
		d := r.Next(tc.exit, 2*time.Second)
		assert.Equal(t, tc.restart, d.Restart, "%s, %s", tc.policy, tc.exit)
		assert.Equal(t, tc.reason, d.Reason)
		assert.False(t, d.GiveUp)
		if !tc.restart {
			assert.Zero(t, d.Delay)
		}
	}
}

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	r := restartsWith(OnFailure, 0)
	var got []time.Duration
	for range 9 {
		got = append(got, r.Next(child.Exit{Code: 1}, time.Second).Delay/time.Second)
	}
	assert.Equal(t, []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}, got)
	for range 10_000 {
		assert.Equal(t, time.Minute, r.Next(child.Exit{Code: 1}, time.Second).Delay, "it must not overflow, nor give up")
	}
}

func TestBackoffStartsAnewAfterALongLife(t *testing.T) {
	r := restartsWith(OnFailure, 0)
	for range 5 {
		r.Next(child.Exit{Code: 1}, time.Second)
	}
	assert.True(t, r.CrashLoop())
	assert.Equal(t, 32*time.Second, r.Next(child.Exit{Code: 1}, 10*time.Minute-1).Delay)
	assert.Equal(t, time.Second, r.Next(child.Exit{Code: 1}, 10*time.Minute).Delay)
	assert.False(t, r.CrashLoop())
	assert.Equal(t, 2*time.Second, r.Next(child.Exit{Code: 1}, 0).Delay)
	r.Reset()
	assert.Equal(t, time.Second, r.Next(child.Exit{Code: 1}, 0).Delay)
}

func TestCrashLoopAfterThreeShortLives(t *testing.T) {
	r := restartsWith(OnFailure, 0)
	for range CrashLoopAfter - 1 {
		r.Next(child.Exit{Code: 1}, time.Second)
		assert.False(t, r.CrashLoop())
	}
	r.Next(child.Exit{Code: 1}, time.Second)
	assert.True(t, r.CrashLoop())
	r.Reset()
	assert.False(t, r.CrashLoop())
}

func TestBackoffLimit(t *testing.T) {
	r := restartsWith(OnFailure, 2)
	assert.True(t, r.Next(child.Exit{Code: 1}, 0).Restart)
	assert.True(t, r.Next(child.Exit{Code: 1}, 0).Restart)
	d := r.Next(child.Exit{Code: 7}, 0)
	assert.Equal(t, Decision{GiveUp: true, Reason: "exit code 7 after 0s, given up after 2 restarts in vain"}, d)
	assert.True(t, r.Next(child.Exit{Code: 1}, time.Hour).Restart, "a long life earns new tries")
}

func TestJitterIsUpToATenthAndNeverAboveTheMaximum(t *testing.T) {
	c := config(OnFailure, 0)
	seen := map[time.Duration]bool{}
	for seed := range uint64(200) {
		r := New(c, rand.New(rand.NewPCG(seed, 1)))
		d := r.Next(child.Exit{Code: 1}, 0).Delay
		assert.GreaterOrEqual(t, d, time.Second)
		assert.LessOrEqual(t, d, 1100*time.Millisecond)
		seen[d] = true
		for range 10 {
			assert.LessOrEqual(t, r.Next(child.Exit{Code: 1}, 0).Delay, time.Minute)
		}
	}
	assert.Greater(t, len(seen), 100, "it isn't by chance")

	a, b := New(c, rand.New(rand.NewPCG(1, 2))), New(c, rand.New(rand.NewPCG(1, 2)))
	assert.Equal(t, a.Next(child.Exit{Code: 1}, 0), b.Next(child.Exit{Code: 1}, 0), "same source, same answer")
}
