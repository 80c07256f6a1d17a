//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	binaryName  = "chaind"
	upgradeName = "v2"
	needed      = `UPGRADE "v2" NEEDED` // the node's own line at the plan's height
	applying    = `applying upgrade "v2"`

	// voting is the governance's period, in which a busy machine must bring in a vote, and planAhead how many blocks away a
	// plan's height is at first: room for a proposal, a vote and the period, at four blocks a second. near is how many are
	// left when a test goes on.
	voting    = "12s"
	planAhead = 76
	near      = 20
	ahead     = 15 * time.Minute // the longest that a far height is waited for
	// Both are long: the machine may be busy, and only a failing test waits so long.
	blocksTime = 3 * time.Minute // the longest that a test waits for blocks
	commands   = 3 * time.Minute // the longest that one command may take
)

// network is a chain of one validator in a home of its own.
type network struct {
	base string // the test's directory, which holds home and the logs
	home string
	rpc  int
	p2p  int
	grpc int
}

// newNetwork makes a home with a genesis, not yet a tree of versions. What goes wrong later is shown with the logs.
func newNetwork(t *testing.T) *network {
	t.Helper()
	base := t.TempDir()
	ports := freePorts(t, 3)
	n := &network{base: base, home: filepath.Join(base, "home"), rpc: ports[0], p2p: ports[1], grpc: ports[2]}
	t.Cleanup(func() { // registered first, so it runs after every daemon's end
		n.killOrphans(t)
		if t.Failed() {
			t.Logf("the supervisor's last lines:\n%s", tail(n.supervisorLog()))
			t.Logf("the node's last lines:\n%s", tail(n.nodeLog()))
		}
	})
	script, err := filepath.Abs("../testdata/chain/init-home.sh")
	require.NoError(t, err)
	n.run(t, script, chainV1.path, n.home, strconv.Itoa(n.rpc), strconv.Itoa(n.p2p), strconv.Itoa(n.grpc))
	return n
}

// lastPort is the last one that freePorts looked at.
var lastPort atomic.Int32

// freePorts finds ports below the range that the kernel hands out to clients: a node that is restarted must find its
// port again, so no other process's connection may sit on it meanwhile. No two networks of this process get the same one:
// their nodes don't listen yet, or are being replaced.
func freePorts(t *testing.T, count int) []int {
	t.Helper()
	lastPort.CompareAndSwap(0, 20000+rand.Int32N(11000)) // another process begins elsewhere
	var ports []int
	for range 1000 {
		port := int(lastPort.Add(1))
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		require.NoError(t, listener.Close())
		if ports = append(ports, port); len(ports) == count {
			break
		}
	}
	require.Len(t, ports, count, "not enough free ports")
	return ports
}

func (n *network) nodeLog() string       { return filepath.Join(n.base, "node.log") }
func (n *network) supervisorLog() string { return filepath.Join(n.base, "supervisor.log") }
func (n *network) root() string          { return filepath.Join(n.home, "cosmovisor") }

// env is the environment of an operator who knows Cosmovisor, and nothing that whoever runs the tests has set for
// either tool. HOME lies in the test's directory, because a chain's command that isn't told its home makes one there.
func (n *network) env() []string {
	clean := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return slices.ContainsFunc([]string{"DAEMON_", "COSMOVISOR_", "SUPERVISOR_", "UNSAFE_SKIP_BACKUP=", "CHAIND_", "NOTIFY_SOCKET="},
			func(prefix string) bool { return strings.HasPrefix(entry, prefix) })
	})
	return append(clean,
		"HOME="+n.base,
		"VOTING_PERIOD="+voting,
		"DAEMON_HOME="+n.home,
		"DAEMON_NAME="+binaryName,
		"DAEMON_SHUTDOWN_GRACE=20s",
		"DAEMON_GRPC_ADDRESS=127.0.0.1:"+strconv.Itoa(n.grpc),
		"SUPERVISOR_UPGRADE_PROBATION_UP=2s",
		"SUPERVISOR_SNAPSHOT_MIN_FREE=1%",
		"NO_COLOR=1",
	)
}

