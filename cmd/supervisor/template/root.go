package template

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/fetch"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/postgres/kwildb"
	"nodevisor/supervisor/home"
)

const (
	maxState = 1 << 40 // bytes of a downloaded state
	maxKey   = 64 << 10
	// stateDeadline bounds a state's download: 100 GB at 2 MB/s are 14 hours.
	stateDeadline = 24 * time.Hour
)

// afterRestore is what kwild does after a restore of its own, in SQL: resolutions about the old network (its migration,
// its validators' joining and leaving) go, and rows get the full identity that its replication needs. Which tables it
// means differs between its versions; here all that were restored get it, which its own dumps show for nearly all.
var afterRestore = []string{
	`DELETE FROM kwild_voting.resolutions WHERE type IN (SELECT id FROM kwild_voting.resolution_types
		WHERE name IN ('migration', 'changeset_migration', 'validator_join', 'validator_remove'))`,
	`DO $identity$ DECLARE t regclass; BEGIN
		FOR t IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relreplident <> 'f'
			AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
		LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', t); END LOOP; END $identity$`,
}

// fetch brings what is named by a URL into staging, beside the root, and sets i.state and the document's path.
func (i *rootInit) fetch(ctx context.Context, staging string) (err error) {
	if isURL(i.f.document) || isURL(i.f.state) {
		if err := removeStaging(staging); err != nil { // an interrupted init's
			return err
		}
	}
	get := func(from, sum, name string, limit int64) string {
		if err != nil || !isURL(from) {
			return from
		}
		sep := "?"
		if strings.Contains(from, "?") {
			sep = "&"
		}
		file, _, ferr := fetch.File(ctx, fetch.Request{
			URL: from + sep + "checksum=sha256:" + sum, Name: name, Dir: staging, MaxBytes: limit, Deadline: stateDeadline,
		})
		if ferr != nil {
			err = &hint.Error{Op: "download", Path: fetch.Redact(from), Err: ferr, Hint: "download it by hand, compare its sha256, and give the file"}
		}
		return file
	}
	i.f.document = get(i.f.document, i.f.documentSum, genesis.DocumentName, genesis.MaxDocument)
	i.state = get(i.f.state, i.f.stateSum, genesis.StateName, maxState)
	if err != nil {
		return errors.Join(err, removeStaging(staging))
	}
	return nil
}

func removeStaging(dir string) error { return atomicfile.RemoveTree(dir) }

// verify reads the document, the state and the key, and changes nothing. From here on the document is the bytes that were
// read, and the state the file with the digest that was computed.
func (i *rootInit) verify() (key []byte, err error) {
	if i.doc, i.data, err = genesis.ReadFile(i.f.document); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(i.data)
	if err := genesis.CheckSum(i.f.document, hex.EncodeToString(sum[:]), i.f.documentSum); err != nil {
		return nil, err
	}
	if kind, _ := i.doc.Detect(); kind == genesis.Cosmos {
		return nil, hint.New("set up a root from", i.f.document, "it is a document of the Cosmos SDK, whose nodes need no state beside it",
			"copy it to config/genesis.json of a home that the node's own init made")
	}
	if err := i.verifyState(); err != nil {
		return nil, err
	}
	if i.f.key != "" {
		return i.readKey()
	}
	return nil, nil
}

func (i *rootInit) verifyState() error {
	f, err := genesis.OpenRegular(i.state)
	if err != nil {
		return &hint.Error{Op: "read state", Path: i.state, Err: err, Hint: "give the path of the state's file"}
	}
	defer f.Close()
	h := sha256.New()
	all := io.TeeReader(f, h)
	i.version, i.found, err = kwil.VerifyPair(i.data, all)
	if err == nil {
		_, err = io.Copy(io.Discard, all)
	}
	if err != nil {
		return &hint.Error{Op: "use the document with the state", Path: i.state, Err: err, Hint: "copy both files again from who made them, and compare their sha256"}
	}
	i.sum = hex.EncodeToString(h.Sum(nil))
	return genesis.CheckSum(i.state, i.sum, i.f.stateSum)
}

// readKey reads the validator's key. Kwil v0.9 writes it as 128 hexadecimal digits, of which the second half is the public
// key: there it can be told at once when the network doesn't know it.
func (i *rootInit) readKey() ([]byte, error) {
	f, err := genesis.OpenRegular(i.f.key)
	if err != nil {
		return nil, &hint.Error{Op: "read key", Path: i.f.key, Err: err, Hint: "give the file of the validator's private key"}
	}
	defer f.Close()
	key, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	if err == nil && (len(key) > maxKey || len(bytes.TrimSpace(key)) == 0) {
		err = errors.New("it is empty, or no key")
	}
	if err == nil && i.version == kwil.V09 {
		raw, herr := hex.DecodeString(string(bytes.TrimSpace(key)))
		switch {
		case herr != nil || len(raw) != 64:
			err = errors.New("it is not the 128 hexadecimal digits of an ed25519 key")
		case !bytes.Contains(bytes.ToLower(i.data), []byte(hex.EncodeToString(raw[32:]))):
			i.Say("the key is none of the document's validators: the node will follow, not sign")
		}
	}
	if err != nil {
		return nil, &hint.Error{Op: "use key", Path: i.f.key, Err: err, Hint: "give the file of the validator's private key"}
	}
	return key, nil
}

