package snapshot

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A proxy stands before a server and counts the statements that clients send.
type proxy struct {
	dir      string
	listener net.Listener
	server   string
	at       int // twice the statement to kill at, and one more: after the answer has begun; 0: never
	mu       sync.Mutex
	seen     int
	victim   func()
	ready    chan struct{}
	conns    []net.Conn
	dead     bool
}

func newProxy(t *testing.T, server string, at int) *proxy {
	dir, err := os.MkdirTemp("/tmp", "px")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxy{dir: dir, server: filepath.Join(server, ".s.PGSQL.5432"), at: at, ready: make(chan struct{})}
	p.listener, err = net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	require.NoError(t, err)
	t.Cleanup(p.close)
	go func() {
		for {
			client, err := p.listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

func (p *proxy) kill(f func()) {
	p.victim = f
	close(p.ready)
}

func (p *proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("unix", p.server)
	if err != nil {
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, client, server)
	dead := p.dead
	p.mu.Unlock()
	if dead {
		p.close()
		return
	}
	answered := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			if n > 0 {
				select {
				case answered <- struct{}{}:
				default:
				}
				if _, werr := client.Write(buf[:n]); werr != nil {
					err = werr
				}
			}
			if err != nil {
				client.Close()
				return
			}
		}
	}()
	p.forward(bufio.NewReader(client), server, answered)
	server.Close()
}

// forward reads the frontend's messages (PostgreSQL manual, "Message Formats"): the first has no type.
func (p *proxy) forward(client *bufio.Reader, server net.Conn, answered chan struct{}) {
	for first := true; ; first = false {
		head := make([]byte, 5)
		if first {
			head = head[:4]
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint32(head[len(head)-4:]))-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		fatal := false
		if !first && (head[0] == 'Q' || head[0] == 'E') {
			p.mu.Lock()
			p.seen++
			fatal = p.at > 0 && p.seen == p.at/2
			p.mu.Unlock()
		}
		if fatal && p.at%2 == 0 {
			p.strike()
			return
		}
		if _, err := server.Write(append(slices.Clip(head), body...)); err != nil {
			return
		}
		if fatal {
			rest := make([]byte, client.Buffered()) // the Sync behind it: without that nothing is answered
			_, _ = io.ReadFull(client, rest)
			for len(answered) > 0 {
				<-answered
			}
			_, _ = server.Write(rest)
			select {
			case <-answered:
			case <-time.After(5 * time.Second):
			}
			p.strike()
			return
		}
	}
}

func (p *proxy) strike() {
	<-p.ready
	p.victim()
	p.close()
}
