package kwil

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const testdata = "../../testdata/kwil"

// end is how pg_dump ends.
const end = "\n--\n" + dumpEnd + "\n--\n\n"

// clean sanitises a dump and gives what comes out, and what is known about it.
func clean(t testing.TB, dump string) (string, State) {
	t.Helper()
	out, state, err := sanitised(dump, V09)
	require.NoError(t, err)
	return out, state
}

func sanitised(dump string, v Version) (string, State, error) {
	var out bytes.Buffer
	state, err := Sanitise(&out, strings.NewReader(dump), v, 7)
	return out.String(), state, err
}

const lastLine = expiryShift + "7;\n"

func TestGolden(t *testing.T) {
	dumps, err := filepath.Glob(filepath.Join(testdata, "dump", "*.sql"))
	require.NoError(t, err)
	require.NotEmpty(t, dumps)
	for _, path := range dumps {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".sql"), func(t *testing.T) {
			dump, err := os.ReadFile(path)
			require.NoError(t, err)
			out, state := clean(t, string(dump))
			var report strings.Builder
			report.WriteString(out)
			for _, table := range state.Tables {
				fmt.Fprintf(&report, "# %s: %d rows\n", table.Name, table.Rows)
			}
			for _, v := range state.Voters {
				fmt.Fprintf(&report, "# validator %s %s %d\n", v.Type, v.Key, v.Power)
			}
			for _, n := range state.Notes {
				fmt.Fprintf(&report, "# note: %s\n", n)
			}
			golden := strings.TrimSuffix(path, ".sql") + ".golden"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(report.String()), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), report.String())
		})
	}
}

// TestHashIsOfTheOutput: what is hashed and counted is what is written.
func TestHashIsOfTheOutput(t *testing.T) {
	out, state := clean(t, "CREATE SCHEMA a;\nCOPY a.b (c) FROM stdin;\n1\n\\.\n"+end)
	want := sha256.Sum256([]byte(out))
	assert.Equal(t, want, state.SHA256)
	assert.EqualValues(t, len(out), state.Bytes)
	assert.EqualValues(t, 1, state.Rows())
}

// TestR1RowsAreKept: the rows that Kwil's own tool loses without a word, and others that only look like something else.
func TestR1RowsAreKept(t *testing.T) {
	rows := []string{
		"-- x\t1", "--", "  -- z\t2", "   \t ", "", "\t", // these are lost there
		"SET\t1", "SELECT\t2", `\\connect\t3`, "CREATE DATABASE x;\t4", `\\restrict abc`,
		`\\.`, `\\.` + "\t", "COPY x FROM stdin;", "COPY kwild_voting.voters (id, name, power) FROM stdin;",
		"it's", `"`, "$$", "/*", `\\x00ff`, `a\r\nb`, "CREATE SCHEMA x;", `\N`, dumpEnd,
		strings.Repeat("x", 20<<20), strings.Repeat(" ", 3<<20), "-- " + strings.Repeat("y", 3<<20),
	}
	block := "COPY ds_x.t (a, b) FROM stdin;\n" + strings.Join(rows, "\n") + "\n\\.\n"
	dump := "SET a = 1;\nCREATE SCHEMA ds_x;\n\n--\n-- Data\n--\n\n" + block + "\n\nALTER TABLE ds_x.t;\n" + end
	out, state := clean(t, dump)
	require.True(t, "CREATE SCHEMA ds_x;\n"+block+"ALTER TABLE ds_x.t;\n"+lastLine == out, "every row, byte for byte")
	assert.EqualValues(t, len(rows), state.Rows())
}

// TestPiecesDontMatter: how the dump arrives changes nothing.
func TestPiecesDontMatter(t *testing.T) {
	dump, err := os.ReadFile(filepath.Join(testdata, "dump", "everything.sql"))
	require.NoError(t, err)
	want, _ := clean(t, string(dump))
	for name, r := range map[string]io.Reader{
		"a byte at a time": iotest.OneByteReader(bytes.NewReader(dump)),
		"half":             iotest.HalfReader(bytes.NewReader(dump)),
		"data with EOF":    iotest.DataErrReader(bytes.NewReader(dump)),
	} {
		var out bytes.Buffer
		_, err := Sanitise(&out, r, V09, 7)
		require.NoError(t, err, name)
		assert.Equal(t, want, out.String(), name)
	}
}

// TestTruncatedDump: a dump that stops early is an error wherever it stops.
func TestTruncatedDump(t *testing.T) {
	dump, err := os.ReadFile(filepath.Join(testdata, "dump", "everything.sql"))
	require.NoError(t, err)
	whole := bytes.Index(dump, []byte(dumpEnd)) + len(dumpEnd) + 1
	for n := 0; n < whole; n += 1 + n%3 {
		_, _, err := sanitised(string(dump[:n]), V09)
		require.ErrorIs(t, err, ErrTruncated, "after %d bytes: %q", n, dump[max(0, n-20):n])
	}
	_, _, err = sanitised(string(dump[:whole]), V09)
	require.NoError(t, err)
}

