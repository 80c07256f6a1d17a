// Package systemd tells the service manager how the supervisor is doing (sd_notify(3)).
package systemd

import (
	"os"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier sends the supervisor's state to systemd. Its methods never block for long and never fail: a service manager that
// doesn't listen is no reason to treat the node differently.
type Notifier struct {
	mu   sync.Mutex
	last string
}

// New returns a Notifier, or nil where no service manager asked for one (NOTIFY_SOCKET).
func New() *Notifier {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return &Notifier{}
}

// Ready says that the node was started and lives.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Stopping says that the end has begun.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Status shows one line in `systemctl status`; the same line again is not sent.
func (n *Notifier) Status(text string) {
	n.mu.Lock()
	same := n.last == text
	n.last = text
	n.mu.Unlock()
	if !same {
		n.send("STATUS=" + text)
	}
}

func (n *Notifier) send(state string) {
	// The variable stays set for the supervisor; the node's environment is stripped of it when it is started.
	_, _ = daemon.SdNotify(false, state)
}
