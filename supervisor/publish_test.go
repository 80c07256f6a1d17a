package supervisor

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"nodevisor/supervisor/metrics"
	"nodevisor/supervisor/status"
)

// An idle node is asked for its height every few seconds, and nothing else may happen meanwhile: who asks for the status
// between two readings isn't told that the height was read this moment.
func TestTheHeightAgesBetweenTwoEvents(t *testing.T) {
	var s Supervisor
	published := &status.Document{Height: new(int64(7)), HeightAge: new(int64(0))}
	s.sample.Store(&metrics.Sample{Document: published, HeightAt: time.Now().Add(-time.Minute)})
	st := s.Status()
	assert.GreaterOrEqual(t, *st.HeightAge, time.Minute.Milliseconds())
	assert.EqualValues(t, 7, *st.Height)
	assert.Zero(t, *published.HeightAge, "what is published is never changed: others read it")

	s.sample.Store(&metrics.Sample{Document: &status.Document{}})
	assert.Nil(t, s.Status().HeightAge, "no height of the node that runs was read")
}
