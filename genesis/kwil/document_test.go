package kwil

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]Version{"v0.9": V09, "0.9": V09, "v0.9.4": V09, "0.10": V010, "v0.10.2": V010} {
		got, err := ParseVersion(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "v0", "0.8", "v1.9", "v0.11", "0.100"} {
		_, err := ParseVersion(text)
		assert.ErrorIs(t, err, ErrVersion, text)
	}
	assert.Equal(t, "kwildb-snapshot.sql.gz", V09.StateFile())
	assert.Equal(t, "snapshot.sql.gz", V010.StateFile())
}

func TestSamplesAreValid(t *testing.T) {
	for _, s := range samples(t) {
		v, err := Detect(s.document)
		require.NoError(t, err)
		assert.Equal(t, s.version, v)
		require.NoError(t, Validate(v, s.document))
	}
	_, err := Detect([]byte(`{"chain_id": "x", "app_state": {}}`))
	require.ErrorIs(t, err, ErrVersion)
}

// TestValidateNamesWhatIsWrong: one change to a good document, and the fault that is reported.
func TestValidateNamesWhatIsWrong(t *testing.T) {
	s := samples(t)
	for _, c := range []struct {
		sample         int
		from, to, says string
	}{
		{0, `"chain_id": "kwil-chain-GP6oDouz"`, `"chain_id": ""`, "chain_id: empty"},
		{0, `"chain_id"`, `"chain"`, "chain_id: missing"},
		{0, `"initial_height": 1`, `"initial_height": -1`, "initial_height: -1"},
		{0, `"app_hash": "Dr6Z`, `"app_hash": "*r6Z`, "app_hash: "},
		{0, `raE="`, `"`, "app_hash: "},
		{0, `"vote_expiry": 14400`, `"vote_expiry": 0`, "consensus_params.votes.vote_expiry: 0"},
		{0, `"vote_expiry": 14400,`, ``, "consensus_params.votes.vote_expiry: missing"},
		{0, `"without_gas_costs": true`, `"without_gas_costs": "yes"`, "consensus_params.without_gas_costs"},
		{0, `"pub_key": "a7`, `"pub_key": "a`, "validators[0]"},
		{0, `"pub_key": "a7a4`, `"pub_key": "`, "30 bytes is of no type"},
		{0, `"power": 1`, `"power": 0`, "validators[0]: power 0"},
		{0, `"genesis_time": "2026`, `"genesis_time": "now`, "genesis_time: "},
		{1, `"state_hash": "4406`, `"state_hash": "06`, "state_hash: 31 bytes"},
		{1, `"type": "secp256k1",
      "power"`, `"type": "ed25519",
      "power"`, "the length of secp256k1"},
		{1, `"key": "022c`, `"key": "032c`, "leader: not one of the validators"},
		{1, `"db_owner": "",`, ``, "db_owner: missing"},
		{1, `"start_height": 0`, `"start_height": 9`, "migration: one height without the other"},
		{1, `"join_expiry": "168h0m0s"`, `"join_expiry": "a week"`, "join_expiry: "},
		{1, `"max_block_size": 6291456`, `"max_block_size": 0`, "max_block_size: 0"},
		{1, `"validators": [`, `"validators": [], "others": [`, "validators: none"},
	} {
		bad := strings.Replace(string(s[c.sample].document), c.from, c.to, 1)
		require.NotEqual(t, string(s[c.sample].document), bad, c.from)
		assert.ErrorContains(t, Validate(s[c.sample].version, []byte(bad)), c.says)
	}
	for _, s := range s {
		more := strings.Replace(string(s.document), "{", `{"an_extension": {"x": [1]},`, 1)
		require.NoError(t, Validate(s.version, []byte(more)), "unknown fields are no fault")
		twice := strings.Replace(string(s.document), `"validators": [`, `"validators": [`+string(element(t, s))+",", 1)
		require.ErrorContains(t, Validate(s.version, []byte(twice)), "there twice")
		require.Error(t, Validate(s.version, []byte(`[]`)))
		require.Error(t, Validate(s.version, []byte(`null`)))
		require.Error(t, Validate(s.version, s.document[:len(s.document)-9]))
	}
	require.ErrorIs(t, Validate("v0.8", s[1].document), ErrVersion)
}