// TestUnexpectedSQL: what pg_dump doesn't write is refused, never guessed at.
func TestUnexpectedSQL(t *testing.T) {
	for name, dump := range map[string]string{
		"a command of psql":            "CREATE SCHEMA a;\n\\! touch /tmp/x\n",
		"one after the first CREATE":   "CREATE SCHEMA a;\n\\connect other\n",
		"one amid a statement":         "CREATE SCHEMA a\n\\! touch /tmp/x\n;\n",
		"one within a line":            "CREATE SCHEMA a; \\! touch /tmp/x\n",
		"backslashes in strings":       "SET standard_conforming_strings = off;\nCREATE SCHEMA a;\n",
		"another encoding":             "SET client_encoding = 'SJIS';\nCREATE SCHEMA a;\n",
		"a COPY in another format":     "CREATE SCHEMA a;\nCOPY a.b FROM stdin WITH (FORMAT csv);\n\"x\n",
		"a COPY with more on its line": "CREATE SCHEMA a;\nCOPY a.b FROM stdin; SELECT 1;\n\\.\n",
		"a voter without a key":        "COPY kwild_voting.voters (id, name, power) FROM stdin;\n\\\\x00\tjoe\t1\n\\.\n",
		"a voter without power":        "COPY kwild_voting.voters (id, name, power) FROM stdin;\n\\\\x00\t\\\\x" + strings.Repeat("ab", 32) + "\t0\n\\.\n",
		"a voter of two columns":       "COPY kwild_voting.voters (id, power) FROM stdin;\n\\\\x00\t1\n\\.\n",
	} {
		_, _, err := sanitised(dump+end, V09)
		assert.ErrorIs(t, err, ErrUnexpected, name)
	}
}

// TestR9RandomKeys: the lines that made two dumps of the same data differ go, the rest is the same.
func TestR9RandomKeys(t *testing.T) {
	dump := func(key string) string {
		return "--\n-- PostgreSQL database dump\n--\n\n\\restrict " + key + "\n\nSET transaction_timeout = 0;\nCREATE DATABASE kwild;\n\n\\unrestrict " + key +
			"\n\\connect kwild\n\\restrict " + key + "\n\nCREATE SCHEMA a;\n" + end + "\\unrestrict " + key + "\n\n"
	}
	one, first := clean(t, dump("VWKoYH2o"))
	two, second := clean(t, dump("dM3c0jfw"))
	assert.Equal(t, "CREATE SCHEMA a;\n"+lastLine, one)
	assert.Equal(t, one, two)
	assert.Equal(t, first.SHA256, second.SHA256)
}

// TestVoters: the rows leave the state, in either version's encoding.
func TestVoters(t *testing.T) {
	ed, secp := strings.Repeat("a7", 32), "02"+strings.Repeat("2c", 32)
	head := "CREATE SCHEMA kwild_voting;\nCOPY kwild_voting.voters (id, name, power) FROM stdin;\n"
	dump := head + "\\\\x0011\t\\\\x" + ed + "\t3\n\\\\x0012\t\\\\x" + strings.ToUpper(strings.Repeat("b8", 32)) + "\t1\n\\.\n" + end
	out, state := clean(t, dump)
	assert.Equal(t, head+"\\.\n"+lastLine, out)
	assert.Equal(t, []Validator{{Type: "ed25519", Key: ed, Power: 3}, {Type: "ed25519", Key: strings.Repeat("b8", 32), Power: 1}}, state.Voters)
	assert.Equal(t, []Table{{Name: VotersTable}}, state.Tables)

	out, state, err := sanitised(head+"\\\\x0011\t\\\\x00000000"+secp+"\t5\n\\\\x0012\t\\\\x01000000"+ed+"\t1\n\\.\n"+end, V010)
	require.NoError(t, err)
	assert.Equal(t, head+"\\.\n"+lastLine, out)
	assert.Equal(t, []Validator{{Type: "secp256k1", Key: secp, Power: 5}, {Type: "ed25519", Key: ed, Power: 1}}, state.Voters)
}

// TestDestinationFails: an error of the destination is handed on.
func TestDestinationFails(t *testing.T) {
	dump := "CREATE SCHEMA a;\nCOPY a.b FROM stdin;\n" + strings.Repeat("row\n", 1<<20) + "\\.\n" + end
	_, err := Sanitise(failing{}, strings.NewReader(dump), V09, 1)
	require.ErrorIs(t, err, errDisk)
	_, err = Sanitise(io.Discard, iotest.ErrReader(errDisk), V09, 1)
	require.ErrorIs(t, err, errDisk)
}

var errDisk = errors.New("disk full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errDisk }

// sample is one of the pairs that Kwil's own tools wrote.
type sample struct {
	version  Version
	dir      string
	document []byte
	sql      string // decompressed
	hash     string // as the tool's document has it, hexadecimal
}

func samples(t testing.TB) []sample {
	t.Helper()
	var all []sample
	for _, s := range []sample{
		{version: V09, dir: "v0.9.4", hash: "0ebe99127fcb2e4cac577c9ff444efb8850434f2a8560dcaf99f96754c85ada1"},
		{version: V010, dir: "v0.10.2", hash: "4406ebb816f804783ed17fcdd290854cdc16f8ec0b0d51656e5e62265e87c52c"},
	} {
		var err error
		s.document, err = os.ReadFile(filepath.Join(testdata, s.dir, GenesisFile))
		require.NoError(t, err)
		packed, err := os.ReadFile(filepath.Join(testdata, s.dir, s.version.StateFile()))
		require.NoError(t, err)
		zr, err := gzip.NewReader(bytes.NewReader(packed))
		require.NoError(t, err)
		sql, err := io.ReadAll(zr)
		require.NoError(t, err)
		s.sql = string(sql)
		all = append(all, s)
	}
	return all
}

// TestSamplesPassUnchanged: what Kwil's tools left in, stays in.
func TestSamplesPassUnchanged(t *testing.T) {
	for _, s := range samples(t) {
		body, ok := strings.CutSuffix(s.sql, lastLine)
		require.True(t, ok, s.dir)
		out, state, err := sanitised(body+end, s.version)
		require.NoError(t, err, s.dir)
		assert.Equal(t, s.sql, out, s.dir)
		assert.Equal(t, s.hash, hex.EncodeToString(state.SHA256[:]), s.dir)
	}
}
