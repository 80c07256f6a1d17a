package session

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/snapshot"
	"nodevisor/snapshot/postgres"
	"nodevisor/snapshot/postgres/kwildb"
	"nodevisor/snapshot/postgres/server"
)

// kwilCheckTimeout bounds what CheckKwil asks of the server.
const kwilCheckTimeout = 30 * time.Second

// makeKwil writes the pair that Kwil's tools read into at. The database is at rest, or the snapshot's frozen clone of it.
func (x *Exporter) makeKwil(ctx context.Context, at string, t *genesis.Template, job templateJob) error {
	g := x.Config.Genesis
	ctx, cancel := context.WithTimeoutCause(ctx, g.Timeout, fmt.Errorf("not done within %s ([genesis] timeout)", g.Timeout))
	defer cancel()
	src, err := x.database()
	if err != nil {
		return err
	}
	read := kwildb.Options{}
	if job.frozen {
		if read.Database, err = x.clone(job.snapshot, src.Name); err != nil {
			return err
		}
	}
	q, version, err := x.openKwil(ctx, src, read)
	if err != nil {
		return err
	}
	defer q.Close()
	chain := q.State()
	o := kwil.PairOptions{Height: chain.Height, Dump: q.Dump, Observe: x.progress()}
	o.Document = kwil.Options{Version: version, Database: kwil.Known{Version: version, Params: chain.Params, Owner: chain.Owner}, Set: x.identity(job.set)}
	if o.Document.Old, err = x.oldDocument(); err != nil {
		return err
	}
	pair, err := kwil.WritePair(ctx, at, o)
	if err != nil {
		return err
	}
	name, sum := pair.File.Name, hex.EncodeToString(pair.State.SHA256[:])
	t.Version, t.Height, t.State, t.StateSum = string(version), &chain.Height, &name, &sum
	set := slices.Clone(job.set)
	for path := range g.Set {
		set = append(set, Assignment{Path: path})
	}
	t.Defaults = append(t.Defaults, notSet(pair.Document.Minted, set)...)
	for _, note := range append(pair.State.Notes, pair.Document.Notes...) {
		x.Log.Warn("about the template", "note", note)
	}
	return x.settle(at, t, job.set)
}

// openKwil opens the database that the state is read from, or the clone of it that read names.
func (x *Exporter) openKwil(ctx context.Context, src snapshot.SourceConfig, read kwildb.Options) (*kwildb.Database, kwil.Version, error) {
	version, err := kwil.ParseVersion(x.Config.Genesis.Version)
	if err != nil {
		return nil, "", err
	}
	read.Version, read.Home, read.Log = string(version), x.Config.Node.Home, x.Log
	q, err := kwildb.Open(ctx, server.Config{
		Source: src.Name, DSN: src.DSN, PasswordFile: x.absolute(src.PasswordFile), AdminDSN: src.AdminDSN, Bin: x.Config.Snapshot.PgBin,
	}, read)
	return q, version, err
}

// oldDocument is the text of [genesis] from; nil where none is configured.
func (x *Exporter) oldDocument() (text []byte, err error) {
	if from := x.Config.Genesis.From; from != "" {
		_, text, err = genesis.ReadFile(x.Config.UnderHome(from))
	}
	return text, err
}

// CheckKwil looks, while the node may run, for what a template of Kwil's would fail on at a halt: a database of another
// version, a pg_dump that is too old, an old document that can't be read. It changes nothing, and gives the chain's height.
// kwildb.ErrNoChain means that the node hasn't begun.
func (x *Exporter) CheckKwil(ctx context.Context) (height int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, kwilCheckTimeout)
	defer cancel()
	if _, err := x.oldDocument(); err != nil {
		return 0, err
	}
	src, err := x.database()
	if err != nil {
		return 0, err
	}
	q, _, err := x.openKwil(ctx, src, kwildb.Options{Live: true})
	if err != nil {
		return 0, err
	}
	defer q.Close()
	return q.State().Height, nil
}

// settle applies what is set to the rendered document, and checks that the result is still one of Kwil's that names this
// very state.
func (x *Exporter) settle(at string, t *genesis.Template, set []Assignment) error {
	path := filepath.Join(at, genesis.DocumentName)
	doc, _, err := genesis.ReadFile(path)
	if err != nil {
		return err
	}
	if err := x.apply(doc, set); err != nil {
		return err
	}
	if err := ValidateDocument(doc, t.Kind, t.Version); err != nil {
		return err
	}
	if err := namesState(doc, t); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, doc.Text(), 0o600)
}

// namesState refuses a document of Kwil's that doesn't name the template's own state.
func namesState(doc *genesis.Document, t *genesis.Template) error {
	if t.Kind != genesis.Kwil || t.StateSum == nil {
		return nil
	}
	hash, err := kwil.StateHash(kwil.Version(t.Version), doc.Canonical())
	if err == nil && hex.EncodeToString(hash) != *t.StateSum {
		err = hint.New("set the state's hash", "", "it is computed from the state", "take app_hash and state_hash out of --set and [genesis] set")
	}
	return err
}

// identity are the values without which no document can be rendered, where an operator or the configuration gives them.
func (x *Exporter) identity(set []Assignment) map[string]json.RawMessage {
	all := map[string]json.RawMessage{}
	for _, path := range []string{"chain_id", "db_owner", "leader.type", "leader.key"} {
		if v := x.wanted(path, set); v != "" {
			all[path] = rawJSON(strings.Trim(v, `"`))
		}
	}
	for _, path := range []string{"validators", "leader"} {
		if v := x.wanted(path, set); json.Valid([]byte(v)) {
			all[path] = json.RawMessage(v)
		}
	}
	return all
}

// database is the source that the state is read from.
func (x *Exporter) database() (snapshot.SourceConfig, error) {
	var found []snapshot.SourceConfig
	for _, src := range x.Config.Snapshot.Sources {
		if src.Kind == postgres.Kind && (x.Config.Genesis.Source == "" || src.Name == x.Config.Genesis.Source) {
			found = append(found, src)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return snapshot.SourceConfig{}, &cli.UsageError{Err: hint.New("find the node's database", "", fmt.Sprintf("%d sources of kind postgres fit", len(found)),
		"configure one as [[snapshot.source]], and name it in [genesis] source where there are several")}
}

// clone is the database that a snapshot froze.
func (x *Exporter) clone(id, source string) (string, error) {
	m, err := x.store.Get(id)
	if err != nil {
		return "", err
	}
	for _, rec := range m.Sources {
		if rec.Name == source && rec.Database != nil && rec.Database.Clone != nil {
			return *rec.Database.Clone, nil
		}
	}
	return "", hint.New("make a template of snapshot", id, "its frozen clone of the database isn't kept any more",
		"supervisor halt --now makes one of the present state; keep_clones keeps more clones")
}

// absolute is UnderHome for a path that may be "".
func (s *Session) absolute(path string) string {
	if path == "" {
		return ""
	}
	return s.Config.UnderHome(path)
}

// progress logs the bytes of SQL now and then, so that a long dump doesn't look frozen.
func (x *Exporter) progress() progress.Observer {
	const step = 256 << 20
	next := int64(step)
	return func(e progress.Event) {
		if e.Done >= next {
			next = e.Done + step
			x.Log.Info("state is being written", "sql_bytes", e.Done)
		}
	}
}
