// Command stub is a node that does next to nothing: what is measured with it is the supervisor. A node's program runs twice in
// each upgrade's window, and Go's runtime alone takes a millisecond to begin; net/http would take as much again.
//
// It keeps the trace that a fakenode keeps (package trace), in BENCH_TRACE, and answers each request to its RPC, at
// BENCH_RPC, with the /status of a chain that stands at BENCH_HEIGHT, as one does whose upgrade is due.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// version is the linker's to set.
var version = "none"

func main() {
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	err := error(nil)
	switch command {
	case "init":
		err = makeHome(os.Getenv("DAEMON_HOME"))
	case "start":
		err = run()
	case "status": // what Cosmovisor asks for the height
		fmt.Println(status())
	case "version":
		fmt.Println(version)
	case "pre-upgrade":
	default:
		err = fmt.Errorf("unknown command %q", command)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// makeHome makes what a chain has before its first start, with a database of a few files.
func makeHome(home string) error {
	for name, content := range map[string]string{
		"config/config.toml":                 fmt.Sprintf("priv_validator_state_file = \"data/priv_validator_state.json\"\n\n[rpc]\nladdr = \"tcp://%s\"\n", os.Getenv("BENCH_RPC")),
		"data/priv_validator_state.json":     `{"height":"0","round":0,"step":0}`,
		"data/state.db/000001.log":           "log",
		"data/state.db/CURRENT":              "MANIFEST-000001\n",
		"data/state.db/MANIFEST-000001":      "manifest",
		"data/state.db/LOCK":                 "",
		"data/state.db/OPTIONS-000002":       "options",
		"data/snapshots/metadata.db/CURRENT": "MANIFEST-000001\n",
	} {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// run is the node's life, up to the signal that ends it.
func run() error {
	if err := record(trace.Start); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT) // Cosmovisor sends the other one
	listener, err := net.Listen("tcp", os.Getenv("BENCH_RPC"))
	if err != nil {
		return err
	}
	go serve(listener)
	if err := record(trace.FirstBlock); err != nil {
		return err
	}
	<-signals
	if err := record(trace.Signal); err != nil {
		return err
	}
	return record(trace.Exit)
}

// status is the part of CometBFT's ResultStatus that supervisors read.
func status() string {
	return fmt.Sprintf(`{"sync_info":{"latest_block_height":"%s","catching_up":false}}`, os.Getenv("BENCH_HEIGHT"))
}

func record(kind trace.Kind) error {
	return trace.Append(os.Getenv("BENCH_TRACE"), trace.Event{Kind: kind, Time: time.Now().UnixNano(), PID: os.Getpid(), PPID: os.Getppid(), Version: version})
}

// serve answers one request a connection. It ends with the process.
func serve(listener net.Listener) {
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":-1,"result":%s}`, status())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan() && lines.Text() != ""; { // the request's head; it has no body
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		}()
	}
}
