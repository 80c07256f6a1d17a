package genesis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// outName is where a program of ours may write its document, in a directory of its own.
const outName = "out.json"

// Program is a program that makes documents, or judges them: a node's binary, or a command of the operator's.
type Program struct {
	Path string
	Args []string // before those of a call
	Env  []string
	Dir  string
}

// run runs p with further arguments. Both streams are captured up to MaxDocument: applications of the SDK before 0.47
// print their export on stderr.
func (p Program) run(ctx context.Context, env []string, args ...string) (stdout, stderr []byte, err error) {
	cmd := exec.Command(p.Path, append(append([]string{}, p.Args...), args...)...)
	proc.EndWithUs(cmd)
	cmd.Env, cmd.Dir = append(append([]string{}, p.Env...), env...), p.Dir
	errs := &proc.Head{Limit: MaxDocument}
	cmd.Stderr = errs
	res, err := proc.Output(ctx, cmd, MaxDocument)
	if err == nil && (res.Truncated || errs.More) {
		err = fmt.Errorf("%s printed more than %d bytes", filepath.Base(p.Path), MaxDocument)
	}
	if exit := (*proc.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, proc.LastLine(errs.Kept))
	}
	return res.Stdout, errs.Kept, err
}

// unknown tells the failure of a program that has no such command (cobra's words) from one that has it.
func unknown(stderr []byte) bool {
	text := string(stderr)
	return strings.Contains(text, "unknown command") || strings.Contains(text, "unknown flag") || strings.Contains(text, "accepts 0 arg")
}

// SDK is the export of an application of the Cosmos SDK.
type SDK struct {
	Old     Program  // the version that has the state
	New     Program  // the version that is to start from the document; the same where there is no other
	Home    string   // the old node's; the node is at rest
	Export  []string // further arguments of export
	Migrate string   // the target of New's migrate; "" = none
	Timeout time.Duration
	Log     *slog.Logger
}

// carried are the fields that a new network usually wants otherwise than the old one had them. The SDK's export sets the
// initial height to the exported one + 1, and leaves the other two as they are: no node may take its own clock or a random
// name, because all must come to the same document.
var carried = []string{"chain_id", "genesis_time", "initial_height"}

// Make exports the state, migrates it where that is asked for, applies set, and lets the new version judge the result.
// scratch is an empty directory for what the programs write. defaults says what nobody set.
func (s SDK) Make(ctx context.Context, scratch string, set func(*Document) error) (doc *Document, defaults []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("not done within %s ([genesis] timeout)", s.Timeout))
	defer cancel()
	if doc, err = s.export(ctx, scratch); err == nil && s.Migrate != "" {
		doc, err = s.migrate(ctx, scratch, doc)
	}
	if err != nil {
		return nil, nil, err
	}
	exported := map[string]any{}
	for _, key := range carried {
		exported[key] = doc.fields[key]
	}
	if err := set(doc); err != nil {
		return nil, nil, err
	}
	for _, key := range carried {
		if v := doc.fields[key]; reflect.DeepEqual(v, exported[key]) {
			defaults = append(defaults, fmt.Sprintf("%s: %s, as it was exported", key, raw(v)))
		}
	}
	if err := doc.Validate(Cosmos); err != nil {
		return nil, nil, &hint.Error{Op: "use the exported document", Err: err, Hint: "set what is missing: --set PATH=VALUE, or [genesis] set"}
	}
	judged, err := s.Judge(ctx, scratch, doc)
	if err == nil && !judged {
		defaults = append(defaults, "validate: the new binary has no such command, so only the shape was checked")
	}
	return doc, defaults, err
}

func (s SDK) export(ctx context.Context, scratch string) (*Document, error) {
	began := time.Now()
	args := append([]string{"export", "--home", s.Home}, s.Export...)
	out := filepath.Join(scratch, outName)
	// A file can't be mixed with a log. Only newer versions of the SDK can write one, and say so in their help.
	if help, more, err := s.Old.run(ctx, nil, "export", "--help"); err == nil && strings.Contains(string(help)+string(more), "--output-document") {
		args = append(args, "--output-document", out)
	}
	stdout, stderr, err := s.Old.run(ctx, nil, args...)
	if err != nil {
		return nil, &hint.Error{Op: "export the state", Err: err, Hint: "stop the node first, then run it by hand: " + s.Old.Path + " " + strings.Join(args, " ")}
	}
	doc, err := pick(out, stdout, stderr)
	if err != nil {
		return nil, &hint.Error{Op: "export the state", Err: err, Hint: "see what it prints: " + s.Old.Path + " " + strings.Join(args, " ")}
	}
	s.Log.Info("state exported", "chain_id", doc.ChainID(), "took", time.Since(began))
	return doc, nil
}

