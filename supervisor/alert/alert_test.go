package alert

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const patience = 20 * time.Second

// logged is a log that several goroutines write.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newSender(t *testing.T, c Config, record string) (*Sender, *logged) {
	t.Helper()
	log := &logged{}
	s := New(Options{
		Config: c, Node: "simd", Home: "/var/lib/simd", Host: "host1", Record: record,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	t.Cleanup(func() { s.Close(0) })
	return s, log
}

func waitFor(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain", what)
		}
	}
}

// receiver is a webhook's other side.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []Alert
	header http.Header
	answer func(n int, w http.ResponseWriter, r *http.Request)
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	r := &receiver{answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var a Alert
		data, _ := io.ReadAll(req.Body)
		_ = json.Unmarshal(data, &a)
		r.mu.Lock()
		r.bodies, r.header = append(r.bodies, a), req.Header
		n := len(r.bodies)
		r.mu.Unlock()
		if r.answer != nil {
			r.answer(n, w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) got() []Alert {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Alert(nil), r.bodies...)
}

// One post for one event: our members, and the text that chats show.
func TestWebhook(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	s, _ := newSender(t, Config{Webhook: r.URL + "/services/T0/secret"}, "")
	s.Event(Held, "no attempt is left; next: supervisor upgrade resume")
	waitFor(t, "a post", func() bool { return s.Counts().Sent == 1 })
	a := r.got()[0]
	assert.Equal(t, "simd on host1: held: no attempt is left; next: supervisor upgrade resume", a.Text)
	assert.Equal(t, []string{Held, "simd", "/var/lib/simd", "host1"}, []string{a.Event, a.Node, a.Home, a.Host})
	assert.Equal(t, 1, a.Schema)
	assert.WithinDuration(t, time.Now(), a.Time, patience)
	assert.Equal(t, "application/json", r.header.Get("Content-Type"))
}

// A receiver that fails is tried again; what it can only refuse again isn't. The address is in no log.
func TestWebhookFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer func(n int, w http.ResponseWriter, r *http.Request)
		posts  int
		sent   bool
		says   string
	}{
		"fails once": {func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}, 2, true, "answered 503"},
		"hangs up once": {func(n int, _ http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				panic(http.ErrAbortHandler)
			}
		}, 2, true, "EOF"},
		"is gone": {func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, 1, false, "refused: the receiver answered 404"},
		"redirects": {func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, 1, false, "not followed"},
		"moved for good": {func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusPermanentRedirect)
		}, 1, false, "not followed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, c.answer)
			s, log := newSender(t, Config{Webhook: r.URL + "/secret-path?token=secret-token"}, "")
			s.Event(CrashLoop, "x")
			waitFor(t, "an outcome", func() bool { n := s.Counts(); return n.Sent+n.Failed == 1 })
			s.Close(patience)
			assert.Len(t, r.got(), c.posts)
			assert.Equal(t, c.sent, s.Counts().Sent == 1)
			assert.Contains(t, log.String(), c.says)
			assert.NotContains(t, log.String(), "secret")
			assert.NotContains(t, log.String(), strings.TrimPrefix(r.URL, "http://"))
		})
	}
}

