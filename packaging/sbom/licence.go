package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode"
)

// licenceTexts finds and keeps the licences of modules in Go's module cache.
type licenceTexts struct {
	cache string
	found []foundLicence
}

type foundLicence struct {
	module, id string
	text       []byte
}

// maxLicence caps what is read of one file, in bytes.
const maxLicence = 1 << 20

// of returns the SPDX identifier of a module's licence, "" where none is recognised. Its texts are kept for notices.
func (l *licenceTexts) of(path, version string) string {
	id := ""
	for _, file := range licenceFiles(l.dir(path, version)) {
		text, err := os.ReadFile(file)
		if err != nil || len(text) > maxLicence {
			continue
		}
		kind := identify(text)
		if id == "" {
			id = kind
		}
		known := func(f foundLicence) bool { return f.module == path+" "+version && bytes.Equal(f.text, text) }
		if !slices.ContainsFunc(l.found, known) {
			l.found = append(l.found, foundLicence{path + " " + version, kind, text})
		}
	}
	return id
}

// dir is where the module lies: in the cache upper-case letters are written as "!" and the lower-case one
// (https://go.dev/ref/mod#module-cache).
func (l *licenceTexts) dir(path, version string) string {
	if path == "std" {
		return runtime.GOROOT() //nolint:staticcheck // the toolchain that builds is the one whose licence is meant
	}
	return filepath.Join(l.cache, escape(path)+"@"+escape(version))
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range s {
		if unicode.IsUpper(c) {
			b.WriteByte('!')
			c = unicode.ToLower(c)
		}
		b.WriteRune(c)
	}
	return b.String()
}

// licenceFiles lists what holds a licence or a notice, by its name, in the module's own directory; licences first.
func licenceFiles(dir string) (files []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, stem := range []string{"LICENSE", "LICENCE", "COPYING", "UNLICENSE", "NOTICE", "PATENTS"} {
		for _, e := range entries {
			if e.Type().IsRegular() && strings.HasPrefix(strings.ToUpper(e.Name()), stem) && filepath.Ext(e.Name()) != ".go" {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	return files
}

// identify tells a licence by sentences that only it has (https://spdx.org/licenses/). It knows those that Go modules use;
// the order matters where one text holds another's sentence.
func identify(text []byte) string {
	s := strings.ToLower(strings.Join(strings.Fields(string(text)), " "))
	has := func(parts ...string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
	}
	switch {
	case has("apache license", "version 2.0"):
		return "Apache-2.0"
	case has("mozilla public license", "2.0"):
		return "MPL-2.0"
	case has("permission to use, copy, modify, and/or distribute this software for any purpose"),
		has("permission to use, copy, modify, and distribute this software for any purpose with or without fee"):
		return "ISC"
	case has("permission is hereby granted, free of charge", "the software is provided \"as is\""):
		return "MIT"
	case has("redistribution and use in source and binary forms", "neither the name"):
		return "BSD-3-Clause"
	case has("redistribution and use in source and binary forms", "endorse or promote products"):
		return "BSD-3-Clause"
	case has("redistribution and use in source and binary forms"):
		return "BSD-2-Clause"
	case has("this is free and unencumbered software released into the public domain"):
		return "Unlicense"
	}
	return ""
}

// notices renders every text once, below the modules that it holds for.
func (l *licenceTexts) notices() []byte {
	var texts [][]byte
	holders := map[string][]string{}
	for _, f := range l.found {
		if holders[string(f.text)] == nil {
			texts = append(texts, f.text)
		}
		holders[string(f.text)] = append(holders[string(f.text)], f.module)
	}
	slices.SortFunc(texts, func(a, b []byte) int {
		return strings.Compare(slices.Min(holders[string(a)]), slices.Min(holders[string(b)]))
	})
	var b bytes.Buffer
	b.WriteString("Licences and notices of what is linked into the programs of Nodevisor.\n")
	for _, text := range texts {
		names := holders[string(text)]
		slices.Sort(names)
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 78), strings.Join(names, "\n"), bytes.TrimRight(text, "\n"))
	}
	return b.Bytes()
}
