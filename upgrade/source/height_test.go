package source

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// told is a source that does as it is told.
type told struct {
	answer Reading
	err    error
	hangs  bool
	times  int
}

func (s *told) read(ctx context.Context) (Reading, error) {
	s.times++
	if s.hangs {
		<-ctx.Done()
		return Reading{}, ctx.Err()
	}
	return s.answer, s.err
}

func (*told) close() {}

func heightsOf(sources ...source) *Heights {
	log, _ := newLog()
	h := &Heights{log: log, asking: make(chan struct{}, 1)}
	for i, s := range sources {
		h.asked = append(h.asked, &asked{source: s, name: string(rune('a' + i)), timeout: askTimeout})
	}
	return h
}

func TestReadAsksInOrder(t *testing.T) {
	first, second := &told{answer: Reading{Height: 5}}, &told{answer: Reading{Height: 7}}
	h := heightsOf(first, second)
	r, err := h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 5, r.Height)
	assert.Equal(t, "a", r.Source)
	assert.WithinDuration(t, time.Now(), r.At, patience)
	assert.Zero(t, second.times)

	first.answer, first.err = Reading{}, errors.New("broken")
	r, err = h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 7, r.Height)
	assert.Equal(t, "b", r.Source)
}

func TestReadUnknownIsAnErrorThatSaysWhy(t *testing.T) {
	broken := errors.New("broken")
	h := heightsOf(&told{err: broken}, &told{err: errOff}, &told{err: errNoBlock})
	r, err := h.Read(testContext(t))
	require.ErrorIs(t, err, ErrUnknown)
	require.ErrorIs(t, err, broken)
	assert.Equal(t, Reading{}, r)
	assert.Equal(t, "the height is not known (a: broken; b: off; c: the node has no block yet)", err.Error())
}

func TestReadLeavesADeadSourceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, off, starting := &told{err: errors.New("refused")}, &told{err: errOff}, &told{err: errNoBlock}
		h := heightsOf(dead, off, starting)
		for range 600 { // a minute at ten a second
			_, err := h.Read(t.Context())
			require.ErrorContains(t, err, "refused", "the reason stays known")
			time.Sleep(100 * time.Millisecond)
		}
		assert.Equal(t, 7, dead.times, "at 0 s, and after pauses of 1, 2, 4, 8, 15, 15 s")
		assert.Equal(t, 600, off.times, "a source that is off costs nothing")
		assert.Equal(t, 600, starting.times, "a node that starts is about to know")

		dead.err, dead.answer = nil, Reading{Height: 9}
		h.Reset()
		r, err := h.Read(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, 9, r.Height, "asked again for a new process")

		// Once it has answered, the pauses begin anew.
		dead.err, dead.times = errors.New("refused"), 0
		for range 15 {
			_, _ = h.Read(t.Context())
			time.Sleep(100 * time.Millisecond)
		}
		assert.Equal(t, 2, dead.times)
	})
}

func TestReadEndsAHangingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := &told{hangs: true}
		h := heightsOf(hangs, &told{answer: Reading{Height: 3}})
		began := time.Now()
		r, err := h.Read(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, 3, r.Height)
		assert.Equal(t, askTimeout, time.Since(began))
		_, err = h.Read(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 1, hangs.times, "and not again at once")
	})
}

func TestReadEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := &told{hangs: true}
		h := heightsOf(hangs)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { _, _ = h.Read(t.Context()) }() // holds the turn for 2 s
		synctest.Wait()
		_, err := h.Read(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrUnknown)
		time.Sleep(time.Minute)

		// A caller who gives up says nothing of the source: it is asked again at once.
		hangs.times = 0
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := h.Read(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		assert.Equal(t, 3, hangs.times)
	})
}

func TestReadSparesTheExpensiveSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &told{answer: Reading{Height: 3}}
		h := heightsOf(s)
		h.asked[0].every = statusEvery
		first, err := h.Read(t.Context())
		require.NoError(t, err)
		s.answer.Height = 4
		time.Sleep(statusEvery - time.Second)
		again, err := h.Read(t.Context())
		require.NoError(t, err)
		assert.Equal(t, first, again, "the last answer, with its own time")
		time.Sleep(time.Second)
		later, err := h.Read(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, 4, later.Height)
		assert.Equal(t, 2, s.times)

		s.err = errors.New("gone")
		time.Sleep(statusEvery)
		for range 2 {
			_, err = h.Read(t.Context())
			require.ErrorIs(t, err, ErrUnknown, "an old answer does not outlive a failure")
		}
		assert.Equal(t, 3, s.times)
	})
}

func TestNewHeightsKnowsTheOrder(t *testing.T) {
	lines, err := NewLines(`h=(?P<height>\d+)`)
	require.NoError(t, err)
	names := func(h *Heights) (names []string) {
		for _, a := range h.asked {
			names = append(names, a.name)
		}
		return names
	}
	all := NewHeights(Config{URL: "http://x", Path: "h", GRPC: "localhost:9090"}, Options{Home: t.TempDir(), Lines: lines})
	assert.Equal(t, []string{SourceURL, SourceGRPC, SourceLog, SourceRPC, SourceStatus}, names(all))
	assert.Equal(t, []string{SourceRPC, SourceStatus}, names(NewHeights(Config{}, Options{Home: t.TempDir()})))
}

func TestReadFromTheLog(t *testing.T) {
	lines, err := NewLines(`h=(?P<height>\d+)`)
	require.NoError(t, err)
	h := NewHeights(Config{}, Options{Home: t.TempDir(), Lines: lines})
	_, err = h.Read(testContext(t))
	require.ErrorIs(t, err, ErrUnknown)
	lines.Line([]byte("h=12"))
	r, err := h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 12, r.Height)
	assert.Equal(t, SourceLog, r.Source)
	assert.Nil(t, r.CatchingUp)
}
