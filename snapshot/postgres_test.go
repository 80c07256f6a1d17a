package snapshot

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
)

// A set is a directory and two databases, each after the other.
type set struct {
	*Store
	home    string
	cluster *pgtest.Cluster
}

// setSources are its sources, reached through the socket in dir.
func setSources(dir, mode string) []SourceConfig {
	dsn := func(name string) string { return "host=" + dir + " port=5432 user=postgres dbname=" + name }
	return []SourceConfig{
		{Name: "beta", Kind: "postgres", DSN: dsn("beta"), Mode: mode, Fallback: "hold", FreeSpace: "10G", After: []string{"alpha"}},
		{Name: "alpha", Kind: "postgres", DSN: dsn("alpha"), Mode: mode, Fallback: "hold", FreeSpace: "10G", After: []string{"data"}},
		{Name: "data", Kind: "dir", Path: "data"},
	}
}

func newSet(t *testing.T, mode string) *set {
	s := &set{cluster: pgtest.Start(t)}
	s.begin(t, mode)
	return s
}

// begin fills the databases and a new home.
func (s *set) begin(t *testing.T, mode string) {
	s.home = newHome(t, 1200)
	for _, name := range []string{"alpha", "beta"} {
		s.cluster.Create(name, "CREATE TABLE blocks (height int PRIMARY KEY, hash text); INSERT INTO blocks SELECT i, md5(i::text) FROM generate_series(1, 1200) i")
	}
	s.Store = open(t, s.home, func(o *Options) { o.Config.Sources = setSources(s.cluster.Dir, mode) })
}

// goOn is what the node does after a snapshot.
func (s *set) goOn(t *testing.T) {
	for _, name := range []string{"alpha", "beta"} {
		s.cluster.Exec(name, "INSERT INTO blocks SELECT i, 'later' FROM generate_series(1201, 1300) i")
	}
	require.NoError(t, os.WriteFile(filepath.Join(s.home, "data", "later"), []byte("x"), 0o600))
}

// state tells for each source whether it is as "snapshot" or as "later".
func (s *set) state(t *testing.T) string {
	t.Helper()
	var all []string
	for _, name := range []string{"alpha", "beta"} {
		all = append(all, map[string]string{"1200": "snapshot", "1300": "later"}[s.cluster.Query(name, "SELECT count(*) FROM blocks")[0]])
	}
	data := "snapshot"
	if _, err := os.Stat(filepath.Join(s.home, "data", "later")); err == nil {
		data = "later"
	}
	return strings.Join(append(all, data), " ")
}

// ours lists the databases that are not the node's.
func (s *set) ours() []string {
	return s.cluster.Query("postgres", "SELECT shobj_description(oid, 'pg_database')::json ->> 'role' FROM pg_database WHERE datname LIKE 'sv\\_%' ORDER BY oid")
}

func (s *set) drop() {
	for _, name := range s.cluster.Query("postgres", "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'") {
		s.cluster.Exec("postgres", "DROP DATABASE "+name+" WITH (FORCE)")
	}
}

const (
	allSnapshot = "snapshot snapshot snapshot"
	allLater    = "later later later"
)

func TestSetOfDirectoryAndDatabases(t *testing.T) {
	for _, mode := range []string{"clone", "dump"} {
		t.Run(mode, func(t *testing.T) {
			s := newSet(t, mode)
			id := completed(t, s.Store, "set", 1200)
			s.goOn(t)
			r, err := s.Verify(t.Context(), id, true)
			require.NoError(t, err)
			assert.True(t, r.OK && r.Hashed && r.Deep, "%v", r.Errors)
			assert.Equal(t, allLater, s.state(t))

			all, err := s.List()
			require.NoError(t, err)
			require.Len(t, all, 1)
			assert.Equal(t, manifest.Verified, all[0].State)
			total := int64(0)
			for _, src := range all[0].Sources {
				total += src.Bytes
			}
			assert.Equal(t, total, all[0].Bytes)
			m, err := s.Get(id)
			require.NoError(t, err)
			text, err := json.Marshal(m)
			require.NoError(t, err)
			assert.Contains(t, string(text), `"name":"blocks","kind":"table","rows":1200,"hash":"`)

			dry, err := s.Restore(t.Context(), id, RestoreOptions{DryRun: true})
			require.NoError(t, err)
			assert.Equal(t, []string{"alpha", "beta", "data"}, sourceNames(dry.Sources), "databases before the directory")
			assert.Equal(t, allLater, s.state(t), "a dry run changes nothing")
			done, err := s.Restore(t.Context(), id, RestoreOptions{})
			require.NoError(t, err)
			assert.Equal(t, allSnapshot, s.state(t))
			for _, src := range done.Sources {
				require.NotNil(t, src.Before, src.Name)
			}
			assert.Equal(t, []string{"1300"}, s.cluster.Query(*done.Sources[0].Before, "SELECT count(*) FROM blocks"), "the data of before is kept")
			assert.NotContains(t, s.ours(), "staged")
			assert.NotContains(t, s.ours(), "scratch")

			s.goOn(t)
			_, err = s.Restore(t.Context(), id, RestoreOptions{})
			require.NoError(t, err, "once more: the clone is used up, the archive is there")
			assert.Equal(t, allSnapshot, s.state(t))

			require.NoError(t, s.Pin(id))
			require.ErrorContains(t, s.Delete(id), "pinned")
			require.NoError(t, s.Unpin(id))
			require.NoError(t, s.Delete(id))
			assert.Equal(t, []string{"before", "before", "before", "before"}, s.ours(), "a deleted snapshot leaves no clone")
		})
	}
}