// element is the first validator of a sample, as JSON.
func element(t *testing.T, s sample) json.RawMessage {
	t.Helper()
	var doc struct{ Validators []json.RawMessage }
	require.NoError(t, json.Unmarshal(s.document, &doc))
	return doc.Validators[0]
}

// stateOf is the state that a sample's tool saw.
func stateOf(t *testing.T, s sample) State {
	t.Helper()
	d, err := parse(s.document)
	require.NoError(t, err)
	state := State{}
	hash, err := d.stateHash(s.version)
	require.NoError(t, err)
	copy(state.SHA256[:], hash)
	list, faults := readValidators(s.version, d["validators"])
	require.Empty(t, faults)
	for _, v := range list {
		state.Voters = append(state.Voters, Validator{Type: v.Type, Key: v.Key, Power: v.Power})
	}
	return state
}

func leader(s sample) json.RawMessage {
	var doc map[string]json.RawMessage
	_ = json.Unmarshal(s.document, &doc) // a sample
	return doc["leader"]
}

func set(pairs ...string) map[string]json.RawMessage {
	all := map[string]json.RawMessage{}
	for i := 0; i < len(pairs); i += 2 {
		all[pairs[i]] = json.RawMessage(pairs[i+1])
	}
	return all
}

// TestRenderLikeKwilsTools: without any source but the database it is the document that Kwil's tool writes, byte for byte,
// but for the chain id, which nobody makes up; and every default is named.
func TestRenderLikeKwilsTools(t *testing.T) {
	at, err := time.Parse(time.RFC3339Nano, "2026-11-21T22:56:03.408656513Z")
	require.NoError(t, err)
	for _, s := range samples(t) {
		o := Options{Version: s.version, Time: at, Set: set("chain_id", `"kwil-chain-GP6oDouz"`)}
		minted := []string{"initial_height = 1", `consensus_params.block.max_bytes = 6291456`, "consensus_params.votes.vote_expiry = 14400"}
		if s.version == V010 {
			o.Set = set("chain_id", `"kwil-testnet"`, "db_owner", `""`)
			o.Database = Known{Version: V010, Params: json.RawMessage(`{"leader": ` + string(leader(s)) + `}`)}
			minted = []string{"initial_height = 0", `join_expiry = "168h0m0s"`, "max_votes_per_tx = 200", "disabled_gas_costs = true"}
		}
		doc, err := Render(stateOf(t, s), o)
		require.NoError(t, err)
		assert.Equal(t, strings.TrimSpace(string(s.document)), string(doc.JSON))
		assert.Subset(t, doc.Minted, minted)
		assert.Empty(t, doc.Notes)
	}
}

// TestRenderCarries: with the old document nothing is minted, and nothing changes but the hash.
func TestRenderCarries(t *testing.T) {
	for _, s := range samples(t) {
		old := strings.NewReplacer(`"max_bytes": 6291456`, `"max_bytes": 123456`, `"max_block_size": 6291456`, `"max_block_size": 123456`,
			`gas_costs": true`, `gas_costs": false`, `"join_expiry": 100800`, `"join_expiry": 777`, `"168h0m0s"`, `"1h0m0s"`,
			`"initial_height": 1,`, `"initial_height": 5,`, `"initial_height": 0,`, `"initial_height": 5,`, `"name": "validator-0"`, `"name": "alice"`,
			`"db_owner": ""`, `"db_owner": "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"`, "\n}", ",\n  \"an_extension\": {\n    \"x\": 1\n  }\n}").Replace(strings.TrimSpace(string(s.document)))
		state := stateOf(t, s)
		at, err := time.Parse(time.RFC3339Nano, "2026-11-21T22:56:03.408656513Z")
		require.NoError(t, err)
		doc, err := Render(state, Options{Version: s.version, Old: []byte(old), Time: at})
		require.NoError(t, err)
		assert.Equal(t, old, string(doc.JSON))
		assert.Empty(t, doc.Minted)
		assert.Empty(t, doc.Notes)
	}
}

