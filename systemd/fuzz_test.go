package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// FuzzFile: what was read of a unit is what is written of it, and a unit that was migrated is migrated for good.
func FuzzFile(f *testing.F) {
	for _, name := range []string{"cosmovisor.service", "node.service", "standard.service", "strict.service", "cosmovisor.migrated"} {
		text, err := os.ReadFile(filepath.Join("..", "testdata", "golden", "unit", name))
		require.NoError(f, err)
		f.Add(string(text))
	}
	f.Add("[Service]\nExecStart=/bin/simd start \\\n# why\n  --a \"b c\" \\\n")
	f.Add("[Service]\nExecStart=-@\"/opt/my node/simd\" start\nStartLimitInterval=1\nKillSignal=SIGINT\nPIDFile=/x\n[Install]\nA=b\\\\\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := parse(text)
		if err != nil {
			return
		}
		file := &File{Path: "x.service", lines: lines}
		again, err := parse(file.String())
		require.NoError(t, err, "%q", file)
		require.Equal(t, assignments(lines), assignments(again), "%q", file)

		s := Service{Exec: []string{"/usr/bin/supervisor"}, StopTimeout: time.Minute, Home: "/srv", Hardening: Strict}
		if _, err := file.Migrate(s); err != nil {
			return
		}
		again, err = parse(file.String())
		require.NoError(t, err, "%q", file)
		twice := &File{Path: "x.service", lines: again}
		require.Equal(t, "/usr/bin/supervisor", twice.Program())
		changes, err := twice.Migrate(s)
		require.NoError(t, err)
		require.Empty(t, changes, "%q", file)
	})
}

func assignments(lines []line) (all []line) {
	for _, l := range lines {
		if l.key != "" {
			all = append(all, l)
		}
	}
	return all
}

// FuzzWords: a word that is quoted is read as it was, and spans of time are neither negative nor shorter than rendered.
func FuzzWords(f *testing.F) {
	f.Add(`a "b" $c %d ;`, "50%\\")
	f.Add("\n\t\r'", "")
	f.Add("2h 1min30s 500ms", "9999999999 years")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, word := range []string{a, b} {
			Words(word)
			if d, ok := Timespan(word); ok {
				require.GreaterOrEqual(t, d, time.Duration(0), word)
				back, ok := Timespan(seconds(d))
				require.True(t, ok, word)
				require.GreaterOrEqual(t, back, d, word)
			}
		}
		if utf8.ValidString(a) && utf8.ValidString(b) {
			require.Equal(t, []string{a, b}, Words(quote(a, false)+" "+quote(b, false)))
		}
	})
}

// FuzzMessage: whatever a node says on its notify socket, its status is one line, and no other assignment is passed on.
func FuzzMessage(f *testing.F) {
	f.Add("READY=1\nSTATUS=syncing\nMAINPID=1\nWATCHDOG=1")
	f.Add("STATUS=a\rMAINPID=1\x00\u2028b\nSTATUS=" + strings.Repeat("ü", maxStatus))
	f.Add("READY=0\nREADY\nSTATUS")
	f.Fuzz(func(t *testing.T, text string) {
		ready, status, ok := understand(text)
		require.False(t, ready && !ok)
		require.False(t, status != "" && !ok)
		require.Equal(t, strings.HasPrefix(text, "READY=1\n") || strings.HasSuffix(text, "\nREADY=1") || text == "READY=1" ||
			strings.Contains(text, "\nREADY=1\n"), ready)
		require.LessOrEqual(t, len(status), maxStatus)
		for _, r := range status {
			require.True(t, unicode.IsPrint(r), "%q", status)
		}
		_, again, _ := understand("STATUS=" + status)
		require.Equal(t, status, again)
	})
}