func sourceNames(all []RestoredSource) (names []string) {
	for _, r := range all {
		names = append(names, r.Name)
	}
	return names
}

// A snapshot that was sealed alone can be restored too: that is what a rollback before the archive is made needs. Its clone
// stays, and the archive is made of it afterwards.
func TestRestoreOfASealedSet(t *testing.T) {
	for _, mode := range []string{"clone", "dump"} {
		s := newSet(t, mode)
		id := create(t, s.Store, "set", 1200)
		s.goOn(t)
		_, err := s.Restore(t.Context(), id, RestoreOptions{})
		require.NoError(t, err)
		assert.Equal(t, allSnapshot, s.state(t), mode)
		require.NoError(t, s.Complete(t.Context(), id))
		r, err := s.Verify(t.Context(), id, true)
		require.NoError(t, err)
		assert.True(t, r.OK, "%v", r.Errors)
	}
}

// Into fills an empty database of another name, and leaves everything else as it is.
func TestRestoreInto(t *testing.T) {
	s := newSet(t, "clone")
	id := create(t, s.Store, "set", 1200)
	s.cluster.Exec("postgres", "CREATE DATABASE other")
	into := RestoreOptions{Into: map[string]string{"beta": s.cluster.DSN("other")}}
	_, err := s.Restore(t.Context(), id, into)
	require.ErrorContains(t, err, "no archive of a database", "it is a clone still")
	require.NoError(t, s.Complete(t.Context(), id))
	s.goOn(t)
	done, err := s.Restore(t.Context(), id, into)
	require.NoError(t, err)
	require.Len(t, done.Sources, 1)
	assert.Equal(t, s.cluster.DSN("other"), done.Sources[0].Path)
	assert.Equal(t, []string{"1200"}, s.cluster.Query("other", "SELECT count(*) FROM blocks"))
	assert.Equal(t, allLater, s.state(t))
	_, err = s.Restore(t.Context(), id, RestoreOptions{Into: map[string]string{"data": "x"}})
	require.ErrorContains(t, err, "no archive of a database")
	to := filepath.Join(t.TempDir(), "out")
	_, err = s.Restore(t.Context(), id, RestoreOptions{To: to})
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(to, "alpha", "toc.dat"))
	assert.Equal(t, allLater, s.state(t))
}

// A source starts only when those that it comes after are complete, and a set is valid only when every member is.
func TestAFailingMemberLeavesNoSet(t *testing.T) {
	s := newSet(t, "clone")
	good := completed(t, s.Store, "good", 1200)
	clones := s.ours()
	s.cluster.Exec("alpha", "BEGIN; INSERT INTO blocks VALUES (5000, ''); PREPARE TRANSACTION 'block'")
	id := NewID(time.Now(), "bad", 1201)
	require.ErrorContains(t, s.Create(t.Context(), id, "bad", 1201), "prepared transaction")
	assert.Equal(t, clones, s.ours(), "beta, which comes after alpha, was not begun")
	assert.NoDirExists(t, filepath.Join(s.Dir(), id))
	assert.NoDirExists(t, filepath.Join(s.Dir(), id+partialSuffix))
	r, err := s.Verify(t.Context(), good, true)
	require.NoError(t, err)
	assert.True(t, r.OK, "the last good one is untouched: %v", r.Errors)
	s.cluster.Exec("alpha", "ROLLBACK PREPARED 'block'")
	require.NoError(t, s.Create(t.Context(), id, "bad", 1201), "the same id again")
}

// A session in the second database keeps both, and the directory, as they are.
func TestASessionInOneDatabaseStopsTheWholeRestore(t *testing.T) {
	s := newSet(t, "clone")
	id := completed(t, s.Store, "set", 1200)
	s.goOn(t)
	other := s.cluster.Connect("alpha")
	_, err := s.Restore(t.Context(), id, RestoreOptions{})
	require.ErrorContains(t, err, "sessions are connected")
	require.NoError(t, other.Close(t.Context()))
	assert.Equal(t, allLater, s.state(t))
	assert.NotContains(t, s.ours(), "staged")
	for _, sl := range s.slots {
		phase, err := s.source(sl).Pending()
		require.NoError(t, err)
		assert.Empty(t, phase)
	}
	_, err = s.Restore(t.Context(), id, RestoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, allSnapshot, s.state(t))
}

