package operate

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// What goes on by itself is no change; what an operator would look for is one.
func TestEssence(t *testing.T) {
	t.Parallel()
	eta := time.Now()
	a := status.Document{State: status.Running, Height: new(int64(1)), Plan: &status.Plan{Name: "v2", ETA: &eta, BlocksLeft: new(int64(7))}}
	b := a
	b.Height, b.Plan, b.Message = new(int64(2)), &status.Plan{Name: "v2"}, "up 7s"
	assert.Equal(t, essence(&a), essence(&b))
	b.Plan.Ready = true
	assert.NotEqual(t, essence(&a), essence(&b))
	assert.NotNil(t, a.Plan.ETA, "the original is left alone")
	a.Hold, b = &upgrade.Hold{Reason: "torn", Since: eta}, a
	b.Hold = &upgrade.Hold{Reason: "torn", Since: eta.Add(time.Second)}
	assert.Equal(t, essence(&a), essence(&b))
	assert.Equal(t, eta, a.Hold.Since)
	b.Hold.Reason = "halted"
	assert.NotEqual(t, essence(&a), essence(&b))
	assert.Equal(t, "ab…", cut("abcdef", 3))
	assert.Equal(t, "äöü", cut("äöü", 3))
}

// Where a person must do something, the next command is named: once, and a hold's own comes first.
func TestStatusNamesTheNextCommand(t *testing.T) {
	t.Parallel()
	next := func(st status.Document) (lines []string) {
		var b strings.Builder
		require.NoError(t, printStatus(&b, &st, time.Now()))
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "next ") {
				lines = append(lines, strings.Join(strings.Fields(line), " "))
			}
		}
		return lines
	}
	waiting := status.Document{State: status.Running, Plan: &status.Plan{Name: "v2", Problems: []string{"no binary"}, Hint: new("supervisor upgrade add v2 BINARY")}}
	assert.Equal(t, []string{"next supervisor upgrade add v2 BINARY"}, next(waiting))
	waiting.Hold = &upgrade.Hold{Reason: "x", Hint: "supervisor resume"}
	assert.Equal(t, []string{"next supervisor resume"}, next(waiting))
	assert.Empty(t, next(status.Document{State: status.Running, Plan: &status.Plan{Name: "v2", Ready: true}}))
}

// The time that is left is an estimate, and the height comes when it comes: it doesn't count below nothing.
func TestTheTimeLeftIsNeverNegative(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for left, want := range map[time.Duration]string{90 * time.Second: "in 1m30s", -2 * time.Second: "in 0s"} {
		assert.Equal(t, " ("+want+", ready)", planDetail(&status.Plan{ETA: new(now.Add(left)), Exact: true, Ready: true}, now))
	}
}
