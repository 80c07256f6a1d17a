package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/systemd"
)

// systemdConfig is what the tests' `run` is told of systemd.
type systemdConfig struct {
	Ready      ReadyWhen
	NodeNotify bool
	Units      []unitSpec
	Trouble    string // a file whose appearance gets the loop into trouble: "hang" or "panic", by its content
}

// unitSpec is one action on a unit; the tests' units are lines in a file.
type unitSpec struct {
	At       Moment
	Name     string
	Fails    bool
	Blocking string // a file that must go before the action is done
}

// joinSystemd does what the composition root does, with real sockets.
func (c runConfig) joinSystemd(o *Options) (join func(*Supervisor) (leave func())) {
	o.ReadyWhen = c.Systemd.Ready
	o.Units = map[Moment][]UnitAction{}
	for _, u := range c.Systemd.Units {
		o.Units[u.At] = append(o.Units[u.At], UnitAction{Name: u.Name, Action: "start", Do: func(ctx context.Context) error {
			return c.unit(ctx, u)
		}})
	}
	n := systemd.New()
	if n != nil {
		o.Notify, o.NotifyEvery = n, n.Every()
	}
	var node *systemd.NodeSocket
	if c.Systemd.NodeNotify {
		var err error
		if node, err = systemd.ListenNode(filepath.Join(c.Home, "n")); err != nil {
			panic(err)
		}
		o.NodeSocket = node.Path()
	}
	return func(s *Supervisor) func() {
		if node != nil {
			go node.Serve(s.NodeSaid)
		}
		if c.Systemd.Trouble != "" {
			go s.trouble(c.Systemd.Trouble)
		}
		return func() {
			if node != nil {
				node.Close()
			}
			if n != nil {
				n.Close(time.Second)
			}
		}
	}
}

func (c runConfig) unitsFile() string { return filepath.Join(c.Home, "units") }

// unit writes down that it was acted upon.
func (c runConfig) unit(ctx context.Context, u unitSpec) error {
	f, err := os.OpenFile(c.unitsFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(string(u.At) + " " + u.Name + "\n"); err != nil {
		return err
	}
	for u.Blocking != "" && ctx.Err() == nil {
		if _, err := os.Stat(u.Blocking); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if u.Fails {
		return errors.New("it refused")
	}
	return ctx.Err()
}

// helperNotify says args[0] to NOTIFY_SOCKET, and ends when that was taken in.
func helperNotify(args []string) int {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if _, err := conn.Write([]byte(args[0])); err != nil {
		fmt.Println(err)
		return 1
	}
	systemd.New().Close(patience) // nothing but the barrier
	return 0
}

// trouble waits for the file and does to the loop what it says.
func (s *Supervisor) trouble(file string) {
	for {
		switch what, _ := os.ReadFile(file); string(what) {
		case "hang":
			s.post(func() { select {} })
			return
		case "panic":
			s.post(func() { panic("as the test wants it") })
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// unitsActed lists what was done to units so far: "before-stop price-feeder".
func (h *testHome) unitsActed() []string {
	text, _ := os.ReadFile(h.unitsFile())
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// manager is the service manager's end of a notify socket.
type manager struct {
	*testing.T
	path string
	took chan []byte // each message, taken at once: a queue that is full loses what is true for a moment alone
	said []string    // each line that was read, in order
	rest []string    // those of the last message that nobody awaited yet
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &manager{T: t, path: filepath.Join(dir, "notify"), took: make(chan []byte, 10000)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	go m.take(conn)
	return m
}

// take takes messages until the socket is closed, and lets the barriers that come with them fall.
func (m *manager) take(conn *net.UnixConn) {
	for {
		buf, oob := make([]byte, 4096), make([]byte, 256)
		n, nc, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		m.took <- buf[:n]
		messages, _ := unix.ParseSocketControlMessage(oob[:nc])
		for i := range messages {
			fds, _ := unix.ParseUnixRights(&messages[i])
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
}

// env is what systemd puts into the environment of a service.
func (m *manager) env(more ...string) []string { return append(more, "NOTIFY_SOCKET="+m.path) }

// next reads one message and returns its lines; none where nothing came in time.
func (m *manager) next(patience time.Duration) []string {
	select {
	case message := <-m.took:
		lines := strings.Split(string(message), "\n")
		m.said = append(m.said, lines...)
		return lines
	case <-time.After(patience):
		return nil
	}
}

// await takes messages until a line begins so.
func (m *manager) await(prefix string) string {
	m.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); m.rest = m.next(time.Second) {
		for i, line := range m.rest {
			if strings.HasPrefix(line, prefix) {
				m.rest = m.rest[i+1:]
				return line
			}
		}
	}
	require.Fail(m, "never said", "%q, but:\n%s", prefix, strings.Join(m.said, "\n"))
	return ""
}

// never checks that a line that begins so has not come.
func (m *manager) never(prefix string) {
	m.Helper()
	for _, line := range m.said {
		require.False(m, strings.HasPrefix(line, prefix), "it said %q", line)
	}
}
