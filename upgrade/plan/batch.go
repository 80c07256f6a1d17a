package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/state"
)

// Cosmovisor (1.7) keeps the upgrades that its operator scheduled in one JSON array beside the node's plan file, in the
// form in which x/upgrade writes one plan.

// Batch is one reading of Cosmovisor's file.
type Batch struct {
	Digest  string  // of the content; "" = there is no file
	Entries []Entry // in the order of heights
}

// Entry is one element of the array. What can't be used is kept as it is: it isn't ours to drop.
type Entry struct {
	number int // in the file, from 1
	raw    json.RawMessage
	Plan   Plan
	Err    error // why it can't be used; nil = it can
}

// ReadBatch reads Cosmovisor's file; a missing one, or path "", is an empty batch. An entry that can't be used is no error of
// the file. The error is a *hint.Error.
func ReadBatch(path string, recase bool) (Batch, error) {
	if path == "" {
		return Batch{}, nil
	}
	data, err := state.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Batch{}, nil
	}
	var b Batch
	if err == nil {
		b, err = parseBatch(data, recase)
	}
	if err != nil {
		return Batch{}, &hint.Error{
			Op: "read Cosmovisor's batch", Path: path, Err: err,
			Hint: "mend " + path + " (a JSON array of plans), or move it away",
		}
	}
	return b, nil
}

func parseBatch(data []byte, recase bool) (Batch, error) {
	sum := sha256.Sum256(data)
	b := Batch{Digest: hex.EncodeToString(sum[:])}
	if len(bytes.TrimSpace(data)) == 0 {
		return b, nil // Cosmovisor makes the file before it fills it
	}
	var raws []json.RawMessage
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&raws); err != nil {
		return b, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return b, errors.New("something follows the JSON array")
	}
	for i, raw := range raws {
		p, err := Parse(raw, recase)
		p.Source = FromOperator
		b.Entries = append(b.Entries, Entry{number: i + 1, raw: raw, Plan: p, Err: err})
	}
	slices.SortStableFunc(b.Entries, func(x, y Entry) int { return byHeight(x.Plan, y.Plan) })
	return b, nil
}

// Rejection says why the entry is not scheduled, and what to do where it is wanted all the same.
func (en Entry) Rejection(why string) *hint.Error {
	if en.Err != nil {
		return &hint.Error{
			Op: "import entry", Path: fmt.Sprintf("%d of Cosmovisor's batch", en.number), Err: en.Err,
			Hint: "supervisor upgrade add NAME BINARY --height N",
		}
	}
	return hint.New("import plan", fmt.Sprintf("%s at %d", en.Plan.Name, en.Plan.Height), why,
		fmt.Sprintf("where it is still wanted: supervisor upgrade add %s BINARY --height N --force", en.Plan.Name))
}

// Merge renders the batch with plans in it; document is nil where that changes nothing. Of a file that was imported, plans are
// the newer state: what is no longer among them was carried out, cancelled or passed over, and must not come back. Any other
// entry stays.
func (b Batch) Merge(plans []Plan, imported bool) (document []byte, dropped []Plan, err error) {
	var kept []Entry
	for _, en := range b.Entries {
		pending := slices.ContainsFunc(plans, func(p Plan) bool { return p.Key() == en.Plan.Key() })
		if en.Err == nil && imported && !pending {
			dropped = append(dropped, en.Plan)
			continue
		}
		kept = append(kept, en)
	}
	changed := len(dropped) > 0
	for _, p := range plans {
		if slices.ContainsFunc(kept, func(en Entry) bool { return en.Err == nil && en.Plan.Key() == p.Key() }) {
			continue
		}
		raw, err := p.Document(p.Name)
		if err != nil {
			return nil, nil, err
		}
		kept = append(kept, Entry{raw: raw, Plan: p})
		changed = true
	}
	if !changed {
		return nil, dropped, nil
	}
	slices.SortStableFunc(kept, func(x, y Entry) int { return byHeight(x.Plan, y.Plan) })
	raws := []json.RawMessage{}
	for _, en := range kept {
		raws = append(raws, en.raw)
	}
	document, err = json.MarshalIndent(raws, "", " ")
	return document, dropped, err
}