// try runs one command and gives its streams and exit code; only a command that can't be run or hangs fails the test.
func (n *network) try(t *testing.T, command string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commands)
	defer cancel()
	cmd := exec.CommandContext(ctx, command, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = n.env(), n.base, &out, &errs
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "%s %s did not end within %s", filepath.Base(command), strings.Join(args, " "), commands)
	if cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// run is try for a command that must succeed; it gives stdout.
func (n *network) run(t *testing.T, command string, args ...string) string {
	t.Helper()
	stdout, stderr, code := n.try(t, command, args...)
	require.Zero(t, code, "%s %s: exit code %d\n%s%s", filepath.Base(command), strings.Join(args, " "), code, stdout, stderr)
	return stdout
}

// chain runs the chain's client, v2's where a query is one that only v2 knows.
func (n *network) chain(t *testing.T, p *program, args ...string) string {
	t.Helper()
	return n.run(t, p.path, append([]string{"--home", n.home}, args...)...)
}

// height asks the node's RPC; 0 while there is no answer.
func (n *network) height() int64 {
	client := &http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/status", n.rpc))
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	var body struct {
		Result struct {
			SyncInfo struct {
				LatestBlockHeight string `json:"latest_block_height"`
			} `json:"sync_info"`
		} `json:"result"`
	}
	if json.NewDecoder(response.Body).Decode(&body) != nil {
		return 0
	}
	height, _ := strconv.ParseInt(body.Result.SyncInfo.LatestBlockHeight, 10, 64)
	return height
}

// waitHeight waits until the node's RPC shows at least height.
func (n *network) waitHeight(t *testing.T, height int64) {
	t.Helper()
	wait(t, blocksTime, func() bool { return n.height() >= height }, "height %d", height)
}

// vote schedules the upgrade through governance and gives its height, once that is near. The node must be running. A machine
// that is too busy for the vote's period, or for a height that near, gets another proposal with twice the room.
func (n *network) vote(t *testing.T) int64 {
	t.Helper()
	n.waitHeight(t, 1)
	const attempts = 4
	for attempt := range attempts {
		height := n.height() + planAhead<<attempt
		if n.propose(t, strconv.Itoa(attempt+1), height) {
			wait(t, ahead, func() bool { return n.height() >= height-near }, "a height near %d", height)
			return height
		}
		t.Logf("proposal %d for height %d did not pass in time", attempt+1, height)
	}
	require.FailNow(t, "no proposal passed", "%d attempts", attempts)
	return 0
}

// propose carries one proposal through: it is submitted, voted, and decided. False if it did not pass. Proposals are
// numbered from 1.
func (n *network) propose(t *testing.T, id string, height int64) bool {
	t.Helper()
	n.chain(t, chainV1, "tx", "upgrade", "software-upgrade", upgradeName,
		"--upgrade-height", strconv.FormatInt(height, 10), "--upgrade-info", "{}", "--no-validate",
		"--title", upgradeName, "--summary", upgradeName, "--deposit", "10000000stake", "--from", "validator", "-y")
	status := n.waitProposal(t, id, func(status string) bool { return status != "" })
	if status != inVoting {
		return false
	}
	if _, _, code := n.try(t, chainV1.path, "--home", n.home, "tx", "gov", "vote", id, "yes", "--from", "validator", "-y"); code != 0 {
		return false
	}
	return n.waitProposal(t, id, func(status string) bool { return status != inVoting }) == "PROPOSAL_STATUS_PASSED"
}

const inVoting = "PROPOSAL_STATUS_VOTING_PERIOD"

