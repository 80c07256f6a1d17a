package dump

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
)

func TestOnlyStumbled(t *testing.T) {
	const complaint = "pg_restore: error: could not execute query: ERROR:  " + timeoutUnknown + "\nCommand was: SET transaction_timeout = 0;\n"
	for stderr, want := range map[string]bool{
		complaint: true,
		complaint + complaint + "pg_restore: warning: errors ignored on restore: 1\n": true,
		complaint + "pg_restore: error: could not read from input file\n":             false,
		"":                                     false,
		complaint + strings.Repeat("x", 4<<10): false,
	} {
		assert.Equal(t, want, onlyStumbled(&proc.ExitError{Result: proc.Result{Code: 1, Stderr: []byte(stderr)}}), "%.80q", stderr)
	}
	assert.False(t, onlyStumbled(&proc.ExitError{Result: proc.Result{Code: 2, Stderr: []byte(complaint)}}))
	assert.False(t, onlyStumbled(nil))
}

func TestLineFilter(t *testing.T) {
	const drop = "SET transaction_timeout = "
	text := "SET a = 1;\nSET transaction_timeout = 0;\nCOPY t FROM stdin;\nSET transaction_timeout = 0;\n\\.\n"
	want := "SET a = 1;\nCOPY t FROM stdin;\nSET transaction_timeout = 0;\n\\.\n"
	for size := 1; size <= len(text); size++ {
		var got strings.Builder
		f := &lineFilter{dst: &got, drop: drop}
		for from := 0; from < len(text); from += size {
			_, err := f.Write([]byte(text[from:min(len(text), from+size)]))
			require.NoError(t, err)
		}
		require.NoError(t, f.end())
		require.Equal(t, want, got.String(), "in pieces of %d", size)
	}
	var got strings.Builder
	f := &lineFilter{dst: &got, drop: drop}
	long := strings.Repeat("no such line\n", headerMax/8)
	_, err := f.Write([]byte(long))
	require.NoError(t, err)
	assert.Equal(t, long, got.String())
}
