// Package progress is the one seam through which a long phase says how far it is: the log, the metrics, systemd's
// STATUS=, the control socket and the progress bar are all fed from the same event.
package progress

// Event is one report of a long phase.
type Event struct {
	Phase string // what is going on: "snapshot", "download", "verify"
	Done  int64  // units done (bytes, unless the phase says otherwise)
	Total int64  // units in all; 0 = not known
}

// Observer takes events. It must be quick and safe for use by several goroutines. A nil Observer is valid.
type Observer func(Event)

// Observe passes e on; it does nothing on a nil Observer.
func (o Observer) Observe(e Event) {
	if o != nil {
		o(e)
	}
}
