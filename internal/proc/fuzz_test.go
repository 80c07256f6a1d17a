package proc

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzParseStat: a process may call itself anything, its numbers are read behind the name.
func FuzzParseStat(f *testing.F) {
	f.Add("a) R 9 (b", 77, byte('S'), 5, 6, uint64(123456), []byte("77 (a) R 9 (b) S 5 6 7 8 9"))
	f.Add("\n) Z 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", 1, byte('Z'), 0, -1, uint64(1)<<63, []byte(")("))
	f.Fuzz(func(t *testing.T, name string, pid int, state byte, parent, group int, start uint64, raw []byte) {
		if st, err := parseStat(raw); err == nil {
			require.NotContains(t, " \t\n", string(st.State))
		}
		if state <= ' ' || state > '~' || state == ')' {
			return
		}
		line := fmt.Sprintf("%d (%s) %c %d %d 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 %d 17 18\n", pid, name, state, parent, group, start)
		st, err := parseStat([]byte(line))
		require.NoError(t, err, line)
		require.Equal(t, Stat{Pid: pid, Name: name, State: state, Parent: parent, Group: group, StartTime: start}, st)
	})
}
