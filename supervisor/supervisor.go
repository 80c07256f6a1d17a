// Package supervisor keeps one node's process: it starts it, watches it, restarts it, stops it for an upgrade, and lets
// package upgrade carry the upgrade out while the node is at rest.
//
// One goroutine, one select (loop.go) owns all of the state. It does no file, network or D-Bus I/O, so a slow disk never
// starves it: whatever may block runs in a goroutine of its own and posts a function back to the loop. At most one such
// job at a time touches the upgrade engine. The status leaves through an atomic pointer. What such a goroutine needs of
// the supervisor's state is read before it starts, in the loop.
package supervisor

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"nodevisor/internal/progress"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/control"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/metrics"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// The exit codes of `run` that are its own. Nodes use others: a Go panic is a 2, and most errors are a 1.
const (
	ExitConfig = 78 // configuration or usage (EX_CONFIG of sysexits.h)
	ExitHeld   = 79 // needs an operator
	ExitLocked = 75 // another supervisor, or a node that it left behind (EX_TEMPFAIL of sysexits.h)
)

// Snapshots is what the run loop needs of the store of snapshots, besides what an upgrade does with it.
type Snapshots interface {
	// Summary is what the status shows of the snapshots and of the room for them.
	Summary(ctx context.Context) (status.Snapshots, status.Disk, error)
	// Tidy completes sealed snapshots and prunes, while the node runs. keep is the id that an upgrade in flight needs.
	Tidy(ctx context.Context, keep string) error
	// Do carries out an operator's request. atRest tells that the node doesn't run.
	Do(ctx context.Context, request json.RawMessage, atRest bool) (any, error)
}

// Options is what a Supervisor is made of.
type Options struct {
	Reloadable

	Config      Config
	Layout      version.Layout
	Engine      *upgrade.Engine
	Lines       *source.Lines
	Recorder    *source.Recorder
	Lock        *home.Lock
	Restoring   *Restoring                                                           // nil: no start restores
	Command     func(v version.Version) (args, env []string)                         // what a version is started with
	Reload      func(inFlight bool) (fresh Reloadable, takeEffect func(), err error) // re-reads the configuration
	Notify      Notifier                                                             // nil: nobody
	NotifyEvery time.Duration                                                        // how often it hears of the loop; 0 = aliveEvery
	Event       func(event, text string)                                             // an operator is to be told (see package alert); nil: nobody
	Told        func() alert.Counts                                                  // what became of that; nil: not counted
	Log         *slog.Logger
	Version     string // this program's
	ConfigFile  string
	Stdin       *os.File
	Stdout      *os.File
	Stderr      *os.File
}

// Reloadable are the Options that a reload replaces, all of them at once. They are made of a new configuration as a whole.
// Nothing that the old values share is changed in place: whatever still works with them goes on so.
type Reloadable struct {
	Upgrade          upgrade.Config
	PlanFile         string // the node's; "" = none
	Checker          *version.Checker
	Heights          *source.Heights
	LinesFor         bool      // the node's lines are always read: a height comes from its log
	Snapshots        Snapshots // nil: there is nothing to snapshot
	SnapshotOn       func(event string) bool
	OnUpgrade        upgrade.Snapshotter                             // takes the snapshots of upgrades; nil: none are taken
	Room             func(ctx context.Context) error                 // room for the snapshot of an upgrade; nil: none is taken
	Fetch            upgrade.Fetcher                                 // nil: downloads are off
	ChainPlan        func(ctx context.Context) (*plan.Plan, error)   // nil: the chain isn't asked
	Templates        upgrade.Exporter                                // nil: no genesis templates are made
	TemplateOn       func(event string) bool                         // at which events besides upgrades
	DescribeTemplate func(snapshot string) (*status.Template, error) // of a template that was made
	ExportOnUpgrade  upgrade.Exporter                                // Templates where upgrades make one, else nil
	ReadyWhen        ReadyWhen                                       // "" = ReadyStarted
	NodeSocket       string                                          // the node gets it as NOTIFY_SOCKET and is ready when it says so; see NodeSaid
	Units            map[Moment][]UnitAction                         // other units of the host, in the order in which they are acted upon
	Metrics          string                                          // the address of the metrics listener; "" = none
	Socket           string                                          // the control socket's path
	SocketMode       os.FileMode
	SocketGroup      int // a group that may read the status; -1 = none
}