// Whatever goes wrong on the way, no part of the address is in the error.
func TestAddressStaysSecret(t *testing.T) {
	t.Parallel()
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(tls.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for name, address := range map[string]string{
		"nobody listens":   "http://user:secret@127.0.0.1:1/secret",
		"no such host":     "http://secret.invalid/secret",
		"a stranger's TLS": strings.Replace(tls.URL, "127.0.0.1", "localhost", 1) + "/secret",
		"no TLS at all":    strings.Replace(plain.URL, "http:", "https:", 1) + "/secret",
		"no address":       "http://[secret/secret\x7f",
	} {
		err := newWebhook(address).send(t.Context(), Alert{})
		require.Error(t, err, name)
		assert.NotContains(t, err.Error(), "secret", name)
		assert.NotContains(t, err.Error(), "localhost", name)
		assert.NotContains(t, err.Error(), "127.0.0.1", name)
	}
}

// A receiver that hangs keeps nobody waiting: neither who reports, nor the other receiver, nor the end.
func TestHangingReceiver(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := newReceiver(t, func(_ int, _ http.ResponseWriter, req *http.Request) {
		select {
		case <-release:
		case <-req.Context().Done():
		}
	})
	t.Cleanup(func() { close(release) }) // before the server's own end
	out := filepath.Join(t.TempDir(), "out")
	s, log := newSender(t, Config{Webhook: r.URL, Command: []string{"/bin/sh", "-c", "echo $SUPERVISOR_EVENT >>" + out}}, "")
	began := time.Now()
	for i := range queueLength + 10 {
		s.Event(NotReady, fmt.Sprint(i))
	}
	assert.Less(t, time.Since(began), 5*time.Second)
	waitFor(t, "the command", func() bool { return s.Counts().Sent >= queueLength })
	began = time.Now()
	s.Close(100 * time.Millisecond)
	assert.Less(t, time.Since(began), 10*time.Second)
	assert.GreaterOrEqual(t, s.Counts().Dropped, uint64(queueLength), "what the webhook was to get")
	assert.Contains(t, log.String(), `msg="notifications were dropped" receiver=webhook`)
	assert.Contains(t, log.String(), `reason="the supervisor ends"`)
	s.Event(Held, "after the end") // harmless
	s.Close(0)
}

// The command gets the event in its environment and on its stdin, and nothing of the supervisor's environment that it
// doesn't need.
func TestCommand(t *testing.T) {
	t.Setenv("KEYRING_PASSWORD", "secret")
	dir := t.TempDir()
	s, _ := newSender(t, Config{Command: []string{"/bin/sh", "-c", `cat >"$0/stdin"; env >"$0/env.part"; mv "$0/env.part" "$0/env"`, dir}}, "")
	s.Event(RolledBack, "v2\x00\nsecond line")
	waitFor(t, "the command", func() bool { return s.Counts().Sent == 1 })
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	require.NoError(t, err)
	assert.Contains(t, string(env), "SUPERVISOR_EVENT=rolled back\n")
	assert.Contains(t, string(env), "SUPERVISOR_EVENT_DETAIL=v2\nsecond line\n")
	assert.Contains(t, string(env), "SUPERVISOR_EVENT_TEXT=simd on host1: rolled back: v2")
	assert.NotContains(t, string(env), "secret")
	stdin, err := os.ReadFile(filepath.Join(dir, "stdin"))
	require.NoError(t, err)
	var a Alert
	require.NoError(t, json.Unmarshal(stdin, &a))
	assert.Equal(t, "v2\x00\nsecond line", a.Detail)
}

// A command that fails is tried again; one that hangs is killed with all of its group; one that isn't there is said.
func TestCommandFailures(t *testing.T) {
	t.Parallel()
	t.Run("fails once", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		s, log := newSender(t, Config{Command: []string{"/bin/sh", "-c", `mkdir "$0/tried" && echo no luck >&2 && exit 3; exit 0`, dir}}, "")
		s.Event(Committed, "v2")
		waitFor(t, "the second try", func() bool { return s.Counts().Sent == 1 })
		assert.Contains(t, log.String(), "exit code 3: no luck")
	})
	t.Run("is not there", func(t *testing.T) {
		t.Parallel()
		s, log := newSender(t, Config{Command: []string{"/nonexistent/program"}}, "")
		s.Event(Committed, "v2")
		waitFor(t, "a try", func() bool { return strings.Contains(log.String(), "no such file") })
		s.Close(0)
		assert.Equal(t, uint64(1), s.Counts().Failed)
	})
	t.Run("hangs and forks", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		s, _ := newSender(t, Config{Command: []string{"/bin/sh", "-c", `sleep 1000 & echo $! >"$0/pid.part"; mv "$0/pid.part" "$0/pid"; wait`, dir}}, "")
		s.Event(Committed, "v2")
		var pid string
		waitFor(t, "its child", func() bool {
			data, err := os.ReadFile(filepath.Join(dir, "pid"))
			pid = strings.TrimSpace(string(data))
			return err == nil
		})
		s.Close(50 * time.Millisecond)
		waitFor(t, "the child's end", func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
		assert.Equal(t, uint64(1), s.Counts().Failed)
	})
}

