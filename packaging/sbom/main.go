// Sbom writes the bill of materials of Go programs, as CycloneDX 1.6 JSON (https://cyclonedx.org/docs/1.6/json/), and the
// texts of the licences of what is linked into them. It reads what the linker recorded in each program, not go.mod: what is
// listed is what runs.
//
//	sbom -version 1.2.3 -modcache "$(go env GOMODCACHE)" -out sbom.cdx.json -notices third-party-licenses build/supervisor build/fetch
//
// The same programs give the same bytes: the time is SOURCE_DATE_EPOCH, the serial number a digest of the content.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("sbom", flag.ContinueOnError)
	version := fs.String("version", "", "of the programs")
	cache := fs.String("modcache", "", "Go's module cache, for the licences")
	out := fs.String("out", "", "the document")
	notices := fs.String("notices", "", "the licences' texts")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 0 || *out == "" || *version == "" {
		return errors.New("programs, -version and -out are needed")
	}
	epoch, err := sourceDate(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	programs, err := readPrograms(fs.Args())
	if err != nil {
		return err
	}
	texts := licenceTexts{cache: *cache}
	doc, err := describe(programs, *version, epoch, texts.of)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*out, doc, 0o644); err != nil || *notices == "" {
		return err
	}
	return os.WriteFile(*notices, texts.notices(), 0o644)
}

// sourceDate reads SOURCE_DATE_EPOCH: seconds since 1970 (https://reproducible-builds.org/specs/source-date-epoch/).
func sourceDate(s string) (time.Time, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot read SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

// program is one binary with what the linker recorded in it.
type program struct {
	name, sha256 string
	info         *debug.BuildInfo
}

func readPrograms(paths []string) (all []program, err error) {
	for _, path := range paths {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read program: %w", err)
		}
		sum, err := sha256Of(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read program: %w", err)
		}
		all = append(all, program{filepath.Base(path), sum, info})
	}
	return all, nil
}

func sha256Of(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// The parts of CycloneDX that are used, in the order in which they are written.
type (
	document struct {
		Format       string       `json:"bomFormat"`
		Spec         string       `json:"specVersion"`
		Serial       string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp time.Time `json:"timestamp"`
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		PURL       string     `json:"purl,omitempty"`
		Licences   []licence  `json:"licenses,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	licence struct {
		License licenceID `json:"license"`
	}
	licenceID struct {
		ID string `json:"id"`
	}
	hash       struct{ Alg, Content string }
	property   struct{ Name, Value string }
	dependency struct {
		Ref string   `json:"ref"`
		On  []string `json:"dependsOn"`
	}
)

// MarshalJSON writes the specification's names.
func (h hash) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"alg": h.Alg, "content": h.Content})
}

// MarshalJSON writes the specification's names.
func (p property) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"name": p.Name, "value": p.Value})
}

// describe makes the document. licenceOf gives the SPDX identifier of a module's licence, or "".
func describe(programs []program, version string, at time.Time, licenceOf func(path, version string) string) ([]byte, error) {
	const own = "nodevisor"
	doc := document{
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Metadata: metadata{at, component{
			Type: "application", Ref: own, Name: own, Version: version, Licences: []licence{{licenceID{"Apache-2.0"}}},
		}},
	}
	modules := map[string]component{}
	whole := dependency{Ref: own, On: []string{}}
	for _, p := range programs {
		ref := own + "/" + p.name
		whole.On = append(whole.On, ref)
		doc.Components = append(doc.Components, component{
			Type: "application", Ref: ref, Name: p.name, Version: version,
			Licences: []licence{{licenceID{"Apache-2.0"}}}, Hashes: []hash{{"SHA-256", p.sha256}},
		})
		needs := dependency{Ref: ref, On: []string{}}
		for _, m := range append([]*debug.Module{standardLibrary(p.info)}, p.info.Deps...) {
			c := moduleComponent(m, licenceOf)
			modules[c.Ref] = c
			needs.On = append(needs.On, c.Ref)
		}
		slices.Sort(needs.On)
		doc.Dependencies = append(doc.Dependencies, needs)
	}
	doc.Dependencies = append([]dependency{whole}, doc.Dependencies...)
	refs := make([]string, 0, len(modules))
	for ref := range modules {
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	for _, ref := range refs {
		doc.Components = append(doc.Components, modules[ref])
		doc.Dependencies = append(doc.Dependencies, dependency{ref, []string{}})
	}
	return doc.sealed()
}

// sealed renders the document with a serial number that is a digest of everything else: a version 8 UUID, for whose bits
// the maker answers (RFC 9562, section 5.8).
func (d document) sealed() ([]byte, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(text)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	d.Serial = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16])
	text, err = json.MarshalIndent(d, "", " ")
	return append(text, '\n'), err
}

// standardLibrary is Go's own part of every program. It carries most of what a scanner of vulnerabilities looks for.
func standardLibrary(info *debug.BuildInfo) *debug.Module {
	version, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ") // "go1.26.0 X:…" names experiments
	return &debug.Module{Path: "std", Version: "v" + version}
}

func moduleComponent(m *debug.Module, licenceOf func(path, version string) string) component {
	if m.Replace != nil {
		m = m.Replace
	}
	purl := "pkg:golang/" + m.Path + "@" + m.Version
	c := component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl}
	if id := licenceOf(m.Path, m.Version); id != "" {
		c.Licences = []licence{{licenceID{id}}}
	}
	if m.Sum != "" { // a digest of a list of digests, which no algorithm of the specification is
		c.Properties = []property{{"go:sum", m.Sum}}
	}
	return c
}
