package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// envPrefix begins the name of the variable that stands for a flag.
const envPrefix = "FAKENODE_"

// plan is a scheduled upgrade, in the JSON that x/upgrade writes. Time is never set: the SDK dropped timed plans.
type plan struct {
	Name   string    `json:"name"`
	Time   time.Time `json:"time"`
	Height int64     `json:"height"`
	Info   string    `json:"info,omitempty"`
}

// ending is what a node does when it can't go on at a height.
type ending string

// The endings.
const (
	endStay  ending = "stay"  // the process and its RPC live on: CometBFT's way
	endExit  ending = "exit"  // code 1
	endExit0 ending = "exit0" // code 0, as if all were well
	endPanic ending = "panic" // a Go panic, code 2: Sei's way
)

// settings is everything that one run of the program was told. Heights and codes below their zero values are unset.
type settings struct {
	// The chain.
	home, rpc, laddr, network string
	blockTime                 time.Duration
	upgrades                  []plan
	handled                   []string
	atUpgrade, atHalt         ending
	haltHeight                int64
	skips                     []int64
	strict, storeLoader       bool
	tableEvery                int
	sync                      durable
	postgres                  string

	// Faults.
	exitAfter, startDelay, stopDelay time.Duration
	exitCode, crash, termCode        int
	panicAt, stallAt                 int64
	ignoreTerm, catchingUp, daemon   bool
	children                         int
	relativeLife, planPause          time.Duration
	partialPlan, planRename, damage  bool

	// What tests look at.
	stdinEcho, logHeight, traceBlocks bool
	longLine                          int
	pidFile, trace                    string

	// The other commands.
	preUpgradeExit                        []int
	preUpgradeTrace, preUpgradeKillParent string
	preUpgradeDelay                       time.Duration
	statusStyle, output                   string
	exportNoise, long                     bool
}

// flags declares every flag; the usage texts are the reference that --help prints.
func (s *settings) flags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&s.home, "home", os.Getenv("DAEMON_HOME"), "the node's home `DIR`; default $DAEMON_HOME")
	s.chainFlags(fs)
	s.faultFlags(fs)
	s.observerFlags(fs)
	s.commandFlags(fs)
	return fs
}

// chainFlags are what makes one chain differ from another. Tests set them for all versions alike; a version that needs
// its own value gets it from the supervisor's table of that version.
func (s *settings) chainFlags(fs *flag.FlagSet) {
	fs.DurationVar(&s.blockTime, "block-time", 100*time.Millisecond, "time between blocks; 0 = none are made")
	fs.StringVar(&s.rpc, "rpc", "", "`ADDRESS` of the RPC: host:port, tcp://…, unix://…, off; default: [rpc] laddr of config/config.toml, else off")
	fs.StringVar(&s.laddr, "rpc.laddr", "", "the same, under CometBFT's name")
	fs.StringVar(&s.network, "network", "fakechain-1", "the chain's `ID`")
	fs.Func("upgrade", "`PLANS`: NAME@HEIGHT[:INFO], several separated by semicolons", func(v string) (err error) {
		s.upgrades, err = parsePlans(v)
		return err
	})
	fs.Func("handles", "`NAMES` of the upgrades that this binary handles, separated by commas; default: as built", func(v string) error {
		s.handled = strings.Split(v, ",")
		return nil
	})
	s.atUpgrade, s.atHalt = endStay, endStay
	fs.Func("at-upgrade", "what follows a plan that isn't handled: `stay`|exit|exit0|panic", endingFlag(&s.atUpgrade))
	fs.Func("at-halt", "what follows the halt height: `stay`|exit|exit0|panic", endingFlag(&s.atHalt))
	fs.Int64Var(&s.haltHeight, "halt-height", 0, "the first block that isn't applied; 0 = none")
	fs.Func("unsafe-skip-upgrades", "`HEIGHTS` whose plans are passed over, separated by commas or blanks", s.addSkips)
	fs.BoolVar(&s.strict, "strict", false, "exit 1 with BINARY UPDATED BEFORE TRIGGER where a plan ahead is handled already")
	fs.BoolVar(&s.storeLoader, "store-loader", false, "exit 1 where an upgrade is to be applied and upgrade-info.json doesn't name it")
	fs.StringVar(&s.postgres, "postgres", "", "`DSN` of a database that the blocks are kept in, too; a password has no place in it")
	fs.BoolVar((*bool)(&s.sync), "sync", false, "sync the store and the signer's state, as real nodes do; never upgrade-info.json, which those don't sync")
	fs.IntVar(&s.tableEvery, "table-every", 100, "records in a log before it becomes a table")
}