// The same event is told once within some minutes, by the next run too; another detail is another event; what could not
// be delivered is told again.
func TestSameEvent(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 3 {
			w.WriteHeader(http.StatusForbidden)
		}
	})
	record := filepath.Join(t.TempDir(), "notified.json")
	s, _ := newSender(t, Config{Webhook: r.URL}, record)
	s.Event(Held, "a")
	s.Event(Held, "a")
	s.Event(Held, "b")
	waitFor(t, "both", func() bool { return s.Counts().Sent == 2 })
	s.Event(Held, "c")
	waitFor(t, "the refusal", func() bool { return s.Counts().Failed == 1 })
	s.Close(patience)

	next, _ := newSender(t, Config{Webhook: r.URL}, record)
	next.Event(Held, "a")
	next.Event(Held, "c")
	next.Close(patience)
	assert.Equal(t, Counts{Sent: 1}, next.Counts())
	var details []string
	for _, a := range r.got() {
		details = append(details, a.Detail)
	}
	assert.Equal(t, []string{"a", "b", "c", "c"}, details)
	info, err := os.Stat(record)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, os.WriteFile(record, []byte("{broken"), 0o600))
	again, _ := newSender(t, Config{Webhook: r.URL}, record)
	again.Event(Held, "a")
	again.Close(patience)
	assert.Equal(t, uint64(1), again.Counts().Sent, "a record that can't be read costs one more telling")
}

// What the record holds ends with its time, and a clock that was set back doesn't silence anything.
func TestRecordForgets(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := loadRecord("", at)
	require.True(t, r.claim("k", at))
	require.False(t, r.claim("k", at), "it waits")
	r.settle("k", true, at)
	assert.False(t, r.claim("k", at.Add(quiet-time.Second)))
	assert.True(t, r.claim("k", at.Add(quiet)))
	r.settle("k", true, at.Add(quiet))
	assert.True(t, r.claim("k", at.Add(-time.Hour)), "the clock was set back")
}

// A reload keeps what waits for a receiver that stays, and starts and ends the others.
func TestConfigure(t *testing.T) {
	t.Parallel()
	one, two := newReceiver(t, nil), newReceiver(t, nil)
	s, _ := newSender(t, Config{}, "")
	s.Event(Held, "nobody listens")
	s.Configure(Config{Webhook: one.URL})
	s.Event(Held, "one")
	waitFor(t, "the first", func() bool { return len(one.got()) == 1 })
	s.Configure(Config{Webhook: one.URL, Command: []string{"/bin/true"}})
	s.Event(Halted, "both")
	waitFor(t, "the second", func() bool { return s.Counts().Sent == 3 })
	s.Configure(Config{Webhook: two.URL})
	s.Event(Held, "two")
	waitFor(t, "the other", func() bool { return s.Counts().Sent == 4 })
	s.Configure(Config{})
	s.Event(Held, "none")
	s.Close(patience)
	assert.Len(t, one.got(), 2)
	assert.Len(t, two.got(), 1)
	assert.Equal(t, Counts{Sent: 4}, s.Counts())
}

// The pauses between the tries double, and the tries end.
func TestPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, log := newSender(t, Config{Command: []string{"/nonexistent"}}, "")
		began := time.Now()
		s.Event(Held, "x")
		for s.Counts().Failed == 0 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		assert.InDelta(t, 511, time.Since(began).Seconds(), 0.2, "1+2+4+…+256")
		assert.Equal(t, tries-1, strings.Count(log.String(), "tried again"))
		s.Close(0)
	})
}
