package kwil

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nodevisor/internal/hint"
)

// Known is what the old network's database tells, besides the state.
type Known struct {
	Version Version
	Params  json.RawMessage // the network's parameters by their names in the database, a JSON object; nil = not there
	Owner   string          // the owner of the database, v0.10; "" = none known
}

// Options say what a document is made from.
type Options struct {
	Version  Version                    // of the document
	Old      []byte                     // the old network's genesis document, of either version; nil = none
	Database Known                      // what the database tells: it is nearer to the stop than the old document
	Set      map[string]json.RawMessage // what the operator sets, by dotted path; above all else
	Time     time.Time                  // v0.9's genesis_time; zero = now
}

// Document is a finished genesis document.
type Document struct {
	JSON   []byte
	Minted []string // "path = value": known from nowhere, so the default of Kwil's own tool
	Notes  []string // what was left behind on purpose, or differs between the sources
}

// Render makes the genesis document that belongs to state. Each parameter comes from the operator, else the database,
// else the old document, else it is the default of Kwil's tool and named in Minted. Without a chain id, or where v0.10
// needs a leader or an owner that nobody names, it fails with a hint: none of them is made up.
func Render(state State, o Options) (Document, error) {
	r := renderer{o: o, v: o.Version, out: &object{}}
	if err := r.read(); err != nil {
		return Document{}, err
	}
	steps := []func(State) error{r.identity010, r.validators, r.tail010}
	if r.v == V09 {
		steps = []func(State) error{r.identity09, r.tail09, r.validators}
	}
	for _, step := range steps {
		if err := step(state); err != nil {
			return Document{}, err
		}
	}
	r.unknown()
	for _, path := range slices.Sorted(maps.Keys(o.Set)) {
		r.out.set(path, o.Set[path])
	}
	raw, err := json.MarshalIndent(r.out, "", "  ")
	if err != nil {
		return Document{}, fmt.Errorf("cannot write genesis document: %w", err)
	}
	if err := Validate(r.v, raw); err != nil {
		return Document{}, err
	}
	return Document{JSON: raw, Minted: r.minted, Notes: r.notes}, nil
}

// check does what can be done before the state is known.
func (o Options) check() error {
	r := renderer{o: o, v: o.Version, out: &object{}}
	if err := r.read(); err != nil {
		return err
	}
	if r.v == V09 {
		return r.identity09(State{})
	}
	return r.identity010(State{})
}

// renderer gathers the document.
type renderer struct {
	o      Options
	v      Version
	old    document // nil = none
	oldV   Version
	db     document
	out    *object
	used   map[string]bool // the old document's leaves that were carried, or left behind on purpose
	minted []string
	notes  []string
}

// read parses the sources.
func (r *renderer) read() (err error) {
	if r.v != V09 && r.v != V010 {
		return fmt.Errorf("cannot make genesis document: %q: %w", r.v, ErrVersion)
	}
	r.used = map[string]bool{}
	if r.o.Database.Params != nil {
		if r.db, err = parse(r.o.Database.Params); err != nil {
			return fmt.Errorf("cannot read the parameters in the database: %w", err)
		}
	}
	if r.o.Old == nil {
		return nil
	}
	if r.oldV, err = Detect(r.o.Old); err != nil {
		return fmt.Errorf("cannot carry the old network's parameters: %w", err)
	}
	r.old, err = parse(r.o.Old)
	return err
}

