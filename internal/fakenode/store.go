package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// store keeps the chain in files that are named, written once or appended as LevelDB's are
// (https://github.com/google/leveldb/blob/main/doc/impl.md), so that a snapshot's rules for such a directory hold here:
//
//	LOCK             flocked while the store is open
//	CURRENT          names the manifest; replaced by a rename
//	MANIFEST-000001  one JSON edit a line, appended: a table that was added, the log that is written now
//	000001.ldb       a table: written once, under its name only when complete
//	000002.log       the newest records, one JSON document a line, appended
//
// Every commit carries the digest of the chain up to it, and opening replays all of it: a copy that mixes two moments,
// or lost a file, doesn't open.
type store struct {
	dir    string
	lock   *os.File
	log    *os.File
	number int // of the log
	count  int // records in the log
	every  int // records that make a table
	sync   durable
	state  chainState
}

// chainState is what the records add up to. Stored is Applied or one more: a block that was stored and not executed.
type chainState struct {
	Stored, Applied int64
	Hash            string
	Upgrades        []string // names of those applied, oldest first
	Pending         *plan    // the plan that falls due with the stored block
}

// record is one line of a log or a table: a block that was stored, or one that was committed.
type record struct {
	Store   int64  `json:"store,omitempty"`
	Plan    *plan  `json:"plan,omitempty"`
	Commit  int64  `json:"commit,omitempty"`
	Upgrade string `json:"upgrade,omitempty"`
	Hash    string `json:"hash,omitempty"`
}

// edit is one line of the manifest. It is the moment at which a full log has become a table.
type edit struct {
	Table int `json:"table,omitempty"`
	Log   int `json:"log"`
}

const manifestName = "MANIFEST-000001"

var errCorrupt = errors.New("corrupted store")

// openStore opens or makes the store in dir and takes its lock. A lock that another process holds is EAGAIN, "resource
// temporarily unavailable", as goleveldb reports it.
func openStore(dir string, every int, sync durable) (_ *store, err error) {
	if err := errors.Join(os.MkdirAll(dir, 0o755), sync.dir(filepath.Dir(dir))); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, lock: lock, every: max(every, 1), sync: sync}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, err
	}
	tables, err := s.readManifest()
	if err != nil {
		return nil, err
	}
	for _, table := range tables {
		if _, err := s.replay(tableName(table), false); err != nil {
			return nil, err
		}
	}
	if s.count, err = s.replay(logName(s.number), true); err != nil {
		return nil, err
	}
	if err := s.removeObsolete(tables); err != nil {
		return nil, err
	}
	s.log, err = os.OpenFile(s.path(logName(s.number)), os.O_APPEND|os.O_WRONLY, 0)
	return s, err
}

// path is the place of a file of the store; the numbers of tables and logs are of one sequence, as LevelDB's are.
func (s *store) path(name string) string { return filepath.Join(s.dir, name) }
func tableName(number int) string        { return fmt.Sprintf("%06d.ldb", number) }
func logName(number int) string          { return fmt.Sprintf("%06d.log", number) }

// readManifest returns the tables in order and sets the number of the log. A store without CURRENT is new, unless it
// has tables: those were some chain's.
func (s *store) readManifest() (tables []int, err error) {
	current, err := os.ReadFile(s.path("CURRENT"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.create()
	}
	if err != nil {
		return nil, err
	}
	manifest, err := os.ReadFile(s.path(strings.TrimSpace(string(current))))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	for line := range bytes.Lines(manifest) {
		var e edit
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // the writer was killed: the edit never happened
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errCorrupt, manifestName, err)
		}
		if e.Table != 0 {
			tables = append(tables, e.Table)
		}
		s.number = e.Log
	}
	if s.number == 0 {
		return nil, fmt.Errorf("%w: %s names no log", errCorrupt, manifestName)
	}
	return tables, nil
}

// create makes an empty store. CURRENT comes last: without it nothing before counts.
func (s *store) create() error {
	tables, err := filepath.Glob(s.path("*.ldb"))
	if err != nil {
		return err
	}
	if len(tables) > 0 {
		return fmt.Errorf("%w: no CURRENT beside %d tables", errCorrupt, len(tables))
	}
	s.number = 1
	return errors.Join(
		os.WriteFile(s.path(logName(1)), nil, 0o644),
		s.sync.replace(s.path(manifestName), []byte("{\"log\":1}\n"), 0o644),
		s.sync.replace(s.path("CURRENT"), []byte(manifestName+"\n"), 0o644))
}

