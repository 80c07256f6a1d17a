package main

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-getter"

	"nodevisor/internal/fetch"
)

// download gets the body of o.url into out/name.
//
// go-getter's own conveniences are all behind a fence: two schemes, no detectors (which turn text into git or S3
// addresses), no decompressors (an archive is unpacked only after its digest was verified), no netrc, no HEAD request
// whose answer could make it keep an old file, no X-Terraform-Get (a header that sends the client to local files).
// Its report of success isn't relied on: it calls a body that was cut at MaxBytes a success, and a file that was already
// there.
func (o options) download(ctx context.Context, say *speaker) (fetch.Message, error) {
	u, err := plainURL(o.url)
	if err != nil {
		return fetch.Message{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m := &meter{}
	go m.watch(ctx, o.stall, cancel, say)

	dst := filepath.Join(o.out, o.name)
	getters := &getter.HttpGetter{
		Netrc:                 false,
		Client:                &http.Client{Transport: newFence(o, m), CheckRedirect: checkRedirect},
		Header:                http.Header{"User-Agent": {"nodevisor-fetch"}},
		DoNotCheckHeadFirst:   true,
		MaxBytes:              o.maxBytes + 1, // a second fence: the body itself ends with an error at maxBytes
		XTerraformGetDisabled: true,
	}
	client := &getter.Client{
		Ctx: ctx, Src: u.String(), Dst: dst, Pwd: o.out, Mode: getter.ClientModeFile, Umask: 0o077,
		Getters:         map[string]getter.Getter{"https": getters, "http": getters},
		Detectors:       []getter.Detector{}, // nil would mean all of them
		Decompressors:   map[string]getter.Decompressor{},
		DisableSymlinks: true,
	}
	if err := client.Get(); err != nil {
		return fetch.Message{}, because(ctx, err)
	}
	return o.received(dst, m)
}

// plainURL refuses what go-getter would read something into: a forced getter (git::), a subdirectory (//), its own
// query parameters.
func plainURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, refusal("malformed URL")
	}
	if err := fetch.AllowedURL(u); err != nil {
		return nil, refusal("%w", err)
	}
	if strings.Contains(u.EscapedPath(), "//") {
		return nil, refusal("the path holds an empty element (//)")
	}
	for _, magic := range []string{"archive", "checksum"} {
		if u.Query().Has(magic) {
			return nil, refusal("the parameter %s is not for the server", magic)
		}
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// because finds the real reason of an error: why the context was cancelled, and the error without the URL around it,
// whose query may be a secret.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		return inner.Err
	}
	return err
}

// received looks at what is there now, whatever go-getter said.
func (o options) received(dst string, m *meter) (fetch.Message, error) {
	info, err := os.Lstat(dst)
	if err != nil {
		return fetch.Message{}, refusal("nothing was downloaded")
	}
	switch size, total := info.Size(), m.total.Load(); {
	case !info.Mode().IsRegular():
		return fetch.Message{}, refusal("not a regular file")
	case size > o.maxBytes:
		return fetch.Message{}, tooLarge("more than %d bytes", o.maxBytes)
	case size != m.done.Load() || total > 0 && size != total:
		return fetch.Message{}, temporary("truncated: %d of %d bytes", size, total)
	case size == 0:
		return fetch.Message{}, refusal("the server sent an empty file")
	}
	result, sums, err := describe(dst)
	if err != nil {
		return fetch.Message{}, err
	}
	if algo, want, _ := strings.Cut(o.checksum, ":"); o.checksum != "" {
		if got := sums[algo]; got == "" || !strings.EqualFold(got, want) {
			return fetch.Message{}, refusal("checksum mismatch: want %s, got sha256:%s", o.checksum, result.SHA256)
		}
	}
	return result, nil
}

// describe is the message of success for a file, and its digests by their algorithms.
func describe(path string) (fetch.Message, map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return fetch.Message{}, nil, err
	}
	defer f.Close()
	sha256sum, sha512sum := sha256.New(), sha512.New()
	n, err := io.Copy(io.MultiWriter(sha256sum, sha512sum), f)
	if err != nil {
		return fetch.Message{}, nil, fmt.Errorf("cannot hash %s: %w", path, err)
	}
	sums := map[string]string{
		"sha256": hex.EncodeToString(sha256sum.Sum(nil)), "sha512": hex.EncodeToString(sha512sum.Sum(nil)),
	}
	return fetch.Message{Path: path, Bytes: n, SHA256: sums["sha256"]}, sums, nil
}
