package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// node is a running node. One goroutine, the one of run, makes the blocks; the RPC reads what it publishes.
type node struct {
	*settings
	store  *store
	db     *database // nil: the blocks are in the store alone
	signer *signer
	tick   <-chan time.Time // nil: no further block is made
	fresh  bool             // no block was committed by this process yet
	status atomic.Pointer[chainState]
}

// haltError says that the block at Height can't be executed by this binary. The block is stored.
type haltError struct {
	height int64
	plan   *plan // nil: the halt height
	then   ending
	text   string
}

func (e *haltError) Error() string { return e.text }

// start is the command: everything from the first trace line to the exit code.
func start(s *settings) (err error) {
	// First of all, so that the time from a supervisor's exec to here is what is measured; only the signals come before: whoever
	// sees the trace and stops the node finds one that records its end.
	signals := catchSignals()
	dir, _ := os.Getwd()
	s.record(trace.Event{Kind: trace.Start, Argv: os.Args, Dir: dir})
	defer func() {
		if end := new(exitError); err == nil || errors.As(err, &end) {
			s.record(trace.Event{Kind: trace.Exit, Code: end.code})
		}
	}()
	if s.crash >= 0 {
		return &exitError{code: s.crash, text: "crash-at-start"}
	}
	if s.home == "" {
		return fail("no home: set DAEMON_HOME or --home")
	}
	// Before anything slow: a stop during the start delay must find a listener.
	stop := s.watchSignals(signals)
	if err := s.prepare(); err != nil {
		return fail("%v", err)
	}
	n, err := open(s)
	if err != nil {
		return fail("%v", err)
	}
	defer n.store.close() //nolint:errcheck // a store at its end: nothing is buffered
	defer n.db.close()    //nolint:errcheck // the same
	return n.run(stop)
}

// open opens the store and the signer's state, and refuses data that is not this binary's.
func open(s *settings) (*node, error) {
	store, err := openStore(filepath.Join(s.home, "data", "fake.db"), s.tableEvery, s.sync)
	if err != nil {
		return nil, fmt.Errorf("failed to initialize database: %w", err)
	}
	n := &node{settings: s, store: store, fresh: true}
	// After the store: its lock is what makes the signer's state this process's own.
	n.signer, err = openSigner(s.signerPath(), s.sync)
	if err == nil {
		err = n.checkVersion()
	}
	if err == nil && s.postgres != "" {
		if n.db, err = openDatabase(s.postgres); err == nil {
			next := ""
			if p := n.planAt(store.state.Applied + 1); p != nil {
				next = p.Name
			}
			err = n.db.fits(store.state, next, s.handled)
		}
	}
	if err != nil {
		return nil, errors.Join(err, n.db.close(), store.close())
	}
	n.publish()
	return n, nil
}

// checkVersion is x/upgrade's downgrade check, and its check for a binary that came too early.
func (n *node) checkVersion() error {
	st := n.store.state
	next := st.Pending
	if next == nil {
		next = n.planAt(st.Applied + 1)
	}
	due := next != nil && !slices.Contains(n.skips, next.Height)
	if last := st.lastUpgrade(); last != "" && !due && !slices.Contains(n.handled, last) {
		return fmt.Errorf("wrong app version %s, upgrade handler is missing for %s upgrade plan", version, last)
	}
	// x/upgrade refuses always; here it is asked for, since most tests want to start any version on any data.
	for _, p := range n.upgrades {
		if n.strict && p.Height > st.Applied+1 && slices.Contains(n.handled, p.Name) && !slices.Contains(st.Upgrades, p.Name) {
			return fmt.Errorf("BINARY UPDATED BEFORE TRIGGER! UPGRADE %q - in binary but not executed on chain. Downgrade your binary", p.Name)
		}
	}
	return nil
}