// TestR11OwnerAndChainID: what Kwil's tool leaves empty or makes up is carried, or asked for.
func TestR11OwnerAndChainID(t *testing.T) {
	s := samples(t)[1]
	o := Options{Version: V010, Database: Known{Version: V010, Owner: "0x19E7", Params: json.RawMessage(`{"leader": ` + string(leader(s)) + `}`)}}
	_, err := Render(stateOf(t, s), o)
	require.ErrorContains(t, err, "chain id")
	assert.Contains(t, hint.Of(err), "--set chain_id=")

	o.Set = set("chain_id", `"mainnet-2"`)
	doc, err := Render(stateOf(t, s), o)
	require.NoError(t, err)
	assert.Contains(t, string(doc.JSON), `"db_owner": "0x19E7"`)
	assert.Contains(t, string(doc.JSON), `"chain_id": "mainnet-2"`)

	o.Database.Owner = ""
	_, err = Render(stateOf(t, s), o)
	require.ErrorContains(t, err, "who owns")
	assert.Contains(t, hint.Of(err), "--set db_owner=")

	o.Set["db_owner"], o.Database.Params = json.RawMessage(`"0xAB"`), nil
	state := stateOf(t, s)
	doc, err = Render(state, o)
	require.NoError(t, err, "the only validator leads")
	assert.Contains(t, strings.Join(doc.Minted, "\n"), "leader = ")
	state.Voters = append(state.Voters, Validator{Type: "ed25519", Key: strings.Repeat("ab", 32), Power: 1})
	_, err = Render(state, o)
	assert.Contains(t, hint.Of(err), "--set leader.type=")
	o.Set["leader.type"], o.Set["leader.key"] = json.RawMessage(`"ed25519"`), json.RawMessage(`"`+strings.Repeat("ab", 32)+`"`)
	_, err = Render(state, o)
	require.NoError(t, err)
	_, err = Render(State{}, o)
	assert.Contains(t, hint.Of(err), "--set validators=")
}

// TestParamsAcrossVersions is the table of what becomes of each parameter.
func TestParamsAcrossVersions(t *testing.T) {
	s := samples(t)
	key := strings.Repeat("ab", 32)
	voters := State{Voters: []Validator{{Type: "ed25519", Key: key, Power: 4}}}
	old09 := strings.NewReplacer(`"max_bytes": 6291456`, `"max_bytes": 5`, `gas_costs": true`, `gas_costs": false`, `"join_expiry": 100800`, `"join_expiry": 600`,
		`"max_votes_per_tx": 100`, `"max_votes_per_tx": 3`).Replace(string(s[0].document))
	doc, err := Render(voters, Options{Version: V010, Old: []byte(old09), Set: set("db_owner", `"0x1"`)})
	require.NoError(t, err)
	for path, want := range map[string]string{
		"max_block_size": "5", "disabled_gas_costs": "false", "join_expiry": `"1h0m0s"`, "max_votes_per_tx": "3",
		"chain_id": `"kwil-chain-GP6oDouz"`, "initial_height": "1", "migration.start_height": "0",
	} {
		assertLeaf(t, doc, path, want)
	}
	assert.Equal(t, []string{`leader = {"type":"ed25519","key":"` + key + `"}`}, doc.Minted)
	assert.Contains(t, doc.Notes, "consensus_params.votes.vote_expiry was left behind: v0.10 has no place for it")

	old010 := strings.NewReplacer(`"max_block_size": 6291456`, `"max_block_size": 5`, `gas_costs": true`, `gas_costs": false`, `"168h0m0s"`, `"1h0m3s"`,
		`"max_votes_per_tx": 200`, `"max_votes_per_tx": 3`).Replace(string(s[1].document))
	doc, err = Render(voters, Options{Version: V09, Old: []byte(old010)})
	require.NoError(t, err)
	for path, want := range map[string]string{
		"consensus_params.block.max_bytes": "5", "consensus_params.without_gas_costs": "false", "consensus_params.validator.join_expiry": "600",
		"consensus_params.votes.max_votes_per_tx": "3", "consensus_params.votes.vote_expiry": "14400", "chain_id": `"kwil-testnet"`,
	} {
		assertLeaf(t, doc, path, want)
	}
	assert.Contains(t, doc.Minted, "consensus_params.votes.vote_expiry = 14400")
	assert.Contains(t, doc.Notes, "db_owner was left behind: v0.9 has no place for it")

	unlimited := strings.Replace(old09, `"max_bytes": 5`, `"max_bytes": -1`, 1)
	doc, err = Render(voters, Options{Version: V010, Old: []byte(unlimited), Set: set("db_owner", `"0x1"`)})
	require.NoError(t, err)
	assert.Contains(t, doc.Minted, "max_block_size = 6291456")

	_, err = Render(stateOf(t, s[1]), Options{Version: V09, Old: []byte(old010)})
	require.ErrorContains(t, err, "which v0.9 doesn't know", "secp256k1 validators")
}