func (r *renderer) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// isSet tells whether the operator sets path, or something below it.
func (r *renderer) isSet(path string) bool {
	for p := range r.o.Set {
		if p == path || strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// mint uses a default, and says so where the operator doesn't set another value.
func (r *renderer) mint(path string, value any) {
	r.out.set(path, value)
	if r.isSet(path) {
		return
	}
	text, err := json.Marshal(value)
	if err != nil {
		text = []byte(fmt.Sprint(value))
	}
	r.minted = append(r.minted, path+" = "+string(text))
}

// carry takes a leaf of the old document as it is, where it has one.
func (r *renderer) carry(path string) bool {
	value, ok := r.old[path]
	if ok {
		r.used[path] = true
		r.out.set(path, value)
	}
	return ok
}

// chainID is kept, or the operator's.
func (r *renderer) chainID() error {
	if !r.carry("chain_id") && !r.isSet("chain_id") {
		return hint.New("make genesis document", "", "nobody says the network's chain id",
			"name the old genesis document in [genesis] from, or set it: --set chain_id=NAME")
	}
	r.out.set("chain_id", orSet(r, "chain_id", r.old["chain_id"]))
	return nil
}

// orSet is the operator's value, else value.
func orSet(r *renderer, path string, value json.RawMessage) json.RawMessage {
	if set, ok := r.o.Set[path]; ok {
		return set
	}
	return value
}

// height is where the new network's blocks begin.
func (r *renderer) height(byDefault int64) {
	if !r.carry("initial_height") {
		r.mint("initial_height", byDefault)
	}
}

func (r *renderer) identity09(s State) error {
	r.used["genesis_time"] = true // the old network's
	if r.o.Time.IsZero() {
		r.mint("genesis_time", time.Now().UTC())
	} else {
		r.out.set("genesis_time", r.o.Time.UTC())
	}
	if err := r.chainID(); err != nil {
		return err
	}
	r.height(1)
	r.used["app_hash"], r.used["state_hash"] = true, true
	r.out.set("app_hash", base64.StdEncoding.EncodeToString(s.SHA256[:]))
	r.activations()
	return nil
}

// activations carries v0.9's planned changes of rules, but never the halt: the new network would stop at it again.
func (r *renderer) activations() {
	r.out.set("activations", nil)
	for _, path := range slices.Sorted(maps.Keys(r.old)) {
		name, ok := strings.CutPrefix(path, "activations.")
		switch {
		case path == "activations":
			r.used[path] = true
		case !ok || r.oldV != V09:
		case name == "halt":
			r.used[path] = true
			r.note("activations.halt = %s was left behind: the new network would halt there", r.old[path])
		default:
			r.carry(path)
			r.note("activations.%s = %s was carried; on the new network it counts from initial_height", name, r.old[path])
		}
	}
}

func (r *renderer) identity010(State) error {
	if err := r.chainID(); err != nil {
		return err
	}
	r.height(0)
	owner := r.o.Database.Owner
	r.used["db_owner"] = true
	if old := r.old["db_owner"]; owner == "" && len(old) > 0 {
		r.out.set("db_owner", old)
		return nil
	}
	if owner == "" && !r.isSet("db_owner") {
		return hint.New("make genesis document", "", "nobody says who owns the database",
			"without an owner nobody may change it on the new network; set it: --set db_owner=ADDRESS, or --set 'db_owner=\"\"' for none")
	}
	r.out.set("db_owner", owner)
	return nil
}

// validators are the voters of the state, at the stop; the old document's only where the state has none.
func (r *renderer) validators(s State) error {
	r.used["validators"] = true
	list, source := s.Voters, "the database"
	var old []Validator
	if raw, ok := r.old["validators"]; ok {
		old, _ = readValidators(r.oldV, raw) // only names and, below, a list that is checked with the whole document
	}
	if len(list) == 0 {
		list, source = old, "the old genesis document"
	}
	if len(list) == 0 && !r.isSet("validators") {
		return hint.New("make genesis document", "", "neither the database nor an old genesis document names a validator",
			"set them: --set validators=JSON")
	}
	if source == "the database" && old != nil && !sameValidators(list, old) {
		r.note("validators: the %d of the database, at the stop; the old genesis document has %d", len(list), len(old))
	}
	elements := make([]*object, len(list))
	for i, val := range list {
		if r.v == V09 && val.Type != keyEd25519 && !r.isSet("validators") {
			return hint.New("make genesis document", "", fmt.Sprintf("validator %s has a key of type %s, which v0.9 doesn't know", val.Key, val.Type),
				"set the validators: --set validators=JSON")
		}
		if k := slices.IndexFunc(old, func(o Validator) bool { return o.Key == val.Key }); k >= 0 {
			val.Name = old[k].Name
		}
		elements[i] = val.render(r.v, i)
	}
	r.out.set("validators", elements)
	if r.v == V010 {
		r.out.set("state_hash", hex.EncodeToString(s.SHA256[:]))
		r.used["state_hash"], r.used["app_hash"] = true, true
	}
	return nil
}

// sameValidators compares keys and powers, not names.
func sameValidators(a, b []Validator) bool {
	byKey := map[string]int64{}
	for _, v := range a {
		byKey[v.Key] = v.Power
	}
	return len(a) == len(b) && !slices.ContainsFunc(b, func(v Validator) bool { return byKey[v.Key] != v.Power })
}

func (r *renderer) tail09(State) error {
	for _, p := range params() {
		if p.v010 == "disabled_gas_costs" { // the last of the table; v0.9 writes it after the migration
			r.out.set("consensus_params.migration", &object{})
		}
		r.param(p)
	}
	return nil
}

func (r *renderer) tail010(s State) error {
	r.out.set("migration.start_height", 0)
	r.out.set("migration.end_height", 0)
	if err := r.leader(s); err != nil {
		return err
	}
	for _, name := range []string{"max_block_size", "join_expiry", "disabled_gas_costs", "max_votes_per_tx"} {
		for _, p := range params() {
			if p.v010 == name {
				r.param(p)
			}
		}
	}
	return nil
}

// leader is the old network's, or the only validator there is.
func (r *renderer) leader(s State) error {
	for _, from := range []document{r.db, r.old} {
		if from["leader.type"] != nil && from["leader.key"] != nil {
			r.out.set("leader.type", from["leader.type"])
			r.out.set("leader.key", from["leader.key"])
			return nil
		}
	}
	if len(s.Voters) == 1 {
		r.mint("leader", &object{keys: []string{"type", "key"}, values: map[string]any{"type": s.Voters[0].Type, "key": s.Voters[0].Key}})
		return nil
	}
	if r.isSet("leader") {
		return nil
	}
	return hint.New("make genesis document", "", "nobody says which validator leads the network",
		"set it: --set leader.type=secp256k1 --set leader.key=HEX")
}

// param takes one parameter from the best source.
func (r *renderer) param(p param) {
	path := p.path(r.v)
	if path == "" {
		return
	}
	inDatabase, known := r.db[p.database]
	oldPath := p.path(r.oldV)
	inOld, carried := r.old[oldPath]
	if carried {
		r.used[oldPath] = true
	}
	if known {
		if value, err := p.convert(inDatabase, r.o.Database.Version, r.v); err == nil {
			r.out.set(path, value)
			r.compare(p, path, value, inOld)
			return
		}
	}
	if carried {
		value, err := p.convert(inOld, r.oldV, r.v)
		if err == nil {
			r.out.set(path, value)
			return
		}
		r.note("%s: the old genesis document's value was left behind: %v", path, err)
	}
	r.mint(path, p.byDefault(r.v))
}

// compare says where the chain changed a parameter after its genesis.
func (r *renderer) compare(p param, path string, value any, inOld json.RawMessage) {
	if inOld == nil {
		return
	}
	before, err := p.convert(inOld, r.oldV, r.v)
	if err != nil {
		return
	}
	now, errNow := json.Marshal(value)
	then, errThen := json.Marshal(before)
	if errNow == nil && errThen == nil && string(now) != string(then) {
		r.note("%s: %s of the database, at the stop; the old genesis document has %s", path, now, then)
	}
}

// unknown carries what this package doesn't know, within a version; across versions it is named.
func (r *renderer) unknown() {
	for _, path := range slices.Sorted(maps.Keys(r.old)) {
		top, _, _ := strings.Cut(path, ".")
		switch {
		case r.used[path] || r.out.has(path):
		case top == "alloc":
			r.note("%s was left behind: the accounts are in the state, and would be credited twice", path)
		case top == "migration" || strings.HasPrefix(path, "consensus_params.migration"):
			if r.oldV == r.v {
				r.note("%s was left behind: it belongs to another way of migrating", path)
			}
		case r.oldV != r.v:
			r.note("%s was left behind: %s has no place for it", path, r.v)
		default:
			r.carry(path)
		}
	}
}