// replay applies the records of one file. In the log an unfinished last line is cut off, as LevelDB's recovery does.
func (s *store) replay(name string, isLog bool) (records int, err error) {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	whole := bytes.LastIndexByte(data, '\n') + 1
	if whole != len(data) {
		if !isLog {
			return 0, fmt.Errorf("%w: %s ends within a record", errCorrupt, name)
		}
		if err := os.Truncate(s.path(name), int64(whole)); err != nil {
			return 0, err
		}
	}
	lines := bufio.NewScanner(bytes.NewReader(data[:whole]))
	lines.Buffer(nil, 1<<20)
	for ; lines.Scan(); records++ {
		var r record
		err := json.Unmarshal(lines.Bytes(), &r)
		if err == nil {
			err = s.state.apply(r)
		}
		if err != nil {
			return 0, fmt.Errorf("%w: record %d of %s: %w", errCorrupt, records+1, name, err)
		}
	}
	return records, lines.Err()
}

// apply advances the state by one record, or says why the record can't follow.
func (c *chainState) apply(r record) error {
	if r.Store != 0 {
		if r.Store != c.Applied+1 {
			return fmt.Errorf("block %d stored on top of height %d", r.Store, c.Applied)
		}
		c.Stored, c.Pending = r.Store, r.Plan
		return nil
	}
	if r.Commit != c.Applied+1 || r.Commit != c.Stored {
		return fmt.Errorf("block %d committed on top of height %d", r.Commit, c.Applied)
	}
	if want := c.nextHash(r.Commit, r.Upgrade); r.Hash != want {
		return fmt.Errorf("hash of height %d is %s, not %s", r.Commit, r.Hash, want)
	}
	c.Applied, c.Hash, c.Pending = r.Commit, r.Hash, nil
	if r.Upgrade != "" {
		c.Upgrades = append(c.Upgrades, r.Upgrade)
	}
	return nil
}

// nextHash chains the digest of the next commit to the one before.
func (c *chainState) nextHash(height int64, upgrade string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s", c.Hash, height, upgrade))
	return hex.EncodeToString(sum[:])
}

// lastUpgrade is the name of the upgrade that the data saw last, or "".
func (c *chainState) lastUpgrade() string {
	if len(c.Upgrades) == 0 {
		return ""
	}
	return c.Upgrades[len(c.Upgrades)-1]
}

// storeBlock stores the block at height, with the plan that falls due with it. Storing it again is no error: a replay
// does so.
func (s *store) storeBlock(height int64, due *plan) error {
	return s.append(record{Store: height, Plan: due})
}

// commit executes the stored block, and with it the upgrade of that name, if there is one.
func (s *store) commit(upgrade string) error {
	height := s.state.Stored
	return s.append(record{Commit: height, Upgrade: upgrade, Hash: s.state.nextHash(height, upgrade)})
}

// append writes one record with one write, and makes a table of a log that is full.
func (s *store) append(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := s.state.apply(r); err != nil {
		return err
	}
	// One write: a kill leaves the whole line, or none.
	if _, err := s.log.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := s.sync.file(s.log); err != nil {
		return err
	}
	if s.count++; s.count < s.every {
		return nil
	}
	return s.roll()
}

// roll turns the log into a table. Before the edit in the manifest the new files are obsolete, after it the old log is.
func (s *store) roll() error {
	data, err := os.ReadFile(s.path(logName(s.number)))
	if err != nil {
		return err
	}
	if err := s.sync.replace(s.path(tableName(s.number)), data, 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(s.path(logName(s.number+1)), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = s.sync.dir(s.dir) // no edit may name a log that isn't there
	if err == nil {
		err = s.appendEdit(edit{Table: s.number, Log: s.number + 1})
	}
	if err != nil {
		return errors.Join(err, log.Close())
	}
	old := s.log
	s.log, s.number, s.count = log, s.number+1, 0
	return errors.Join(old.Close(), os.Remove(old.Name()))
}

// appendEdit adds one line to the manifest with one write: it is there as a whole or, to a reader, not at all.
func (s *store) appendEdit(e edit) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.path(manifestName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, s.sync.file(f), f.Close())
}

// removeObsolete deletes what a roll that was killed left behind.
func (s *store) removeObsolete(tables []int) error {
	keep := map[string]bool{"LOCK": true, "CURRENT": true, manifestName: true, logName(s.number): true}
	for _, table := range tables {
		keep[tableName(table)] = true
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			if err := os.Remove(s.path(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// close gives the lock up.
func (s *store) close() error {
	var err error
	if s.log != nil {
		err = s.log.Close()
	}
	return errors.Join(err, s.lock.Close())
}
