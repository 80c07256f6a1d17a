//go:build e2e

package systemd

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

// cosmovisorUnit installs the unit that nodes have under Cosmovisor, with the path in ExecStart= replaced and nothing else.
func (n *node) cosmovisorUnit() {
	n.Helper()
	n.configure()
	n.installed(fmt.Sprintf(`[Unit]
Description=Cosmovisor
After=network-online.target

[Service]
User=%s
ExecStart=/usr/bin/supervisor run start --home %s
Restart=always
RestartSec=3
LimitNOFILE=4096
Environment="DAEMON_NAME=simd"
Environment="DAEMON_HOME=%[2]s"
Environment="DAEMON_ALLOW_DOWNLOAD_BINARIES=false"
Environment="DAEMON_RESTART_AFTER_UPGRADE=true"
Environment="DAEMON_LOG_BUFFER_SIZE=512"

[Install]
WantedBy=multi-user.target
`, n.User, n.home))
}

// Type=simple, KillMode=control-group, Restart=always: a stop signals the node together with the supervisor, in each stage
// of an upgrade. The node that ends is neither a crash nor started again.
func TestCosmovisorsUnit(t *testing.T) {
	t.Parallel()
	for _, s := range stages {
		for _, verb := range []string{"stop", "restart"} {
			t.Run(s.name+"/"+verb, func(t *testing.T) {
				t.Parallel()
				n := upgradeAt(t, lab, s)
				n.cosmovisorUnit()
				n.systemctl("start")
				n.reach(s)
				n.systemctl(verb)
				if verb == "stop" {
					require.Equal(t, "success", n.property("Result"))
					require.Equal(t, "inactive", n.property("ActiveState"))
					require.Empty(t, n.processes())
					require.NotContains(t, n.journal(), "restarting the node after a pause", "a stop is no crash")
					n.systemctl("start")
				}
				n.converged()
				n.systemctl("stop")
			})
		}
	}
}

// A node that ends by a signal of somebody else's is started again, but only once it is clear that no stop was meant.
func TestSignalOfSomebodyElse(t *testing.T) {
	t.Parallel()
	for sig, livesOn := range map[syscall.Signal]bool{
		syscall.SIGKILL: true,  // the supervisor, which starts it again
		syscall.SIGTERM: false, // it ends with 0: no failure, so run ends too, and Restart=always is systemd's
	} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, lab)
			n.cosmovisorUnit()
			n.systemctl("start")
			first, supervisor := n.await(trace.FirstBlock, "v1").PID, n.property("MainPID")
			ended := time.Now().UnixNano()
			n.run(t, "kill", fmt.Sprintf("-%d", sig), itoa(first))
			again := n.awaitNth(2, trace.Start, "v1")
			assert.GreaterOrEqual(t, again.Time-ended, time.Second.Nanoseconds())
			assert.Equal(t, livesOn, supervisor == n.property("MainPID"))
			assert.Equal(t, 2, n.count(trace.Start, ""))
			n.oneNode()
			n.systemctl("stop")
		})
	}
}

// A node that ends by itself is started again by the supervisor, whatever its code.
func TestNodeExits(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"2", "3", "4"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, lab)
			n.Env["EXIT_AFTER"], n.Env["EXIT_CODE"] = "300ms", code
			n.install()
			n.systemctl("start", "--no-block")
			n.awaitNth(3, trace.FirstBlock, "v1")
			assert.Equal(t, "0", n.property("NRestarts"))
			n.systemctl("stop")
			n.oneNode()
		})
	}
}