func assertLeaf(t *testing.T, doc Document, path, want string) {
	t.Helper()
	d, err := parse(doc.JSON)
	require.NoError(t, err)
	assert.Equal(t, want, string(d[path]), path)
}

// TestDatabaseIsNearer: what the chain changed since its genesis is what the new network gets, and that is said.
func TestDatabaseIsNearer(t *testing.T) {
	s := samples(t)[0]
	state := stateOf(t, s)
	state.Voters[0].Power = 9
	doc, err := Render(state, Options{Version: V09, Old: s.document, Database: Known{
		Version: V09, Params: json.RawMessage(`{"vote_expiry": 99, "join_expiry": 100800, "max_block_size": 6291456, "disabled_gas_costs": true}`),
	}})
	require.NoError(t, err)
	assertLeaf(t, doc, "consensus_params.votes.vote_expiry", "99")
	assert.Equal(t, []string{
		"consensus_params.votes.vote_expiry: 99 of the database, at the stop; the old genesis document has 14400",
		"validators: the 1 of the database, at the stop; the old genesis document has 1",
	}, doc.Notes)
	d, err := parse(doc.JSON)
	require.NoError(t, err)
	assert.Contains(t, string(d["validators"]), `"power": 9`)
}

// TestWhatMustNotBeCarried: the halt that ended the old network, balances that are in the state already, and what belongs
// to a migration of another kind.
func TestWhatMustNotBeCarried(t *testing.T) {
	s := samples(t)
	old := strings.NewReplacer(`"activations": null`, `"activations": {"halt": 5, "longhorn": 12}, "alloc": {"0xAB": 100}`,
		`"migration": {}`, `"migration": {"start_height": 3, "end_height": 4}`).Replace(string(s[0].document))
	doc, err := Render(stateOf(t, s[0]), Options{Version: V09, Old: []byte(old)})
	require.NoError(t, err)
	assertLeaf(t, doc, "activations.longhorn", "12")
	assertLeaf(t, doc, "consensus_params.migration", "{}")
	d, err := parse(doc.JSON)
	require.NoError(t, err)
	assert.False(t, d.under("activations.halt"))
	assert.False(t, d.under("alloc"))
	notes := strings.Join(doc.Notes, "\n")
	for _, want := range []string{"activations.halt = 5 was left behind", "alloc.0xAB was left behind", "consensus_params.migration.start_height was left behind"} {
		assert.Contains(t, notes, want)
	}
	old = strings.NewReplacer(`"start_height": 0`, `"start_height": 3`, `"end_height": 0`, `"end_height": 4`).Replace(string(s[1].document))
	doc, err = Render(stateOf(t, s[1]), Options{Version: V010, Old: []byte(old)})
	require.NoError(t, err)
	assertLeaf(t, doc, "migration.start_height", "0")
}

// TestRenderRefusesNonsense: a document that wouldn't pass is never handed out.
func TestRenderRefusesNonsense(t *testing.T) {
	s := samples(t)[1]
	_, err := Render(stateOf(t, s), Options{Version: V010, Old: s.document, Set: set("max_votes_per_tx", "0")})
	require.ErrorContains(t, err, "max_votes_per_tx")
	_, err = Render(stateOf(t, s), Options{Version: V010, Old: []byte("{}")})
	require.ErrorIs(t, err, ErrVersion)
	_, err = Render(stateOf(t, s), Options{Version: V010, Old: s.document, Database: Known{Params: json.RawMessage("[")}})
	require.Error(t, err)
	_, err = Render(stateOf(t, s), Options{Version: "v2"})
	require.ErrorIs(t, err, ErrVersion)
}