// pick takes the document from the file, where the program wrote one, else from what it printed.
func pick(file string, streams ...[]byte) (*Document, error) {
	doc, _, err := ReadFile(file)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return doc, err
	}
	for _, output := range streams {
		if doc, err = extract(output); err == nil {
			return doc, nil
		}
	}
	return nil, err
}

// migrate lets the new version bring the document up to its own shape.
func (s SDK) migrate(ctx context.Context, scratch string, doc *Document) (*Document, error) {
	in := filepath.Join(scratch, "exported.json")
	if err := atomicfile.WriteFile(in, doc.Text(), 0o600); err != nil {
		return nil, err
	}
	if err := atomicfile.Remove(filepath.Join(scratch, outName)); err != nil {
		return nil, err
	}
	stdout, stderr, known, err := s.eitherWay(ctx, scratch, [][]string{
		{"genesis", "migrate", s.Migrate, in, "--chain-id", doc.ChainID()},
		{"migrate", s.Migrate, in, "--chain-id", doc.ChainID()},
	})
	if err == nil && !known {
		err = errors.New("it has no command migrate")
	}
	if err == nil {
		doc, err = pick(filepath.Join(scratch, outName), stdout, stderr)
	}
	if err != nil {
		return nil, &hint.Error{Op: "migrate the document to", Path: s.Migrate, Err: err, Hint: s.New.Path + " genesis migrate --help lists the targets; [genesis] migrate names one"}
	}
	return doc, nil
}

// Judge lets the new version validate the document. judged is false where it has no command for that.
func (s SDK) Judge(ctx context.Context, scratch string, doc *Document) (judged bool, err error) {
	path := filepath.Join(scratch, "judged.json")
	if err := atomicfile.WriteFile(path, doc.Text(), 0o600); err != nil {
		return false, err
	}
	_, _, judged, err = s.eitherWay(ctx, scratch, [][]string{{"genesis", "validate", path}, {"validate-genesis", path}, {"genesis", "validate-genesis", path}})
	if err != nil {
		return judged, &hint.Error{Op: "validate the document with", Path: s.New.Path, Err: err, Hint: "mend it with --set PATH=VALUE or [genesis] set; [genesis] migrate brings an older shape up to date"}
	}
	return judged, nil
}

// eitherWay tries the spellings of one command that the versions of the SDK have had. Its home is in the scratch
// directory: a program of another version writes defaults into whatever home it is given.
func (s SDK) eitherWay(ctx context.Context, scratch string, calls [][]string) (stdout, stderr []byte, known bool, err error) {
	for _, args := range calls {
		stdout, stderr, err = s.New.run(ctx, nil, append(args, "--home", filepath.Join(scratch, "home"))...)
		if exit := (*proc.ExitError)(nil); errors.As(err, &exit) && unknown(stderr) {
			continue
		}
		return stdout, stderr, true, err
	}
	return nil, nil, false, nil
}

// Make runs the operator's own program, which writes the document to $SUPERVISOR_GENESIS_OUT or prints it, and nothing
// else, on stdout.
func (p Program) Make(ctx context.Context, scratch string, timeout time.Duration, env ...string) (*Document, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s ([genesis] timeout)", timeout))
	defer cancel()
	out := filepath.Join(scratch, outName)
	stdout, _, err := p.run(ctx, append(env, "SUPERVISOR_GENESIS_OUT="+out))
	var doc *Document
	if err == nil {
		if doc, _, err = ReadFile(out); errors.Is(err, fs.ErrNotExist) {
			doc, err = Parse(stdout)
		}
	}
	if err != nil {
		return nil, &hint.Error{Op: "make a document with", Path: p.Path, Err: err, Hint: "it must print one JSON object and nothing else, or write it to $SUPERVISOR_GENESIS_OUT"}
	}
	return doc, nil
}
