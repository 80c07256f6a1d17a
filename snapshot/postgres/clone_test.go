package postgres

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

func TestWeirdNames(t *testing.T) {
	c := pgtest.Start(t)
	for i, name := range []string{`we"ird; DROP`, strings.Repeat("ä", 31) + "x", "sv_", "a'b\\c", "%I %s"} {
		require.LessOrEqual(t, len(name), 63)
		c.Create(name, chainSQL)
		s := newSource(t, c.DSN(name), noFallback)
		id := fmt.Sprintf("%s %d", name, i)
		rec, err := s.Freeze(t.Context(), newJob(t, id))
		require.NoError(t, err, name)
		assert.Equal(t, name, rec.Database.Name)
		assert.Regexp(t, `^sv_[0-9a-f]{8}_[0-9a-f]{8}$`, *rec.Frozen)
		ids, err := s.FrozenIDs()
		require.NoError(t, err)
		assert.Equal(t, []string{id}, ids)
		require.NoError(t, s.Drop(id))
		require.Equal(t, []string{"1000"}, c.Query(name, "SELECT count(*) FROM blocks"), "the original is untouched")
	}
	c.Exec("postgres", `DROP DATABASE "sv_"`)
	assert.Empty(t, clonesOf(c))
}

// What another home or source made, or somebody else, is never touched, whatever it is called.
func TestOnlyOursIsTouched(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	s := newSource(t, c.DSN("chain"), noFallback)
	another := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Home = "/other" })
	sibling := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Name = "sibling" })
	for _, src := range []*Source{another, sibling} {
		_, err := src.Freeze(t.Context(), newJob(t, "one"))
		require.NoError(t, err)
	}
	theirs := clonesOf(c)
	require.Len(t, theirs, 2)
	c.Create(s.Owner.CloneName("one"), "") // our name, but neither comment nor limit of ours
	c.Create(s.Owner.Prefix()+"00000000", "")
	c.Exec("postgres", fmt.Sprintf(`COMMENT ON DATABASE %s IS '{"by":"nodevisor","home":"/other","source":"chain","role":"clone"}'`, server.Quote(s.Owner.Prefix()+"00000000")))
	before := clonesOf(c)

	ids, err := s.FrozenIDs()
	require.NoError(t, err)
	assert.Empty(t, ids)
	require.NoError(t, s.Drop("one"))
	require.NoError(t, s.Retire("one"))
	_, err = s.Freeze(t.Context(), newJob(t, "one"))
	require.Error(t, err, "the name is taken")
	assert.Equal(t, before, clonesOf(c))

	rec, err := s.Freeze(t.Context(), newJob(t, "two"))
	require.NoError(t, err)
	require.NoError(t, another.Retire("one"))
	require.NoError(t, another.Drop("two"))
	faults, err := s.VerifyClone(t.Context(), rec)
	require.NoError(t, err)
	assert.Empty(t, faults)
}

func TestFreezeDoneAgain(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	s := newSource(t, c.DSN("chain"), noFallback)
	first, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	second, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	assert.Equal(t, first.Database.CloneOID, second.Database.CloneOID, "a complete clone is kept")

	unmark := map[string]func(name string){
		"no mark": func(name string) { c.Exec("postgres", "COMMENT ON DATABASE "+server.Quote(name)+" IS NULL") },
		"incomplete": func(name string) {
			m := s.Owner.NewMark(server.RoleClone, "chain", "one")
			text, err := json.Marshal(m)
			require.NoError(t, err)
			c.Exec("postgres", "COMMENT ON DATABASE "+server.Quote(name)+" IS '"+string(text)+"'")
		},
		"an interrupted drop": func(name string) {
			c.Exec("postgres", "UPDATE pg_database SET datconnlimit = -2 WHERE datname = '"+name+"'; COMMENT ON DATABASE "+server.Quote(name)+" IS NULL")
		},
	}
	for how, damage := range unmark {
		damage(*first.Frozen)
		rec, err := s.Freeze(t.Context(), newJob(t, "one"))
		require.NoError(t, err, how)
		assert.NotEqual(t, *first.Database.CloneOID, *rec.Database.CloneOID, "%s: made anew", how)
		faults, err := s.VerifyClone(t.Context(), rec)
		require.NoError(t, err)
		assert.Empty(t, faults)
		first = rec
	}
	assert.Len(t, clonesOf(c), 1)
}

func TestVerifyCloneFindsWhatIsWrong(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	s := newSource(t, c.DSN("chain"), noFallback)
	rec, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	want := func(text string, rec manifest.Source) {
		t.Helper()
		faults, err := s.VerifyClone(t.Context(), rec)
		require.NoError(t, err)
		require.Len(t, faults, 1)
		assert.Contains(t, faults[0].Error(), text)
		require.ErrorContains(t, s.checkClone(t.Context(), rec), text)
	}
	want("without one", manifest.Source{Name: "chain"})
	wrong, db := rec, *rec.Database
	db.CloneOID, wrong.Database = new(uint32(1)), &db
	want("want oid 1", wrong)
	db.CloneOID, db.Name = rec.Database.CloneOID, "other"
	want("the clone of other", wrong)
	c.Exec("postgres", "COMMENT ON DATABASE "+server.Quote(*rec.Frozen)+" IS NULL")
	want("an unfinished one", rec)
	c.Exec("postgres", "DROP DATABASE "+server.Quote(*rec.Frozen))
	want("no such database", rec)
	c.StopServer()
	_, err = s.VerifyClone(t.Context(), rec)
	require.ErrorIs(t, err, manifest.ErrAway)
}

