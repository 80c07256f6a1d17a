package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/fetch"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

func (p *patient) config(text string) {
	p.t.Helper()
	p.write(filepath.Join(p.l.State(), "supervisor.toml"), text)
}

func TestDoctorOfThePlanFile(t *testing.T) {
	p := newPatient(t)
	p.stage("upgrades/v2")
	p.link("genesis")
	p.plan(p.l.Plan, "V2", 100)
	d := p.doctor()
	assert.Equal(t, cli.ExitOK, d.code)
	d.says("plan file", "ok", "v2 at 100 is pending", "")
	d.says("plan", "ok", "v2 at 100 (file) is ready", "")
	d.says("next start", "ok", "starts genesis; the plan v2 at 100 is to come", "")

	p.link("upgrades/v2")
	d = p.doctor()
	d.says("plan file", "ok", "which is done", "")
	d.says("plan", "ok", "none is pending", "")
	d.says("next start", "ok", "starts v2", "")

	p.write(p.l.Plan, `{"name":"v2","hei`)
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("plan file", "FAIL", "invalid plan", "look at "+p.l.Plan)
}

// The first start after a crash at the height: it is foretold that it upgrades, and by which evidence.
func TestDoctorForetellsTheUpgradeAtOnce(t *testing.T) {
	p := newPatient(t)
	p.stage("upgrades/v2")
	p.link("genesis")
	p.plan(p.l.Plan, "v2", 100)
	p.signer(99)
	p.doctor().says("next start", "ok", "starts genesis; the plan v2 at 100 is to come", "")
	p.signer(100)
	d := p.doctor()
	d.says("signer", "ok", "at height 100", "")
	d.says("next start", "ok", "upgrades to v2 (100) at once, because the signer's state is at exactly that height", "")

	p.signer(99)
	p.record(100, time.Now().Add(-time.Hour))
	p.doctor().says("next start", "ok", "upgrades to v2 (100) at once, because the node is known to be at that height", "")

	p.schedule(plan.Schedule{Skip: []plan.Skip{{Name: "v2"}}})
	d = p.doctor()
	d.says("plan file", "ok", "on the skip list", "")
	d.says("next start", "ok", "starts genesis", "")

	p.schedule(plan.Schedule{Halt: &plan.Halt{Height: 50}})
	p.doctor().says("next start", "ok", "halts at once", "")
}

func TestDoctorOfPlansWhoseBinaryIsNotReady(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.schedule(plan.Schedule{Plans: []plan.Plan{
		{Name: "v2", Height: 100, Source: plan.FromOperator},
		{Name: "v3 beta", Height: 200, Source: plan.FromOperator},
		{Name: "v4", Time: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC), Source: plan.FromOperator},
	}})
	p.stage("upgrades/V2")
	p.write(p.l.Binary("upgrades/v4"), "junk")
	require.NoError(t, os.Chmod(p.l.Binary("upgrades/v4"), 0o755))
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("plan", "FAIL", `the version "V2" is there, but the plan's exact name is "v2"`, "supervisor upgrade add v2 BINARY")
	d.says("plan", "FAIL", "v3 beta at 200 (operator) is not ready: no binary", "supervisor upgrade add 'v3 beta' BINARY")
	d.says("plan", "FAIL", "v4 at 2040-01-01T00:00:00Z (operator) is not ready", "supervisor upgrade add v4 BINARY --force")

	p.stage("upgrades/v2", version.Of("v3 beta"), "upgrades/v4")
	assert.Equal(t, cli.ExitOK, p.doctor().code)
}

func TestDoctorOfADownload(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.config("[upgrade]\nallow_download = true\n")
	p.write(p.l.Plan, `{"name":"v2","height":100,"info":"{\"binaries\":{}}"}`)
	d := p.doctor()
	d.says("plan", "unknown", "downloaded when its height has come", "supervisor upgrade add v2 BINARY")
	if path, err := fetch.Program(); err == nil {
		d.says("downloader", "ok", path, "")
		return
	}
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("downloader", "FAIL", "is not installed", "install it beside supervisor")
}

// Before the takeover: what Cosmovisor scheduled is foretold, and nothing is taken over yet.
func TestDoctorBeforeATakeover(t *testing.T) {
	p := newPatient(t)
	p.stage("upgrades/v2")
	p.link(p.l.Dir(version.Genesis))
	p.write(p.l.BatchPath(), `[{"name":"v2","height":100},{"name":"v3","height":200},{"name":"v0","height":5}]`)
	p.signer(10)
	before := fingerprint(t, p.home)
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code, "v3 has no binary")
	d.says("batch", "ok", "v2 at 100 is taken over", "")
	d.says("batch", "ok", "warning: cannot import plan v0 at 5", "supervisor upgrade add v0")
	d.says("plan", "ok", "v2 at 100 (operator) is ready", "")
	d.says("plan", "FAIL", "v3 at 200", "supervisor upgrade add v3 BINARY")
	d.says("current", "ok", "absolute link", "")
	d.says("next start", "ok", "starts genesis; the plan v2 at 100 is to come", "")
	assert.Equal(t, before, fingerprint(t, p.home))

	p.write(p.l.BatchPath(), "torn [")
	d = p.doctor()
	d.says("batch", "FAIL", "cannot read Cosmovisor's batch", "mend")
}