// Supervisor is one `run`. All fields below the channels belong to the loop; what one file alone keeps stands there as a
// type of its own.
type Supervisor struct {
	o      Options
	log    *slog.Logger
	sample atomic.Pointer[metrics.Sample] // the latest status, with what only the metrics tell
	live   atomic.Pointer[child.Process]  // for the goroutine that handles SIGABRT
	server *control.Server                // nil: the control socket couldn't be made

	starting sync.Mutex // held while the node is forked; and for good once the end of the process has begun

	stops    chan os.Signal // those that end `run`: a storm of others mustn't displace one
	passed   chan os.Signal // those that are the node's
	posts    chan func()
	requests chan request
	over     chan struct{}   // closed when the loop has ended
	asked    <-chan struct{} // closed when Run's context has ended

	ctx     context.Context
	cancel  context.CancelFunc
	tracker *plan.Tracker
	policy  restart.Decider
	state   status.State
	done    bool
	code    int

	// The node.
	child        *child.Process
	exited       <-chan child.Exit // nil while there is no child
	endLife      func()            // ends what is asked of the node that lives now
	life         context.Context
	onExit       func(child.Exit) // what follows the end of the node, where we stopped it
	ending       *ending          // an end that nobody asked for, not judged yet
	leaving      *child.Process   // the node whose stop has begun
	version      version.Version
	ownHalt      int64 // where the node halts by itself, as it was started; 0 = nowhere
	lastExit     *status.Exit
	restarts     int
	began        bool       // the node was started once in this life of ours
	trial        bool       // the node that was started last is on probation
	restore      *restoring // nil: the node that runs doesn't restore
	half         bool       // the node that ended last hadn't restored all of its state
	restartTimer *time.Timer
	settleTimer  *time.Timer // ends the wait for a stop request that may explain an end

	// Jobs, and what operators asked for.
	job        *job     // the one job that touches the engine
	waiting    []func() // what is to be done when it has ended
	stopping   bool     // the end of `run` was asked for
	stop       stopRequest
	applied    func(error)                      // answers a waiting `upgrade apply`
	halted     []func(status.HaltResult, error) // answers those who wait for a halt
	completing bool                             // `run` ends only once the snapshot of the halt is completed

	// Plans and upgrades.
	due         *trigger // a plan whose height has come, until it is carried out
	journal     upgrade.Journal
	schedule    plan.Schedule
	untrusted   error // why the journal or the schedule can't be trusted, until a resume could load them; nil = they can
	readiness   readiness
	file        planFile
	clockTimer  *time.Timer // of the next point in time that matters
	chainTimer  *time.Timer
	recordAfter time.Time // a commit that could not be recorded isn't tried again before

	height heightReading
	store  upkeep
	units  unitWork

	// What is told.
	last     *status.LastUpgrade
	progress *status.Progress
	since    time.Time
	tally    *metrics.Tally
	observed *observer // nil: nobody can ask for metrics
	tale     telling
}

// job is a long phase: at most one runs, and only it touches the engine.
type job struct {
	name   string
	long   bool // it may take minutes: requests are refused meanwhile
	cancel context.CancelFunc
}

// New makes a supervisor. The caller holds the home lock, has become a subreaper and has loaded nothing yet.
func New(o Options) *Supervisor {
	if o.Event == nil {
		o.Event = func(string, string) {}
	}
	return &Supervisor{
		o: o, log: o.Log, stops: make(chan os.Signal, 4), passed: make(chan os.Signal, 64), posts: make(chan func(), 16),
		requests: make(chan request), over: make(chan struct{}), state: status.Stopped,
		policy:       restart.New(o.Config.restarts(), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))),
		restartTimer: idle(), settleTimer: idle(), clockTimer: idle(), chainTimer: idle(),
		readiness: readiness{timer: idle(), of: map[version.Version]version.Readiness{}},
		height:    heightReading{timer: idle()},
		store:     upkeep{roomTimer: idle(), tidyTimer: idle()},
		tale:      telling{timer: idle()},
		since:     time.Now(), tally: metrics.NewTally(),
	}
}

// idle returns a timer that isn't running.
func idle() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// longJobs may take minutes; every other job is a matter of moments.
var longJobs = []string{"upgrade", "snapshot", "halt", "rollback", "resume", "skip"}

// do runs work as the one job, and then with its error in the loop. The caller has seen that no job runs. What follows
// begins in then, in the same turn of the loop: nothing comes between two jobs of a chain but what whenIdle was given.
func (s *Supervisor) do(name string, work func(context.Context) error, then func(error)) {
	ctx, cancel := context.WithCancel(s.ctx)
	s.job = &job{name: name, cancel: cancel, long: slices.Contains(longJobs, name)}
	s.spawn(func() {
		err := work(ctx)
		journal, schedule := s.o.Engine.Journal(), s.o.Engine.Schedule()
		cancel()
		s.post(func() {
			s.job, s.progress = nil, nil
			if s.untrusted != nil {
				journal.Hold = s.journal.Hold // which is nowhere but here
			}
			s.journal, s.schedule = journal, schedule
			s.tracker.SetSchedule(schedule)
			then(err)
		})
	})
}

// post hands a function to the loop. It never blocks for good: the loop takes posts until every job has ended, and what
// comes later is dropped.
func (s *Supervisor) post(f func()) {
	select {
	case s.posts <- f:
	case <-s.over:
	}
}

// ask runs a question that touches no engine, and its answer in the loop.
func (s *Supervisor) ask(question func(context.Context) func()) {
	s.spawn(func() { s.post(question(s.ctx)) })
}

// spawn runs f beside the loop. A panic there ends the node gracefully, too, before it ends the program.
func (s *Supervisor) spawn(f func()) {
	go func() {
		defer s.stopOnPanic()
		f()
	}()
}

// Observe is where long phases report to.
func (s *Supervisor) Observe(e progress.Event) {
	s.post(func() { s.progress = &status.Progress{Phase: e.Phase, Done: e.Done, Total: e.Total} })
}

// ObservePhase is where the engine reports to, out of a job.
func (s *Supervisor) ObservePhase(u upgrade.Upgrade) {
	s.post(func() {
		s.journal.Upgrade = &u
		s.tally = s.tally.Phase(u)
	})
}

// Status returns the latest status. It may be called from any goroutine, once Run has begun to serve. The height grows older
// also while nothing happens that a status is published for.
func (s *Supervisor) Status() *status.Document {
	sample := s.sample.Load()
	if sample.HeightAge == nil {
		return sample.Document
	}
	st := *sample.Document
	st.HeightAge = new(time.Since(sample.HeightAt).Milliseconds())
	return &st
}

// stopSignal is the configured one; Validate has seen that it is a signal.
func (s *Supervisor) stopSignal() syscall.Signal {
	sig, err := child.ParseSignal(s.o.Config.StopSignal)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}
