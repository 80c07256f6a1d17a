package control

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Who isn't known, and who is another user, may not operate.
func TestOperationsAreTheOwners(t *testing.T) {
	s := &Server{}
	for uid, want := range map[int]int{os.Geteuid() + 4711: http.StatusForbidden, -1: http.StatusForbidden} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/v1/stop", bytes.NewReader(nil))
		s.serveOperation(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, uid)))
		assert.Equal(t, want, w.Code)
	}
	w := httptest.NewRecorder()
	s.serveOperation(w, httptest.NewRequest(http.MethodPost, "/v1/stop", bytes.NewReader(nil)))
	assert.Equal(t, http.StatusForbidden, w.Code, "nobody is known")
}
