package genesis

import (
	"bytes"
	"encoding/json"
	"errors"
)

// maxTries caps the places in an output at which an object is looked for: a log may be full of brackets.
const maxTries = 100_000

// extract finds the one document in a program's output: the JSON object that has app_state. Applications log to the same
// stream, before it and after it, some of them in JSON. Two documents are an error: which one would be meant?
//
// Looked for is first at the begins of lines; a log line without its line break may stand before the object, so that
// other brackets are tried where no line begins with one.
func extract(output []byte) (*Document, error) {
	for _, anywhere := range []bool{false, true} {
		found, err := objects(output, anywhere)
		if err != nil {
			return nil, err
		}
		if found != nil {
			return Parse(found)
		}
	}
	return nil, errors.New("it printed no JSON object with app_state")
}

func objects(output []byte, anywhere bool) (found []byte, err error) {
	begin := true
	tries := 0
	for at := 0; at < len(output) && tries < maxTries; at++ {
		c := output[at]
		if c != '{' || (!begin && !anywhere) {
			begin = c == '\n' || (begin && (c == ' ' || c == '\t' || c == '\r'))
			continue
		}
		tries++
		begin = false
		end := objectEnd(output[at:])
		if end == 0 {
			continue
		}
		var shape struct {
			State json.RawMessage `json:"app_state"`
		}
		if json.Unmarshal(output[at:at+end], &shape) == nil && bytes.HasPrefix(bytes.TrimSpace(shape.State), []byte("{")) {
			if found != nil {
				return nil, errors.New("it printed two JSON objects with app_state")
			}
			found = output[at : at+end]
		}
		at += end - 1 // what lies inside belongs to it
	}
	return found, nil
}

// objectEnd is the length of the JSON object that text begins with; 0 where that is none.
func objectEnd(text []byte) int {
	dec := json.NewDecoder(bytes.NewReader(text))
	var object json.RawMessage
	if dec.Decode(&object) != nil {
		return 0
	}
	return int(dec.InputOffset())
}
