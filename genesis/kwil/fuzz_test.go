package kwil

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzSanitise (go test ./genesis/kwil -run - -fuzz FuzzSanitise -fuzzminimizetime 10x): whatever comes in, nothing panics, and what passes has the rows that came in. What came out and is read
// again is the same.
func FuzzSanitise(f *testing.F) {
	for _, s := range samples(f) {
		f.Add([]byte(strings.TrimSuffix(s.sql, lastLine)))
	}
	dump, err := os.ReadFile(filepath.Join(testdata, "dump", "everything.sql"))
	require.NoError(f, err)
	f.Add(dump)
	f.Add([]byte("CREATE FUNCTION a() LANGUAGE sql AS $a$\n\n--$a$;\nCOPY a.b FROM stdin;\n\n--\n\\.\n"))
	f.Add([]byte("COPY a\n--$a$;\nCOPY FROM stdin;\n\n\n\\.\n"))
	f.Add([]byte("COPY a--\"\n--x\n\" b\" FROM stdin;\n\\.\n"))
	f.Fuzz(func(t *testing.T, dump []byte) {
		dump = slices.Concat(dump, []byte("\n"+end))           // never into the fuzzer's own memory
		before := newStream(io.Discard, bytes.NewReader(dump)) // reads only, leaves nothing out
		var out bytes.Buffer
		state, err := Sanitise(&out, bytes.NewReader(dump), V09, 7)
		if err != nil {
			return
		}
		if before.run() != nil {
			return // \connect and the like, which only a dump may hold
		}
		require.Equal(t, rowsBesides(before.state), rowsBesides(state), "rows in, rows out")

		after := newStream(io.Discard, bytes.NewReader(out.Bytes()))
		require.NoError(t, after.run(), "%q", out.Bytes())
		require.Equal(t, state.Tables, after.state.Tables)
		var again bytes.Buffer
		_, err = Sanitise(&again, strings.NewReader(out.String()+end), V09, 7)
		if err == nil && state.Notes == nil {
			require.Equal(t, out.String()+lastLine, again.String(), "done twice it changes nothing")
		}
	})
}

// rowsBesides is all tables but the voters', whose rows leave the state.
func rowsBesides(s State) (tables []Table) {
	for _, table := range s.Tables {
		if table.Name != VotersTable {
			tables = append(tables, table)
		}
	}
	return tables
}
