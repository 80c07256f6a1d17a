package kwil

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// blockTime turns expiries in blocks (v0.9) into durations (v0.10) and back: the defaults of both, 100,800 blocks and
// 168 hours, are a week at six seconds a block.
const blockTime = 6 * time.Second

// param is a parameter of the network: where each version keeps it, and what it is where nobody knows.
type param struct {
	v09, v010   string // dotted paths; "" = the version has none
	database    string // its name in the chain's own tables; "" = it isn't there
	def09       any    // what kwil-admin v0.9.4 writes
	def010      any    // what kwild v0.10.2 writes
	to010, to09 func(json.RawMessage) (any, error)
	check       func(d document, path string) error
}

func (p param) path(v Version) string {
	if v == V09 {
		return p.v09
	}
	return p.v010
}

func (p param) byDefault(v Version) any {
	if v == V09 {
		return p.def09
	}
	return p.def010
}

// convert carries a value from one version to another.
func (p param) convert(value json.RawMessage, from, to Version) (any, error) {
	switch {
	case from == to:
		return value, nil
	case to == V010 && p.to010 != nil:
		return p.to010(value)
	case to == V09 && p.to09 != nil:
		return p.to09(value)
	}
	return value, nil
}

// params is the table of all parameters, in the order of v0.9's document. v0.10 has no default for the expiry of votes:
// each resolution brings its own.
func params() []param {
	const consensus = "consensus_params."
	return []param{
		{
			v09: consensus + "block.max_bytes", v010: "max_block_size", database: "max_block_size",
			def09: 6 << 20, def010: 6 << 20, to010: positive, check: numeric,
		},
		{v09: consensus + "block.max_gas", def09: -1, check: numeric},
		{v09: consensus + "block.abci_max_bytes", def09: false},
		{v09: consensus + "evidence.max_age_num_blocks", def09: 100_000, check: numeric},
		{v09: consensus + "evidence.max_age_duration", def09: int64(48 * time.Hour), check: numeric},
		{v09: consensus + "evidence.max_bytes", def09: 1 << 20, check: numeric},
		{v09: consensus + "validator.pub_key_types", def09: []string{keyEd25519}},
		{
			v09: consensus + "validator.join_expiry", v010: "join_expiry", database: "join_expiry",
			def09: 100_800, def010: "168h0m0s", to010: blocksToDuration, to09: durationToBlocks, check: expiry,
		},
		{v09: consensus + "votes.vote_expiry", database: "vote_expiry", def09: 14_400, check: numeric},
		{
			v09: consensus + "votes.max_votes_per_tx", v010: "max_votes_per_tx", database: "max_votes_per_tx",
			def09: 100, def010: 200, check: numeric,
		},
		{v09: consensus + "abci.vote_extensions_enable_height", def09: 0},
		{
			v09: consensus + "without_gas_costs", v010: "disabled_gas_costs", database: "disabled_gas_costs",
			def09: true, def010: true, check: boolean,
		},
	}
}

// positive refuses v0.9's -1, "as large as the consensus engine allows", which v0.10 doesn't know.
func positive(raw json.RawMessage) (any, error) {
	var n int64
	if err := json.Unmarshal(raw, &n); err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, fmt.Errorf("%d has no counterpart", n)
	}
	return n, nil
}

func blocksToDuration(raw json.RawMessage) (any, error) {
	var blocks int64
	if err := json.Unmarshal(raw, &blocks); err != nil {
		return nil, err
	}
	if blocks <= 0 || blocks > int64(time.Duration(1<<63-1)/blockTime) {
		return nil, fmt.Errorf("%d blocks are no duration", blocks)
	}
	return (time.Duration(blocks) * blockTime).String(), nil
}

func durationToBlocks(raw json.RawMessage) (any, error) {
	d, err := readDuration(raw)
	if err != nil {
		return nil, err
	}
	return max(int64(d/blockTime), 1), nil
}

// readDuration reads v0.10's "168h0m0s".
func readDuration(raw json.RawMessage) (time.Duration, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	if err == nil && d <= 0 {
		err = errors.New("not positive")
	}
	return d, err
}

// numeric wants a number that isn't 0: none of the parameters may be.
func numeric(d document, path string) error {
	var n int64
	if err := d.get(path, &n); err != nil {
		return err
	}
	if n == 0 || n < -1 {
		return fmt.Errorf("%s: %d", path, n)
	}
	return nil
}

func boolean(d document, path string) error {
	var b bool
	return d.get(path, &b)
}

// expiry wants a number of blocks, or a duration.
func expiry(d document, path string) error {
	raw, ok := d[path]
	if !ok {
		return fmt.Errorf("%s: missing", path)
	}
	if len(raw) > 0 && raw[0] == '"' {
		_, err := readDuration(raw)
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return err
	}
	return numeric(d, path)
}