// waitProposal waits until the proposal's status fulfils holds; it is empty while there is no such proposal.
func (n *network) waitProposal(t *testing.T, id string, holds func(string) bool) string {
	t.Helper()
	var answer struct {
		Proposal struct {
			Status string `json:"status"`
		} `json:"proposal"`
	}
	wait(t, blocksTime, func() bool {
		stdout, _, code := n.try(t, chainV1.path, "--home", n.home, "query", "gov", "proposal", id)
		return (code != 0 || json.Unmarshal([]byte(stdout), &answer) == nil) && holds(answer.Proposal.Status)
	}, "proposal %s", id)
	return answer.Proposal.Status
}

// requireUpgraded checks on the chain itself that v2 executed the block of height and that blocks go on: the handler
// ran at exactly that height, and the store that v2 added answers.
func (n *network) requireUpgraded(t *testing.T, height int64) {
	t.Helper()
	n.waitHeight(t, height+3)
	var applied struct {
		Height string `json:"height"`
	}
	require.NoError(t, json.Unmarshal([]byte(n.chain(t, chainV2, "query", "upgrade", "applied", upgradeName)), &applied))
	assert.Equal(t, strconv.FormatInt(height, 10), applied.Height, "the height at which the handler ran")
	assert.Contains(t, n.chain(t, chainV2, "query", "epochs", "epoch-infos"), `"minute"`, "the store that v2 added")
	target, err := filepath.EvalSymlinks(filepath.Join(n.root(), "current"))
	require.NoError(t, err)
	assert.Equal(t, filepath.Join("upgrades", upgradeName), relative(t, n.root(), target), "current")
}

// requireV1StopsAt takes a copy of the data that was made at the plan's height and starts v1 on it, in a home of the
// network's configuration beside the real one: the copy must be whole, and v1 must come to the height and no further.
func (n *network) requireV1StopsAt(t *testing.T, data string, height int64) {
	t.Helper()
	home := filepath.Join(n.base, "beside")
	require.NoError(t, os.CopyFS(filepath.Join(home, "config"), os.DirFS(filepath.Join(n.home, "config"))))
	require.NoError(t, os.Rename(data, filepath.Join(home, "data")))
	// v1 replays the stored block of the height, finds no handler, and ends by itself. The real home has the ports.
	stdout, stderr, code := n.try(t, chainV1.path, "start", "--home", home, "--log_no_color",
		"--grpc.enable=false", "--rpc.laddr", "tcp://127.0.0.1:0", "--p2p.laddr", "tcp://127.0.0.1:0")
	assert.NotZero(t, code)
	assert.Contains(t, stdout+stderr, needed+" at height: "+strconv.FormatInt(height, 10), "v1 on the copy")
}

// findData finds the directory below dir that holds the node's databases.
func findData(t *testing.T, dir string) string {
	t.Helper()
	var data string
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == "application.db" {
			data = filepath.Dir(path)
			return fs.SkipAll
		}
		return err
	}))
	require.NotEmpty(t, data, "no application.db below %s", dir)
	return data
}

func relative(t *testing.T, base, path string) string {
	t.Helper()
	base, err := filepath.EvalSymlinks(base)
	require.NoError(t, err)
	rel, err := filepath.Rel(base, path)
	require.NoError(t, err)
	return rel
}

// logged counts the lines of the node's log that hold text, from the byte offset on.
func (n *network) logged(t *testing.T, from int64, text string) int {
	t.Helper()
	content, err := os.ReadFile(n.nodeLog())
	require.NoError(t, err)
	count := 0
	for line := range strings.Lines(string(content[min(from, int64(len(content))):])) {
		if strings.Contains(line, text) {
			count++
		}
	}
	return count
}

// logEnd is the offset at which the node's log ends now.
func (n *network) logEnd(t *testing.T) int64 {
	t.Helper()
	info, err := os.Stat(n.nodeLog())
	require.NoError(t, err)
	return info.Size()
}

// wait polls a fact until it holds, gently: the machine is busy with the node.
func wait(t *testing.T, within time.Duration, holds func() bool, what string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(t, "waited in vain for "+fmt.Sprintf(what, args...), "%s", within)
		}
	}
}
