package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

const rpcAnywhere = "RPC=127.0.0.1:0"

func TestUpgradeStaysAliveAndIsHandedOver(t *testing.T) {
	h := newHome(t)
	vars := []string{"UPGRADE=V2-Demo@10:{}", rpcAnywhere}

	v1 := h.start("v1", vars...)
	halted := h.event(v1, trace.Halted)
	assert.Equal(t, int64(10), halted.Height)
	assert.Equal(t, "V2-Demo", halted.Name)
	assert.Regexp(t, `(?s)ERR UPGRADE "V2-Demo" NEEDED at height: 10: \{\}.*CONSENSUS FAILURE!!!`, v1.output())

	info, err := os.Stat(h.file("data", "upgrade-info.json"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	data, err := os.ReadFile(h.file("data", "upgrade-info.json"))
	require.NoError(t, err)
	assert.Equal(t, `{"name":"V2-Demo","time":"0001-01-01T00:00:00Z","height":10,"info":"{}"}`, string(data))

	addr := h.event(v1, trace.RPC).Addr
	assert.Equal(t, "10", httpStatus(t, addr), "the block is stored")
	var abci struct {
		Result struct {
			Response struct {
				Height string `json:"last_block_height"`
			}
		}
	}
	getJSON(t, "http://"+addr+"/abci_info", &abci)
	assert.Equal(t, "9", abci.Result.Response.Height, "and not executed")
	signer, err := openSigner(h.file("data", "priv_validator_state.json"), false)
	require.NoError(t, err)
	assert.Equal(t, int64(10), signer.height)
	v1.signal(syscall.SIGTERM)
	assert.Zero(t, v1.code())

	// The old version can't go on, and says so before its RPC is up, even if no one tells it of the plan again.
	again := h.start("v1", rpcAnywhere)
	assert.Equal(t, 1, again.code())
	assert.Contains(t, again.output(), `error during handshake: error on replay: UPGRADE "V2-Demo" NEEDED at height: 10: {}`)
	assert.Len(t, h.events(trace.RPC), 1)

	v2 := h.start("v2:V2-Demo", vars...)
	assert.Equal(t, int64(10), h.event(v2, trace.Upgrade).Height)
	assert.Equal(t, int64(10), h.event(v2, trace.FirstBlock).Height)
	addr = h.event(v2, trace.RPC).Addr
	h.eventually("v2 makes blocks", func() bool { n, _ := strconv.Atoi(httpStatus(t, addr)); return n > 12 })
	v2.signal(syscall.SIGKILL)
	v2.code()

	old := h.start("v1", vars...)
	assert.Equal(t, 1, old.code())
	assert.Contains(t, old.output(), "wrong app version v1, upgrade handler is missing for V2-Demo upgrade plan")
	assert.Equal(t, []string{"V2-Demo"}, h.state().Upgrades)
}

func TestTwoUpgrades(t *testing.T) {
	h := newHome(t)
	plans := "UPGRADE=v2@5;v3@9"
	h.event(h.stopAfter(h.start("v1", plans), trace.Halted), trace.Exit)
	second := h.start("v2", plans)
	assert.Equal(t, "v3", h.event(second, trace.Halted).Name)
	h.stopAfter(second, trace.Halted)
	// v3 knows v3 alone: the block in hand brings it, so the data's last upgrade is no reason to refuse.
	h.stopAfter(h.start("v3", plans), trace.FirstBlock)
	assert.Equal(t, []string{"v2", "v3"}, h.state().Upgrades)
	assert.Equal(t, 1, h.start("v2", plans).code())
}

// stopAfter stops p once it recorded an event of that kind.
func (h *home) stopAfter(p *process, kind trace.Kind) *process {
	h.t.Helper()
	h.event(p, kind)
	p.signal(syscall.SIGTERM)
	require.Zero(h.t, p.code(), p.output())
	return p
}

func TestEndings(t *testing.T) {
	for then, want := range map[string]int{"exit": 1, "exit0": 0, "panic": 2} {
		for cause, vars := range map[string][]string{
			"upgrade": {"UPGRADE=v2@3", "AT_UPGRADE=" + then}, "halt": {"HALT_HEIGHT=3", "AT_HALT=" + then},
		} {
			t.Run(cause+" "+then, func(t *testing.T) {
				h := newHome(t)
				p := h.start("v1", vars...)
				assert.Equal(t, want, p.code(), p.output())
				assert.Contains(t, p.output(), "CONSENSUS FAILURE!!!")
				state := h.state()
				assert.Equal(t, int64(3), state.Stored)
				assert.Equal(t, int64(2), state.Applied)
			})
		}
	}
	_, stderr, code := runToEnd(t, newHome(t).cmd("v1", []string{"AT_HALT=sleep"}, "start"))
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, `"sleep" is none of`)
}

func TestHaltHeight(t *testing.T) {
	h := newHome(t)
	p := h.launch(h.cmd("v1", []string{"BLOCK_TIME=2ms"}, "start", "--halt-height", "6"))
	assert.Equal(t, int64(6), h.event(p, trace.Halted).Height)
	assert.Contains(t, p.output(), "halt per configuration height 6 time 0")
	h.stopAfter(p, trace.Halted)
	assert.Equal(t, int64(5), h.state().Applied)

	assert.Equal(t, 1, h.start("v1", "HALT_HEIGHT=6").code(), "the replay halts again")
	p = h.start("v1")
	assert.Equal(t, int64(6), h.event(p, trace.FirstBlock).Height, "without it the node goes on where it was")
}

func TestSkippedUpgrades(t *testing.T) {
	for name, args := range map[string][]string{
		"separate": {"--unsafe-skip-upgrades", "4", "9"}, "equals": {"--unsafe-skip-upgrades=4,9"},
		"before another": {"--unsafe-skip-upgrades", "4", "9", "--halt-height", "12"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			p := h.launch(h.cmd("v1", []string{"BLOCK_TIME=2ms", "UPGRADE=v2@4:why;v3@9", "HALT_HEIGHT=12"}, append([]string{"start"}, args...)...))
			h.stopAfter(p, trace.Halted)
			assert.Contains(t, p.output(), `UPGRADE "v2" SKIPPED at 4: why`)
			state := h.state()
			assert.Equal(t, int64(11), state.Applied)
			assert.Empty(t, state.Upgrades)
			assert.NoFileExists(t, h.file("data", "upgrade-info.json"))
		})
	}
}