func TestRetireKeepsTheNewestOfTheVerified(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	for keep, want := range map[int][]string{0: {"c"}, 1: {"b", "c"}, 2: {"a", "b", "c"}} {
		s := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.KeepClones = keep; o.Home += fmt.Sprint(keep) })
		for _, id := range []string{"a", "b", "c"} {
			_, err := s.Freeze(t.Context(), newJob(t, id))
			require.NoError(t, err)
		}
		for _, id := range []string{"a", "b", "a"} { // c is sealed only: it isn't anybody's to drop
			require.NoError(t, s.Retire(id))
		}
		ids, err := s.FrozenIDs()
		require.NoError(t, err)
		assert.ElementsMatch(t, want, ids, "keep %d", keep)
	}
}

// What died between its creation and its comment goes, unless somebody is at it.
func TestLeftOversWithoutAMarkAreSwept(t *testing.T) {
	c := pgtest.Start(t)
	s := newSource(t, c.DSN("postgres"), nil)
	half := func() string {
		name := s.Owner.FreshName()
		require.NoError(t, s.Owner.Create(t.Context(), c.Connect("postgres"), name, "", server.Mark{}))
		c.Exec("postgres", "COMMENT ON DATABASE "+server.Quote(name)+" IS NULL")
		return name
	}
	half()
	busy := half()
	maker := c.Connect("postgres")
	_, err := maker.Exec(t.Context(), "SELECT pg_advisory_lock(hashtextextended($1, 0))", busy)
	require.NoError(t, err)
	require.NoError(t, s.Retire("none"))
	assert.Equal(t, []string{busy}, clonesOf(c))
	require.NoError(t, maker.Close(t.Context()))
	eventually(t, "the lock's end", func() bool { return s.Retire("none") == nil && len(clonesOf(c)) == 0 })
}

func TestAServerThatIsAwayCanBePutOff(t *testing.T) {
	c := pgtest.Start(t)
	s := newSource(t, c.DSN("postgres"), nil)
	c.StopServer()
	begin := time.Now()
	_, err := s.FrozenIDs()
	require.ErrorIs(t, err, manifest.ErrAway)
	require.ErrorIs(t, s.Drop("one"), manifest.ErrAway)
	require.ErrorIs(t, s.Retire("one"), manifest.ErrAway)
	_, err = s.Freeze(t.Context(), newJob(t, "one"))
	require.ErrorIs(t, err, manifest.ErrAway, "no dump is tried")
	_, err = s.Forecast(t.Context(), t.TempDir())
	require.ErrorIs(t, err, manifest.ErrAway)
	assert.Less(t, time.Since(begin), 10*time.Second)

	wrong := newSource(t, "host="+c.Dir+" user=nobody dbname=chain", nil)
	c.StartServer()
	_, err = wrong.FrozenIDs()
	require.ErrorIs(t, err, manifest.ErrAway, "tidying waits, whatever the reason")
	require.ErrorContains(t, err, "no such role")
}

func TestACloneHasOwnerAndIsShut(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", "CREATE ROLE node LOGIN CREATEDB; CREATE ROLE admin LOGIN CREATEDB IN ROLE node; CREATE ROLE reader LOGIN")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	as := func(user, database string) string {
		return strings.Replace(c.DSN(database), "user=postgres", "user="+user, 1)
	}
	for _, admin := range []string{"", as("admin", "postgres"), as("postgres", "template1")} {
		s := newSource(t, as("node", "chain"), func(o *Options) { noFallback(o); o.AdminDSN = admin })
		rec, err := s.Freeze(t.Context(), newJob(t, "one"))
		require.NoError(t, err, admin)
		assert.Equal(t, []string{"node"}, c.Query("postgres", "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = '"+*rec.Frozen+"'"))
		shut, err := s.Owner.Open(t.Context(), s.Server, *rec.Frozen, s.o.Log)
		require.NoError(t, err)
		conn, err := s.Server.Connect(t.Context(), *rec.Frozen)
		require.NoError(t, err, "its owner dumps it")
		require.NoError(t, conn.Close(t.Context()))
		_, err = newSource(t, as("reader", *rec.Frozen), nil).Server.Connect(t.Context(), "")
		assert.Equal(t, server.StateNoRights, server.State(err), "nobody else gets in: %v", err)
		shut()
		_, err = s.Server.Connect(t.Context(), *rec.Frozen)
		assert.Equal(t, server.StateNotConnectable, server.State(err))
		require.NoError(t, s.Drop("one"))
	}
	s := newSource(t, as("node", "chain"), nil)
	_, err := s.Owner.Open(t.Context(), s.Server, "chain", s.o.Log)
	require.Error(t, err, "none of ours")
	assert.NotEmpty(t, hint.Of(err))
}
