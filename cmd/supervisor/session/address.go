package session

import (
	"encoding/json"

	"nodevisor/supervisor/status"
)

// addressStatus puts the flags into what a status advises.
func (s *Session) addressStatus(st *status.Document) {
	st.Message = s.Addressed(st.Message)
	for i, warning := range st.Warnings {
		st.Warnings[i] = s.Addressed(warning)
	}
	if st.Hold != nil {
		hold := *st.Hold
		hold.Hint = s.Addressed(hold.Hint)
		st.Hold = &hold
	}
}

// addressResult puts the flags into the commands that can follow a halt; every other result is data alone.
func (s *Session) addressResult(result json.RawMessage) any {
	var r status.HaltResult
	if s.Address() == "" || json.Unmarshal(result, &r) != nil || len(r.Next) == 0 {
		return result
	}
	for i, next := range r.Next {
		r.Next[i] = s.Addressed(next)
	}
	return r
}