// run replays what is stored and not applied, serves the RPC, and makes blocks until something ends it.
func (n *node) run(stop <-chan os.Signal) error {
	select {
	case sig := <-stop:
		return n.shutdown(sig)
	case <-time.After(n.startDelay):
	}
	if err := n.replay(); err != nil {
		return fail("error during handshake: error on replay: %v", err)
	}
	// Only now: a node that fails its replay never answered, which is what makes the height hard to learn there.
	rpc, err := n.serveRPC()
	if err != nil {
		return fail("%v", err)
	}
	if rpc != nil {
		defer rpc.Close() //nolint:errcheck // nothing follows that could care
	}
	if n.blockTime > 0 {
		ticker := time.NewTicker(n.blockTime)
		defer ticker.Stop()
		n.tick = ticker.C
	}
	var end <-chan time.Time
	if n.exitAfter > 0 {
		end = time.After(n.exitAfter)
	}
	for {
		select {
		case <-n.tick:
			if err := n.step(); err != nil {
				return err
			}
		case <-end:
			return &exitError{code: n.exitCode, text: "exit-after is over"}
		case sig := <-stop:
			return n.shutdown(sig)
		}
	}
}

// shutdown ends the node as a signal asked for. The store stays locked for the whole of the delay.
func (n *node) shutdown(sig os.Signal) error {
	logf("INF", "server", "caught signal signal=%q", sig)
	time.Sleep(n.stopDelay)
	return &exitError{code: n.termCode}
}

// replay executes a block that an earlier process stored and didn't execute.
func (n *node) replay() error {
	if n.store.state.Stored == n.store.state.Applied {
		return nil
	}
	return n.execute()
}

// step makes one block. An error ends the node.
func (n *node) step() error {
	height := n.store.state.Applied + 1
	switch {
	case n.panicAt == height:
		panic(fmt.Sprintf("panic-at: height %d", height))
	case n.stallAt > 0 && height >= n.stallAt:
		logf("INF", "consensus", "waiting for the network height=%d", height)
		n.tick = nil
		return nil
	}
	// The order is CometBFT's: the vote is signed and the block stored before the application sees it.
	if err := n.vote(height); err != nil {
		return fail("%v", err)
	}
	if err := n.store.storeBlock(height, n.planAt(height)); err != nil {
		return fail("%v", err)
	}
	n.publish()
	err := n.execute()
	if halt := (*haltError)(nil); errors.As(err, &halt) {
		return n.halt(halt)
	}
	if err != nil {
		return fail("%v", err)
	}
	return nil
}

// vote signs the block, if the signer's state allows it. An unsigned block is made all the same: the network's others
// signed it.
func (n *node) vote(height int64) error {
	signed, err := n.signer.sign(height)
	if err != nil {
		return err
	}
	if !signed {
		logf("ERR", "consensus", "failed signing vote: height regression. Got %d, last height %d", height, n.signer.height)
	}
	if n.traceBlocks {
		n.record(trace.Event{Kind: trace.Block, Height: height, Signed: signed})
	}
	return nil
}

// execute applies the stored block, or returns a *haltError.
func (n *node) execute() error {
	height, due, upgrade := n.store.state.Stored, n.store.state.Pending, ""
	// The configured halt comes before the plan: the SDK looks at it before PreBlock.
	if n.haltHeight > 0 && height >= n.haltHeight {
		text := fmt.Sprintf("halt per configuration height %d time 0", n.haltHeight)
		return &haltError{height: height, then: n.atHalt, text: text}
	}
	switch {
	case due == nil:
	case slices.Contains(n.skips, height):
		logf("INF", "x/upgrade", "UPGRADE %q SKIPPED at %d: %s", due.Name, height, due.Info)
	case !slices.Contains(n.handled, due.Name):
		return n.needUpgrade(due)
	default:
		if err := n.loadStores(due); err != nil {
			return err
		}
		upgrade = due.Name
		logf("INF", "x/upgrade", "applying upgrade %q at height: %d", due.Name, height)
	}
	if err := n.commit(height, upgrade); err != nil {
		return err
	}
	if upgrade != "" {
		n.record(trace.Event{Kind: trace.Upgrade, Name: upgrade, Height: height})
	}
	if n.fresh {
		n.record(trace.Event{Kind: trace.FirstBlock, Height: height})
		n.fresh = false
	}
	if n.logHeight {
		logf("INF", "state", "committed state height=%d", height)
	}
	n.publish()
	return nil
}