// faultFlags make the node fail as real ones did. Each is off by default and independent of the others.
func (s *settings) faultFlags(fs *flag.FlagSet) {
	fs.DurationVar(&s.exitAfter, "exit-after", 0, "end by itself after this time; 0 = never")
	fs.IntVar(&s.exitCode, "exit-code", 1, "the code of exit-after")
	fs.IntVar(&s.crash, "crash-at-start", -1, "exit with this code at once")
	fs.IntVar(&s.termCode, "term-code", 0, "the code after a requested stop")
	fs.Int64Var(&s.panicAt, "panic-at", 0, "panic in place of this block")
	fs.Int64Var(&s.stallAt, "stall-at", 0, "make no block from this height on: the network has no quorum")
	fs.BoolVar(&s.catchingUp, "catching-up", false, "say so in /status")
	fs.BoolVar(&s.ignoreTerm, "ignore-term", false, "INT and TERM have no effect, here and in what --daemon starts")
	fs.DurationVar(&s.startDelay, "start-delay", 0, "time with the store open before the replay and the RPC")
	fs.DurationVar(&s.stopDelay, "stop-delay", 0, "time between the signal and the end")
	fs.BoolVar(&s.daemon, "daemon", false, "start a grandchild in a session of its own that lives on")
	fs.IntVar(&s.children, "children", 0, "start so many orphans, which end by themselves and want to be reaped")
	fs.DurationVar(&s.relativeLife, "relative-life", 0, "how long those live; default 2m (daemon), 100ms (children)")
	fs.BoolVar(&s.partialPlan, "partial-plan", false, "write upgrade-info.json in two writes, plan-pause apart")
	fs.DurationVar(&s.planPause, "plan-pause", 300*time.Millisecond, "see partial-plan")
	fs.BoolVar(&s.damage, "damage", false, "the migration of an upgrade damages the database's tables, and exits 1")
	fs.BoolVar(&s.planRename, "plan-rename", false, "write upgrade-info.json by a rename")
}

// observerFlags show what goes on, without an influence on it.
func (s *settings) observerFlags(fs *flag.FlagSet) {
	fs.BoolVar(&s.stdinEcho, "stdin-echo", false, "print every line of stdin as \"stdin: …\", at its end \"stdin: EOF\"")
	fs.BoolVar(&s.logHeight, "log-height", false, "print a line for every block")
	fs.IntVar(&s.longLine, "long-line", 0, "print one line of so many bytes at the start")
	fs.StringVar(&s.pidFile, "pid-file", "", "write the pid to this `FILE`")
	fs.StringVar(&s.trace, "trace", "", "append one JSON line for each event to this `FILE`")
	fs.BoolVar(&s.traceBlocks, "trace-blocks", false, "also for every block")
	// Units and examples pass these to every SDK node.
	for _, name := range []string{"log_level", "log_format", "minimum-gas-prices"} {
		fs.String(name, "", "accepted, without effect")
	}
}

// commandFlags belong to the commands beside start. All commands share one set, so that the environment of a
// supervisor, which is the same for each of them, is never an unknown variable to one.
func (s *settings) commandFlags(fs *flag.FlagSet) {
	fs.Func("pre-upgrade-exit", "`CODES` of pre-upgrade, call by call, separated by commas; the last one stays", func(v string) error {
		s.preUpgradeExit = nil
		for part := range strings.SplitSeq(v, ",") {
			code, err := strconv.Atoi(part)
			if err != nil {
				return err
			}
			s.preUpgradeExit = append(s.preUpgradeExit, code)
		}
		return nil
	})
	fs.StringVar(&s.preUpgradeTrace, "pre-upgrade-trace", "", "a trace `FILE` for the runs of pre-upgrade alone")
	fs.StringVar(&s.preUpgradeKillParent, "pre-upgrade-kill-parent", "", "SIGKILL to the parent: `once`|always")
	fs.DurationVar(&s.preUpgradeDelay, "pre-upgrade-delay", 0, "how long pre-upgrade takes")
	fs.StringVar(&s.statusStyle, "status-style", "new", "what the command status prints: new (stdout, sync_info) | old (stderr, SyncInfo) | noisy (new, and a warning on stderr)")
	fs.BoolVar(&s.exportNoise, "export-noise", false, "the command export logs on stdout, as some do")
	fs.StringVar(&s.output, "output", "text", "format of the command version: text | json")
	fs.StringVar(&s.output, "o", "text", "the same")
	fs.BoolVar(&s.long, "long", false, "the command version prints everything")
}

