package supervisor

import (
	"fmt"
	"math/rand/v2"
	"time"

	"nodevisor/supervisor/child"
)

// crashLoopAfter is how many short lives in a row are called a crash loop.
const crashLoopAfter = 3

// Decision says what follows an end of the node.
type Decision struct {
	Restart bool
	Delay   time.Duration // before the restart
	Reason  string        // for people: "exit code 1 after 3s, restart 2 in 2.1s"
	GiveUp  bool          // the policy would restart, but backoff_limit restarts were in vain
}

// Restarts decides about restarts outside of an upgrade. It is a value: it keeps no time and starts nothing; who uses
// it waits. Its zero value never restarts.
type Restarts struct {
	config   Config
	random   *rand.Rand // nil: no jitter
	failures int        // ends in a row, each before backoff_reset
	total    int
}

// NewRestarts makes the policy that the fields restart and backoff* of config describe.
func NewRestarts(config Config, random *rand.Rand) Restarts {
	return Restarts{config: config, random: random}
}

// restarts tells whether an end like this one is followed by a restart.
func (p RestartPolicy) restarts(exit child.Exit) bool {
	return p == RestartAlways || (p == RestartOnFailure && !exit.Success())
}

// Next decides what follows an end of the node after the given life. The wait doubles with each end, from backoff to
// backoff_max, and gets up to 10 % longer by chance, so that nodes which fail together don't come back together;
// backoff_max is never exceeded. A life of backoff_reset starts the waits anew.
func (r *Restarts) Next(exit child.Exit, lived time.Duration) Decision {
	what := fmt.Sprintf("%s after %s", exit, lived.Round(time.Millisecond))
	switch policy := r.config.Restart; {
	case policy.restarts(exit):
	case policy == RestartOnFailure:
		return Decision{Reason: what + ", no failure: not restarted"}
	default:
		return Decision{Reason: what + ", restart = never"}
	}
	if lived >= r.config.BackoffReset {
		r.failures = 0
	}
	r.failures++
	if limit := r.config.BackoffLimit; limit > 0 && r.failures > limit {
		return Decision{GiveUp: true, Reason: fmt.Sprintf("%s, given up after %d restarts in vain", what, limit)}
	}
	r.total++
	delay := r.delay()
	return Decision{Restart: true, Delay: delay, Reason: fmt.Sprintf("%s, restart %d in %s", what, r.failures, delay.Round(time.Millisecond))}
}

func (r *Restarts) delay() time.Duration {
	d := r.config.Backoff
	for i := 1; i < r.failures && d < r.config.BackoffMax; i++ {
		d *= 2
	}
	if r.random != nil && d > 0 {
		d += time.Duration(r.random.Int64N(int64(d)/10 + 1))
	}
	return min(d, r.config.BackoffMax)
}

// CrashLoop tells whether the node ended crashLoopAfter times in a row, each time before backoff_reset. It stays true
// until the next life that is long enough has ended, or Reset.
func (r *Restarts) CrashLoop() bool { return r.failures >= crashLoopAfter }

// Count is how many restarts were decided in all, for the status and the metrics.
func (r *Restarts) Count() int { return r.total }

// Reset starts the waits anew: a life has reached backoff_reset, another version runs, or a person asked.
func (r *Restarts) Reset() { r.failures = 0 }
