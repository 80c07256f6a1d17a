package hint

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestErrorText(t *testing.T) {
	cause := errors.New("it broke")
	for want, err := range map[string]*Error{
		"cannot read plan /x: it broke": {Op: "read plan", Path: "/x", Err: cause, Hint: "never shown in the text"},
		"cannot read plan /x":           {Op: "read plan", Path: "/x"},
		"cannot read plan: it broke":    {Op: "read plan", Err: cause},
		"cannot read plan":              {Op: "read plan"},
	} {
		assert.Equal(t, want, err.Error())
	}
}

func TestErrorGivesItsCauseAway(t *testing.T) {
	err := fmt.Errorf("cannot start: %w", &Error{Op: "open", Path: "/x", Err: &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist}})
	require.ErrorIs(t, err, fs.ErrNotExist)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, "/x", e.Path)
	require.NotErrorIs(t, &Error{Op: "open"}, fs.ErrNotExist, "no cause")
}

func TestOfFindsTheHintNearestToTheSurface(t *testing.T) {
	deep := &Error{Op: "b", Hint: "deep"}
	plain := errors.New("plain")
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"nil":                  {nil, ""},
		"plain":                {plain, ""},
		"itself":               {deep, "deep"},
		"wrapped":              {fmt.Errorf("a: %w", fmt.Errorf("b: %w", deep)), "deep"},
		"the outer one":        {&Error{Op: "a", Err: deep, Hint: "outer"}, "outer"},
		"the outer has none":   {&Error{Op: "a", Err: fmt.Errorf("x: %w", deep)}, "deep"},
		"joined, in order":     {errors.Join(plain, deep, &Error{Hint: "later"}), "deep"},
		"joined, below":        {fmt.Errorf("x: %w", errors.Join(plain, fmt.Errorf("y: %w", deep))), "deep"},
		"two verbs":            {fmt.Errorf("%w and %w", plain, deep), "deep"},
		"formatted away":       {fmt.Errorf("x: %s", deep.Error()), ""},
		"no hint in the chain": {&Error{Op: "a", Err: &Error{Op: "b", Err: plain}}, ""},
	} {
		assert.Equal(t, tc.want, Of(tc.err), name)
	}
}

func TestNew(t *testing.T) {
	err := New("lock", "/home", "it is held", "supervisor status")
	assert.Equal(t, "cannot lock /home: it is held", err.Error())
	assert.Equal(t, "supervisor status", Of(err))
}

func TestSplit(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	assert.Empty(t, Split(nil))
	assert.Equal(t, []error{a}, Split(a))
	assert.Equal(t, []error{a, b, c}, Split(errors.Join(a, nil, errors.Join(b, c))))
	wrapped := fmt.Errorf("x: %w", errors.Join(a, b))
	assert.Equal(t, []error{wrapped}, Split(wrapped), "one that says more than its parts stays whole")
}

func TestCause(t *testing.T) {
	under := &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist}
	assert.Equal(t, fs.ErrNotExist, Cause(fmt.Errorf("cannot start: %w", under)), "the path is said by the caller")
	cause := errors.New("it broke")
	assert.Equal(t, cause, Cause(cause))
}

func TestQuote(t *testing.T) {
	for text, want := range map[string]string{
		"/a/b-c": "/a/b-c", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "v3.0_1@x": "v3.0_1@x", "--a=b": "--a=b",
	} {
		assert.Equal(t, want, Quote(text))
	}
}

// What the system answered says what helps, however deep it lies.
func TestOfSystem(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC: "make room, for example: supervisor snapshot prune",
		syscall.EDQUOT: "make room, for example: supervisor snapshot prune",
		syscall.EROFS:  "mount it writable",
		syscall.EIO:    "",
	} {
		err := &Error{Op: "lock", Err: fmt.Errorf("cannot write: %w", &fs.PathError{Op: "write", Path: "/x", Err: errno})}
		assert.Equal(t, want, OfSystem(err))
	}
	assert.Empty(t, OfSystem(nil))
}

// A name that begins like a flag is still the command's argument.
func TestArgument(t *testing.T) {
	assert.Equal(t, "v2", Argument("v2"))
	assert.Equal(t, "-- -rf", Argument("-rf"))
	assert.Equal(t, "-- '-r f'", Argument("-r f"))
}
