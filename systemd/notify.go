// Package systemd is what the supervisor and systemd have to say to each other: readiness, status and watchdog
// (sd_notify(3)), the notify socket of a node that speaks for itself, the units that `supervisor unit` prints, and other
// units of the host, over D-Bus (org.freedesktop.systemd1(5)).
package systemd

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// maxStatus caps a status, in bytes: systemd drops messages of more than a page (NOTIFY_BUFFER_MAX).
const maxStatus = 1024

// notifyEvery is how often a service manager hears of us at least, where its watchdog doesn't want it sooner.
const notifyEvery = 5 * time.Second

// Notifier sends the supervisor's state to systemd. Its methods never block and never fail: what the socket doesn't take
// at once is sent with the next message. They may be called by several goroutines.
type Notifier struct {
	fd       int
	to       unix.Sockaddr
	watchdog time.Duration // 0 = systemd doesn't watch us

	mu     sync.Mutex
	last   string   // the status that was given last
	status string   // the one that is still to be sent; "" = none
	owed   []string // what else is still to be sent
}

// New returns a Notifier for NOTIFY_SOCKET, or nil where no service manager asked for one.
func New() *Notifier {
	path := os.Getenv("NOTIFY_SOCKET")
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return nil // no service manager, or one in another machine (vsock)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	n := &Notifier{fd: fd, to: &unix.SockaddrUnix{Name: path}}
	// It heeds WATCHDOG_PID: a watchdog that was meant for a parent of ours is not fed.
	if d, err := daemon.SdWatchdogEnabled(false); err == nil {
		n.watchdog = d
	}
	return n
}

// Every is how often Alive must be called: half of WatchdogSec= (sd_watchdog_enabled(3)), and every few seconds at least.
func (n *Notifier) Every() time.Duration {
	if n.watchdog > 0 {
		return min(n.watchdog/2, notifyEvery)
	}
	return notifyEvery
}

// Ready says that the node lives. Where a shell stands between systemd and us, it also says which process is the service,
// so that a stop reaches us (with NotifyAccess=all). In a container our pid is another one outside, and isn't told.
func (n *Notifier) Ready() {
	if os.Getppid() > 1 && os.Getenv("container") == "" {
		n.send(false, daemon.SdNotifyReady, "MAINPID="+strconv.Itoa(os.Getpid()))
		return
	}
	n.send(false, daemon.SdNotifyReady)
}

// Stopping says that the end has begun.
func (n *Notifier) Stopping() { n.send(false, daemon.SdNotifyStopping) }

// Status shows one line in `systemctl status`; the same line again is not sent.
func (n *Notifier) Status(text string) {
	text = oneLine(text)
	n.mu.Lock()
	same := n.last == text
	n.last = text
	if !same {
		n.status = text
	}
	n.mu.Unlock()
	if !same {
		n.send(false)
	}
}

// Alive feeds the watchdog. With extend > 0 it also asks for that much time from now on, for a start and a stop
// (EXTEND_TIMEOUT_USEC=): systemd waits at least so long, and longer where the unit says so. Alone it would move the watchdog's
// deadline as well (sd_notify(3)); WATCHDOG=1 in the same message sets that to WatchdogSec=, as it is wanted.
func (n *Notifier) Alive(extend time.Duration) {
	var passing []string
	if n.watchdog > 0 {
		passing = append(passing, daemon.SdNotifyWatchdog)
	}
	if extend > 0 {
		passing = append(passing, "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(extend.Microseconds(), 10))
	}
	n.send(true, passing...)
}

// send sends the lines with everything that is owed. Lines that are true for the moment alone (passing) are not owed
// where they can't be sent.
func (n *Notifier) send(passing bool, lines ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !passing {
		n.owed = append(n.owed, lines...)
		lines = nil
	}
	all := append(append([]string{}, n.owed...), lines...)
	if n.status != "" {
		all = append(all, "STATUS="+n.status)
	}
	if len(all) == 0 {
		return
	}
	err := unix.Sendto(n.fd, []byte(strings.Join(all, "\n")), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, n.to)
	if err == nil {
		n.owed, n.status = nil, ""
	}
}

// Close waits until systemd has taken in what was sent, for at most the given time, and closes the socket: of a process
// that is gone already the last words are dropped, because nothing tells any more whose they are (sd_notify_barrier(3)).
func (n *Notifier) Close(patience time.Duration) {
	n.send(false) // what is owed
	n.mu.Lock()
	defer n.mu.Unlock()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return
	}
	defer unix.Close(ends[0])
	err := unix.Sendmsg(n.fd, []byte("BARRIER=1"), unix.UnixRights(ends[1]), n.to, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	unix.Close(ends[1])
	if err == nil {
		// Our end hangs up once systemd has closed its own.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(ends[0])}}, int(patience.Milliseconds()))
	}
	unix.Close(n.fd)
	n.fd = -1
}

// oneLine keeps a text from being more than one assignment: a plan's name must not become a MAINPID=.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxStatus {
		s = strings.ToValidUTF8(s[:maxStatus], "")
	}
	return s
}
