package source

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParsePath(t *testing.T) {
	for text, want := range map[string]jsonPath{
		"height":      {"height"},
		"a.b.c":       {"a", "b", "c"},
		".a.b":        {"a", "b"},
		"$.a.b":       {"a", "b"},
		"[0].height":  {0, "height"},
		"a[2][-1].b":  {"a", 2, -1, "b"},
		"$[1]":        {1},
		"a b.c-d.e_f": {"a b", "c-d", "e_f"},
	} {
		got, err := parsePath(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "$", ".", "..", "a.", "a..b", "a[", "a[]", "a[x]", "a[1", "a[1]b", "a.[1]", "a[99999999999999999999]"} {
		_, err := parsePath(text)
		assert.Error(t, err, text)
	}
}

func TestLookUp(t *testing.T) {
	const doc = `{"result":{"sync_info":{"latest_block_height":"123"},"list":[{"n":1},{"n":2}],"null":null},"x.y":5}`
	for path, want := range map[string]int64{
		"result.sync_info.latest_block_height": 123,
		"result.list[0].n":                     1,
		"result.list[-1].n":                    2,
	} {
		p, err := parsePath(path)
		require.NoError(t, err)
		found, err := lookUp([]byte(doc), p)
		require.NoError(t, err, path)
		got, err := heightOf(found)
		require.NoError(t, err, path)
		assert.Equal(t, want, got, path)
	}
	for _, path := range []string{"result.nothing", "result[0]", "result.list[2].n", "result.list[-3].n", "result.list.n", "height", "result.sync_info.latest_block_height.deeper"} {
		p, err := parsePath(path)
		require.NoError(t, err)
		_, err = lookUp([]byte(doc), p)
		require.ErrorIs(t, err, errMissing, path)
		assert.Contains(t, err.Error(), path, "the message says which path")
	}
	for name, doc := range map[string]string{
		"empty": "", "html": "<html>", "cut short": `{"height":12`, "two documents": `{"height":1}{"height":2}`, "too deep": strings.Repeat("[", 100_000),
	} {
		_, err := lookUp([]byte(doc), jsonPath{"height"})
		assert.Error(t, err, name)
		assert.NotErrorIs(t, err, errMissing, name)
	}
}

func TestHeightOf(t *testing.T) {
	for doc, want := range map[string]int64{
		`1`: 1, `"1"`: 1, `"0x1"`: 1, `"0xfF"`: 255, `9223372036854775807`: 9223372036854775807,
		`"0x7fffffffffffffff"`: 9223372036854775807, `"0012"`: 12,
	} {
		assert.Equal(t, want, heightIn(t, doc), doc)
	}
	for _, doc := range []string{
		`-1`, `"-1"`, `1.0`, `1e3`, `"1e3"`, `""`, `" 1"`, `"1 "`, `"+1"`, `"1_000"`, `"1,000"`, `"0x"`, `"x1"`, `"ff"`, `"0b1"`, `"0x-1"`,
		`9223372036854775808`, `"0x8000000000000000"`, `null`, `true`, `[1]`, `{"height":1}`, `"１"`,
	} {
		v, err := lookUp([]byte(`{"height":`+doc+`}`), jsonPath{"height"})
		require.NoError(t, err)
		_, err = heightOf(v)
		assert.Error(t, err, doc)
		assert.NotErrorIs(t, err, errNoBlock, doc)
	}
	for _, doc := range []string{`0`, `"0"`, `"0x0"`} {
		v, err := lookUp([]byte(`{"height":`+doc+`}`), jsonPath{"height"})
		require.NoError(t, err)
		_, err = heightOf(v)
		assert.ErrorIs(t, err, errNoBlock, "0 is not known, never a height")
	}
}

func heightIn(t *testing.T, doc string) int64 {
	v, err := lookUp([]byte(`{"height":`+doc+`}`), jsonPath{"height"})
	require.NoError(t, err)
	h, err := heightOf(v)
	require.NoError(t, err, doc)
	return h
}

// Whatever a server answers and whatever path is configured: no panic, and what comes out is a height.
func FuzzJSONPath(f *testing.F) {
	f.Add("result.sync_info.latest_block_height", []byte(`{"result":{"sync_info":{"latest_block_height":"12"}}}`))
	f.Add("[0].a[-1]", []byte(`[{"a":[1,"0x2"]}]`))
	f.Add("$.a", []byte(`{"a":0}`))
	f.Add("a", []byte(`{"a":1e400}`))
	f.Fuzz(func(t *testing.T, path string, doc []byte) {
		p, err := parsePath(path)
		if err != nil {
			return
		}
		require.NotEmpty(t, p)
		v, err := lookUp(doc, p)
		if err != nil {
			return
		}
		if h, err := heightOf(v); err == nil {
			require.Positive(t, h)
		} else {
			require.Zero(t, h)
		}
	})
}