// serveChainPlan is a node's gRPC that answers with one plan, or none, as grpc-go frames it.
func serveChainPlan(t *testing.T, plan []byte) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if r.URL.Path != "/cosmos.upgrade.v1beta1.Query/CurrentPlan" {
			w.Header().Set("Grpc-Status", "12") // unimplemented
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(append([]byte{0, 0, 0, 0, byte(len(plan))}, plan...))
		w.Header().Set("Grpc-Status", "0")
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// chainPlanOf is QueryCurrentPlanResponse{plan = 1: Plan{name = 1, height = 3}}.
func chainPlanOf(name string, height uint64) []byte {
	plan := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), name)
	plan = protowire.AppendVarint(protowire.AppendTag(plan, 3, protowire.VarintType), height)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), plan)
}

func TestDoctorAsksTheChain(t *testing.T) {
	for _, c := range []struct {
		plan                []byte
		versions            []version.Version
		result, detail, fix string
		code                int
	}{
		{nil, nil, "ok", "the chain has none", "", cli.ExitOK},
		{chainPlanOf("v2", 100), nil, "ok", "warning: v2 at 100: no version of that name is staged", "supervisor upgrade add v2 BINARY", cli.ExitOK},
		{chainPlanOf("v2", 100), []version.Version{"upgrades/v2"}, "ok", "v2 at 100, and a version of exactly that name", "", cli.ExitOK},
		{chainPlanOf("V2", 100), []version.Version{"upgrades/v-2"}, "FAIL", `no version has that exact name; there is "v-2"`, "supervisor upgrade add v2 BINARY", cli.ExitFailed},
		{chainPlanOf("../evil", 100), nil, "unknown", "invalid name", "printable ASCII", cli.ExitOK},
	} {
		t.Run(string(c.plan), func(t *testing.T) {
			p := newPatient(t, "DAEMON_GRPC_ADDRESS="+serveChainPlan(t, c.plan))
			p.link("genesis")
			p.stage(c.versions...)
			d := p.doctor()
			assert.Equal(t, c.code, d.code)
			d.says("chain plan", c.result, c.detail, c.fix)
		})
	}
}

func TestDoctorReadsTheHeight(t *testing.T) {
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"height":"4711"}`) }))
	defer node.Close()
	p := newPatient(t)
	p.link("genesis")
	p.stage("upgrades/v2")
	p.config(fmt.Sprintf("[height]\nurl = %q\npath = \"height\"\n", node.URL))
	p.schedule(plan.Schedule{Plans: []plan.Plan{{Name: "v2", Height: 5000, Source: plan.FromOperator}}})
	d := p.doctor()
	d.says("height", "ok", "4711, by url", "")
	assert.NoFileExists(t, p.l.HeightPath())

	p.write(p.l.HeightPath(), "junk")
	d = p.doctor()
	d.says("height", "ok", "warning: cannot read the recorded height", "nothing is to be done")
	d.says("height", "ok", "4711, by url", "")
}

func TestDoctorOfTheSignersState(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.write(filepath.Join(p.l.DataDir(), "priv_validator_state.json"), "{torn")
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("signer", "FAIL", "cannot read the signer's state", "never an older one")

	p.signer(7)
	p.config("[[snapshot.source]]\nname = \"data\"\nkind = \"dir\"\npath = \"data\"\nnever_restore_older = []\n")
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("signer", "FAIL", "would sign twice", "never_restore_older")
	p.config("[[snapshot.source]]\nname = \"data\"\nkind = \"dir\"\npath = \"data\"\n")
	assert.Equal(t, cli.ExitOK, p.doctor().code)
}

func TestDoctorOfSnapshots(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.write(filepath.Join(p.l.DataDir(), "application.db", "000001.ldb"), "12345")
	d := p.doctor()
	d.says("snapshots", "ok", "1 files, 5 B, by ", "")
	assert.NoDirExists(t, p.l.State(), "a forecast makes nothing")

	p.config("[snapshot]\nskip = true\n")
	p.doctor().says("snapshots", "ok", "warning: upgrades take none", "skip")

	p.env = append(p.env, "SUPERVISOR_SNAPSHOT_MIN_FREE=8000T")
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("snapshots", "FAIL", "min_free keeps", "supervisor snapshot prune")

	p.env = append(p.env, "SUPERVISOR_SNAPSHOT_MIN_FREE=0")
	p.config("[[snapshot.source]]\nname = \"other\"\nkind = \"dir\"\npath = \"missing\"\n")
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("configuration", "FAIL", "supervisor.toml:4:1: cannot use source other", "snapshot restore")
	d.says("next start", "FAIL", "refuses: the configuration has 1 mistake: run ends with 78", "correct")

	p.config("[[snapshot.source]]\nname = \"all\"\nkind = \"dir\"\npath = \".\"\n")
	d = p.doctor()
	d.says("snapshots", "FAIL", "lie within each other", "apart")
	d.says("next start", "FAIL", "refuses: the snapshots can't be opened", "apart")
}