func TestSkipAfterTheHalt(t *testing.T) {
	h := newHome(t)
	h.stopAfter(h.start("v1", "UPGRADE=v2@4"), trace.Halted)
	h.stopAfter(h.start("v1", "UNSAFE_SKIP_UPGRADES=4"), trace.FirstBlock)
	assert.GreaterOrEqual(t, h.state().Applied, int64(4))
}

func TestStrict(t *testing.T) {
	h := newHome(t)
	p := h.start("v2", "STRICT=1", "UPGRADE=v2@50")
	assert.Equal(t, 1, p.code())
	assert.Contains(t, p.output(), `BINARY UPDATED BEFORE TRIGGER! UPGRADE "v2"`)
	h.stopAfter(h.start("v1", "STRICT=1", "UPGRADE=v2@5"), trace.Halted)
	h.stopAfter(h.start("v2", "STRICT=1", "UPGRADE=v2@5"), trace.Upgrade)
	h.stopAfter(h.start("v2", "STRICT=1", "UPGRADE=v2@5"), trace.FirstBlock)
}

func TestStoreLoaderNeedsThePlanFile(t *testing.T) {
	h := newHome(t)
	h.stopAfter(h.start("v1", "UPGRADE=v2@5"), trace.Halted)
	path := h.file("data", "upgrade-info.json")
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	p := h.start("v2", "STORE_LOADER=1")
	assert.Equal(t, 1, p.code())
	assert.Contains(t, p.output(), "failed to load latest version")
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	h.stopAfter(h.start("v2", "STORE_LOADER=1"), trace.Upgrade)
}

func TestPlanInTwoWrites(t *testing.T) {
	h := newHome(t)
	path := h.file("data", "upgrade-info.json")
	p := h.start("v1", "UPGRADE=v2@3:info", "PARTIAL_PLAN=1", "PLAN_PAUSE=3s")
	h.eventually("half a plan", func() bool { data, _ := os.ReadFile(path); return len(data) > 0 && !json.Valid(data) })
	h.event(p, trace.Halted)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.True(t, json.Valid(data), string(data))
}

func TestPlanByRename(t *testing.T) {
	h := newHome(t)
	path := h.file("data", "upgrade-info.json")
	require.NoError(t, os.MkdirAll(h.file("data"), 0o755))
	require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
	before, err := os.Stat(path)
	require.NoError(t, err)
	h.event(h.start("v1", "UPGRADE=v2@3", "PLAN_RENAME=1"), trace.Halted)
	after, err := os.Stat(path)
	require.NoError(t, err)
	assert.False(t, os.SameFile(before, after))
	assert.NoFileExists(t, path+".tmp")
}

// Whatever the moment of a kill, the next start finds a chain that goes on where it was, and no height is signed twice.
func TestKillAtAnyTime(t *testing.T) {
	h := newHome(t)
	var height int64
	for round := range 15 {
		p := h.start("v1", "BLOCK_TIME=200us", "TABLE_EVERY=3", "TRACE_BLOCKS=1")
		h.event(p, trace.FirstBlock)
		time.Sleep(time.Duration(round) * 700 * time.Microsecond) // the moment is the test's subject
		p.signal(syscall.SIGKILL)
		p.code()
		state := h.state()
		require.Greater(t, state.Applied, height)
		height = state.Applied
	}
	signed := map[int64]int{}
	for _, e := range h.events(trace.Block) {
		if e.Signed {
			signed[e.Height]++
		}
	}
	assert.GreaterOrEqual(t, len(signed), 15)
	for at, times := range signed {
		assert.Equal(t, 1, times, "height %d", at)
	}
}