// A server that is away while a restore is unfinished is an error at the start, never passed over.
func TestRecoverWithoutTheServer(t *testing.T) {
	s := newSet(t, "dump") // of a clone nothing would have to be removed
	id := completed(t, s.Store, "set", 1200)
	s.goOn(t)
	_, m, err := s.find(id)
	require.NoError(t, err)
	for _, p := range partsOf(t, s.Store, m) {
		require.NoError(t, p.source.Stage(t.Context(), p.job))
	}
	s.cluster.StopServer()
	require.ErrorIs(t, s.Recover(t.Context()), manifest.ErrAway, "staged: what was staged can't be removed")
	s.cluster.StartServer()
	require.NoError(t, s.Recover(t.Context()), "undone")
	assert.Equal(t, allLater, s.state(t))
	parts := partsOf(t, s.Store, m)
	for _, p := range parts {
		require.NoError(t, p.source.Stage(t.Context(), p.job))
	}
	require.NoError(t, parts[0].source.Commit())
	s.cluster.StopServer()
	require.ErrorIs(t, s.Recover(t.Context()), manifest.ErrAway)
	s.cluster.StartServer()
	require.NoError(t, s.Recover(t.Context()))
	assert.Equal(t, allSnapshot, s.state(t), "one was committed: all are finished")
	s.cluster.StopServer()
	require.NoError(t, s.Recover(t.Context()), "nothing is unfinished: tidying waits for the server")
}

func partsOf(t *testing.T, s *Store, m *manifest.Manifest) []*part {
	parts, err := s.parts(context.Background(), filepath.Join(s.Dir(), m.ID), m, RestoreOptions{})
	require.NoError(t, err)
	return parts
}

// Killed at spread statements of a restore, and again in the recovery: every source is as before, or every one is as in
// the snapshot; no database is missing, and nothing is left over.
func TestCrashInRestoreOfSet(t *testing.T) {
	for _, kept := range []int{0, 1} {
		s := newSet(t, "clone")
		crashAtStatements(t, s, "restore", kept, func(t *testing.T, ended bool) {
			state := s.state(t)
			switch {
			case ended:
				assert.Equal(t, allSnapshot, state)
			default:
				assert.Contains(t, []string{allSnapshot, allLater}, state)
			}
			ours := s.ours()
			assert.NotContains(t, ours, "staged")
			if state == allLater {
				assert.NotContains(t, ours, "before")
			} else {
				assert.Equal(t, 2, strings.Count(strings.Join(ours, " "), "before"))
			}
		})
	}
}

// Killed while the archives are made: the snapshot stays what it is, and is completed the next time.
func TestCrashInCompleteOfSet(t *testing.T) {
	s := newSet(t, "clone")
	crashAtStatements(t, s, "complete", 1, func(t *testing.T, _ bool) {
		assert.Equal(t, allLater, s.state(t))
		all, err := s.List()
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.NoError(t, s.Complete(t.Context(), all[0].ID))
		r, err := s.Verify(t.Context(), all[0].ID, false)
		require.NoError(t, err)
		assert.True(t, r.OK && r.Hashed, "%v", r.Errors)
		entries, err := os.ReadDir(filepath.Join(s.Dir(), all[0].ID))
		require.NoError(t, err)
		assert.Len(t, entries, 4, "a folder for each source, and the manifest")
	})
}

