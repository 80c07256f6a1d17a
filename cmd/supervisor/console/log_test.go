package console

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/cmd/supervisor/config"
)

func TestChooseForm(t *testing.T) {
	yes, no, kitchen, none := true, false, time.Kitchen, ""
	auto := config.Log{Format: "auto", Level: "info"}
	plain := logForm{time: fileTime}
	colored := logForm{time: terminalTime, color: true}
	journald := logForm{priority: true}
	for name, c := range map[string]struct {
		cfg               config.Log
		legacy            config.Cosmovisor
		terminal, journal bool
		env               map[string]string
		want              logForm
	}{
		"a file":                     {cfg: auto, want: plain},
		"a terminal":                 {cfg: auto, terminal: true, want: colored},
		"a dumb terminal":            {cfg: auto, terminal: true, env: map[string]string{"TERM": "dumb"}, want: logForm{time: terminalTime}},
		"NO_COLOR":                   {cfg: auto, terminal: true, env: map[string]string{"NO_COLOR": "1"}, want: logForm{time: terminalTime}},
		"an empty NO_COLOR":          {cfg: auto, terminal: true, env: map[string]string{"NO_COLOR": ""}, want: colored},
		"CLICOLOR_FORCE":             {cfg: auto, env: map[string]string{"CLICOLOR_FORCE": "1"}, want: logForm{time: fileTime, color: true}},
		"CLICOLOR_FORCE=0":           {cfg: auto, env: map[string]string{"CLICOLOR_FORCE": "0"}, want: plain},
		"both":                       {cfg: auto, env: map[string]string{"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, want: plain},
		"journald":                   {cfg: auto, journal: true, want: journald},
		"journald, colour wished":    {cfg: auto, journal: true, legacy: config.Cosmovisor{ColorLogs: &yes}, want: journald},
		"Cosmovisor's colour":        {cfg: auto, legacy: config.Cosmovisor{ColorLogs: &yes}, want: logForm{time: fileTime, color: true}},
		"Cosmovisor's no colour":     {cfg: auto, terminal: true, legacy: config.Cosmovisor{ColorLogs: &no}, want: logForm{time: terminalTime}},
		"Cosmovisor's and NO_COLOR":  {cfg: auto, legacy: config.Cosmovisor{ColorLogs: &yes}, env: map[string]string{"NO_COLOR": "1"}, want: plain},
		"Cosmovisor's time":          {cfg: auto, terminal: true, legacy: config.Cosmovisor{TimeFormat: &kitchen}, want: logForm{time: time.Kitchen, color: true}},
		"Cosmovisor's no time":       {cfg: auto, legacy: config.Cosmovisor{TimeFormat: &none}, want: logForm{}},
		"Cosmovisor's silence":       {cfg: auto, legacy: config.Cosmovisor{DisableLogs: true}, want: logForm{time: fileTime, level: slog.LevelError}},
		"text on a terminal":         {cfg: config.Log{Format: "text", Level: "debug"}, terminal: true, want: logForm{time: fileTime, level: slog.LevelDebug}},
		"text for journald":          {cfg: config.Log{Format: "text", Level: "warn"}, journal: true, want: logForm{time: fileTime, level: slog.LevelWarn}},
		"JSON, whatever is detected": {cfg: config.Log{Format: "json", Level: "error"}, terminal: true, journal: true, want: logForm{json: true, level: slog.LevelError, time: fileTime}},
	} {
		assert.Equal(t, c.want, chooseForm(c.cfg, c.legacy, c.terminal, c.journal, c.env), name)
	}
}

// record logs what every form must be able to say, and returns the line.
func record(f logForm) string {
	var b bytes.Buffer
	log := slog.New(f.handler(&b)).With("plan", "v2")
	log.Warn("upgrade detected, relaunching", "height", int64(7), "took", 1500*time.Millisecond, "err", errors.New("line one\nERR forged"),
		slog.Group("g", "k", "a b"), "path", "/x", "bytes", []byte("y"), "list", []string{"a", "b"}, "nil", nil)
	return b.String()
}

func TestFormsOfARecord(t *testing.T) {
	const rest = ` plan=v2 height=7 took=1.5s err="line one\\nERR forged" g.k="a b" path=/x bytes=y list="[a b]" nil=<nil>` + "\n"
	assert.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d) WRN upgrade detected, relaunching plan=v2 `, record(logForm{time: fileTime}))
	assert.Equal(t, "<4>WRN upgrade detected, relaunching"+rest, record(logForm{priority: true}))
	assert.Equal(t, "WRN upgrade detected, relaunching"+rest, record(logForm{}))
	color := record(logForm{time: time.Kitchen, color: true})
	assert.Contains(t, color, "\x1b[")
	assert.Contains(t, color, "upgrade detected, relaunching", "no colour within the message")
	assert.Regexp(t, `\d:\d\d[AP]M`, color)

	var decoded map[string]any
	require.NoError(t, json.Unmarshal([]byte(record(logForm{json: true})), &decoded))
	assert.Equal(t, "upgrade detected, relaunching", decoded["msg"])
	assert.Equal(t, "WARN", decoded["level"])
	assert.Equal(t, "line one\nERR forged", decoded["err"])
}

func TestPriorities(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(logForm{priority: true, level: slog.LevelDebug}.handler(&b))
	log.Debug("d")
	log.Info("i")
	log.WithGroup("g").Error("e", "k", 1)
	assert.Equal(t, "<7>DBG d\n<6>INF i\n<3>ERR e g.k=1\n", b.String())
	assert.False(t, slog.New(logForm{priority: true}.handler(&b)).Enabled(t.Context(), slog.LevelDebug))
}

// What comes from a plan or a node may be anything. It must stay on its line, and must not reach the terminal as a
// control sequence.
func TestHostileTextsStayOnTheirLine(t *testing.T) {
	for _, text := range []string{
		"a\nb", "a\r\nb", "\x1b[31mred", `written \x1b[31m out`, `\\x1b[2J x`, "bad \xff\xfe utf8", "\u2028sep", "\x00", "\u009b31m", "�", "tab\there", "\u202eevil",
	} {
		for _, f := range []logForm{{}, {color: true}, {priority: true}} {
			var b bytes.Buffer
			slog.New(f.handler(&b)).Info("m"+text, "v", text, "e", errors.New(text), "k"+text, 1)
			line := b.String()
			assert.Equal(t, 1, strings.Count(line, "\n"), "%q", line)
			for _, sequence := range []string{"\x1b[31m", "\x1b[2J", "\r", "\x00", "\u009b", "\u202e", "\u2028", "\xff"} {
				assert.NotContains(t, line, sequence, "%q", text)
			}
			assert.True(t, strings.HasSuffix(line, "1\n"), "something is cut off: %q", line)
		}
	}
	var nilError *config.Error
	var b bytes.Buffer
	slog.New(logForm{}.handler(&b)).Error("m", "err", nilError)
	assert.Contains(t, b.String(), "ERR m err=")
}

func TestOnATerminal(t *testing.T) {
	master, slave, err := pty.Open()
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close(); master.Close() })
	log, _ := NewLogger(config.Log{Format: "auto", Level: "info"}, config.Cosmovisor{}, slave, []string{"TERM=xterm"})
	log.Info("running app", "pid", 7)
	line, err := bufio.NewReader(master).ReadString('\n')
	require.NoError(t, err)
	assert.Contains(t, line, "\x1b[92mINF\x1b[0m running app ")
}

func TestUnderJournald(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	stderr, journal := os.NewFile(uintptr(fds[0]), "stderr"), os.NewFile(uintptr(fds[1]), "journal")
	t.Cleanup(func() { stderr.Close(); journal.Close() })
	var st syscall.Stat_t
	require.NoError(t, syscall.Fstat(fds[0], &st))
	stream := fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino)
	log, _ := NewLogger(config.Log{Format: "auto", Level: "info"}, config.Cosmovisor{}, stderr, []string{stream})
	log.Warn("w", "n", 1)
	line, err := bufio.NewReader(journal).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "<4>WRN w n=1\n", line)

	// The variable is inherited by what is redirected to a file: there the time is needed.
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer file.Close()
	log, _ = NewLogger(config.Log{Format: "auto", Level: "info"}, config.Cosmovisor{}, file, []string{stream})
	log.Warn("w", "n", 1)
	data, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	assert.Regexp(t, `^\d{4}-.* WRN w n=1\n$`, string(data))
}

func TestAReaderThatStallsBlocksNobody(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	log, _ := NewLogger(config.Log{Format: "auto", Level: "info"}, config.Cosmovisor{}, w, nil)
	const records = 1000
	filler := strings.Repeat("x", 1000) // a pipe holds 64 KiB
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range records {
			log.Info("m", "i", i, "filler", filler)
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("logging blocks while nothing reads")
	}

	// Once it reads again, it gets what was kept, in order, each line whole, and is told of the loss.
	require.NoError(t, r.SetReadDeadline(time.Now().Add(time.Minute)))
	lines := bufio.NewScanner(r)
	kept, last, lost, ended := 0, -1, 0, false
	for !ended && lines.Scan() {
		line := lines.Text()
		var i int
		if _, rest, ok := strings.Cut(line, " INF m i="); ok {
			_, err := fmt.Sscan(rest, &i)
			require.NoError(t, err, line)
			require.Greater(t, i, last, "out of order")
			require.True(t, strings.HasSuffix(line, " filler="+filler), "torn")
			kept, last = kept+1, i
			if kept == 100 { // more than a pipe holds: there is room for another record
				log.Info("end")
			}
		} else if _, rest, ok := strings.Cut(line, "WRN log records were lost, because nothing read them count="); ok {
			_, err := fmt.Sscan(rest, &i)
			require.NoError(t, err, line)
			lost += i
		} else {
			ended = strings.HasSuffix(line, " INF end")
		}
	}
	assert.True(t, ended, "it goes on")
	assert.Positive(t, lost)
	assert.Equal(t, records, kept+lost, "every record is kept or counted")
}

func TestRecordsAreThereWhenTheCallReturns(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer file.Close()
	log, _ := NewLogger(config.Log{Format: "json", Level: "info"}, config.Cosmovisor{}, file, nil)
	for i := range 100 {
		log.Info("m")
		data, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		require.Equal(t, i+1, bytes.Count(data, []byte("\n")))
	}
}

// TestLogChild is the process that the next test starts; by itself it tests nothing.
func TestLogChild(t *testing.T) {
	if os.Getenv("NODEVISOR_TEST_LOG_CHILD") == "" {
		return
	}
	log, _ := NewLogger(config.Log{Format: "auto", Level: "info"}, config.Cosmovisor{}, os.Stderr, os.Environ())
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test has closed the other end of stderr
	for range 100 {
		log.Info("into the void")
	}
	fmt.Println("alive")
	os.Exit(0)
}

// The log's reader may go: `supervisor run 2>&1 | head`. The runtime would end the process at the first record.
func TestAReaderThatGoesEndsNobody(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestLogChild$")
	cmd.Env = append(os.Environ(), "NODEVISOR_TEST_LOG_CHILD=1")
	cmd.Stderr = w
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.NoError(t, w.Close())
	lines := bufio.NewScanner(stdout)
	require.True(t, lines.Scan())
	require.Equal(t, "ready", lines.Text())
	require.NoError(t, r.Close())
	require.NoError(t, stdin.Close())
	require.True(t, lines.Scan(), "it died")
	assert.Equal(t, "alive", lines.Text())
	require.NoError(t, cmd.Wait())
}

func TestAClosedStderrIsNoError(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	log, _ := NewLogger(config.Log{Format: "auto", Level: "info"}, config.Cosmovisor{}, file, nil)
	began := time.Now()
	for range 100 {
		log.Info("m")
	}
	assert.Less(t, time.Since(began), 10*time.Second)
}

// Level and form of the log change for every logger that was made from it.
func TestTheLogChanges(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	log, live := NewLogger(config.Log{Format: "text", Level: "warn"}, config.Cosmovisor{}, file, nil)
	inside := log.With("plan", "v2").WithGroup("of").With("height", 7)
	assert.False(t, inside.Enabled(t.Context(), slog.LevelInfo))
	inside.Warn("plain")
	live.Configure(config.Log{Format: "json", Level: "debug"}, config.Cosmovisor{})
	inside.Debug("parsed", "more", 1)
	live.Configure(config.Log{Format: "json", Level: "debug"}, config.Cosmovisor{DisableLogs: true})
	inside.Warn("not said")
	live.Configure(config.Log{Format: "text", Level: "info"}, config.Cosmovisor{})
	inside.Info("plain again")
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	require.Len(t, lines, 3, string(text))
	assert.Regexp(t, `WRN plain plan=v2 of.height=7$`, lines[0])
	assert.Contains(t, lines[1], `"msg":"parsed","plan":"v2","of":{"height":7,"more":1}}`)
	assert.Regexp(t, `INF plain again plan=v2 of.height=7$`, lines[2])
}