// commit makes a block last: in the database first, where there is one. The store is what decides.
func (n *node) commit(height int64, upgrade string) error {
	if n.db != nil {
		if upgrade != "" && n.damage {
			return errors.Join(errors.New("the migration failed"), n.db.damage())
		}
		if err := n.db.commit(height, n.store.state.nextHash(height, upgrade), upgrade); err != nil {
			return err
		}
	}
	return n.store.commit(upgrade)
}

// needUpgrade says what the node waits for, in x/upgrade's order: the file, then the line.
func (n *node) needUpgrade(p *plan) error {
	if err := n.writePlan(p); err != nil {
		return fmt.Errorf("unable to write upgrade info to filesystem: %w", err)
	}
	text := fmt.Sprintf("UPGRADE %q NEEDED at height: %d: %s", p.Name, p.Height, p.Info)
	logf("ERR", "x/upgrade", "%s", text)
	return &haltError{height: p.Height, plan: p, then: n.atUpgrade, text: text}
}

// halt ends the node, or lets it live on without a further block, as it was told.
func (n *node) halt(h *haltError) error {
	logf("ERR", "consensus", "CONSENSUS FAILURE!!! err=%q", h.text)
	switch h.then {
	case endPanic:
		panic(h.text)
	case endExit:
		return &exitError{code: 1, text: h.text}
	case endExit0:
		return &exitError{}
	}
	// Neither the process nor the RPC ends: the supervisor has to notice, and to stop it.
	n.tick = nil
	e := trace.Event{Kind: trace.Halted, Height: h.height}
	if h.plan != nil {
		e.Name = h.plan.Name
	}
	n.record(e)
	return nil
}

// planPath is fixed by the SDK: <home>/data/upgrade-info.json.
func (n *node) planPath() string { return filepath.Join(n.home, "data", "upgrade-info.json") }

// writePlan writes upgrade-info.json the way that x/upgrade does, without a sync (Keeper.DumpUpgradeInfoToDisk), or one of
// the ways that hurt a careless reader.
func (n *node) writePlan(p *plan) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	switch {
	case n.planRename:
		return replaceFile(n.planPath(), data, 0o600)
	// A crash of the writer, or a slow disk, between the two writes is what a reader must survive.
	case n.partialPlan:
		if err := os.WriteFile(n.planPath(), data[:len(data)/2], 0o600); err != nil {
			return err
		}
		time.Sleep(n.planPause)
		f, err := os.OpenFile(n.planPath(), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(data[len(data)/2:])
		return errors.Join(err, f.Close())
	}
	return os.WriteFile(n.planPath(), data, 0o600)
}

// loadStores stands for UpgradeStoreLoader: a binary that brings new stores adds them only if upgrade-info.json names
// its plan, and can't open the data otherwise.
func (n *node) loadStores(p *plan) error {
	if !n.storeLoader {
		return nil
	}
	var found plan
	data, err := os.ReadFile(n.planPath())
	if err == nil {
		err = json.Unmarshal(data, &found)
	}
	if err != nil || !strings.EqualFold(found.Name, p.Name) || found.Height != p.Height {
		return fmt.Errorf("failed to load latest version: initial version set to %d, but found earlier version", p.Height)
	}
	return nil
}

// publish hands the RPC a copy: the original changes with the next block.
func (n *node) publish() {
	st := n.store.state
	st.Upgrades = slices.Clone(st.Upgrades)
	n.status.Store(&st)
}
