// Package plan says what is to happen to a node, and whether its time has come.
//
// A Plan is announced by the node's own file, by the chain or by an operator; the same name and height is the same plan,
// whoever announced it. The Schedule is the durable part: what operators want, and what they want passed over. The Tracker
// joins all of it with the heights that were read, and says which plan is next, which is done, which is due, and what the node's
// end means. It never guesses: what only may be due is Unclear.
package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"nodevisor/upgrade/version"
)

// Source says where a plan is known from.
type Source string

// The sources of plans. Where several know the same plan, the first of this order names it.
const (
	FromFile     Source = "file"     // data/upgrade-info.json, written by the node
	FromChain    Source = "chain"    // the chain's current plan, over gRPC
	FromOperator Source = "operator" // schedule.json
)

// Plan is what is to happen: which version, from which block or time on.
type Plan struct {
	Name   string    `json:"name"`             // normalised
	Height int64     `json:"height,omitempty"` // the first block that the next version executes; 0 = none
	Time   time.Time `json:"time,omitzero"`    // stands in for the height of a timed plan
	Info   string    `json:"info,omitempty"`
	Source Source    `json:"source"`
	// RawName is the name as it was announced, where normalising changed it: scripts are given this one, as by Cosmovisor.
	RawName string `json:"raw_name,omitempty"`
	// Immediate marks a plan that an operator applied by hand, whatever the height. Its Height is the node's at that time.
	Immediate bool `json:"immediate,omitempty"`
}

// Key is what makes two announcements the same plan.
type Key struct {
	Name   string
	Height int64
	Time   int64
}

// Key returns p's identity: name and height, or name and time.
func (p Plan) Key() Key {
	k := Key{Name: p.Name, Height: p.Height}
	if !p.Time.IsZero() {
		k.Time = p.Time.Unix()
	}
	return k
}

// Title is the plan's name as it was announced.
func (p Plan) Title() string {
	if p.RawName != "" {
		return p.RawName
	}
	return p.Name
}

// To is the version that p leads to. An operator who applies "genesis" means the first version; a chain's plan of that
// name is its own.
func (p Plan) To() version.Version {
	if p.Immediate && p.Name == string(version.Genesis) {
		return version.Genesis
	}
	return version.Of(p.Name)
}

// When renders the height or the time of p.
func (p Plan) When() string {
	if !p.Time.IsZero() {
		return p.Time.UTC().Format(time.RFC3339)
	}
	return strconv.FormatInt(p.Height, 10)
}

// Merge joins two announcements of the same plan: p's info wins unless it is empty, and so does its source.
func (p Plan) Merge(other Plan) Plan {
	if p.Info == "" {
		p.Info = other.Info
	}
	return p
}

// Parse reads a plan as x/upgrade writes it (encoding/json: height is a number; or jsonpb: height is a string).
// encoding/json alone would take the last of duplicate keys and ignore what follows the document; both are refused
// here, because two tools that read the same bytes must see the same plan.
func Parse(data []byte, recase bool) (Plan, error) {
	p, err := parsePlan(data, recase)
	if err != nil {
		return Plan{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return p, nil
}

func parsePlan(data []byte, recase bool) (Plan, error) {
	switch {
	case len(data) > maxBytes:
		return Plan{}, errors.New("larger than 1 MiB")
	case len(bytes.TrimSpace(data)) == 0:
		return Plan{}, errors.New("empty")
	}
	fields, err := objectFields(data)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Source: FromFile}
	var name string
	if raw, ok := fields["name"]; ok {
		if err := json.Unmarshal(raw, &name); err != nil {
			return Plan{}, fmt.Errorf("name: %w", err)
		}
	}
	if p.Name, err = version.NormaliseName(name, recase); err != nil {
		return Plan{}, err
	}
	if p.Name != name {
		p.RawName = name
	}
	if p.Height, err = parseHeight(fields["height"]); err != nil {
		return Plan{}, fmt.Errorf("height: %w", err)
	}
	if raw, ok := fields["info"]; ok {
		if err := json.Unmarshal(raw, &p.Info); err != nil {
			return Plan{}, fmt.Errorf("info: %w", err)
		}
	}
	if raw, ok := fields["time"]; ok {
		var t *time.Time
		if err := json.Unmarshal(raw, &t); err != nil {
			return Plan{}, fmt.Errorf("time: %w", err)
		}
		if t != nil && !t.IsZero() {
			return Plan{}, errors.New("time: x/upgrade plans by time are not supported by the chain's software any more")
		}
	}
	if raw, ok := fields["upgraded_client_state"]; ok && !bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return Plan{}, errors.New("upgraded_client_state: must be null")
	}
	return p, nil
}

// objectFields splits a JSON object into its fields, keys lower-cased (encoding/json matches them so). Duplicates and
// anything after the object are errors.
func objectFields(data []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	if t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key := strings.ToLower(t.(string))
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		if _, twice := fields[key]; twice {
			return nil, fmt.Errorf("the key %q is there twice", key)
		}
		fields[key] = raw
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return fields, nil
}

// parseHeight takes a positive whole number, bare or as a string. 1e3, 1.0, signs and anything over int64 are refused.
func parseHeight(raw json.RawMessage) (int64, error) {
	if raw == nil {
		return 0, errors.New("missing")
	}
	text := string(bytes.TrimSpace(raw))
	if len(text) >= 2 && text[0] == '"' {
		text = text[1 : len(text)-1]
	}
	h, err := strconv.ParseUint(text, 10, 64)
	if err != nil || h == 0 || h > math.MaxInt64 {
		return 0, fmt.Errorf("%.64s is no positive whole number", raw)
	}
	return int64(h), nil
}

// Document renders p under that name as x/upgrade writes its file, so that a node's store loader and Cosmovisor can
// read it.
func (p Plan) Document(name string) ([]byte, error) {
	return json.Marshal(struct {
		Name   string    `json:"name"`
		Time   time.Time `json:"time"`
		Height int64     `json:"height,omitempty"`
		Info   string    `json:"info,omitempty"`
	}{Name: name, Height: p.Height, Info: p.Info})
}