// parse reads the flags, then the environment, which wins. Positional arguments have no effect but are in the trace.
func parse(name string, args []string) (*settings, error) {
	s := &settings{}
	fs := s.flags(name)
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return nil, fail("%v", err)
		}
		// The flag package stops at the first argument that is no flag; what follows may hold flags again.
		args = fs.Args()
		if len(args) == 0 {
			break
		}
		// Cosmovisor's documents write `--unsafe-skip-upgrades 10 20`: further heights are arguments of their own.
		if len(s.skips) > 0 {
			_ = s.addSkips(args[0])
		}
		args = args[1:]
	}
	if err := environment(fs); err != nil {
		return nil, err
	}
	if s.handled == nil {
		s.handled = strings.Split(handles, ",")
		if handles == "" {
			s.handled = []string{version}
		}
	}
	if s.rpc == "" {
		s.rpc = s.laddr
	}
	return s, nil
}

// environment sets the flags that FAKENODE_ variables stand for. An empty one is as good as none.
func environment(fs *flag.FlagSet) error {
	known := map[string]*flag.Flag{}
	fs.VisitAll(func(f *flag.Flag) { known[envName(f.Name)] = f })
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || value == "" {
			continue
		}
		f, ok := known[name]
		if !ok {
			return &exitError{code: 2, text: fmt.Sprintf("unknown variable %s: see fakenode --help", name)}
		}
		if err := fs.Set(f.Name, value); err != nil {
			return &exitError{code: 2, text: fmt.Sprintf("cannot read %s=%q: %v", name, value, err)}
		}
	}
	return nil
}

// envName is the variable that stands for a flag: FAKENODE_ and the name in capitals, with underscores.
func envName(flagName string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(flagName))
}

// parsePlans reads NAME@HEIGHT[:INFO], several separated by semicolons. An info may hold colons, as URLs and JSON do,
// but no semicolon.
func parsePlans(text string) ([]plan, error) {
	var plans []plan
	for part := range strings.SplitSeq(text, ";") {
		key, info, _ := strings.Cut(part, ":")
		name, digits, ok := strings.Cut(key, "@")
		height, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || height <= 0 || name == "" {
			return nil, fmt.Errorf("%q is not NAME@HEIGHT[:INFO]", part)
		}
		plans = append(plans, plan{Name: name, Height: height, Info: info})
	}
	return plans, nil
}

// addSkips adds heights to those whose plans are passed over.
func (s *settings) addSkips(text string) error {
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		height, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return err
		}
		s.skips = append(s.skips, height)
	}
	return nil
}

// endingFlag reads one of the four endings: a fifth would be a node that doesn't do what the test believes.
func endingFlag(at *ending) func(string) error {
	return func(v string) error {
		*at = ending(v)
		if !slices.Contains([]ending{endStay, endExit, endExit0, endPanic}, *at) {
			return fmt.Errorf("%q is none of stay, exit, exit0, panic", v)
		}
		return nil
	}
}

// planAt is the plan that falls due with the block at height, if there is one.
func (s *settings) planAt(height int64) *plan {
	for _, p := range s.upgrades {
		if p.Height == height {
			return &p
		}
	}
	return nil
}

// printHelp is made of the same declarations that are parsed, so it can't be out of date.
func printHelp(w io.Writer) {
	fmt.Fprint(w, "fakenode ", version, ": a node for tests and demonstrations\n\n",
		"  start         make blocks until told to stop\n",
		"  init          make config/ and data/ in the home\n",
		"  version       print the version; --long --output json prints an object\n",
		"  status        ask the RPC of the running node\n",
		"  pre-upgrade   what a supervisor calls after the switch\n",
		"  export        print a genesis document of the store at rest\n\n",
		"Flags, and the variables that stand for them and win over them:\n\n")
	new(settings).flags("help").VisitAll(func(f *flag.Flag) {
		placeholder, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%s %s\n  %s\n        %s", f.Name, placeholder, envName(f.Name), usage)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
}