func TestSignerAheadOfTheData(t *testing.T) {
	h := newHome(t)
	require.NoError(t, os.MkdirAll(h.file("data"), 0o755))
	require.NoError(t, (&signer{path: h.file("data", "priv_validator_state.json")}).write(signState{Height: "5", Step: 3}))
	h.stopAfter(h.start("v1", "HALT_HEIGHT=8", "TRACE_BLOCKS=1"), trace.Halted)
	for _, e := range h.events(trace.Block) {
		assert.Equal(t, e.Height > 5, e.Signed, "height %d", e.Height)
	}
	require.Len(t, h.events(trace.Block), 8)
}

func TestSignerStateElsewhere(t *testing.T) {
	h := newHome(t)
	require.NoError(t, os.MkdirAll(h.file("config"), 0o755))
	require.NoError(t, os.WriteFile(h.file("config", "config.toml"), []byte("priv_validator_state_file = \"config/state.json\"\n"), 0o644))
	h.stopAfter(h.start("v1"), trace.FirstBlock)
	assert.FileExists(t, h.file("config", "state.json"))
	assert.NoFileExists(t, h.file("data", "priv_validator_state.json"))
	require.NoError(t, os.WriteFile(h.file("config", "state.json"), []byte("{"), 0o600))
	p := h.start("v1")
	assert.Equal(t, 1, p.code())
	assert.Contains(t, p.output(), "error reading PrivValidator state")
}

func TestSecondNodeOnTheSameData(t *testing.T) {
	h := newHome(t)
	first := h.start("v1")
	h.event(first, trace.FirstBlock)
	second := h.start("v1")
	assert.Equal(t, 1, second.code())
	assert.Contains(t, second.output(), "resource temporarily unavailable")
	assert.True(t, first.alive())
}

func TestStalledNetwork(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "STALL_AT=4", rpcAnywhere)
	addr := h.event(p, trace.RPC).Addr
	h.eventually("block 3", func() bool { return httpStatus(t, addr) == "3" })
	h.eventually("the line", func() bool { return regexp.MustCompile(`waiting for the network height=4`).MatchString(p.output()) })
	assert.Equal(t, "3", httpStatus(t, addr))
	p.signal(syscall.SIGINT)
	assert.Zero(t, p.code())
}

func TestNoBlocks(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "BLOCK_TIME=0", rpcAnywhere)
	assert.Equal(t, "0", httpStatus(t, h.event(p, trace.RPC).Addr))
	p.signal(syscall.SIGTERM)
	assert.Zero(t, p.code())
	assert.Empty(t, h.events(trace.FirstBlock))
}

func TestLogHeight(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "LOG_HEIGHT=1", "HALT_HEIGHT=4")
	h.event(p, trace.Halted)
	heights := regexp.MustCompile(`committed state height=(\d+)`).FindAllStringSubmatch(p.output(), -1)
	require.Len(t, heights, 3)
	assert.Equal(t, "3", heights[2][1])
}

func TestExport(t *testing.T) {
	h := newHome(t)
	h.stopAfter(h.start("v1", "UPGRADE=v1@2", "HALT_HEIGHT=5"), trace.Halted)
	stdout, stderr, code := runToEnd(t, h.cmd("v1", nil, "export"))
	require.Zero(t, code, stderr)
	var genesis struct {
		InitialHeight int64                                        `json:"initial_height"`
		ChainID       string                                       `json:"chain_id"`
		AppState      struct{ Upgrade struct{ Applied []string } } `json:"app_state"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &genesis), "stdout is the document alone")
	assert.Equal(t, int64(5), genesis.InitialHeight)
	assert.Equal(t, "fakechain-1", genesis.ChainID)
	assert.Equal(t, []string{"v1"}, genesis.AppState.Upgrade.Applied)
	assert.Contains(t, stderr, "exporting state")

	stdout, _, code = runToEnd(t, h.cmd("v1", []string{"EXPORT_NOISE=1"}, "export"))
	require.Zero(t, code)
	assert.False(t, json.Valid([]byte(stdout)), "with noise it is not")

	h.event(h.start("v1"), trace.FirstBlock)
	_, stderr, code = runToEnd(t, h.cmd("v1", nil, "export"))
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "resource temporarily unavailable")
}

func TestInitLeavesWhatExists(t *testing.T) {
	h := newHome(t)
	_, stderr, code := runToEnd(t, h.cmd("v1", []string{"RPC=127.0.0.1:26"}, "init"))
	require.Zero(t, code, stderr)
	s := settings{home: h.dir}
	network, address := s.rpcAddress()
	assert.Equal(t, "tcp 127.0.0.1:26", network+" "+address)
	for _, name := range []string{"config/genesis.json", "data/priv_validator_state.json"} {
		data, err := os.ReadFile(h.file(filepath.FromSlash(name)))
		require.NoError(t, err)
		assert.True(t, json.Valid(data), name)
	}
	require.NoError(t, os.WriteFile(h.file("config", "genesis.json"), []byte("mine"), 0o644))
	_, _, code = runToEnd(t, h.cmd("v1", nil, "init"))
	require.Zero(t, code)
	data, err := os.ReadFile(h.file("config", "genesis.json"))
	require.NoError(t, err)
	assert.Equal(t, "mine", string(data))
}
