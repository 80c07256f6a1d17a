// Package doctor is `supervisor doctor`: an examination of one home and its host. Each check is a method that adds lines to
// the report; none changes anything, and what can't be known is never ok. The checks follow what a start does (supervisor's
// run and boot), so that "next start" can foretell it. Beside it stands --fix-link, which changes one link and nothing else.
package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// New makes the command.
func New(a *cli.App) *cobra.Command {
	var fix, yes bool
	cmd := &cobra.Command{
		Use: "doctor", GroupID: "node", Short: "Look for what would go wrong, and say how to mend it", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Checks everything that a start or an upgrade needs, one line a check, each failure with the command that mends it. It
works beside a running supervisor, without one, and on a home that Cosmovisor still runs, and changes nothing. What can't
be known is "unknown", never ok. Binaries get their trial run ([upgrade] probe).

--fix-link says which version "current" should name, and why, and links it (on a terminal after a question). Where nothing
tells it for certain it lists the versions instead.

Exit codes: 0 nothing failed; 1 a check failed; 3 held.`,
		Example: "  supervisor doctor\n  supervisor --unit cosmovisor.service doctor\n  supervisor doctor --fix-link",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			bad := (*config.Error)(nil)
			if err != nil && !errors.As(err, &bad) {
				return err
			}
			if fix {
				if err != nil {
					return err
				}
				return fixLink(cmd.Context(), s, yes)
			}
			if bad != nil {
				s.Join(cmd.Context())
			}
			x := &examination{Session: s, bad: bad}
			if all := (*config.Error)(nil); errors.As(host.Mistakes(s.Config.Control, err), &all) {
				x.mistakes = all.Problems
			}
			x.examine(cmd.Context())
			return x.report()
		},
	}
	cmd.Flags().BoolVar(&fix, "fix-link", false, "find out which version current should name, and link it")
	cmd.Flags().BoolVar(&yes, "yes", false, "with --fix-link: don't ask")
	return cmd
}

// check is one line of the doctor: an element of "checks" in `doctor --json`.
type check struct {
	Name   string  `json:"name"`
	OK     *bool   `json:"ok"` // null: it can't be known
	Detail string  `json:"detail"`
	Fix    *string `json:"fix"` // the command that mends it, or what to change
}

// examination is one run of the doctor.
type examination struct {
	*session.Session
	bad      *config.Error    // why the configuration can't be used; what can be made of the rest is examined
	mistakes []error          // of the configuration, also those that only this host can tell: run ends with 78
	other    bool             // we are neither root nor the node's user: what we see of rights isn't what the node sees
	distrust bool             // we are root and the tree isn't root's: nothing of it is executed
	live     *status.Document // what the running supervisor says; nil = none runs
	silent   error            // why a supervisor that may be there can't be asked
	holders  home.LockInfo
	hidden   bool // who holds the lock can't be read
	engine   *upgrade.Engine
	broken   error // why journal or schedule can't be trusted
	batch    upgrade.Import
	tracker  *plan.Tracker
	checker  *version.Checker
	signer   int64  // the height in the signer's state, or plan.UnknownHeight
	missing  bool   // a configured source isn't there
	refused  string // why a start would be refused before it looks at plans; "" = it wouldn't
	remedy   string // what would make it start
	boss     int    // the Cosmovisor that runs the node now; 0 = none
	seen     int64  // the height that was read from a running node, or plan.UnknownHeight
	checks   []check
}

func (x *examination) ok(name, format string, args ...any) {
	x.checks = append(x.checks, check{Name: name, OK: new(true), Detail: fmt.Sprintf(format, args...)})
}

// warn is something that works, and that an operator should know of.
func (x *examination) warn(name, fix, format string, args ...any) {
	x.ok(name, "warning: "+format, args...)
	x.advise(fix)
}

func (x *examination) fail(name, fix, format string, args ...any) {
	x.checks = append(x.checks, check{Name: name, OK: new(false), Detail: fmt.Sprintf(format, args...)})
	x.advise(fix)
}

func (x *examination) unknown(name, fix, format string, args ...any) {
	x.checks = append(x.checks, check{Name: name, Detail: fmt.Sprintf(format, args...)})
	x.advise(fix)
}

func (x *examination) advise(fix string) {
	if fix = x.Addressed(fix); fix != "" {
		x.checks[len(x.checks)-1].Fix = &fix
	}
}

// failErr reports an error: a failure with the error's own hint, or, where we only may not look, something unknown.
func (x *examination) failErr(name string, err error) {
	if errors.Is(err, fs.ErrPermission) {
		x.unknown(name, cli.AsRightUser, "%v", err)
		return
	}
	x.fail(name, hint.Of(err), "%v", err)
}

// refuse notes why a start would be refused; the first reason counts.
func (x *examination) refuse(fix, format string, args ...any) {
	if x.refused == "" {
		x.refused, x.remedy = fmt.Sprintf(format, args...), fix
	}
}

// examine makes all checks. Those that need only paths come first: they are made whatever the configuration is.
func (x *examination) examine(ctx context.Context) {
	x.signer, x.seen = plan.UnknownHeight, plan.UnknownHeight
	x.configuration()
	if !filepath.IsAbs(x.Config.Node.Home) || x.Config.Node.Name == "" {
		x.unknown("next start", "", "nothing else was looked at: it isn't known which home and which node are meant")
		return
	}
	x.whoAreWe()
	x.permissions()
	x.askLive(ctx)
	x.lock()
	x.foreign()
	x.state()
	x.Quiet()
	x.currentLink()
	x.binary(ctx)
	if x.bad == nil {
		x.height(ctx)
		x.batchFile()
	}
	x.track()
	x.planFile()
	if x.bad == nil {
		x.plans(ctx)
		x.chain(ctx)
		x.signerState()
		x.snapshots(ctx)
		x.downloader()
		x.watching(ctx)
	}
	x.controlGroup()
	x.staging()
	x.fileSystem()
	x.clock()
	x.unit(ctx)
	x.nextStart()
}

// report prints the checks and gives the command's exit code.
func (x *examination) report() error {
	failed := slices.ContainsFunc(x.checks, func(c check) bool { return c.OK != nil && !*c.OK })
	var err error
	if x.Flags.JSON {
		err = cli.WriteJSON(x.Stdout, struct {
			OK     bool    `json:"ok"`
			Checks []check `json:"checks"`
		}{!failed, x.checks})
	} else {
		err = printChecks(x.Stdout, x.checks, console.IsTerminal(x.Stdout))
	}
	switch {
	case err != nil:
		return err
	case x.hold() != nil:
		return cli.ExitError(cli.ExitHeld)
	case failed:
		return cli.ExitError(cli.ExitFailed)
	}
	return nil
}

// printChecks prints one line a check, and below a failure what mends it.
func printChecks(w io.Writer, checks []check, terminal bool) error {
	marks := []string{"ok", "FAIL", "unknown"}
	if terminal {
		marks = []string{"✓", "✗", "?"}
	}
	var b strings.Builder
	for _, c := range checks {
		mark := marks[2]
		if c.OK != nil {
			mark = marks[0]
			if !*c.OK {
				mark = marks[1]
			}
		}
		if !terminal {
			mark = fmt.Sprintf("%-7s", mark)
		}
		fmt.Fprintf(&b, "%s %-14s %s\n", mark, c.Name, oneLine(c.Detail))
		if c.Fix != nil {
			fmt.Fprintf(&b, "%*s fix: %s\n", len([]rune(mark))+15, "", oneLine(*c.Fix))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLine keeps what files and programs said from leaving its line, or from talking to the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// missingSources adds the sources that aren't there to the mistakes: a start refuses the configuration for them, too.
func (x *examination) missingSources() {
	if !filepath.IsAbs(x.Config.Node.Home) {
		return
	}
	store, err := x.Store(nil)
	if err != nil {
		return // said of the snapshots, where the configuration is right
	}
	if missing := (*config.Error)(nil); errors.As(x.CheckSources(store), &missing) {
		x.missing = true
		x.mistakes = append(x.mistakes, missing.Problems...)
	}
}

// configuration lists every mistake, and what was understood and is probably not what was meant.
func (x *examination) configuration() {
	file := "no file; environment and defaults"
	if x.Origin.File != "" {
		file = x.Origin.File
	}
	x.missingSources()
	if len(x.mistakes) > 0 {
		for _, p := range x.mistakes {
			fix := hint.Of(p)
			if at := (*config.Problem)(nil); fix == "" && errors.As(p, &at) && at.At != "" {
				fix = "correct " + at.At
			} else if fix == "" {
				fix = "correct the configuration"
			}
			x.fail("configuration", fix, "%v", p)
		}
		x.refuse("correct what is said of the configuration", "the configuration has %d %s: run ends with %d",
			len(x.mistakes), status.Plural(int64(len(x.mistakes)), "mistake"), supervisor.ExitConfig)
	} else {
		x.ok("configuration", "%s", file)
	}
	for _, w := range x.Origin.Warnings {
		x.warn("configuration", "", "%s", w)
	}
	if len(x.UnitArgs) > 0 && x.Args == nil {
		x.Args = x.UnitArgs // what the unit's `run` is given
	}
}

// whoAreWe compares us with the node's user. As root nothing of another user's tree is executed: whoever can write to
// that tree would be root.
func (x *examination) whoAreWe() {
	info, err := os.Stat(x.Layout.Home)
	if err != nil {
		return // the configuration's check has said so
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	uid := uint32(os.Geteuid())
	if !ok || st.Uid == uid {
		return
	}
	if uid == 0 {
		x.distrust = true
		x.ok("user", "root, for user %d: no binary is tried", st.Uid)
		return
	}
	x.other = true
	x.unknown("user", cli.AsRightUser, "the home belongs to user %d, this is user %d: rights can't be judged", st.Uid, uid)
}

func (x *examination) permissions() {
	problems, warnings := config.CheckPermissions(x.Layout.Home, x.Config.GuardedPaths(x.Origin.File), x.Config.Security.AllowWritable)
	switch {
	case x.other:
		return
	case len(problems) == 0:
		x.ok("permissions", "only the node's user and root can change what is run")
	default:
		x.refuse(hint.Of(problems[0]), "others could change what it runs")
	}
	for _, p := range problems {
		x.failErr("permissions", p)
	}
	for _, w := range warnings {
		x.warn("permissions", "", "%s", w)
	}
	for _, dir := range []string{x.Layout.Root, filepath.Join(x.Layout.Root, "upgrades"), x.stateParent()} {
		if err := unix.Access(dir, unix.W_OK); err != nil && !errors.Is(err, fs.ErrNotExist) {
			x.fail("permissions", "mount it writable, or: chown -R <the node's user> "+hint.Quote(dir), "%s can't be written to: %v", dir, err)
		}
	}
}

// stateParent is where the first write of a supervisor goes.
func (x *examination) stateParent() string {
	if _, err := os.Stat(x.Layout.State()); err == nil {
		return x.Layout.State()
	}
	return x.Layout.Home
}

// askLive asks the running supervisor, where there is one.
func (x *examination) askLive(ctx context.Context) {
	raw, err := client.New(x.Socket()).Status(ctx)
	switch {
	case err == nil:
		st := &status.Document{}
		if err := json.Unmarshal(raw, st); err != nil {
			x.fail("supervisor", "restart it with this program's version", "its answer can't be read: %v", err)
			return
		}
		x.live = st
		x.ok("supervisor", "running, %s", st.Message)
	case errors.Is(err, client.ErrNotRunning):
		x.ok("supervisor", "none is running")
	case errors.Is(err, client.ErrNoAnswer):
		x.silent = err
		x.fail("supervisor", hint.Of(err), "%v", err)
	default:
		x.silent = err
		x.unknown("supervisor", hint.Of(err), "%v", err)
	}
}

// hold is why the supervisor doesn't act, or nil.
func (x *examination) hold() *upgrade.Hold {
	switch {
	case x.live != nil:
		return x.live.Hold
	case x.engine == nil:
		return nil
	case x.broken != nil && errors.Is(x.broken, state.ErrUntrusted) && !errors.Is(x.broken, fs.ErrPermission):
		return session.HoldOf(x.broken)
	}
	return x.engine.Journal().Hold
}
