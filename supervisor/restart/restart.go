// Package restart decides what follows an end of the node that nobody asked for: whether it is started again, and after
// which pause. It keeps no time and starts nothing; the run loop waits.
package restart

import (
	"fmt"
	"math/rand/v2"
	"time"

	"nodevisor/supervisor/child"
)

// CrashLoopAfter is how many short lives in a row are called a crash loop.
const CrashLoopAfter = 3

// Policy says which ends of the node are followed by a restart.
type Policy string

// The policies.
const (
	Never     Policy = "never"
	OnFailure Policy = "on-failure"
	Always    Policy = "always"
)

// Restarts tells whether an end like this one is followed by a restart.
func (p Policy) Restarts(exit child.Exit) bool {
	return p == Always || (p == OnFailure && !exit.Success())
}

// Config is what decides.
type Config struct {
	Policy  Policy
	Backoff time.Duration // the first wait; doubles
	Max     time.Duration // the longest wait
	Reset   time.Duration // a life of this length starts the waits anew
	Limit   int           // give up after so many restarts in a row; 0 = never
}

// Decision says what follows an end of the node.
type Decision struct {
	Restart bool
	Delay   time.Duration // before the restart
	Reason  string        // for people: "exit code 1 after 3s, restart 2 in 2.1s"
	GiveUp  bool          // the policy would restart, but Config.Limit restarts were in vain
}

// Decider decides about restarts outside of an upgrade. Its zero value never restarts.
type Decider struct {
	config   Config
	random   *rand.Rand // nil: no jitter
	failures int        // ends in a row, each before Config.Reset
}

// New makes a decider. random lengthens the waits by chance; nil: it doesn't.
func New(config Config, random *rand.Rand) Decider {
	return Decider{config: config, random: random}
}

// Next decides what follows an end of the node after the given life. The wait doubles with each end, from Backoff to
// Max, and gets up to 10 % longer by chance, so that nodes which fail together don't come back together;
// Max is never exceeded. A life of Reset starts the waits anew.
func (r *Decider) Next(exit child.Exit, lived time.Duration) Decision {
	what := fmt.Sprintf("%s after %s", exit, lived.Round(time.Millisecond))
	switch policy := r.config.Policy; {
	case policy.Restarts(exit):
	case policy == OnFailure:
		return Decision{Reason: what + ", no failure: not restarted"}
	default:
		return Decision{Reason: what + ", restart = never"}
	}
	if lived >= r.config.Reset {
		r.failures = 0
	}
	r.failures++
	if limit := r.config.Limit; limit > 0 && r.failures > limit {
		return Decision{GiveUp: true, Reason: fmt.Sprintf("%s, given up after %d restarts in vain", what, limit)}
	}
	delay := r.delay()
	return Decision{Restart: true, Delay: delay, Reason: fmt.Sprintf("%s, restart %d in %s", what, r.failures, delay.Round(time.Millisecond))}
}

func (r *Decider) delay() time.Duration {
	d := r.config.Backoff
	for i := 1; i < r.failures && d < r.config.Max; i++ {
		d *= 2
	}
	if r.random != nil && d > 0 {
		d += time.Duration(r.random.Int64N(int64(d)/10 + 1))
	}
	return min(d, r.config.Max)
}

// CrashLoop tells whether the node ended CrashLoopAfter times in a row, each time before Reset. It stays true
// until the next life that is long enough has ended, or Reset.
func (r *Decider) CrashLoop() bool { return r.failures >= CrashLoopAfter }

// Reset starts the waits anew: a life has reached Config.Reset, another version runs, or a person asked.
func (r *Decider) Reset() { r.failures = 0 }