// crashAtStatements lets a child do what to the set, through a proxy that kills it at the n-th statement: before the
// server sees it, or after the server has begun to answer it. Without n it counts them.
func crashAtStatements(t *testing.T, s *set, what string, kept int, check func(t *testing.T, ended bool)) {
	run := func(what, id string, at int) (statements int, ended bool) {
		p := newProxy(t, s.cluster.Dir, at)
		sources := setSources(p.dir, "clone")
		for i := range sources {
			if sources[i].Kind == "postgres" {
				sources[i].KeepClones = &kept
			}
		}
		text, err := json.Marshal(sources)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), envChild+"="+what, "SNAPSHOT_TEST_HOME="+s.home, "SNAPSHOT_TEST_ID="+id, "SNAPSHOT_TEST_SOURCES="+string(text))
		stderr := new(limited)
		cmd.Stderr = stderr
		require.NoError(t, cmd.Start())
		p.kill(func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		if at == 0 {
			require.NoError(t, err, "%s", stderr)
		}
		p.close()
		return p.count(), err == nil
	}
	prepare := func() string {
		s.drop()
		s.begin(t, "clone")
		for i := range s.slots {
			s.slots[i].cfg.KeepClones = &kept
			require.NoError(t, s.open(s.slots[i]))
		}
		id := create(t, s.Store, "crash", 1200)
		if what != "complete" {
			require.NoError(t, s.Complete(t.Context(), id))
		}
		s.goOn(t)
		return id
	}
	s.drop()
	s.begin(t, "clone")
	total, _ := run(what, prepare(), 0)
	check(t, true)
	moments := max(4, moments()/4)
	for i := range moments {
		id := prepare()
		at := 1 + i*(total-1)/(moments-1)
		_, ended := run(what, id, at*2+i%2) // the lowest bit: before, or after
		if i%2 == 0 {
			run("recover", id, (2+i)*2) // a second kill, in the recovery
		}
		for range 2 {
			require.NoError(t, s.Recover(t.Context()))
		}
		check(t, ended)
		if t.Failed() {
			t.Fatalf("%s, killed at statement %d of %d (%d)", what, at, total, i%2)
		}
	}
}

// A thousand bits, anywhere in a snapshot: each one is found.
func TestEveryBitFlipInASetIsFound(t *testing.T) {
	s := newSet(t, "dump")
	id := completed(t, s.Store, "set", 1200)
	dir := filepath.Join(s.Dir(), id)
	var files []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if info, ierr := d.Info(); ierr == nil && info.Mode().IsRegular() && info.Size() > 0 {
			files = append(files, path)
		}
		return err
	}))
	r := rand.New(rand.NewPCG(7, 7)) // the same ones in every run
	for i := range 1000 {
		path := files[r.IntN(len(files))]
		if i%4 == 0 {
			path = filepath.Join(dir, manifest.Name)
		}
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		bit := r.IntN(len(data) * 8)
		data[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		report, err := s.Verify(t.Context(), id, false)
		require.NoError(t, err)
		if report.OK {
			t.Fatalf("bit %d of %s was not found", bit, path)
		}
		data[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	report, err := s.Verify(t.Context(), id, false)
	require.NoError(t, err)
	assert.True(t, report.OK, "%v", report.Errors)
}

// A proxy stands before a server and counts the statements that clients send.
type proxy struct {
	dir      string
	listener net.Listener
	server   string
	at       int // twice the statement to kill at, and one more: after the answer has begun; 0: never
	mu       sync.Mutex
	seen     int
	victim   func()
	ready    chan struct{}
	conns    []net.Conn
	dead     bool
}

func newProxy(t *testing.T, server string, at int) *proxy {
	dir, err := os.MkdirTemp("/tmp", "px")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxy{dir: dir, server: filepath.Join(server, ".s.PGSQL.5432"), at: at, ready: make(chan struct{})}
	p.listener, err = net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	require.NoError(t, err)
	t.Cleanup(p.close)
	go func() {
		for {
			client, err := p.listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

func (p *proxy) kill(f func()) {
	p.victim = f
	close(p.ready)
}

func (p *proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("unix", p.server)
	if err != nil {
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, client, server)
	dead := p.dead
	p.mu.Unlock()
	if dead {
		p.close()
		return
	}
	answered := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			if n > 0 {
				select {
				case answered <- struct{}{}:
				default:
				}
				if _, werr := client.Write(buf[:n]); werr != nil {
					err = werr
				}
			}
			if err != nil {
				client.Close()
				return
			}
		}
	}()
	p.forward(bufio.NewReader(client), server, answered)
	server.Close()
}

// forward reads the frontend's messages (PostgreSQL manual, "Message Formats"): the first has no type.
func (p *proxy) forward(client *bufio.Reader, server net.Conn, answered chan struct{}) {
	for first := true; ; first = false {
		head := make([]byte, 5)
		if first {
			head = head[:4]
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint32(head[len(head)-4:]))-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		fatal := false
		if !first && (head[0] == 'Q' || head[0] == 'E') {
			p.mu.Lock()
			p.seen++
			fatal = p.at > 0 && p.seen == p.at/2
			p.mu.Unlock()
		}
		if fatal && p.at%2 == 0 {
			p.strike()
			return
		}
		if _, err := server.Write(append(slices.Clip(head), body...)); err != nil {
			return
		}
		if fatal {
			rest := make([]byte, client.Buffered()) // the Sync behind it: without that nothing is answered
			_, _ = io.ReadFull(client, rest)
			for len(answered) > 0 {
				<-answered
			}
			_, _ = server.Write(rest)
			select {
			case <-answered:
			case <-time.After(5 * time.Second):
			}
			p.strike()
			return
		}
	}
}

func (p *proxy) strike() {
	<-p.ready
	p.victim()
	p.close()
}
