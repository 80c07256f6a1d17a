package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
)

// The commands that look into documents: path=value, path>=number, path~regexp; a path is a.b.0.c, and len is the length of a list.

var condition = regexp.MustCompile(`^([^=~>]*)(>=|=|~)(.*)$`)

// holds tells whether every condition is true of the document, and which one isn't.
func holds(doc any, conditions []string) error {
	for _, c := range conditions {
		m := condition.FindStringSubmatch(c)
		if m == nil {
			return fmt.Errorf("%q is no condition", c)
		}
		got := lookUp(doc, m[1])
		ok := false
		switch m[2] {
		case "=":
			ok = got == m[3]
		case "~":
			ok = regexp.MustCompile(m[3]).MatchString(got)
		case ">=":
			have, err1 := strconv.ParseFloat(got, 64)
			want, err2 := strconv.ParseFloat(m[3], 64)
			ok = errors.Join(err1, err2) == nil && have >= want
		}
		if !ok {
			return fmt.Errorf("%s is %q, which is not %s", m[1], got, c)
		}
	}
	return nil
}

// lookUp renders what lies at path: a string as it is, anything else as JSON. What isn't there is "missing".
func lookUp(doc any, path string) string {
	for key := range strings.SplitSeq(path, ".") {
		switch v := doc.(type) {
		case map[string]any:
			inner, ok := v[key]
			if !ok {
				return "missing"
			}
			doc = inner
		case []any:
			if key == "len" {
				return strconv.Itoa(len(v))
			}
			n, err := strconv.Atoi(key)
			if err != nil || n >= len(v) {
				return "missing"
			}
			doc = v[n]
		default:
			if path != "" {
				return "missing"
			}
		}
	}
	if s, ok := doc.(string); ok {
		return s
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func decode(data []byte) (doc any, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("%w in %q", err, data)
	}
	if d.More() {
		return nil, errors.New("more than one document")
	}
	return doc, nil
}

// cmdJSON compares the one JSON document that the last command printed on stdout.
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	doc, err := decode([]byte(ts.ReadFile("stdout")))
	ts.Check(err)
	if err := holds(doc, args); (err != nil) != neg {
		ts.Fatalf("%v", err)
	}
}

// cmdKeep puts what the last command printed on stdout into a variable: keep ID, or a part of its JSON: keep ID 0.id.
func cmdKeep(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	out := ts.ReadFile("stdout")
	if len(args) == 1 {
		ts.Setenv(args[0], strings.TrimSpace(out))
		return
	}
	doc, err := decode([]byte(out))
	ts.Check(err)
	ts.Setenv(args[0], lookUp(doc, args[1]))
}

// cmdWaitStatus waits until the running supervisor's status fulfils all conditions. It asks the control socket itself: a
// process for each question would be most of what the machine does.
func cmdWaitStatus(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	s := storyOf(ts)
	c := client.New(cmp.Or(ts.Getenv("MOVED_SOCKET"), filepath.Join(ts.Getenv("DAEMON_HOME"), "supervisor", "control.sock")))
	if err := within(func() error {
		raw, err := c.Status(context.Background())
		if err != nil {
			return err
		}
		doc, err := decode(raw)
		if err != nil {
			return err
		}
		if err := holds(doc, args); err != nil {
			return fmt.Errorf("%w; the status: %s", err, raw)
		}
		return nil
	}); err != nil {
		logs := ""
		for name, r := range s.runs {
			logs += "\n--- " + name + "\n" + readTail(r.log)
		}
		ts.Fatalf("%v%s", err, logs)
	}
}

// cmdWaitEvent waits until a node has recorded such an event; n=2 waits for the second one.
func cmdWaitEvent(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	want := 1
	var conditions []string
	for _, a := range args {
		if n, ok := strings.CutPrefix(a, "n="); ok {
			var err error
			want, err = strconv.Atoi(n)
			ts.Check(err)
			continue
		}
		conditions = append(conditions, a)
	}
	ts.Check(within(func() error {
		events, err := trace.Read(filepath.Join(storyOf(ts).work, "trace"))
		if err != nil {
			return err
		}
		found := 0
		for _, e := range events {
			data, err := json.Marshal(e)
			if err != nil {
				return err
			}
			doc, err := decode(data)
			if err != nil {
				return err
			}
			if holds(doc, conditions) == nil {
				found++
			}
		}
		if found < want {
			return fmt.Errorf("%d of %d events %v in %+v", found, want, conditions, events)
		}
		return nil
	}))
}

// cmdGolden compares the document on stdout with testdata/golden/NAME.json. What differs from run to run is masked; every
// key must be there, and nothing else.
func cmdGolden(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	doc, err := decode([]byte(ts.ReadFile("stdout")))
	ts.Check(err)
	var buf bytes.Buffer
	ts.Check(cli.WriteJSON(&buf, mask(doc, "", storyOf(ts).work)))
	path := filepath.Join("..", "..", "testdata", "golden", args[0]+".json")
	if *update {
		ts.Check(os.WriteFile(path, buf.Bytes(), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	ts.Check(err)
	if !bytes.Equal(want, buf.Bytes()) {
		ts.Fatalf("%s differs; -update rewrites it. It is now:\n%s", path, buf.String())
	}
}

// volatile are the keys whose values no two runs share.
var volatile = regexp.MustCompile(`^(at|since|eta|pid|id|snapshot|.*sha256|.*_at|free|needed|min_free|bytes|exclusive_bytes|files|ms|.*_ms|blocks_left|restarts|inode|device|generation)$`)

// volatileHeights are heights of a moment; those of plans are the scripts' own.
var volatileHeights = regexp.MustCompile(`^(|\.snapshots\.last|\.\d+)\.height$`)

// blockOfAMoment is how far the chain was, within a text.
var blockOfAMoment = regexp.MustCompile(`block \d+`)

// hostly are answers that depend on the host: whether its clock is synchronised, and what its kernel grants.
var hostly = regexp.MustCompile(`^\.checks\.\d+\.(ok|detail|fix)$`)

// mask replaces what differs from run to run by its type. null stays: whether a value is there is the contract.
func mask(v any, path, work string) any {
	key := path[strings.LastIndex(path, ".")+1:]
	if hostly.MatchString(path) {
		return "<" + key + ">"
	}
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			v[k] = mask(inner, path+"."+k, work)
		}
	case []any:
		for i, inner := range v {
			v[i] = mask(inner, path+"."+strconv.Itoa(i), work)
		}
	case string:
		if volatile.MatchString(key) {
			return "<" + key + ">"
		}
		return blockOfAMoment.ReplaceAllString(strings.ReplaceAll(v, work, "$WORK"), "block <height>")
	case json.Number:
		if volatile.MatchString(key) || volatileHeights.MatchString(path) {
			return "<" + key + ">"
		}
	}
	return v
}
