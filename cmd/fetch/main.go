// Command fetch downloads one file, or takes one file out of an archive, for the supervisor.
//
// It is a program of its own because go-getter brings hundreds of packages that have no place in the process beside a
// validator's keys, and because what it reads is written by strangers: it may be killed, starved and run as another user
// without harm. It holds no secrets, starts no program, writes into one directory, and nothing it says is believed:
// internal/fetch hashes what it left.
//
//	fetch --url URL --out DIR --name NAME [--max-bytes N] [--checksum sha256:HEX]
//	fetch --unpack FILE --out DIR --name NAME [--max-bytes N] [--max-files N]
//
// DIR must exist and be empty. Standard output carries one JSON object a line: progress, then the result or the failure
// (fetch.Message). Exit codes: 0 done, 1 failed, 2 usage. Of the environment it reads HTTPS_PROXY and NO_PROXY, and
// SSL_CERT_FILE and SSL_CERT_DIR where the host's certificates are elsewhere.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"nodevisor/cmd/fetch/unpack"
	"nodevisor/internal/fetch"
)

// lastWords is how long after the deadline a run may take to say that it is over, and to clear up: a busy machine gives it
// no time at once.
const lastWords = 5 * time.Second

// options are the flags.
type options struct {
	url, unpack string
	out, name   string
	checksum    string
	maxBytes    int64
	maxFiles    int64
	deadline    time.Duration // for the whole run
	stall       time.Duration // in which minRate must be kept
	lifeline    int           // a pipe's descriptor: the run ends with it; -1 = none
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main without the process around it.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "fetch:", err)
		return 2
	}
	say := &speaker{enc: json.NewEncoder(stdout)}
	if err := confine(o); err != nil {
		return say.failure(err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), o.deadline, refusal("not done within %s", o.deadline))
	defer cancel()
	// The context bounds what waits; an unpacker that computes isn't waiting.
	watchdog := time.AfterFunc(o.deadline+lastWords, func() { os.Exit(1) })
	defer watchdog.Stop()

	var result fetch.Message
	if o.unpack != "" {
		result, err = o.take()
	} else {
		result, err = o.download(ctx, say)
	}
	if err != nil {
		os.RemoveAll(filepath.Join(o.out, o.name)) // a part of a file helps nobody, and the disk may be full
		return say.failure(err)
	}
	say.message(result)
	return 0
}

// parse reads the flags and checks all that can be checked without the network.
func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("fetch", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.url, "url", "", "download this: https, or http from a loopback address")
	flags.StringVar(&o.unpack, "unpack", "", "take the binary out of this file")
	flags.StringVar(&o.out, "out", "", "an empty directory, absolute")
	flags.StringVar(&o.name, "name", "", "file name of the result; in an archive, of the binary")
	flags.StringVar(&o.checksum, "checksum", "", "refuse a body with another digest, sha256:HEX or sha512:HEX")
	flags.Int64Var(&o.maxBytes, "max-bytes", 1<<30, "limit of the download, or of what an archive holds")
	flags.Int64Var(&o.maxFiles, "max-files", 1000, "limit of an archive's entries")
	flags.DurationVar(&o.deadline, "deadline", 30*time.Minute, "give up after this")
	flags.DurationVar(&o.stall, "stall", 30*time.Second, "give up when next to nothing came for this long")
	flags.IntVar(&o.lifeline, "lifeline", -1, "descriptor of a pipe: end when it is closed")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case (o.url == "") == (o.unpack == ""):
		return o, errors.New("one of --url and --unpack is needed")
	case o.name == "" || o.name == "." || o.name == ".." || strings.ContainsAny(o.name, "/\x00"):
		return o, fmt.Errorf("--name: %q is not a file name", o.name)
	case !filepath.IsAbs(o.out):
		return o, errors.New("--out: an absolute path is needed")
	case o.maxBytes <= 0 || o.maxFiles <= 0 || o.deadline <= 0 || o.stall <= 0:
		return o, errors.New("limits must be greater than 0")
	}
	entries, err := os.ReadDir(o.out)
	if err == nil && len(entries) > 0 {
		// go-getter keeps what is already there, or appends to it, and calls that a success.
		err = fmt.Errorf("--out: %s is not empty", o.out)
	}
	return o, err
}

// take writes the binary that o.unpack holds to out/name.
func (o options) take() (fetch.Message, error) {
	binary := unpack.Binary{Path: filepath.Join(o.out, o.name), MaxBytes: o.maxBytes, MaxFiles: o.maxFiles}
	if err := binary.TakeFrom(o.unpack); err != nil {
		return fetch.Message{}, notUnpacked(err)
	}
	result, _, err := describe(binary.Path)
	return result, err
}

// notUnpacked gives an unpacker's error its kind. What ends too early isn't taken for trouble of the network: the file's
// digest was right, so the next attempt would bring the same.
func notUnpacked(err error) error {
	switch {
	case errors.Is(err, unpack.ErrTooLarge):
		return tooLarge("cannot unpack: %w", err)
	case kindOf(err) == fetch.Temporary:
		return refusal("cannot unpack: %w", err)
	}
	return fmt.Errorf("cannot unpack: %w", err)
}

// speaker writes messages. Progress comes from another goroutine than the result, which is the last word.
type speaker struct {
	mu    sync.Mutex
	enc   *json.Encoder
	ended bool
}

func (s *speaker) message(m fetch.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		_ = s.enc.Encode(m) // a reader that went away learns nothing more
	}
	s.ended = s.ended || m.Path != "" || m.Error != ""
}

// failure says what went wrong, and gives the exit code.
func (s *speaker) failure(err error) int {
	s.message(fetch.Message{Error: err.Error(), Kind: kindOf(err)})
	return 1
}