// keyName is where kwild looks for its key.
func keyName(v kwil.Version) string {
	if v == kwil.V09 {
		return "private_key"
	}
	return "nodekey.json"
}

// tryOut restores the state into a scratch database, and looks at the node's own. Both are left as they were.
func (i *rootInit) tryOut(ctx context.Context) (*kwildb.Target, kwildb.Settings, error) {
	target := kwildb.NewTarget(i.f.root, i.f.dsn, i.f.passwordFile, i.f.pgBin)
	settings, err := target.Settings()
	if err != nil {
		return nil, settings, err
	}
	if i.f.skipTrial {
		i.Say("the state is not tried on a server, and the database is not looked at (--skip-trial)")
		return nil, settings, nil
	}
	if interrupted, err := genesis.ReadMarker(i.f.root); err == nil && (interrupted == nil || interrupted.Database == nil) {
		if err := target.Check(ctx); err != nil {
			return nil, settings, err
		}
	}
	err = i.withState(func(sql io.Reader) error { return target.Try(ctx, sql, i.tables()) })
	return target, settings, err
}

// withState hands the state to work, decompressed.
func (i *rootInit) withState(work func(io.Reader) error) error {
	f, err := os.Open(i.state)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	return work(z)
}

func (i *rootInit) tables() []kwildb.Table {
	var all []kwildb.Table
	for _, t := range i.found.Tables {
		all = append(all, kwildb.Table{Name: t.Name, Rows: t.Rows})
	}
	return all
}

// write sets the root up, under its lock. What an interrupted init did to the database is undone first: at its begin the
// database was empty, so all that is in it is its.
func (i *rootInit) write(ctx context.Context, target *kwildb.Target, files []genesis.RootFile) error {
	if err := atomicfile.MkdirAll(filepath.Join(i.f.root, "supervisor"), 0o750); err != nil {
		return err
	}
	lock, err := home.AcquireLock(filepath.Join(i.f.root, "supervisor", "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	interrupted, err := genesis.CheckRoot(i.f.root) // again: now nobody else is at it
	if err != nil {
		return err
	}
	m := &genesis.Marker{Kind: genesis.Kwil, Version: string(i.version), At: time.Now().UTC().Truncate(time.Second), StateHash: fmt.Sprintf("%x", i.found.SHA256)}
	if target != nil {
		if m.Database = (&genesis.MarkerDatabase{DSN: i.f.dsn, PasswordFile: i.f.passwordFile}); interrupted != nil && interrupted.Database != nil {
			if *interrupted.Database != *m.Database {
				return hint.New("set up", i.f.root, "an interrupted init used another database: "+interrupted.Database.DSN, "give the same --dsn again")
			}
			if err := target.Recreate(ctx); err != nil {
				return err
			}
		}
	}
	if err := genesis.WriteRoot(i.f.root, m, files); err != nil {
		return err
	}
	if target != nil {
		if err := target.Prepare(ctx); err != nil {
			return err
		}
	}
	if i.f.restoreNow {
		err := i.withState(func(sql io.Reader) error { return target.Load(ctx, sql, i.tables(), afterRestore...) })
		if err != nil {
			return err
		}
		return genesis.RemoveMarker(i.f.root)
	}
	m.Phase = genesis.Restoring
	return m.Write(i.f.root)
}

// kwildConfig is the smallest configuration with which kwild finds its database and the state; all else has kwild's
// defaults. The password is in it, because kwild takes it from nowhere else.
func kwildConfig(v kwil.Version, root string, s kwildb.Settings) []byte {
	var b strings.Builder
	set := func(key, value string) { fmt.Fprintf(&b, "%s = %s\n", key, config.TomlString(value)) }
	if v == kwil.V09 {
		b.WriteString("[app]\n")
		set("private_key_path", keyName(v))
		set("genesis_state", filepath.Join(root, genesis.StateName))
		for _, kv := range [][2]string{{"host", s.Host}, {"port", s.Port}, {"user", s.User}, {"pass", s.Password}, {"name", s.Database}} {
			set("pg_db_"+kv[0], kv[1])
		}
		return []byte(b.String())
	}
	set("genesis_state", genesis.StateName) // relative to the root
	b.WriteString("\n[db]\n")
	for _, kv := range [][2]string{{"host", s.Host}, {"port", s.Port}, {"user", s.User}, {"pass", s.Password}, {"dbname", s.Database}} {
		set(kv[0], kv[1])
	}
	return []byte(b.String())
}
