package fetch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"nodevisor/internal/hint"
)

// maxInfo bounds a plan's info, in bytes: whether it stands in the plan or a URL in the plan leads to it.
const maxInfo = 1 << 20

// SelectBinary picks the URL of this machine's binary from a plan's info, `{"binaries":{"linux/amd64":"…","any":"…"}}`:
// goos/goarch first, then "any". Other keys of the document are ignored. The same platform twice is refused: decoders
// differ in which one they take, and so would the nodes of a network.
func SelectBinary(info []byte, goos, goarch string) (url string, err error) {
	platform := goos + "/" + goarch
	if len(info) > maxInfo {
		return "", fmt.Errorf("cannot parse upgrade info: larger than %d bytes", maxInfo)
	}
	if len(bytes.TrimSpace(info)) == 0 {
		return "", &hint.Error{Op: "find binary for " + platform, Err: errors.New("plan info must not be blank"), Hint: byHand}
	}
	var doc struct {
		Binaries platforms `json:"binaries"`
	}
	if err := json.Unmarshal(info, &doc); err != nil {
		return "", &hint.Error{Op: "parse upgrade info", Err: err, Hint: byHand}
	}
	for _, key := range []string{platform, "any"} {
		if url := doc.Binaries[key]; url != "" {
			return url, nil
		}
	}
	// The wording is Cosmovisor's, which scripts look for.
	return "", &hint.Error{Op: "find binary for os/arch", Err: fmt.Errorf("neither %s, nor any", platform), Hint: byHand}
}

// platforms maps os/arch to a URL, and refuses a key that occurs twice.
type platforms map[string]string

// UnmarshalJSON reads an object of strings. It is called again if the object itself occurs twice.
func (p *platforms) UnmarshalJSON(data []byte) error {
	if *p != nil {
		return errors.New("binaries occurs twice")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return errors.New("binaries is not an object")
	}
	*p = platforms{}
	for dec.More() {
		var url string
		key, err := dec.Token()
		if err == nil {
			err = dec.Decode(&url)
		}
		if err != nil {
			return err
		}
		name, _ := key.(string) // encoding/json checked the syntax already: a key is a string
		if _, twice := (*p)[name]; twice {
			return fmt.Errorf("platform %s occurs twice", name)
		}
		(*p)[name] = url
	}
	return nil
}
