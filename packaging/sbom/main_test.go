package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The test binary is itself a Go program, though one whose modules the linker doesn't record; a program that never was
// stands in for them.
func TestBillOfMaterials(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	own, err := readPrograms([]string{self})
	require.NoError(t, err)
	cache := t.TempDir()
	toml := filepath.Join(cache, "github.com", "!burnt!sushi", "toml@v1.6.0")
	require.NoError(t, os.MkdirAll(toml, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(toml, "COPYING"), []byte(`The MIT License: Permission is hereby granted, free of charge … THE SOFTWARE IS PROVIDED "AS IS"`), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(toml, "license.go"), []byte("package toml"), 0o644))
	programs := append(own, program{"other", "00", &debug.BuildInfo{GoVersion: "go1.26.0 X:some", Deps: []*debug.Module{
		{Path: "example.org/replaced", Version: "v0.1.0", Replace: &debug.Module{Path: "github.com/BurntSushi/toml", Version: "v1.6.0", Sum: "h1:abc="}},
		{Path: "example.org/unknown", Version: "v0.1.0"},
	}}})
	render := func() (string, string) {
		texts := licenceTexts{cache: cache}
		doc, err := describe(programs, "1.2.3", time.Unix(1700000000, 0).UTC(), texts.of)
		require.NoError(t, err)
		return string(doc), string(texts.notices())
	}
	first, notices := render()
	again, _ := render()
	assert.Equal(t, first, again, "the same programs, the same bytes")

	var doc struct {
		BOMFormat, SpecVersion, SerialNumber string
		Metadata                             struct{ Timestamp time.Time }
		Components                           []struct {
			Name, Version, PURL string
			Licenses            []struct{ License struct{ ID string } }
			Hashes              []struct{ Alg, Content string }
			Properties          []struct{ Name, Value string }
		}
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	require.NoError(t, json.Unmarshal([]byte(first), &doc))
	assert.Equal(t, "CycloneDX", doc.BOMFormat)
	assert.Regexp(t, `^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, doc.SerialNumber)
	assert.Equal(t, time.Unix(1700000000, 0).UTC(), doc.Metadata.Timestamp)
	licences, refs := map[string]string{}, map[string]bool{}
	for _, c := range doc.Components {
		refs[c.PURL] = true
		if len(c.Licenses) > 0 {
			licences[c.PURL] = c.Licenses[0].License.ID
		}
		if strings.HasSuffix(c.Name, "/toml") {
			require.Len(t, c.Properties, 1)
			assert.Equal(t, "h1:abc=", c.Properties[0].Value)
		}
	}
	sum, err := sha256Of(self)
	require.NoError(t, err)
	assert.Equal(t, sum, doc.Components[0].Hashes[0].Content, "the program's own digest")
	assert.Equal(t, "MIT", licences["pkg:golang/github.com/BurntSushi/toml@v1.6.0"], "what replaces a module is what is linked")
	assert.Equal(t, "BSD-3-Clause", licences["pkg:golang/std@v1.26.0"], "without the experiments")
	assert.NotContains(t, licences, "pkg:golang/example.org/unknown@v0.1.0")
	assert.True(t, refs["pkg:golang/example.org/unknown@v0.1.0"], "listed, also without a licence")
	for _, d := range doc.Dependencies {
		for _, on := range d.DependsOn {
			assert.True(t, refs[on] || strings.HasPrefix(on, "nodevisor/"), "%s depends on %s, which isn't listed", d.Ref, on)
		}
	}
	assert.Contains(t, notices, "\ngithub.com/BurntSushi/toml v1.6.0\n\nThe MIT License")
	assert.NotContains(t, notices, "package toml")
}

func TestRefusals(t *testing.T) {
	out := filepath.Join(t.TempDir(), "sbom.json")
	text := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(text, []byte("no program"), 0o755))
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	assert.ErrorContains(t, run([]string{"-version", "1", "-out", out, text}), "cannot read program")
	assert.ErrorContains(t, run([]string{"-version", "1", "-out", out}), "are needed")
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	assert.ErrorContains(t, run([]string{"-version", "1", "-out", out, text}), "SOURCE_DATE_EPOCH")
	assert.NoFileExists(t, out)

	t.Setenv("SOURCE_DATE_EPOCH", "1")
	self, err := os.Executable()
	require.NoError(t, err)
	notices := filepath.Join(t.TempDir(), "notices")
	require.NoError(t, run([]string{"-version", "1", "-out", out, "-notices", notices, self}))
	assert.FileExists(t, out)
	assert.FileExists(t, notices)
}

func TestIdentify(t *testing.T) {
	for want, text := range map[string]string{
		"Apache-2.0":   "Apache License\n  Version 2.0, January 2004",
		"MPL-2.0":      "Mozilla Public License, version 2.0",
		"MIT":          "Permission is hereby granted, free of charge, to any person\nTHE SOFTWARE IS PROVIDED \"AS IS\"",
		"BSD-3-Clause": "Redistribution and use in source and binary\nforms, with or without ... Neither the name of",
		"BSD-2-Clause": "Redistribution and use in source and binary forms, with or without modification",
		"ISC":          "Permission to use, copy, modify, and distribute this software for any purpose with or without fee",
		"":             "All rights reserved.",
	} {
		assert.Equal(t, want, identify([]byte(text)))
	}
}

func TestEscape(t *testing.T) {
	assert.Equal(t, "github.com/!burnt!sushi/toml", escape("github.com/BurntSushi/toml"))
}
