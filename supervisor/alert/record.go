package alert

import (
	"encoding/json"
	"sync"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
)

const (
	// maxRecord caps what is read of the record, in bytes, and maxRemembered how many events it holds.
	maxRecord     = 64 << 10
	maxRemembered = 256
)

// record remembers when an event was told. What it forgets is told once more, so nothing that is wrong with its file
// matters; it holds digests alone.
type record struct {
	path   string
	saving sync.Mutex // one writer at a time

	mu      sync.Mutex
	told    map[string]time.Time
	pending map[string]bool // claimed, and not told yet: that alone isn't written down
	dirty   bool
}

func loadRecord(path string, now time.Time) *record {
	r := &record{path: path, told: map[string]time.Time{}, pending: map[string]bool{}}
	if path == "" {
		return r
	}
	data, err := capped.ReadBytes(path, maxRecord)
	if err != nil || json.Unmarshal(data, &r.told) != nil || r.told == nil {
		r.told = map[string]time.Time{}
	}
	r.forget(now)
	return r
}

// forget drops what is older than quiet, and what a clock that was set back has put into the future. It needs mu.
func (r *record) forget(now time.Time) {
	for key, at := range r.told {
		if age := now.Sub(at); age >= quiet || age < -time.Minute {
			delete(r.told, key)
		}
	}
}

// claim tells whether an event is to be told now. Who claimed it settles it.
func (r *record) claim(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(now)
	if _, ok := r.told[key]; ok || r.pending[key] {
		return false
	}
	r.pending[key] = true
	return true
}

// settle remembers an event that was told, and forgets one that was not: that one may be told again at once.
func (r *record) settle(key string, told bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pending, key)
	if told && len(r.told) < maxRemembered {
		r.told[key] = now
		r.dirty = true
	}
}

// save writes the record. It does file I/O: it is called from a receiver's goroutine.
func (r *record) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	dirty := r.dirty && r.path != ""
	r.dirty = false
	data, err := json.Marshal(r.told)
	r.mu.Unlock()
	if err != nil || !dirty {
		return err
	}
	return atomicfile.WriteFile(r.path, append(data, '\n'), 0o600)
}
